"""Model files: what is saved comes back, what is no model is refused, old files survive."""

import json
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vanishjax.files import write_atomically
from vanishjax.model_file import TrainedModel, load_model, save_model
from vanishjax.models import MLP

ARCHITECTURE = {"in_features": 4, "hidden": [8], "classes": 3, "activation": "relu"}
DESCRIPTION = {
    "data": "digits",
    "image_shape": [2, 2],
    "pixel_max": 16.0,
    "classes": None,
    "normalization": {"offset": 0.0, "scale": [1.0, 2.0, 3.0, 4.0]},
}
ARRAYS = {
    "hidden_0/bias": np.zeros(8, np.float32),
    "hidden_0/kernel": np.zeros((4, 8), np.float32),
    "output/bias": np.zeros(3, np.float32),
    "output/kernel": np.zeros((8, 3), np.float32),
}


def trained(**changes):
    architecture = {**ARCHITECTURE, **changes}
    arguments = {name: value for name, value in architecture.items() if name != "in_features"}
    model = MLP(**{**arguments, "hidden": tuple(arguments["hidden"])})
    params = model.init(jax.random.key(1), jnp.ones((1, 4)))["params"]
    # ReZero's gains start at zero: noise tells every leaf from its initial value.
    params = jax.tree.map(lambda x: x + jnp.asarray(0.25, x.dtype), params)
    return TrainedModel(params, architecture, DESCRIPTION), model


def write(path, arrays=ARRAYS, **changes):
    """A file as another program may write it; a text of `changes` is taken as it is."""
    metadata = {
        "format": "vanishjax-mlp-1",
        "architecture": ARCHITECTURE,
        "description": DESCRIPTION,
        **changes,
    }
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in metadata.items()
        if value is not None
    }
    safetensors.numpy.save_file(arrays, path, metadata=texts)
    return path


def write_architecture(**changes):
    return lambda path: write(path, architecture={**ARCHITECTURE, **changes})


def write_description(**changes):
    return lambda path: write(path, description={**DESCRIPTION, **changes})


# What no field may be, whatever it is for.
WRONG = [
    "16", "\x1b[31m", "x" * 10_000, [], {}, [[]], [None], [1.5, 2], ["8", "8"], -1, True,
    10**400, 1e300, float("nan"), float("inf"), [10**400, 8], [1e5, 1e5], [0, 4], {"a": 1},
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden": [8, 8, 8], "scan": False, "activation": "gelu"},
        {"hidden": [8, 8, 8], "scan": True, "residual": "scaled"},
        {"hidden": [8, 8, 8], "scan": True, "residual": "rezero"},
        {"hidden": [8, 8, 5], "residual": "rezero", "classes": 1},
    ],
)
def test_a_model_comes_back_as_it_was(tmp_path, changes, dtype):
    saved, model = trained(**changes, dtype=dtype, param_dtype=dtype)
    save_model(tmp_path / "a.safetensors", saved)
    loaded = load_model(tmp_path / "a.safetensors")
    assert loaded.architecture == saved.architecture
    assert loaded.description == DESCRIPTION
    assert jax.tree.structure(loaded.params) == jax.tree.structure(saved.params)
    for ours, theirs in zip(*map(jax.tree.leaves, (loaded.params, saved.params)), strict=True):
        assert ours.dtype == theirs.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(ours, theirs)
    inputs = jax.random.normal(jax.random.key(2), (5, 4), dtype)
    expected = model.apply({"params": saved.params}, inputs)
    np.testing.assert_array_equal(loaded.predict_fn(loaded.params, inputs), expected)


def test_a_model_that_others_wrote_is_read(tmp_path):
    model = load_model(write(tmp_path / "a.safetensors"))
    assert model.predict_fn(model.params, jnp.ones((2, 4))).shape == (2, 3)


def pickled(path):
    path.write_bytes(pickle.dumps({"params": [1.0]}))
    return path


def truncated(path):
    save_model(path, trained()[0])
    path.write_bytes(path.read_bytes()[:-1])
    return path


def touched(path):
    path.touch()
    return path


