"""Norms, moments and scalings that neither overflow nor underflow.

Squaring a float32 loses every number below 1e-19 and above 1e+19, half of its range on either
side. What needs a square here takes it of a number divided by a power of two near its own size:
such a division only moves the exponent, so it rounds nothing, and in the normal range the results
are those of the plain formula. Moments of few entries take it of a quotient instead, which is
sooner done. 16-bit numbers are computed in float32 and cast back once.

NaN stays NaN. XLA on a CPU may drop it in a maximum or minimum that is reduced, or fused with a
reduction, once an array has a few thousand entries. So a maximum here only ever chooses a scale,
and what changes a value is a comparison that is false for NaN.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Axes: TypeAlias = tuple[int, ...] | None

# Products to the precision of their type: accelerators round the factors of a float32 product to
# ten bits of mantissa or seven, where nothing is said.
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def accumulator_dtype(dtype: Any) -> jnp.dtype:
    """The float type in which sums over `dtype` are kept: float32 at least.

    Example:
      >>> str(accumulator_dtype(jnp.bfloat16)), str(accumulator_dtype(jnp.float32))
      ('float32', 'float32')
    """
    return jnp.promote_types(dtype, jnp.float32)


def common_dtype(tree: Any) -> jnp.dtype:
    """The float type that holds sums over any leaf.

    Example:
      >>> str(common_dtype({"a": jnp.ones(2, jnp.bfloat16), "b": 1.0}))
      'float32'
    """
    # Of the types, since of two arrays a weakly typed double would give way to a float32.
    types = (jnp.dtype(jnp.result_type(x)) for x in jax.tree.leaves(tree))
    return jnp.result_type(jnp.float32, *types)


def upcast(x: jax.typing.ArrayLike) -> jax.Array:
    """`x` in its accumulator type."""
    x = jnp.asarray(x)
    return x.astype(accumulator_dtype(x.dtype))


def saturating_cast(x: jax.Array, dtype: Any) -> jax.Array:
    """Casts to `dtype`; finite values beyond its range become its largest, not infinite.

    Example:
      >>> print(saturating_cast(jnp.array([1e6, -jnp.inf]), jnp.float16))
      [6.55e+04     -inf]
    """
    dtype = jnp.dtype(dtype)
    if dtype == x.dtype:
        return x
    largest = float(jnp.finfo(dtype).max)
    if largest < float(jnp.finfo(x.dtype).max):
        beyond = (jnp.abs(x) > largest) & jnp.isfinite(x)
        x = jnp.where(beyond, jnp.copysign(jnp.asarray(largest, x.dtype), x), x)
    return x.astype(dtype)


def zeros_like(tree: Any, dtype: Any = None) -> Any:
    """Zeros of each leaf's shape, in `dtype` or its accumulator type.

    Example:
      >>> zeros_like({"w": jnp.ones(2, jnp.float16)})["w"].dtype
      dtype('float32')
    """
    return jax.tree.map(
        lambda x: jnp.zeros_like(x, dtype=dtype or accumulator_dtype(jnp.result_type(x))), tree
    )


def cast_like(tree: Any, target: Any) -> Any:
    """Casts each leaf to its partner's type, saturating: see `saturating_cast`."""
    return jax.tree.map(lambda x, like: saturating_cast(x, jnp.result_type(like)), tree, target)


# The unsigned integers that have a float's size.
_BITS = {4: jnp.uint32, 8: jnp.uint64}


