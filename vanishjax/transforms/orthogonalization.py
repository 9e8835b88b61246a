"""Orthogonalized updates: Newton-Schulz iteration and Muon's momentum."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from vanishjax import numerics
from vanishjax.layers import Layers, Leaf
from vanishjax.transforms.moments import first_moment
from vanishjax.transforms.per_layer import check_layers, per_leaf
from vanishjax.validation import check_decay, check_non_negative, lookup

Triple: TypeAlias = tuple[float, float, float]
Coefficients: TypeAlias = Triple | Sequence[Triple] | str

# The quintic with the steepest slope at zero that keeps singular values near 1 (Jordan 2024).
NEWTON_SCHULZ: Triple = (3.4445, -4.7750, 2.0315)
# Steps that follow one another, by the names that `ns_coeffs` takes.
_NAMED: dict[str, Triple | tuple[Triple, ...]] = {
    "quintic": NEWTON_SCHULZ,
    "standard": NEWTON_SCHULZ,
    "dion": (  # Ahn et al. 2025
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": (  # Amsel et al. 2025
        (8.1566, -22.4833, 15.8788),
        (4.0429, -2.8089, 0.5000),
        (3.8917, -2.7725, 0.5061),
        (3.2858, -2.3681, 0.4645),
        (2.3465, -1.7098, 0.4232),
    ),
}
# What the norm is multiplied by first: Polar Express's polynomials fall off steeply above 1.
_MARGIN = {"polar_express": 1.01}


def newton_schulz(
    x: jax.Array,
    steps: jax.typing.ArrayLike = 5,
    coefficients: Coefficients = NEWTON_SCHULZ,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    r"""Brings a matrix's singular values close to 1 and leaves its singular vectors.

    With (a, b, c) the coefficients, `steps` times from X = x / |x|:

    .. math:: X \leftarrow a X + (b A + c A^2) X, \quad A = X X^T

    Args:
      x: `[..., m, n]`; tall matrices are transposed for the iteration.
      steps: Number of iterations.
      coefficients: (a, b, c); the default converges to about .7 .. 1.2, not to 1. Or a triple for
        each step, whose number then takes the place of `steps`, or a name: "quintic" (the default,
        "standard" in optax), "dion" and "polar_express": both of five steps, the latter from
        X = x / (1.01 |x|).
      precision: Of the products, as in `jax.numpy.matmul`. Where nothing is said, accelerators
        round to ten bits of mantissa or seven, which is little beside the .3 that values are off.

    Returns:
      Array of x's shape in the accumulator type; zeros stay zero.

    Raises:
      ValueError: An unknown name, or coefficients of another form.

    Example:
      >>> x = jnp.diag(jnp.array([1e-30, 2e-30]))
      >>> bool(jnp.all(jnp.abs(jnp.diag(newton_schulz(x)) - 1) < 0.35))
      True

    References:
      Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024; Ahn et al.,
      Dion: distributed orthonormalized updates, 2025; Amsel et al., The Polar Express: optimal
      matrix sign methods and their application to the Muon algorithm, 2025.
    """
    margin = _MARGIN.get(coefficients, 1.0) if isinstance(coefficients, str) else 1.0
    triples = _triples(coefficients)
    scale, rest = numerics.split_norm(x, (x.ndim - 2, x.ndim - 1))
    x = numerics.divide(numerics.upcast(x) * (1 / scale), rest * margin)
    by_step = jnp.asarray(triples, x.dtype)
    product = functools.partial(jnp.matmul, precision=precision)

    def quintic(number: jax.Array, x: jax.Array) -> jax.Array:
        a, b, c = triples[0] if len(triples) == 1 else by_step[number]
        gram = product(x, jnp.swapaxes(x, -1, -2))
        return a * x + product(b * gram + c * product(gram, gram), x)

    return _iterate(quintic, x, steps if len(triples) == 1 else len(triples))


def _triples(coefficients: Coefficients) -> Sequence[Triple]:
    """A triple for each step, or one for all.

    Raises:
      ValueError: An unknown name, or numbers that are no triples.
    """
    found = coefficients
    if isinstance(found, str):
        found = lookup("ns_coeffs", found, _NAMED)
    shape = np.shape(found)
    if shape == (3,):
        return (found,)  # type: ignore[return-value]
    if len(shape) != 2 or shape[1] != 3 or not shape[0]:
        raise ValueError(
            "ns_coeffs must be three numbers, a sequence of such triples (one a step) or one of "
            f"{', '.join(_NAMED)}; got {coefficients!r}"
        )
    return found  # type: ignore[return-value]


def _iterate(
    step: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, steps: jax.typing.ArrayLike
) -> jax.Array:
    """So many steps, numbered, on wide matrices; tall ones are transposed."""
    tall = x.shape[-2] > x.shape[-1]
    x = _whole(jnp.swapaxes(x, -1, -2) if tall else x)
    # A loop, lest XLA fuse steps into one another: it then computes a matrix and its transpose
    # apart, whose rounding errors differ, and the iteration makes them 3.4 times as large a step.
    # What leaves the loop is whole too, else what it carries is divided, and sent anew every step.
    x = _whole(jax.lax.fori_loop(0, steps, step, x))
    return jnp.swapaxes(x, -1, -2) if tall else x


def _whole(x: jax.Array) -> jax.Array:
    """Matrices that lie whole on each device, where the program is divided over a known mesh.

    A product of divided matrices is a sum over devices; an iteration of them sends many times what
    the matrix itself takes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not mesh.are_all_axes_auto:
        return x
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 2)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*free, None, None))


