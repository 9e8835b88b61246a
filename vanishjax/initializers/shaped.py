"""The shaped start of any plain chain, from its loss and one batch."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax import _jaxpr, numerics
from vanishjax.activations import ACTIVATIONS, Activation, resolve_activation
from vanishjax.compilation import jit_once
from vanishjax.initializers.network import network
from vanishjax.initializers.principal import pca
from vanishjax.initializers.shaping import (
    Role,
    count_layers,
    roles_in_chain,
    shaped_bias,
    shaped_start,
)
from vanishjax.layers import Dense, Layers, dense_layers
from vanishjax.layers.matrices import bias_of
from vanishjax.problem import MISSING, Problem
from vanishjax.theory import shape
from vanishjax.theory.quadrature import activation_name, evaluate
from vanishjax.theory.shaping import Method
from vanishjax.transforms.orthogonalization import polar_factor

_PLAIN = "shaped is for plain chains of kernels, biases and activations"
_KNOWN: tuple[Activation, ...] = (
    *(ACTIVATIONS[name] for name in ("relu", "tanh", "sigmoid")),  # the most likely first
    jax.nn.gelu,
    *ACTIVATIONS.values(),
    jax.nn.log_sigmoid,
    jax.nn.mish,
    jax.nn.squareplus,
    jnp.sin,
)
# Where activations are told apart.
_POINTS = np.sinh(np.linspace(-4, 4, 64))
_ALIKE = 1e-3  # of the size, in float32


def shaped(
    loss_fn: Callable[..., Any] | Problem,
    params: Any = MISSING,
    batch: Any = MISSING,
    *,
    method: Method = "dks",
    activation: str | Activation | None = None,
) -> Any:
    r"""The start from which plain chains of any depth train: activations shaped by parameters.

    Each activation becomes, in effect, :math:`\gamma (f(\alpha x + \beta) + \delta)` with the
    numbers of `vanishjax.theory.shape` for the network's depth. Kernels and biases absorb the
    change, and the architecture stays as it is:

    .. math::
      W_l = \alpha \gamma\, \mathrm{polar}(W_l), \quad
      b_l = \beta + \delta \textstyle\sum_i W_l[i, :], \quad
      W_{out} \leftarrow \gamma W_{out}, \quad
      b_{out} = \delta \textstyle\sum_i W_{out}[i, :]

    for orthogonal factors of the kernels given; of a convolution the matrix in the middle, the
    other taps being zero. The first kernel is made orthogonal, turned toward the principal
    components of the inputs (`vanishjax.initializers.pca`), and scaled so that what it puts out has
    mean beta and deviation alpha on the batch; the last one gets entries of the size of LeCun's
    initialization before it's scaled, unless it's zero.

    Such a network is nearly linear at the start: see a linear classifier beside it.

    Args:
      loss_fn: `loss_fn(params, batch)` -> scalar, or `(scalar, aux)`; linen, nnx, Equinox or plain
        functions, unrolled or scanned. It's traced, and run once. Or a `Problem`, with the
        batch alone beside it.
      params: Its parameters.
      batch: A few hundred examples, the batch axis first.
      method: As in `vanishjax.theory.shape`; "tat" for GELU, SiLU and softplus in hundreds
        of layers.
      activation: The activation of all layers, where it isn't one that can be told by its values.

    Returns:
      New parameters. A second call gives the same ones.

    Raises:
      ValueError: What can't be shaped, by its path: a kernel without a bias, met more than once or
        inside what can't be looked into; any other parameter that the data meets; a skip
        connection, a normalization or anything else between two kernels but a bias, an activation
        and a change of shape (means over positions may precede the last kernel); an activation
        that isn't known or has no shape; a hidden kernel that isn't of full rank. Also a loss that
        isn't a scalar and a leaf that isn't a real floating-point array.

    Example:
      >>> import vanishjax as vj
      >>> problem = vj.mlp_problem(8, (32,) * 300, 4, activation="sigmoid")
      >>> batch = jax.random.normal(jax.random.key(0), (256, 8)), jnp.arange(256) % 4
      >>> params = shaped(problem, batch)
      >>> sizes = vj.probe(problem.loss_fn, params, batch).gradient_rms[1:-1]
      >>> bool(sizes.max() < 4 * sizes.min())
      True

    References:
      Martens et al. 2021, arXiv 2110.01765 ("dks"); Zhang et al. 2022, arXiv 2203.08120 ("tat");
      Xiao et al. 2018, for the convolutions. Absorbing the change into parameters is this
      package's.
    """
    found = network(loss_fn, params, batch)
    program, layers, anatomy = found.traced.program, found.traced.layers, found.traced.anatomy
    chain = _chain(layers, found.traced.trace, anatomy, found.params)
    activations = _activations(chain, activation)
    depth = count_layers(chain.dense)
    shapes = {f: shape(f, depth, method=method) for f in dict.fromkeys(activations)}
    roles = roles_in_chain(chain.dense, [shapes[f] for f in activations])

    values, rebuild = layers.by_path(found.params)
    values |= _typed(jit_once(functools.partial(_started, chain, roles))(values), values)
    _check_rank(chain, roles, values)
    values, _ = layers.by_path(pca(found.loss_fn, rebuild(values), found.batch))
    leaves = [values[leaf.path] for leaf in layers.leaves]
    links = jit_once(functools.partial(_jaxpr.links, program, anatomy))

    def ordered_links() -> list[_jaxpr.Link]:
        return _ordered(chain, jax.device_get(links([*leaves, *found.inputs])))

    first, _ = chain.order[0]
    seen = ordered_links()[0]
    _check_first(chain, seen)
    values |= _typed(_scaled(chain.dense[first], roles[first], values, seen), values)
    leaves = [values[leaf.path] for leaf in layers.leaves]
    # Only now: a thousand softplus layers overflow if the first one puts out more than it should.
    _check_links(chain, ordered_links(), leaves)
    return found.with_leaves(leaves)


class _Chain(NamedTuple):
    """The pairs of a chain with the sites of their kernels."""

    dense: tuple[Dense, ...]
    sites: tuple[_jaxpr.Site, ...]
    taps: tuple[tuple[int, ...], ...]  # axes of positions
    order: tuple[tuple[int, int], ...]  # in depth order: which pair, which layer of it

    def name(self, place: int) -> str:
        """What to call the layer at a place of the chain."""
        number, index = self.order[place]
        path = self.dense[number].kernel.path
        return f"{path}[{index}]" if self.dense[number].kernel.axes else path


def _chain(layers: Layers, trace: _jaxpr.Trace, anatomy: _jaxpr.Anatomy, params: Any) -> _Chain:
    uses = collections.Counter(use.leaf for use in trace.uses)
    equations = {use.leaf: use.equation for use in trace.uses}
    numbers = {leaf.path: number for number, leaf in enumerate(layers.leaves)}
    kernels = {site.leaf: site for site in anatomy.sites.values()}
    partners = {}
    for number, site in kernels.items():
        kernel = layers.leaves[number]
        bias = bias_of(kernel, layers.leaves)
        if equations[number].primitive.name == "gather":
            raise ValueError(f"{kernel.path}: a lookup; {_PLAIN}")
        if bias is None or uses[numbers[bias.path]] == 0:
            raise ValueError(f"{kernel.path}: no bias beside it to absorb a shift; {_PLAIN}")
        looped = len(anatomy.lengths[site.tap])
        if uses[number] != 1 or not looped == len(site.axes) == len(kernel.axes):
            raise ValueError(f"{kernel.path}: the data meets it more than once; {_PLAIN}")
        partners[numbers[bias.path]] = number
    for number, leaf in enumerate(layers.leaves):
        if number not in kernels.keys() | partners.keys() and leaf.status != "unused":
            raise ValueError(f"{leaf.path}: neither a kernel nor the bias of one; {_PLAIN}")
    arrays, rebuild = layers.by_path(params)
    unused = dict.fromkeys(layers.unused)
    dense = dense_layers(layers, rebuild(arrays | unused))
    if count_layers(dense) < 1:
        raise ValueError("a chain to shape has two kernels at least, with an activation between")
    order = [
        (place, number, index)
        for number, pair in enumerate(dense)
        for index, place in enumerate(pair.kernel_places)
    ]
    sites = tuple(kernels[numbers[pair.kernel.path]] for pair in dense)
    taps = tuple(_positions(pair, equations[numbers[pair.kernel.path]]) for pair in dense)
    return _Chain(dense, sites, taps, tuple(x[1:] for x in sorted(order)))


def _positions(pair: Dense, equation: Any) -> tuple[int, ...]:
    """The axes of a convolution's kernel that run over positions."""
    if equation.primitive.name != "conv_general_dilated":
        return ()
    if equation.params["feature_group_count"] != 1 or equation.params["batch_group_count"] != 1:
        raise ValueError(f"{pair.kernel.path}: a grouped convolution; {_PLAIN}")
    _, _, *positions = equation.params["dimension_numbers"].rhs_spec
    return tuple(pair.kernel.inner_axes[axis] for axis in positions)


