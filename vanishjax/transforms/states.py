"""Where a transform's state lies within an optimizer's: found in any wrapper, and read from it."""

import collections
import inspect
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

_State = TypeVar("_State")

# What makes a state, by the name of its class: optax gives some wrappers' classes no public name.
_WRAPPERS = {
    "ApplyIfFiniteState": "optax.apply_if_finite",
    "ConditionallyMaskState": "optax.conditionally_mask",
    "ConditionallyTransformState": "optax.conditionally_transform",
    "MaskedState": "optax.masked",
    "MultiStepsState": "optax.MultiSteps",
    "PartitionState": "optax.partition",
    "CenterState": "center",
    "DynamicLossScaleState": "dynamic_loss_scale",
    "MonitorState": "monitor",
    "PolarGrowthState": "polar_growth",
    "ReconditionState": "recondition",
    "SkipNonfiniteState": "skip_nonfinite",
}


class Found(NamedTuple):
    """A state, and the nodes of the tree around it, from the outside in.

    Attributes:
      state: The state.
      around: For each node around it, the node and how many entries come before the one that holds
        the state: in a chain, the transforms before it.
    """

    state: Any
    around: tuple[tuple[Any, int], ...]


def find_states(tree: Any, kind: type) -> list[Found]:
    """Every state of a kind in a tree, those inside others too, in the tree's order.

    Example:
      >>> state = optax.chain(optax.identity(), optax.scale_by_adam()).init(jnp.zeros(2))
      >>> [(found.around[0][1], found.state.count) for found in find_states(state, type(state[1]))]
      [(1, Array(0, dtype=int32))]
    """

    def is_kind(node: Any) -> bool:
        return isinstance(node, kind)

    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_kind):
        if is_kind(leaf):
            around, node = [], tree
            for key in path:
                around.append((node, _entries_before(node, key)))
                node = _entry(node, key)
            found.append(Found(leaf, tuple(around)))
            for number, entry in enumerate(leaf):
                found += [
                    Found(state, (*around, (leaf, number), *inner))
                    for state, inner in find_states(entry, kind)
                ]
    return found


def find_state(tree: Any, kind: type[_State]) -> _State:
    """The state of a kind, the first in the tree's order; raises ValueError if there is none."""
    found = find_states(tree, kind)
    if not found:
        name = _wrapper(kind)
        raise ValueError(f"the optimizer's state holds no {name}: wrap the transform in {name}(tx)")
    state: _State = found[0].state
    return state


def refuse_inside_multi_steps(kind: type) -> None:
    """Raises ValueError if it's `optax.MultiSteps` that calls the `init` that calls this.

    The parameters alone, which is all that `init` gets, don't tell; and in a loop of the user's own
    nothing else looks at the state before the first NaN.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is optax.MultiSteps.init.__code__:
            raise inside(kind, optax.MultiStepsState)
        frame = frame.f_back


def inside(kind: type, around: type) -> ValueError:
    """The error of a wrapper's state within another's, when it must be the other way round."""
    guard, wrapper = _wrapper(kind), _wrapper(around)
    return ValueError(
        f"{guard} inside {wrapper} doesn't see gradients as the loss gave them, one by one: the "
        f"right order is {guard}({wrapper}(...))"
    )


def outlive(tree: Any) -> Any:
    """Copies, which a later step can't donate; under a trace the arrays themselves.

    They are plain arrays, also where a library keeps each in a box of its own: `nnx.Optimizer`.
    """

    def copied(x: Any) -> Any:
        if _is_box(x):
            (x,) = jax.tree.leaves(x)
        if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
            return jnp.copy(x)
        return x

    return jax.tree.map(copied, tree, is_leaf=_is_box)


def _is_box(node: Any) -> bool:
    """Whether a node of a tree is there to hold one array, and for nothing else."""
    if isinstance(node, tuple | list | dict | jax.Array):
        return False
    leaves = jax.tree.leaves(node)
    return len(leaves) == 1 and leaves[0] is not node


def _wrapper(kind: type) -> str:
    """What makes a state: "optax.masked" a MaskedState."""
    return _WRAPPERS.get(kind.__name__, kind.__name__.removesuffix("State"))


def is_chain(node: Any) -> bool:
    """Whether a node of a state holds the states of transforms that follow one another."""
    return type(node) is tuple or isinstance(node, collections.OrderedDict)


def _entries_before(node: Any, key: Any) -> int:
    if isinstance(key, SequenceKey):
        return key.idx
    if isinstance(key, DictKey):
        return list(node).index(key.key)
    return 0


def _entry(node: Any, key: Any) -> Any:
    if isinstance(key, GetAttrKey):
        return getattr(node, key.name)
    if isinstance(key, SequenceKey):
        return node[key.idx]
    if isinstance(key, DictKey):
        return node[key.key]
    return jax.tree.leaves(node, is_leaf=lambda entry: entry is not node)[key.key]
