"""Running means of gradients and of their squares, as roots."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vanishjax.numerics.arithmetic import divide, hypot, sqrt, weighted_hypot
from vanishjax.numerics.dtypes import accumulator_dtype, upcast

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
    return weighted_hypot(root, gradient, decay, LIFT**2 * (1 - decay))


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