def polar_factor(x: jax.Array) -> jax.Array:
    r"""The nearest matrix with orthonormal rows or columns: U V^T of x = U S V^T.

    Ten Newton-Schulz steps bring singular values above 1e-5 of the norm near to 1, six cubic ones,
    :math:`X \leftarrow (3 X - X X^T X) / 2`, to float32's precision. Products only: batched, and
    at home on accelerators and sharded arrays, where a decomposition isn't.

    Args:
      x: `[..., m, n]`.

    Returns:
      Array of x's shape in the accumulator type; zeros stay zero.

    Example:
      >>> x = jnp.array([[3.0, 1.0], [0.0, 2.0]])
      >>> q = polar_factor(x)
      >>> bool(jnp.allclose(q @ q.T, jnp.eye(2), atol=1e-6))
      True

    References:
      Higham, Functions of matrices, 2008, section 8.3.
    """

    def cubic(_: jax.Array, x: jax.Array) -> jax.Array:
        return 1.5 * x - 0.5 * numerics.matmul(numerics.matmul(x, jnp.swapaxes(x, -1, -2)), x)

    start = newton_schulz(x, steps=10, precision=jax.lax.Precision.HIGHEST)
    return _iterate(cubic, start / 1.3, 6)


def orthogonalize(
    steps: jax.typing.ArrayLike = 5,
    ns_coeffs: Coefficients = NEWTON_SCHULZ,
    layers: Layers | None = None,
) -> optax.GradientTransformation:
    """Orthogonalizes each matrix: all its singular directions get a step of about one size.

    A kernel's matrix is the one that multiplies the data: `Leaf.inputs` times `Leaf.outputs` of the
    layers, such as `[d, heads * dim]` for a query kernel `[d, heads, dim]`, and one for each index
    of a stack, expert or group. Layers found with the loss know it of any kernel, see
    `find_layers`.

    Args:
      steps: Newton-Schulz iterations.
      ns_coeffs: Of the iteration: three numbers, a sequence of such triples (one a step), or
        "quintic", "dion" or "polar_express"; see `newton_schulz`. More exact ones cost no more at
        an equal number of steps, but one public ablation of Polar Express found no gain in
        training.
      layers: Division of the tree into layers; derived from the parameters if None. A stack of
        matrices is orthogonalized matrix by matrix, in one batched product.

    Returns:
      A stateless transform; kernels `[..., in, out]` of convolutions count as matrices
      `[... * in, out]`, arrays that are no matrices are left as they are.

    Raises:
      ValueError: Negative steps, or coefficients of another form; at `init`, a leaf that is not
        floating point, or layers of another tree.

    Example:
      >>> tx = orthogonalize()
      >>> gradient = {"kernel": 1e-30 * jnp.eye(3), "bias": jnp.array([5.0])}
      >>> update, _ = tx.update(gradient, tx.init(gradient))
      >>> bool(jnp.allclose(update["kernel"], jnp.eye(3), atol=0.35)), update["bias"]
      (True, Array([5.], dtype=float32))

    References:
      Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024; Bernstein and
      Newhouse, Old optimizer, new norm: an anthology, 2024, for why.
    """
    check_non_negative("steps", steps)
    _triples(ns_coeffs)

    def direction(leaf: Leaf, update: jax.Array) -> jax.Array:
        if not leaf.is_matrix or not update.size:
            return update
        matrices, laid_out = leaf.matrices(update)
        if leaf.matrix and leaf.matrix.groups and min(matrices.shape[-2:]) == 1:
            # A vector for each group, as in a depthwise convolution: exactly, and for nothing.
            scale, rest = numerics.split_norm(matrices, (matrices.ndim - 2, matrices.ndim - 1))
            return laid_out(numerics.divide(matrices * (1 / scale), rest))
        return laid_out(newton_schulz(matrices, steps, ns_coeffs))

    return per_leaf(direction, layers)