def nested(path):
    return write(path, architecture="[" * 100_000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "no such model file; train one with `vanishjax train`"),
        (lambda path: (path.mkdir(), path)[1], "no such model file"),
        (touched, "header too small"),
        (truncated, "a model that `vanishjax train` saved: "),
        (pickled, "header too large"),
        (nested, "recursion"),
        (lambda path: write(path, format=None), "its format is None, not 'vanishjax-mlp-1'"),
        (lambda path: write(path, format="other"), "its format is 'other'"),
        (lambda path: write(path, description="{"), "Expecting property name"),
        (lambda path: write(path, architecture="3"), "its architecture is 3 instead of an object"),
        (lambda path: write(path, architecture="{}"), "no 'in_features'"),
        (write_architecture(in_features=0), "its in_features is 0 instead of a whole number"),
        (write_architecture(in_features="x"), 'its in_features is "x" instead of a whole'),
        (write_architecture(hidden=[]), "a list of widths of at least 1"),
        (
            write_architecture(hidden=[8] * 2000),
            "hidden_1/kernel: expected float32.8, 8., found no",
        ),
        (write_architecture(activation="no"), "one of centered_sigmoid, elu"),
        (write_architecture(dtype="int8"), "float32, bfloat16 or float16"),
        (write_architecture(kernel_init="x"), "a field 'kernel_init', which is unknown"),
        (write_architecture(more=1), "'more'"),
        (write_architecture(hidden=[8, 4], scan=True), "scan=True"),
        (write_description(image_shape=[8, 7]), "image_shape is .8, 7., but its network takes 4"),
        (write_description(image_shape="88"), "image_shape is .88. instead of null or height"),
        (write_description(image_shape=[10**400, 8]), "instead of null or height and width"),
        (write_description(image_shape=[1e5, 1e5]), "instead of null or height and width"),
        (write_description(image_shape=[2**30, 2**30]), "but its network takes 4 inputs"),
        (write_description(pixel_max="16"), "its pixel_max is .16. instead of null or a number"),
        (write_description(pixel_max=1e300), r"its pixel_max is 1e.300 instead of null or"),
        (write_description(classes=4), "its classes are 4, but its network has 3 outputs"),
        (write_description(normalization=None), "normalization is null instead of offset"),
        (write_description(normalization={}), "normalization: offset and scale missing"),
        (write_description(normalization={"offset": 0, "scale": 0}), "none of them zero"),
        (write_description(normalization={"offset": [1, 2], "scale": 1}), "offset is for 2 inputs"),
        (write_description(data="\ud800", image_shape=0), "its image_shape is 0"),
        (
            lambda path: write(path, {f"a{i}": np.zeros(1) for i in range(99)}),
            "hidden_0/kernel: expected float32.4, 8., found nothing",
        ),
        (
            lambda path: write(path, {**ARRAYS, "\x1b[31m" * 99: np.zeros(1)}),
            "expected nothing, found float64.1.",
        ),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(tmp_path, make, message):
    path = make(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        load_model(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    assert len(line) <= 400 + len(str(path))


@pytest.mark.parametrize("field", [*ARCHITECTURE, "residual", "scan", "dtype", "param_dtype"])
def test_a_field_of_the_architecture_has_its_type_and_range(tmp_path, field):
    path = tmp_path / "a.safetensors"
    for value in [*WRONG, None]:
        if (field, value) in (("scan", True), *((name, None) for name in NULLABLE)):
            continue
        write_architecture(**{field: value})(path)
        with pytest.raises(ValueError, match=f"its {field} is .* instead of ") as caught:
            load_model(path)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) <= 400 + len(str(path))


NULLABLE = ("residual", "dtype", "param_dtype")


@pytest.mark.parametrize("field", DESCRIPTION)
def test_a_field_of_the_description_has_its_type_and_range(tmp_path, field):
    path = tmp_path / "a.safetensors"
    for value in WRONG:
        if field == "data" and isinstance(value, str):
            continue
        write_description(**{field: value})(path)
        with pytest.raises(ValueError, match=r"instead of|normalization: offset") as caught:
            load_model(path)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) <= 400 + len(str(path))


@pytest.mark.parametrize("part", ["offset", "scale"])
def test_a_normalization_is_of_finite_numbers(tmp_path, part):
    path = tmp_path / "a.safetensors"
    for value in (*WRONG, None, [1.0, None, 2.0, 3.0], [10**400] * 4, [[1.0] * 4]):
        if value in (-1, 1e300):
            continue
        write_description(normalization={"offset": 0.0, "scale": 1.0, part: value})(path)
        with pytest.raises(ValueError, match="normalization: ") as caught:
            load_model(path)
        assert len(str(caught.value)) <= 400 + len(str(path))


def test_nothing_is_traced_before_the_arrays_are_known_to_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(MLP, "__call__", lambda *_: pytest.fail("traced"))
    monkeypatch.setattr(jax, "eval_shape", lambda *_: pytest.fail("traced"))
    with pytest.raises(ValueError, match="found nothing"):
        load_model(write_architecture(hidden=[8] * 100_000)(tmp_path / "a.safetensors"))
    load_model(write(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("changes", "misfit"),
    [
        (
            {"hidden_0/kernel": np.zeros((5, 8), np.float32), "output/bias": None},
            "hidden_0/kernel: expected float32[4, 8], found float32[5, 8]",
        ),
        ({"output/bias": None}, "output/bias: expected float32[3], found nothing"),
        (
            {"output/alpha": np.zeros((), np.float32)},
            "output/alpha: expected nothing, found float32[]",
        ),
        (
            {"output/bias": np.zeros(3, np.int32)},
            "output/bias: expected float32[3], found int32[3]",
        ),
    ],
)
def test_the_first_array_that_does_not_fit_is_named(tmp_path, changes, misfit):
    arrays = {name: array for name, array in {**ARRAYS, **changes}.items() if array is not None}
    path = write(tmp_path / "a.safetensors", arrays)
    with pytest.raises(ValueError, match="expected") as caught:
        load_model(path)
    assert str(caught.value) == f"{path}: {misfit}"


class Explodes:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_reading_a_strangers_file_runs_nothing_of_theirs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps(Explodes()))
    with pytest.raises(ValueError, match="not a model"):
        load_model(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_older_file(tmp_path, monkeypatch, error):
    path = tmp_path / "a.safetensors"
    save_model(path, trained()[0])
    before = path.read_bytes()

    def fail(*arguments):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        save_model(path, trained(hidden=[16])[0])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_write_atomically_replaces_the_whole_file(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, b"a long first version")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_write_atomically_needs_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "a.bin", b"")
