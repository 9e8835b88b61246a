import hashlib
import subprocess
import sys
from importlib import resources

import ml_dtypes
import numpy as np
import pytest

import vanishjax.training.data as data_package
from vanishjax.training.data import DataError, load_dataset
from vanishjax.training.data.digits import LICENCE, SOURCE, read_digits

PARTS = ("train", "validation", "test")
CLASS_COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_shipped_digits():
    data = read_digits()
    x, y = data.train.inputs, data.train.labels
    assert (x.shape, x.dtype, x.max()) == ((1797, 8, 8), np.uint8, 16)
    np.testing.assert_array_equal(np.bincount(y), CLASS_COUNTS)
    digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_shipped_digits_name_their_source_and_licence():
    path = resources.files("vanishjax.training.data").joinpath("digits.npz")
    assert len(path.read_bytes()) < 60_000
    with path.open("rb") as file, np.load(file) as arrays:
        assert arrays["source"].item() == SOURCE
        assert arrays["licence"].item() == LICENCE
    assert "Alpaydin" in SOURCE
    assert "CC BY 4.0" in LICENCE


def test_digits_are_split_exactly_and_by_class():
    data = load_dataset()
    assert [len(getattr(data, part)) for part in PARTS] == [1150, 288, 359]
    assert (data.name, data.image_shape, data.classes) == ("digits", (8, 8), 10)
    for part, share in zip(PARTS, (0.64, 0.16, 0.2), strict=True):
        examples = getattr(data, part)
        np.testing.assert_allclose(
            np.bincount(examples.labels), np.array(CLASS_COUNTS) * share, atol=1.3
        )
        assert examples.inputs.dtype == np.float32
        assert examples.labels.dtype == np.int32
        assert examples.inputs.min() == 0
        assert examples.inputs.max() == 1


def rows(examples):
    return sorted(map(bytes, np.c_[examples.inputs * 16, examples.labels].astype(np.uint8)))


def test_parts_are_the_whole_and_keep_inputs_with_their_labels():
    data = load_dataset()
    raw = read_digits().train
    together = sorted(row for part in PARTS for row in rows(getattr(data, part)))
    assert together == sorted(map(bytes, np.c_[raw.inputs.reshape(1797, 64), raw.labels]))


def test_the_seed_decides_and_nothing_else():
    one, two, other = load_dataset(seed=3), load_dataset(seed=3), load_dataset(seed=4)
    for part in PARTS:
        np.testing.assert_array_equal(getattr(one, part).inputs, getattr(two, part).inputs)
        np.testing.assert_array_equal(getattr(one, part).labels, getattr(two, part).labels)
        assert rows(getattr(one, part)) != rows(getattr(other, part))


def test_the_test_part_does_not_depend_on_the_validation_split():
    one, two = (load_dataset(validation_split=split) for split in (0.1, 0.4))
    np.testing.assert_array_equal(one.test.inputs, two.test.inputs)
    assert (len(one.validation), len(two.validation)) == (144, 575)


def test_bfloat16():
    exact, rounded = load_dataset(), load_dataset(dtype="bfloat16")
    assert rounded.train.inputs.dtype == ml_dtypes.bfloat16
    assert rounded.train.labels.dtype == np.int32
    np.testing.assert_array_equal(
        rounded.train.inputs, exact.train.inputs.astype(ml_dtypes.bfloat16)
    )


def test_only_training_examples_decide_the_normalization():
    data = load_dataset(normalization="standard")
    raw = data.normalization.offset + data.train.inputs * data.normalization.scale
    np.testing.assert_allclose(raw.mean(axis=0), data.normalization.offset, atol=1e-4)
    np.testing.assert_allclose(data.train.inputs.mean(axis=0), 0, atol=1e-5)
    assert np.abs(data.test.inputs.mean(axis=0)).max() > 1e-3
    assert load_dataset(normalization="none").train.inputs.max() == 16


def test_examples_can_be_sliced():
    train = load_dataset().train
    few = train[:7]
    assert len(few) == 7
    np.testing.assert_array_equal(few.inputs, train.inputs[:7])
    np.testing.assert_array_equal(few.labels, train.labels[:7])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"validation_split": 0}, "validation_split is 0; it must be between 0 and 1"),
        ({"validation_split": 1}, "validation_split is 1; it must be"),
        ({"test_split": 1.5}, "test_split is 1.5; it must be"),
        ({"test_split": 0.995}, "digits: y: test_split 0.995 holds out 1788 of 1797"),
        ({"validation_split": 0.0001}, "validation_split 0.0001 holds out 0 of 1438"),
        ({"dtype": "float16"}, "dtype 'float16' is unknown; use one of float32, bfloat16"),
        ({"normalization": "z"}, "normalization 'z' is unknown; use one of auto, unit"),
        ({"targets": "z"}, "targets 'z' is unknown; use one of auto, classes, real"),
        ({"seed": -1}, "seed is -1; it must be a whole number"),
        ({"seed": 0.5}, "seed is 0.5; it must be a whole number"),
        ({"source": "cifar"}, "cifar: no such data set or file; use digits, mnist"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(DataError, match=words):
        load_dataset(**arguments)


def test_exports_are_sorted_and_complete():
    names = data_package.__all__
    assert names == sorted(names)
    public = {
        name
        for name, value in vars(data_package).items()
        if not name.startswith("_") and not hasattr(value, "__path__") and callable(value)
    }
    assert public == set(names)


def test_the_data_layer_itself_needs_no_jax():
    code = """
import sys, importlib.machinery, types
for name in ("vanishjax", "vanishjax.training"):  # their own imports are not the question here
    module = types.ModuleType(name)
    module.__path__ = [p + "/" + name.replace(".", "/") for p in sys.path if p]
    sys.modules[name] = module
import vanishjax.training.data as data
data.load_dataset()
assert not {"jax", "matplotlib", "sklearn"} & set(sys.modules)
"""
    root = resources.files("vanishjax").joinpath("..")
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(root)})
