import json

import numpy as np
import pytest

from vanishjax.training.data import DataError, Normalization
from vanishjax.training.data.normalization import fit_normalization

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("kind", "train", "pixel_max", "expected"),
    [
        ("auto", np.array([[0, 100]], np.uint8), None, (0.0, 255.0)),
        ("auto", np.array([[0, 9]], np.uint8), 16.0, (0.0, 16.0)),
        ("auto", np.array([[-4, 12]], np.int64), None, (-4.0, 16.0)),
        ("auto", np.array([[7, 7]], np.int64), None, (7.0, 1.0)),
        ("auto", np.array([[False, True]]), None, (0.0, 1.0)),
        ("auto", np.array([[0.2, 0.9]]), None, (0.0, 1.0)),
        ("auto", np.array([[0.2], [1.2]]), None, ([0.7], [0.5])),
        ("auto", np.array([[-0.1, 0.5]]), None, ([-0.1, 0.5], [1.0, 1.0])),
        ("unit", np.array([[0.2, 0.9]]), None, (0.0, 1.0)),
        ("unit", np.array([[-2.0, 6.0]]), None, (-2.0, 8.0)),
        ("none", np.array([[0, 100]], np.uint8), 16.0, (0.0, 1.0)),
        ("standard", np.array([[0, 5], [4, 5]], np.uint8), None, ([2.0, 5.0], [2.0, 1.0])),
    ],
)
def test_choices(kind, train, pixel_max, expected):
    fitted = fit_normalization(kind, train, pixel_max)
    np.testing.assert_allclose(fitted.offset, expected[0], rtol=1e-12)
    np.testing.assert_allclose(fitted.scale, expected[1], rtol=1e-12)
    assert np.shape(fitted.offset) == np.shape(expected[0])
    assert np.isfinite(fitted.apply(train)).all()


def test_constant_features_are_found_in_spite_of_rounding():
    train = np.full((1000, 2), 0.1)
    assert train.std() > 0
    train[0, 1] = 5.0
    fitted = fit_normalization("standard", train)
    assert fitted.scale[0] == 1
    np.testing.assert_allclose(fitted.apply(train)[:, 0], 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.float16, np.float64])
def test_standardized_features(dtype):
    train = (RNG.random((500, 3)) * 100).astype(dtype)
    inputs = fit_normalization("standard", train).apply(train)
    assert inputs.dtype == np.float32
    constant = np.ptp(train.astype(float), axis=0) == 0
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(axis=0), np.where(constant, 0, 1), atol=1e-4)


def test_a_large_mean_costs_float64_no_precision():
    train = 1e9 + RNG.standard_normal((500, 1))
    inputs = fit_normalization("standard", train).apply(train)
    np.testing.assert_allclose(inputs.std(), 1, rtol=1e-5)


def test_a_deviation_too_small_for_its_square_counts_as_none():
    fitted = fit_normalization("standard", np.array([[0.0], [1e-300]]))
    assert fitted.scale[0] == 1


def test_apply_leaves_its_argument_alone():
    raw = np.ones((2, 2), np.float32)
    Normalization(1.0, 2.0).apply(raw)
    assert (raw == 1).all()


@pytest.mark.parametrize("values", [(0.5, 2.0), (np.array([0.1, 1 / 3]), np.array([2.0, 7.0]))])
def test_json_round_trip_is_exact(values):
    before = Normalization(*values)
    after = Normalization.from_dict(json.loads(json.dumps(before.to_dict())))
    np.testing.assert_array_equal(after.offset, before.offset)
    np.testing.assert_array_equal(after.scale, before.scale)
    raw = RNG.random((3, 2))
    np.testing.assert_array_equal(after.apply(raw), before.apply(raw))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "offset and scale missing"),
        ({"offset": 0.0}, "scale missing"),
        ({"offset": "0", "scale": 1.0}, "offset must be a finite number"),
        ({"offset": None, "scale": 1.0}, "offset must be a finite number"),
        ({"offset": 0.0, "scale": 0.0}, "scale must be .* none of them zero"),
        ({"offset": 0.0, "scale": [1.0, 0.0]}, "none of them zero"),
        ({"offset": float("nan"), "scale": 1.0}, "offset must be a finite"),
        ({"offset": [[0.0]], "scale": 1.0}, "offset must be"),
        ({"offset": [[0.0], [1.0, 2.0]], "scale": 1.0}, "not numbers"),
    ],
)
def test_bad_dictionaries(values, words):
    with pytest.raises(DataError, match=words):
        Normalization.from_dict(values)


def test_inputs_with_other_features():
    with pytest.raises(DataError, match="for 3 features, but the inputs have 2"):
        Normalization(np.zeros(3), 1.0).apply(np.zeros((4, 2)))


def test_unknown_kind():
    with pytest.raises(DataError, match="'minmax' is unknown; use one of auto, unit"):
        fit_normalization("minmax", np.zeros((1, 1)))
