"""What a network of the zoo is: a loss, initial parameters, a task, and what may be wrong."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Task(NamedTuple):
    """Data to learn.

    Attributes:
      train: Arrays, the examples first.
      test: The same of what is held out.
      chance: For each part of the loss what the best constant output reaches on `test`.
    """

    train: Any
    test: Any
    chance: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and how it's trained.

    Attributes:
      name: Says what it is.
      kind: Of architecture.
      library: The model code is written in.
      task: Makes the data that it learns.
      init: `init(key) -> params`.
      loss: `loss(params, batch)`, what is trained and diagnosed.
      parts: `parts(params, batch)`, what is judged: one number for each entry of `Task.chance`.
      twin: The name of the healthy network of the same kind that it is judged beside; None for
        that one itself.
      ails: The rules that would name its sickness, if it is sick; the first is the best.
      where: A pattern that every layer named must match, where the sickness has a place.
      optimizer: `optimizer(rate)`.
      rates: The best of these counts.
      steps: Of training.
      batch: Examples in one.
      batched: Whether to train seeds and rates side by side: convolutions are faster in turn.
    """

    name: str
    kind: str
    library: str
    task: Callable[[], Task]
    init: Callable[[Any], Any]
    loss: Callable[[Any, Any], Any]
    parts: Callable[[Any, Any], tuple[Any, ...]]
    twin: str | None = None
    ails: tuple[str, ...] = ()
    where: str = ""
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam
    rates: tuple[float, ...] = (1e-3, 4e-3)
    steps: int = 200
    batch: int = 32
    batched: bool = True


def network(
    name: str, loss: Callable[[Any, Any], Any], init: Callable[[Any], Any], **rest: Any
) -> Network:
    """A network that is judged by its loss."""
    return Network(name=name, init=init, loss=loss, parts=lambda p, b: (loss(p, b),), **rest)


def regression(name: str, init: Callable[[Any], Any], apply: Any, **rest: Any) -> Network:
    """A network whose outputs are compared with the last part of a batch, by squares."""

    def loss(p: Any, batch: Any) -> Any:
        return jnp.mean((apply(p, *batch[:-1]) - batch[-1]) ** 2)

    return network(name, loss, init, **rest)


def edited(
    base: Network,
    name: str,
    *ails: str,
    scale: dict[str, float] | None = None,
    fill: dict[str, float] | None = None,
    **rest: Any,
) -> Network:
    """A network whose initial parameters are changed; the base is its twin.

    Args:
      base: The network as it was.
      name: Of the new one.
      *ails: The rules that would name what is wrong now.
      scale: Factors by patterns of the parameters' paths.
      fill: Constants, the same.
      **rest: Other fields.
    """

    def change(path: Any, x: jax.Array) -> jax.Array:
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, factor in (scale or {}).items():
            x = x * jnp.asarray(factor, x.dtype) if re.search(pattern, text) else x
        for pattern, value in (fill or {}).items():
            x = jnp.full_like(x, value) if re.search(pattern, text) else x
        return x

    def init(key: Any) -> Any:
        return jax.tree_util.tree_map_with_path(change, base.init(key))

    twin = base.twin or base.name
    return dataclasses.replace(base, name=name, init=init, twin=twin, ails=ails, **rest)