def _activations(chain: _Chain, given: str | Activation | None) -> list[Activation]:
    """The activation behind each layer but the last."""
    wanted = None if given is None else resolve_activation(given)
    known: dict[int, Activation] = {}
    found = []
    for place, (number, _) in enumerate(chain.order[:-1]):
        if number not in known:
            known[number] = _recognized(chain.name(place), chain.sites[number].activation, wanted)
        found.append(known[number])
    return found


def _recognized(
    name: str, measured: _jaxpr.Activation | None, wanted: Activation | None
) -> Activation:
    if measured is None:
        raise ValueError(f"{name}: no elementwise activation behind it; {_PLAIN}")
    values = measured.at(_POINTS)
    tolerance = 16 * float(jnp.finfo(measured.dtype).eps)
    for f in _KNOWN if wanted is None else (wanted,):
        ours, _ = evaluate(f, _POINTS)
        if np.all(np.abs(values - ours) <= tolerance * (1 + np.abs(ours))):
            return f
    if wanted is not None:
        raise ValueError(f"{name}: the activation behind it isn't {activation_name(wanted)}")
    raise ValueError(
        f"{name}: the activation behind it isn't a known one ({', '.join(ACTIVATIONS)}, ...): pass "
        "it as activation"
    )


def _started(
    chain: _Chain, roles: Sequence[Role], values: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """The shaped start, but the first kernel orthogonal and not yet scaled."""
    start = shaped_start(chain.dense, roles, values, chain.taps)
    first = chain.dense[chain.order[0][0]]
    matrices = pair_matrices = first.matrices(start[first.kernel.path])
    inputs, outputs = matrices.shape[1:]
    factors = max(1.0, outputs / inputs) ** 0.5 * polar_factor(polar_factor(pair_matrices))
    own = roles[chain.order[0][0]].first[:, None, None]
    start[first.kernel.path] = first.kernels(jnp.where(own, factors, matrices))
    return start


def _scaled(
    pair: Dense, role: Role, values: dict[str, jax.Array], link: _jaxpr.Link
) -> dict[str, jax.Array]:
    """The first kernel and bias, for outputs of the wanted mean and deviation."""
    matrices = numerics.upcast(pair.matrices(values[pair.kernel.path]))
    factor = float(role.input_scale[role.first][0] / link.rms)
    own = jnp.asarray(role.first)
    scaled = jnp.where(own[:, None, None], matrices * factor, matrices)
    biases = shaped_bias(role, scaled)
    biases = jnp.where(own[:, None], biases - factor * jnp.asarray(link.mean), biases)
    return {pair.kernel.path: pair.kernels(scaled), pair.bias.path: pair.biases(biases)}


def _typed(arrays: dict[str, jax.Array], values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: numerics.saturating_cast(x, values[path].dtype) for path, x in arrays.items()}


def _check_rank(chain: _Chain, roles: Sequence[Role], values: dict[str, jax.Array]) -> None:
    """Raises ValueError naming a hidden kernel that couldn't be made orthogonal."""
    for number, (pair, role) in enumerate(zip(chain.dense, roles, strict=True)):
        if not role.hidden.any():
            continue
        matrices = numerics.upcast(pair.matrices(values[pair.kernel.path]))
        _, inputs, outputs = matrices.shape
        size = np.sqrt(np.asarray(jnp.sum(matrices**2, axis=(1, 2))))
        rank = min(inputs // max(1, _taps(pair, chain.taps[number])), outputs)
        inner = max(1.0, outputs / (inputs / _taps(pair, chain.taps[number]))) ** 0.5
        full = np.abs(size / (role.gain * inner * rank**0.5) - 1) < 1e-2
        wrong = np.flatnonzero(role.hidden & ~full)
        if wrong.size:
            place = chain.order.index((number, int(wrong[0])))
            raise ValueError(f"{chain.name(place)}: not of full rank, and so not orthogonal")


def _taps(pair: Dense, axes: tuple[int, ...]) -> int:
    return int(np.prod([pair.kernel.shape[axis] for axis in axes], dtype=int))


def _ordered(chain: _Chain, linked: dict[int, _jaxpr.Link]) -> list[_jaxpr.Link]:
    """The links of the layers in depth order."""
    by_pair = []
    for pair, site in zip(chain.dense, chain.sites, strict=True):
        # The loops' axes come in the order of the loops.
        order = tuple(int(axis) for axis in np.argsort(site.axes))
        by_pair.append(
            jax.tree.map(
                lambda x, order=order, pair=pair: np.transpose(
                    x, (*order, *range(len(order), np.ndim(x)))
                ).reshape(len(pair), *np.shape(x)[len(order) :]),
                linked[site.tap],
            )
        )
    return [jax.tree.map(lambda x, i=i: x[i], by_pair[number]) for number, i in chain.order]


def _check_first(chain: _Chain, first: _jaxpr.Link) -> None:
    """Raises ValueError if the first kernel has nothing to be scaled by."""
    if not (np.isfinite(first.rms) and first.rms > 1e-6 * np.max(np.abs(first.mean), initial=0.0)):
        raise ValueError(f"{chain.name(0)}: what it puts out is the same for all of the batch")


def _check_links(chain: _Chain, ordered: Sequence[_jaxpr.Link], leaves: Sequence[Any]) -> None:
    """Raises ValueError naming the first kernel that isn't fed by the activation before it."""
    tolerance = max(_ALIKE, *(4 * float(jnp.finfo(leaf.dtype).eps) for leaf in leaves))
    for place, link in enumerate(ordered[:-1]):
        if not link.changed <= tolerance:
            raise ValueError(
                f"{chain.name(place)}: more than a bias lies between it and its activation (a "
                f"normalization or a scale); {_PLAIN}"
            )
        given, taken = link.given, ordered[place + 1].taken
        alike = np.abs(given - taken) <= tolerance * np.maximum(given[2], taken[2])
        if given[0] == taken[0]:
            fed = bool(alike.all())
        elif given[0] > taken[0]:  # means over positions
            fed = bool(alike[1]) and place == len(ordered) - 2
        else:  # padding
            fed = bool(alike[4]) and bool(chain.taps[chain.order[place + 1][0]])
        if not fed:
            raise ValueError(
                f"{chain.name(place + 1)}: what it takes in isn't what the activation behind "
                f"{chain.name(place)} puts out (a skip connection, a normalization or pooling lies "
                f"between); {_PLAIN}"
            )
