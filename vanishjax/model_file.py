"""A trained MLP in one file: safetensors, with its architecture and its inputs' form beside it.

The format holds arrays and strings only, so that reading a stranger's file runs none of their code.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors
import safetensors.flax

from vanishjax.activations import ACTIVATIONS
from vanishjax.files import write_atomically
from vanishjax.foreign import one_line, shown
from vanishjax.models import MLP, parameter_shapes
from vanishjax.training.data import Framing, Normalization

_FORMAT = "vanishjax-mlp-1"
_NO_MODEL = "not a model that `vanishjax train` saved"
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "I32": "int32"}
_MOST_PIXEL = 2.0**32

_Fields = Mapping[str, tuple[Callable[[Any], bool], str]]


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_size, value))


def _one_of(*known: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str | None) and value in known


def _is_pixel(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value <= _MOST_PIXEL)


_SIZE = (_is_size, "a whole number of at least 1")
_DTYPE = (_one_of(None, "float32", "bfloat16", "float16"), "float32, bfloat16 or float16")

# What each field may be, and how to say so. `MLP` takes functions, too; a file holds none.
_ARCHITECTURE: _Fields = {
    "in_features": _SIZE,
    "hidden": (_is_list_of_sizes, "a list of widths of at least 1"),
    "classes": _SIZE,
    "activation": (_one_of(*ACTIVATIONS), f"one of {', '.join(ACTIVATIONS)}"),
    "residual": (_one_of(None, "scaled", "rezero"), "null, scaled or rezero"),
    "scan": (lambda value: isinstance(value, bool), "true or false"),
    "dtype": _DTYPE,
    "param_dtype": _DTYPE,
}
_NEEDED = ("in_features", "hidden", "classes")
_DESCRIPTION: _Fields = {
    "data": (lambda value: isinstance(value, str), "a name"),
    "image_shape": (
        lambda value: value is None or (_is_list_of_sizes(value) and len(value) == 2),
        "null or height and width",
    ),
    "classes": (lambda value: value is None or _is_size(value), "null or a number of classes"),
    "pixel_max": (_is_pixel, f"null or a number above 0 and up to {_MOST_PIXEL:.0f}"),
    "normalization": (lambda value: isinstance(value, dict), "offset and scale"),
    "framing": (
        lambda value: value is None or isinstance(value, dict),
        "null or size, row and column",
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network and what is needed to feed it.

    Attributes:
      params: Parameters of `MLP`.
      architecture: Arguments of `MLP`, as JSON can hold them, and "in_features".
      description: What else was saved: the data's name, the image shape, the normalization.
    """

    params: Any
    architecture: Mapping[str, Any]
    description: Mapping[str, Any]

    @property
    def predict_fn(self) -> Callable[[Any, jax.Array], jax.Array]:
        """`(params, inputs [n, in_features]) -> outputs [n, classes]`."""
        model = _model(self.architecture)
        return lambda params, inputs: model.apply({"params": params}, inputs)


def save_model(path: str | os.PathLike[str], model: TrainedModel) -> None:
    """Writes a model; a failed write leaves an older file as it was.

    Args:
      path: The file, by custom ending in `.safetensors`.
      model: What to save.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> folder = tempfile.TemporaryDirectory()
      >>> architecture = {"in_features": 4, "hidden": [8], "classes": 3, "activation": "relu"}
      >>> params = MLP((8,), 3, "relu").init(jax.random.key(0), jnp.ones((1, 4)))["params"]
      >>> path = Path(folder.name, "model.safetensors")
      >>> save_model(path, TrainedModel(params, architecture, {"data": "example"}))
      >>> model = load_model(path)
      >>> model.predict_fn(model.params, jnp.ones((2, 4))).shape, model.description["data"]
      ((2, 3), 'example')
      >>> folder.cleanup()
    """
    metadata = {
        "format": _FORMAT,
        "architecture": json.dumps(dict(model.architecture)),
        "description": json.dumps(dict(model.description)),
    }
    content = safetensors.flax.save(
        flax.traverse_util.flatten_dict(model.params, sep="/"), metadata=metadata
    )
    write_atomically(path, content)