def power_of_two(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The power of two at the exponent of `x >= 0`, and its exact inverse.

    Read off the exponent's bits. Kept where both are normal numbers, so that zero, infinity and
    NaN get a finite scale as well.

    Args:
      x: Non-negative float32 or float64 array.

    Returns:
      `(k, 1 / k)`, of x's shape and type, with 1 <= x / k < 2 for all but the very ends of the
      range (there x / k < 4).

    Example:
      >>> k, inverse = power_of_two(jnp.array([3.0, 1e-30]))
      >>> print(k * inverse, 1 <= 3.0 / k[0] < 2)
      [1. 1.] True
    """
    return _powers(_exponent(x), x.dtype)


def _exponent(x: jax.Array) -> jax.Array:
    """The bits of the exponent of either sign's numbers, where they stand: that saves shifts."""
    info, bits = jnp.finfo(x.dtype), _BITS[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, bits) & bits((2 * info.maxexp - 1) << info.nmant)


def _powers(exponent: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """`power_of_two` of the bits of an exponent."""
    info, bits = jnp.finfo(dtype), _BITS[jnp.dtype(dtype).itemsize]
    mantissa, bias = info.nmant, info.maxexp - 1
    exponent = jax.lax.clamp(bits(1 << mantissa), exponent, bits((2 * bias - 1) << mantissa))
    scale = jax.lax.bitcast_convert_type(exponent, dtype)
    return scale, jax.lax.bitcast_convert_type(bits((2 * bias) << mantissa) - exponent, dtype)


def _instead(constant: float, where: jax.Array, x: jax.Array) -> jax.Array:
    """`jnp.where(where, constant, x)` for arrays of one shape, in two lines of a program.

    `jnp.where` writes a function and a call of it, which a tree of a thousand leaves pays for.
    """
    return jax.lax.select(where, jax.lax.full_like(x, constant), x)


def at_least(x: jax.Array, least: jax.typing.ArrayLike) -> jax.Array:
    """The larger of two numbers, where a NaN in `x` stays one: see above.

    Example:
      >>> print(at_least(jnp.array([-1.0, 2.0, jnp.nan]), 0.0))
      [ 0.  2. nan]
    """
    return jnp.where(x < least, least, x)


@jax.custom_jvp
def sqrt(x: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 is 0: an infinite one times 0 would be NaN.

    Example:
      >>> print(jax.grad(lambda x: sqrt(x * x))(0.0))
      0.0
    """
    return jnp.sqrt(x)


@sqrt.defjvp
def _derivative_of_sqrt(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    root, (tangent,) = sqrt(*primals), tangents
    zero = root == 0
    return root, jnp.where(zero, 0.0, 0.5 * tangent / jnp.where(zero, 1.0, root))


def _scaled_square(x: jax.Array, inverse: jax.Array) -> jax.Array:
    """`(x inverse)^2`, multiplied in this order.

    Of a constant x XLA would make x^2 inverse^2, 0 times infinity as like as not. The selection,
    which changes no number, keeps it from that and costs nothing.
    """
    scaled = jnp.abs(x) * inverse
    scaled = _instead(0.0, scaled < 0, scaled)
    return scaled * scaled


def _square_or_infinite(x: jax.Array, inverse: jax.Array) -> jax.Array:
    """As `_scaled_square`, but beyond the type's range a constant, which derivatives can ignore."""
    scaled = jnp.abs(x) * inverse
    beyond = scaled >= 2.0 ** (jnp.finfo(x.dtype).maxexp // 2)
    scaled = jnp.where(beyond, jnp.inf, scaled)
    return scaled * scaled


# Inlined, but traced once for all arrays of a shape: a tree has many of the same.
_traced_once = functools.partial(jax.jit, inline=True)


@_traced_once
def _weighted_hypot(a: jax.Array, b: jax.Array, wa: Any, wb: Any) -> jax.Array:
    dtype = jnp.promote_types(a.dtype, b.dtype)
    a, b = a.astype(dtype), b.astype(dtype)
    # The larger exponent: of integers the maximum is one instruction, which can't lose a NaN.
    scale, inverse = _powers(jnp.maximum(_exponent(a), _exponent(b)), dtype)
    return scale * sqrt(wa * _scaled_square(a, inverse) + wb * _scaled_square(b, inverse))


def hypot(a: jax.typing.ArrayLike, b: jax.typing.ArrayLike) -> jax.Array:
    """`sqrt(a^2 + b^2)` at any magnitude, exact where `jnp.hypot` is biased by 2e-5.

    Example:
      >>> print(hypot(3e-30, 4e-30))
      5e-30
    """
    return _weighted_hypot(upcast(a), upcast(b), 1.0, 1.0)


# Moments are kept 32 times as large as they are: (1 - decay) g would flush to zero for a gradient
# near the least normal number, and a factor that depends on no hyperparameter lets a scheduled
# decay mean what it should. Being a power of two, it rounds nothing.
LIFT = 32.0


def _decay(decay: Any, dtype: Any) -> Any:
    """A decay rate below 1, in `dtype`; a Python number is left as it is.

    An array may have been rounded to 1, as `optax.inject_hyperparams` rounds to the parameters'
    type: in bfloat16 .999 is 1, and the mean of nothing would be 0 / 0. What was rounded to 1 lies
    up to half a spacing below it: the middle of that is taken, .99902 for a bfloat16.
    """
    if isinstance(decay, int | float):
        return decay
    decay = jnp.asarray(decay)
    given = decay.dtype if jnp.issubdtype(decay.dtype, jnp.floating) else dtype
    below_one = 1 - max(float(jnp.finfo(given).eps) / 8, float(jnp.finfo(dtype).eps) / 2)
    decay = decay.astype(dtype)
    return jnp.where(decay > below_one, below_one, decay)


def mean_moment(mean: jax.Array, gradient: jax.typing.ArrayLike, decay: Any) -> jax.Array:
    """One step of the lifted first moment: `decay mean + LIFT (1 - decay) gradient`.

    Example:
      >>> print(mean_moment(jnp.zeros(()), jnp.array(2e-38), 0.99) / LIFT > 0)
      False
      >>> print(mean_moment(jnp.zeros(()), jnp.array(4e-38), 0.99) > 0)
      True
    """
    mean = upcast(mean)
    decay = _decay(decay, mean.dtype)
    return decay * mean + LIFT * (1 - decay) * upcast(gradient)


def root_moment(root: jax.Array, gradient: jax.typing.ArrayLike, decay: Any) -> jax.Array:
    """One step of the lifted second moment's root: `sqrt(decay root^2 + (1-decay) (LIFT g)^2)`.

    The root spans the exponents of the gradient itself instead of twice as many.

    Args:
      root: Non-negative array of any float type.
      gradient: Array of root's shape.
      decay: Scalar in [0, 1).

    Returns:
      The next root in the accumulator type; (0, 0) gives 0, infinity stays infinite and NaN NaN.

    Example:
      >>> print(root_moment(jnp.array(0.0), jnp.array(1e-30), 0.75) / LIFT)
      5e-31
    """
    root, gradient = upcast(root), upcast(gradient)
    decay = _decay(decay, root.dtype)
    few = root.size <= _FEW and root.shape == gradient.shape and root.dtype == gradient.dtype
    if few and isinstance(decay, float) and 0.25 <= _held(decay, root.dtype) < 1:
        return _root_moment_of_few(root, gradient, decay)
    return _weighted_hypot(root, gradient, decay, LIFT**2 * (1 - decay))


def _held(decay: float, dtype: Any) -> float:
    """A decay as `dtype` holds it: .999 is .99900001 in float32, 1.3e-5 of its distance to 1."""
    return float(np.asarray(decay, dtype))


# Arrays of more entries XLA splits between a CPU's threads whatever is done to them.
_FEW = 2**15


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _root_moment_by_quotient(root: jax.Array, gradient: jax.Array, decay: float) -> jax.Array:
    """`root_moment`, by the quotient of the smaller term and the larger.

    Eleven operations: at one an input's byte, twelve, XLA would split a few thousand entries
    between threads, which takes longer than the work. Of many entries the division is what costs.
    """
    held = _held(decay, root.dtype)
    term = LIFT * ((1 - decay) / held) ** 0.5 * jnp.abs(gradient)
    swap, info = term > root, jnp.finfo(root.dtype)
    larger, smaller = jax.lax.select(swap, term, root), jax.lax.select(swap, root, term)
    least, most = (jnp.asarray(x, root.dtype) for x in (info.tiny, info.max))
    ratio = smaller / jax.lax.clamp(least, larger, most)  # neither 0 / 0 nor infinity by infinity
    return larger * jax.lax.sqrt(held * (ratio * ratio) + held)


@_root_moment_by_quotient.defjvp
def _derivative_of_root_moment(
    decay: float, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # That of the quotient above has the square of its denominator in it.
    result = _root_moment_by_quotient(*primals, decay)
    root, gradient = (divide(x, result) for x in primals)
    weight = LIFT**2 * (1 - decay)
    return result, decay * root * tangents[0] + weight * gradient * tangents[1]


_root_moment_of_few = jax.jit(_root_moment_by_quotient, static_argnums=2, inline=True)


def bias_correction(decay: Any, count: jax.Array) -> jax.Array:
    """`1 - decay^count`: what a moment that started at zero is divided by.

    Example:
      >>> print(bias_correction(0.5, jnp.array(2)))
      0.75
    """
    return _one_minus_power(_decay(decay, accumulator_dtype(jnp.result_type(decay))), count)


# Compiled, because a power rounds differently op by op, and so as optax does it.
@functools.partial(jax.jit, inline=True)
def _one_minus_power(decay: Any, count: jax.Array) -> jax.Array:
    return 1 - decay**count


def add_in_root(
    root: jax.Array, square: jax.typing.ArrayLike, unit: jax.typing.ArrayLike = 1.0
) -> jax.Array:
    """`sqrt(root^2 + square unit^2)`; nothing is computed for a square known to be zero.

    Example:
      >>> print(add_in_root(jnp.array(3e-30), 0.0), add_in_root(jnp.array(6.0), 16.0, 2.0))
      3e-30 10.0
    """
    if isinstance(square, int | float) and square == 0:
        return root
    info = jnp.finfo(root.dtype)
    if isinstance(square, int | float) and isinstance(unit, int | float):
        added = square**0.5 * unit
        far = added * 2.0 ** (info.nmant // 2 + 2)  # beyond it the sum is the root
        if float(info.tiny / info.eps) <= added**2 and far**2 <= float(info.max):
            return jax.lax.select(root > far, root, jax.lax.sqrt(root * root + added**2))
    return hypot(root, sqrt(jnp.asarray(square, root.dtype)) * unit)


def arctan2(y: jax.Array, x: jax.Array) -> jax.Array:
    """The angle of (x, y) for x >= 0, 0 at the origin; its derivative is right at any magnitude.

    Of the quotient, in less time than XLA's own takes.

    Example:
      >>> print(jax.grad(arctan2)(1e-30, 1e-30) / 1e30, arctan2(0.0, 0.0))
      0.5 0.0
    """
    # The derivative of a quotient has the square of its denominator in it.
    x, y = jnp.asarray(x), jnp.asarray(y)
    _, inverse = power_of_two(x)
    origin = (x == 0) & (y == 0)
    x, y = jnp.where(origin, 1.0, x * inverse), jnp.where(origin, 0.0, y * inverse)
    return jnp.arctan(y / x)


@_traced_once
def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """`numerator / denominator`, and 0 where the denominator is 0.

    Example:
      >>> print(divide(jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])))
      [0.5 0. ]
    """
    zero = denominator == 0
    quotient = numerator / _instead(1.0, zero, denominator)
    return _instead(0.0, jnp.broadcast_to(zero, quotient.shape), quotient)


def divide_by_sum(numerator: jax.Array, root: jax.Array, added: jax.typing.ArrayLike) -> jax.Array:
    """`divide(numerator, root + added)` for a root that isn't negative.

    Example:
      >>> print(divide_by_sum(jnp.array([1.0, 0.0]), jnp.array([1.5, 0.0]), 0.5))
      [0.5 0. ]
    """
    return divide_by_positive(numerator, root + added, added)


def divide_by_positive(
    numerator: jax.Array, denominator: jax.Array, part: jax.typing.ArrayLike
) -> jax.Array:
    """`divide` by a sum of what isn't negative, of which `part` is known.

    Where that is a positive Python number there is no denominator of 0 to look for.

    Example:
      >>> print(divide_by_positive(jnp.array([1.0, 0.0]), jnp.array([2.0, 0.5]), 0.5))
      [0.5 0. ]
    """
    if isinstance(part, int | float) and part >= float(jnp.finfo(denominator.dtype).tiny):
        return numerator / denominator
    return divide(numerator, denominator)


def branches_are_cheap() -> bool:
    """Whether a branch costs nothing: the host waits for an accelerator to tell which one to take.

    What is computed is the same in both cases.
    """
    return jax.default_backend() == "cpu"


def _scaled_sum(
    x: jax.Array, axes: Axes = None, *, keepdims: bool = False
) -> tuple[jax.Array, jax.Array]:
    """A power of two near the largest number, and the sum of the squares divided by that of it."""
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=keepdims, initial=0.0)
    scale, inverse = power_of_two(largest)
    return scale, jnp.sum(_square_or_infinite(x, inverse), axis=axes, keepdims=keepdims)


def _split_norm(
    squares: Callable[[jax.Array | None], jax.Array],
    scaled: Callable[[], tuple[jax.Array, jax.Array]],
    size: int,
) -> tuple[jax.Array, jax.Array]:
    """`(scale, rest)` with norm = scale * rest, from a sum of squares that takes an inverse scale.

    `scaled` gives what `_scaled_sum` does. The data is read a second time only if the plain sum has
    overflowed, or is so small that squares flushed to zero could have mattered. Where branches
    aren't cheap it is read once, for three sums, two of them at scales far off: one of the three is
    right.
    """
    plain = squares(None)
    info = jnp.finfo(plain.dtype)
    least = size * float(info.tiny) / float(info.eps)
    enough, finite = plain >= least, plain <= float(info.max)
    if not branches_are_cheap():
        far = jnp.asarray(2.0 ** (5 * info.maxexp // 8), plain.dtype)
        # A sum that isn't finite is one at the larger scale, and a NaN is one at any.
        small, large = squares(far), squares(1 / far)
        scale = jnp.where(plain < least, 1 / far, jnp.where(finite, 1.0, far))
        return scale, sqrt(jnp.where(plain < least, small, jnp.where(finite, plain, large)))

    def as_is() -> tuple[jax.Array, jax.Array]:
        return jnp.ones_like(plain), sqrt(plain)

    def rescaled() -> tuple[jax.Array, jax.Array]:
        scale, total = scaled()
        return scale, sqrt(total)

    return jax.lax.cond(jnp.all(enough & finite), as_is, rescaled)


# Compiled as a whole, so that outside a jit the branches aren't compiled anew at every call.
@functools.partial(jax.jit, static_argnames="axes", inline=True)
def split_norm(x: jax.typing.ArrayLike, axes: Axes = None) -> tuple[jax.Array, jax.Array]:
    """The 2-norm over `axes` as `(scale, rest)`, norm = scale * rest, scale a power of two.

    The product itself may lie beyond the type's range; `x / scale / rest` never does.

    Args:
      x: Array of any float or complex type.
      axes: Axes to sum over; None for all.

    Returns:
      Two real arrays in the accumulator type, with the summed axes kept as 1.

    Example:
      >>> scale, rest = split_norm(jnp.full(4, 3e38))
      >>> print(jnp.full(4, 3e38) / scale / rest)
      [0.5 0.5 0.5 0.5]
    """
    x = upcast(x)
    x = jnp.abs(x) if jnp.iscomplexobj(x) else x
    axes = tuple(range(x.ndim)) if axes is None else axes
    size = 1
    for axis in axes:
        size *= x.shape[axis]

    def squares(inverse: jax.Array | None) -> jax.Array:
        each = x * x if inverse is None else _square_or_infinite(x, inverse)
        return jnp.sum(each, axis=axes, keepdims=True)

    def scaled() -> tuple[jax.Array, jax.Array]:
        return _scaled_sum(x, axes, keepdims=True)

    return _split_norm(squares, scaled, size)


def norm(x: jax.typing.ArrayLike, axes: Axes = None, keepdims: bool = False) -> jax.Array:
    """The 2-norm over `axes`, right from the smallest to the largest normal number.

    Args:
      x: Array of any float type.
      axes: Axes to sum over; None for all.
      keepdims: Whether the summed axes stay, with size 1.

    Returns:
      The norm in the accumulator type (float32 for 16-bit types).

    Example:
      >>> print(norm(jnp.array([3e-30, 4e-30])))
      5e-30
    """
    scale, rest = split_norm(x, axes)
    product = scale * rest
    if keepdims:
        return product
    return jnp.squeeze(product, axis=tuple(range(product.ndim)) if axes is None else axes)


def rms(x: jax.typing.ArrayLike, axes: Axes = None, keepdims: bool = False) -> jax.Array:
    """The root mean square over `axes`; see `norm`. Zero for an empty array.

    Example:
      >>> print(rms(jnp.full((2, 8), 1e-30), axes=(1,)))
      [1.e-30 1.e-30]
    """
    x = jnp.asarray(x)
    scale, rest = split_norm(x, axes)
    count = max(1, x.size // max(1, rest.size))
    mean = scale * (rest / count**0.5)
    if keepdims:
        return mean
    return jnp.squeeze(mean, axis=tuple(range(mean.ndim)) if axes is None else axes)


def split_rms(x: jax.typing.ArrayLike, axes: Axes = None) -> tuple[jax.Array, jax.Array]:
    """The root mean square over `axes` as `(scale, rest)`, scale a power of two.

    As `rms`, but without a branch: the data is always read twice. For programs that run a few
    times, where a branch for each of many arrays takes long to compile.

    Args:
      x: Array of any float type.
      axes: Axes to average over; None for all.

    Returns:
      Two arrays in the accumulator type, with the averaged axes kept as 1.

    Example:
      >>> scale, rest = split_rms(jnp.full(4, 3e-30))
      >>> print(scale * rest)
      [3.e-30]
    """
    x = upcast(x)
    axes = tuple(range(x.ndim)) if axes is None else axes
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0)
    scale, inverse = power_of_two(largest)
    count = max(1, x.size // max(1, scale.size))
    squares = jnp.sum(_scaled_square(x, inverse), axis=axes, keepdims=True)
    return scale, sqrt(squares / count)


@functools.partial(jax.jit, inline=True)
def split_global_norm(tree: Any) -> tuple[jax.Array, jax.Array]:
    """The 2-norm of all leaves together as `(scale, rest)`: see `split_norm`."""
    leaves = [upcast(x) for x in jax.tree.leaves(tree)]
    if not leaves:
        return jnp.ones(()), jnp.zeros(())
    # One type for all: what is small enough to be flushed depends on the type of the squares.
    dtype = common_dtype(leaves)
    leaves = [x.astype(dtype) for x in leaves]

    def squares(inverse: jax.Array | None) -> jax.Array:
        each = (x * x if inverse is None else _square_or_infinite(x, inverse) for x in leaves)
        return sum(map(jnp.sum, each), start=jnp.zeros((), dtype))

    def scaled() -> tuple[jax.Array, jax.Array]:
        # Each leaf at a scale of its own: one for all XLA would compute anew for every leaf, from
        # all of them, and 256 leaves took half a minute to compile.
        scales, totals = map(jnp.stack, zip(*map(_scaled_sum, leaves), strict=True))
        scale = jnp.max(scales)
        return scale, jnp.sum(totals * (scales / scale) ** 2)

    return _split_norm(squares, scaled, sum(x.size for x in leaves))


def global_norm(tree: Any) -> jax.Array:
    """The 2-norm of all leaves together, in float32 at least.

    Example:
      >>> print(global_norm({"a": jnp.array(3e-30), "b": jnp.array([4e-30])}))
      5e-30
    """
    scale, rest = split_global_norm(tree)
    return scale * rest