class ScaleByMuonState(NamedTuple):
    """Count of steps and the momentum, times `numerics.LIFT`."""

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in optax
    mu: optax.Updates


def scale_by_muon(
    ns_coeffs: Coefficients = NEWTON_SCHULZ,
    ns_steps: jax.typing.ArrayLike = 5,
    beta: jax.typing.ArrayLike = 0.95,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    layers: Layers | None = None,
) -> optax.GradientTransformation:
    """Orthogonalized momentum: the direction of Muon.

    Args:
      ns_coeffs: Of the Newton-Schulz iteration: three numbers, a sequence of such triples (one a
        step), or "quintic", "dion" or "polar_express"; see `orthogonalize`.
      ns_steps: Number of its iterations.
      beta: Decay of the momentum, in [0, 1).
      mu_dtype: Type of the momentum; None keeps float32 at least.
      nesterov: Whether the momentum looks one step ahead.
      layers: Division of the tree into layers; derived from the parameters if None.

    Returns:
      A transform with the values of `optax.contrib.scale_by_muon`; arrays that are no
      matrices get the plain momentum.

    Raises:
      ValueError: As in `orthogonalize`, or beta outside [0, 1).

    Example:
      >>> tx = scale_by_muon()
      >>> gradient = 1e-30 * jnp.eye(3)
      >>> update, state = tx.update(gradient, tx.init(gradient))
      >>> bool(jnp.allclose(update, jnp.eye(3), atol=0.35))
      True

    References:
      Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024.
    """
    check_decay("beta", beta)
    direction = orthogonalize(ns_steps, ns_coeffs, layers)

    def init_fn(params: optax.Params) -> ScaleByMuonState:
        check_layers(layers, params)
        return ScaleByMuonState(jnp.zeros([], jnp.int32), numerics.zeros_like(params, mu_dtype))

    def update_fn(
        updates: optax.Updates, state: ScaleByMuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByMuonState]:
        del params
        count = optax.safe_increment(state.count)
        mu, mean = first_moment(updates, state.mu, beta, count, look_ahead=nesterov)
        mean = jax.tree.map(lambda m: m / numerics.LIFT, mean)
        steps, _ = direction.update(mean, optax.EmptyState())
        return numerics.cast_like(steps, updates), ScaleByMuonState(
            count, numerics.cast_like(mu, state.mu)
        )

    return optax.GradientTransformation(init_fn, update_fn)


def scale_by_shape(
    consistent_rms: float | None = None, layers: Layers | None = None
) -> optax.GradientTransformation:
    r"""Scales each matrix's step by its shape, so that one learning rate suits all widths.

    By :math:`\sqrt{\max(1, out / in)}`, or by :math:`c \sqrt{\max(in, out)}`, which gives an
    orthogonal step the root mean square c whatever the shape.

    Args:
      consistent_rms: c; .2 matches Adam's steps. None for the first formula.
      layers: Division of the tree into layers; derived from the parameters if None.

    Returns:
      A stateless transform with `optax.contrib.scale_by_shape`'s values; arrays that are no
      matrices are left as they are.

    Raises:
      ValueError: A negative consistent_rms; at `init`, a leaf that is not floating point, or layers
        of another tree.

    Example:
      >>> tx = scale_by_shape()
      >>> print(tx.update(jnp.ones((1, 4)), tx.init(jnp.ones((1, 4))))[0])
      [[2. 2. 2. 2.]]

    References:
      Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024; Liu et al., Muon
      is scalable for LLM training, 2025, equation (4), for consistent_rms.
    """
    check_non_negative("consistent_rms", consistent_rms)

    def scale(leaf: Leaf, update: jax.Array) -> jax.Array:
        if not leaf.is_matrix:
            return update
        *_, inputs, outputs = leaf.matrices(update)[0].shape
        if consistent_rms is None:
            return update * max(1.0, outputs / max(1, inputs)) ** 0.5
        return update * (consistent_rms * max(inputs, outputs) ** 0.5)

    return per_leaf(scale, layers)