def load_model(path: str | os.PathLike[str]) -> TrainedModel:
    """Reads a model that `save_model` wrote; all that it says is checked before an array is read.

    Raises:
      ValueError: No such file, not a file of this format, a field of a wrong type or out of range,
        or arrays that don't fit the architecture; the first misfit is named.

    Example:
      >>> load_model("missing.safetensors")
      Traceback (most recent call last):
      ...
      ValueError: missing.safetensors: no such model file; train one with `vanishjax train`
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such model file; train one with `vanishjax train`")
    try:
        with safetensors.safe_open(path, framework="flax") as file:
            architecture, description = _read_metadata(file.metadata() or {})
            names = _checked_names(file, architecture)
            flat = {name: file.get_tensor(name) for name in names}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (safetensors.SafetensorError, OSError, MemoryError) as error:
        raise ValueError(f"{path}: {_NO_MODEL}: {shown(error, 150)}") from error
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    return TrainedModel(params, architecture, description)


def _read_metadata(metadata: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        if metadata.get("format") != _FORMAT:
            raise ValueError(
                f"its format is {shown(repr(metadata.get('format')))}, not {_FORMAT!r}"
            )
        architecture, description = (
            _read_fields(metadata, name, fields)
            for name, fields in (("architecture", _ARCHITECTURE), ("description", _DESCRIPTION))
        )
        _model(architecture)
        _check_description(description, architecture)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_NO_MODEL}: {one_line(str(error), 250)}") from error
    return architecture, description


def _read_fields(metadata: Mapping[str, str], what: str, fields: _Fields) -> dict[str, Any]:
    """One of the two texts, as the JSON object that it must be."""
    if what not in metadata:
        raise ValueError(f"it has no {what}")
    values = json.loads(metadata[what])
    if not isinstance(values, dict):
        raise ValueError(f"its {what} is {shown(json.dumps(values))} instead of an object")
    for name, (is_right, right) in fields.items():
        if name in values and not is_right(values[name]):
            raise ValueError(f"its {name} is {shown(json.dumps(values[name]))} instead of {right}")
    return values


def _check_description(description: Mapping[str, Any], architecture: Mapping[str, Any]) -> None:
    """What feeds the network must have its inputs, and name its outputs."""
    inputs, outputs = architecture["in_features"], architecture["classes"]
    image = description.get("image_shape")
    if image is not None and math.prod(image) != inputs:
        raise ValueError(f"its image_shape is {image}, but its network takes {inputs} inputs")
    classes = description.get("classes")
    if classes not in (None, outputs):
        raise ValueError(f"its classes are {classes}, but its network has {outputs} outputs")
    if description.get("framing") is not None:
        Framing.from_dict(description["framing"])
    if "normalization" in description:
        normalization = Normalization.from_dict(description["normalization"])
        for name in ("offset", "scale"):
            shape = np.shape(getattr(normalization, name))
            if shape not in ((), (inputs,)):
                raise ValueError(
                    f"normalization: {name} is for {shape[0]} inputs, but its network takes "
                    f"{inputs}"
                )


def _checked_names(file: Any, architecture: Mapping[str, Any]) -> set[str]:
    """The names of the arrays, once each is known to have the shape and type that it must have.

    One after the other: a description may list more layers than memory has room for.
    """
    sizes = {name: architecture[name] for name in _NEEDED}
    kind = {name: architecture[name] for name in ("residual", "scan") if name in architecture}
    dtype = architecture.get("param_dtype") or "float32"
    names = set(file.keys())
    left = set(names)
    for name, shape in parameter_shapes(**sizes, **kind):
        want = f"{dtype}{list(shape)}"
        have = _form(file, name) if name in names else "nothing"
        if have != want:
            raise ValueError(f"{name}: expected {want}, found {have}")
        left.discard(name)
    if left:
        name = min(left)
        raise ValueError(f"{shown(name)}: expected nothing, found {_form(file, name)}")
    return names


def _form(file: Any, name: str) -> str:
    array = file.get_slice(name)
    dtype = str(array.get_dtype())
    return shown(f"{_DTYPES.get(dtype, dtype)}{list(array.get_shape())}")


def _model(architecture: Mapping[str, Any]) -> MLP:
    unknown = architecture.keys() - _ARCHITECTURE
    if unknown:
        raise ValueError(f"its architecture has a field {min(unknown)!r}, which is unknown")
    missing = [name for name in _NEEDED if name not in architecture]
    if missing:
        raise ValueError(f"its architecture has no {missing[0]!r}")
    arguments = {name: value for name, value in architecture.items() if name != "in_features"}
    return MLP(**{**arguments, "hidden": tuple(arguments["hidden"])})
