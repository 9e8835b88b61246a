"""A trained MLP in one file: safetensors, with its architecture and its inputs' form beside it.

The format holds arrays and strings only, so that reading a stranger's file runs none of their code.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import safetensors
import safetensors.flax

from vanishjax.files import write_atomically
from vanishjax.models import MLP

_FORMAT = "vanishjax-mlp-1"


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network and what is needed to feed it.

    Attributes:
      params: Parameters of `MLP`.
      architecture: Arguments of `MLP`, as JSON can hold them, and "in_features".
      description: What else was saved: the data's name, the image shape, the normalisation.
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
      >>> import tempfile
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
    """Reads a model that `save_model` wrote.

    Raises:
      ValueError: No such file, not a file of this format, or arrays that don't fit the
        architecture; the first misfit is named.

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
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, not {_FORMAT!r}")
        architecture, description = (
            dict(json.loads(metadata[name])) for name in ("architecture", "description")
        )
        inputs = jax.ShapeDtypeStruct((1, architecture["in_features"]), jnp.float32)
        model = _model(architecture)
        expected = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    except Exception as error:
        # A stranger's architecture can make the libraries raise anything, of many lines.
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        reason = (reason or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a model that `vanishjax train` saved: {reason}") from error
    _check_arrays(path, flat, flax.traverse_util.flatten_dict(expected, sep="/"))
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    return TrainedModel(params, architecture, description)


def _check_arrays(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in sorted({*found, *expected}):
        have, want = (_form(arrays.get(name)) for arrays in (found, expected))
        if have != want:
            raise ValueError(f"{path}: {name}: expected {want}, found {have}")


def _form(array: Any) -> str:
    return "nothing" if array is None else f"{array.dtype}{list(array.shape)}"


def _model(architecture: Mapping[str, Any]) -> MLP:
    arguments = {name: value for name, value in architecture.items() if name != "in_features"}
    return MLP(**{**arguments, "hidden": tuple(arguments["hidden"])})
