"""Optimizer state carried over from optax to vanishjax and back."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.transforms.adam import ScaleByAdamState
from vanishjax.transforms.momentum import MomentumState
from vanishjax.transforms.orthogonalization import ScaleByMuonState
from vanishjax.transforms.rms import ScaleByRmsState, ScaleByStddevState
from vanishjax.transforms.sign import ScaleByLionState


def _mean(theirs: jax.Array) -> jax.Array:
    return theirs * numerics.LIFT


def _mean_back(ours: jax.Array) -> jax.Array:
    return ours / numerics.LIFT


def _root(theirs: jax.Array) -> jax.Array:
    return jnp.sqrt(theirs) * numerics.LIFT


def _root_back(ours: jax.Array) -> jax.Array:
    return jnp.square(ours / numerics.LIFT)


_Rule = tuple[str, Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]
_MU: dict[str, _Rule] = {"mu": ("mu", _mean, _mean_back)}
_NU: dict[str, _Rule] = {"nu_root": ("nu", _root, _root_back)}


@functools.cache
def _rules() -> dict[type, tuple[tuple[type, ...], dict[str, _Rule]]]:
    """Our state -> optax's states of the same meaning, and how our fields come from theirs."""
    from optax import contrib

    # These two of optax's have no public name.
    rms_with_count = type(optax.scale_by_rms(bias_correction=True).init(()))
    stddev_with_count = type(optax.scale_by_stddev(bias_correction=True).init(()))
    return {
        ScaleByAdamState: ((optax.ScaleByAdamState,), _MU | _NU),
        ScaleByLionState: ((optax.ScaleByLionState,), _MU),
        ScaleByMuonState: ((contrib.MuonState,), _MU),
        ScaleByRmsState: ((optax.ScaleByRmsState, rms_with_count), _NU),
        ScaleByStddevState: ((optax.ScaleByRStdDevState, stddev_with_count), _MU | _NU),
        MomentumState: ((optax.TraceState,), {}),
    }


def convert_state(state: optax.OptState, like: optax.OptState) -> optax.OptState:
    """Turns the state of an optax chain into that of the same vanishjax chain, or back.

    A run begun with one library goes on with the other as if nothing had happened.

    Args:
      state: State of `optax.adam(...)`, say, as it was trained.
      like: A fresh state of the chain to go on with, `vanishjax.adam(...).init(params)`, or the
        other way round. Fields that `state` doesn't know (a step count) are taken from here.

    Returns:
      A state of `like`'s structure and types with `state`'s values. Squares of moments beyond
      optax's range over- or underflow, as they would have in optax.

    Raises:
      ValueError: The two chains don't correspond; the path of the first difference is named.

    Example:
      >>> import vanishjax as vj
      >>> params = jnp.zeros(1)
      >>> theirs, ours = optax.adam(0.1), vj.adam(0.1)
      >>> _, state = theirs.update(jnp.ones(1), theirs.init(params))
      >>> state = convert_state(state, like=ours.init(params))
      >>> int(state[0].count)
      1
    """
    return _convert(state, like, "state")


def _convert(state: Any, like: Any, path: str) -> Any:
    known = _rules()
    if type(state) in known and type(like) in known[type(state)][0]:
        rules = {their: (our, back) for our, (their, _, back) in known[type(state)][1].items()}
        return _fields(state, like, path, rules)
    if type(like) in known and type(state) in known[type(like)][0]:
        rules = {our: (their, forth) for our, (their, forth, _) in known[type(like)][1].items()}
        return _fields(state, like, path, rules)
    if type(state) is not type(like):
        raise ValueError(
            f"{path}: a {type(state).__name__} doesn't correspond to a {type(like).__name__}"
        )
    if isinstance(state, dict):
        if state.keys() != like.keys():
            raise ValueError(f"{path}: keys {sorted(state)} against {sorted(like)}")
        return {key: _convert(state[key], like[key], f"{path}[{key!r}]") for key in like}
    if isinstance(state, tuple):
        if len(state) != len(like):
            raise ValueError(f"{path}: {len(state)} transforms against {len(like)}")
        parts = [
            _convert(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(state, like, strict=True))
        ]
        return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
    return _cast(state, like, path)


def _fields(state: Any, like: Any, path: str, rules: dict[str, Any]) -> Any:
    values = {}
    for name in like._fields:
        source, change = rules.get(name, (name, None))
        if source not in state._fields:
            values[name] = getattr(like, name)
            continue
        value = getattr(state, source)
        if change is not None:
            value = jax.tree.map(lambda x, change=change: change(numerics.upcast(x)), value)
        values[name] = _cast(value, getattr(like, name), f"{path}.{name}")
    return type(like)(**values)


def _cast(values: Any, like: Any, path: str) -> Any:
    def cast(value: Any, target: Any) -> Any:
        if jnp.shape(value) != jnp.shape(target):
            raise ValueError(f"{path}: shape {jnp.shape(value)} against {jnp.shape(target)}")
        if not hasattr(target, "dtype"):
            return value
        return jnp.asarray(value).astype(target.dtype)

    if jax.tree.structure(values) != jax.tree.structure(like):  # type: ignore[operator]
        raise ValueError(f"{path}: the two are states of different parameters")
    return jax.tree.map(cast, values, like)
