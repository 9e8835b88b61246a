"""Updates that 16-bit parameters don't lose: stochastic rounding and Kahan summation.

A bfloat16 weight of 1.0 that gets 200 updates of -1e-3 one by one is still 1.0: each is less than
half the distance to the next number. Both transforms here stand last in a chain and decide which
number the parameter becomes: r. What they give out is u' = r - p in float32, with which plain
`optax.apply_updates`, whose `p + u'` is a float32 sum cast back once, lands on r. Where r - p needs
more than float32's 24 bits, r is so much larger than p that the cast rounds to it all the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vanishjax import numerics
from vanishjax.transforms.per_layer import check_given
from vanishjax.validation import check_floating

_BITS = 16  # of the compensation


class StochasticRoundState(NamedTuple):
    """Count of steps, from which the random numbers of the next one follow."""

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in optax


def stochastic_round(seed: int = 0) -> optax.GradientTransformation:
    r"""Rounds 16-bit parameters up or down at random, so that on average no update is lost.

    With x = p + u in float32, between the neighbors lo and hi of the parameter's type:

    .. math:: P(\mathrm{hi}) = \frac{x - lo}{hi - lo}, \qquad u' = \mathrm{round}(x) - p

    The mean of the rounded parameter is x. Needs no memory; the noise of a step is at most one
    unit in the last place. Place it last in a chain, behind the learning rate, and outside of
    `dynamic_loss_scale`, which shows what it wraps float32 parameters.

    Args:
      seed: Of the random numbers. They follow from it, the number of the step and the leaf's place
        in the tree, and are the same however arrays are divided among devices.

    Returns:
      A transform, which needs the parameters. The updates of leaves of fewer than 32 bits are
      float32, so that `optax.apply_updates` lands on the rounded value; those of others pass
      unchanged. An update of zero moves nothing. A sum beyond the type's range that is finite in
      float32 becomes the type's largest number; an infinite or NaN one stays that.

    Raises:
      ValueError: At `init`, a leaf that is not floating point; `update` without parameters.

    Example:
      >>> tx = optax.chain(optax.sgd(1e-3), stochastic_round())
      >>> params = jnp.ones(10_000, jnp.bfloat16)
      >>> plain, state = params, tx.init(params)
      >>> for _ in range(10):
      ...     updates, state = tx.update(jnp.ones_like(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     plain = optax.apply_updates(plain, jnp.full_like(plain, -1e-3))
      >>> plain.mean(dtype=jnp.float32), f"{params.mean(dtype=jnp.float32):.3f}"
      (Array(1., dtype=float32), '0.990')

    References:
      Gupta et al., Deep learning with limited numerical precision, 2015, section 3.1; Zamirai et
      al., Revisiting BFloat16 training, 2020, section 4.1.
    """

    def init_fn(params: optax.Params) -> StochasticRoundState:
        check_floating(params)
        return StochasticRoundState(jnp.zeros([], jnp.int32))

    def update_fn(
        updates: optax.Updates, state: StochasticRoundState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, StochasticRoundState]:
        check_given(params)
        # Threefry, whatever the default is: its numbers don't depend on how arrays are divided.
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), state.count)
        leaves, structure = jax.tree.flatten(updates)
        keys = [jax.random.fold_in(key, place) for place in range(len(leaves))]

        def rounded(u: Any, key: jax.Array, p: Any) -> Any:
            if not _is_narrow(p):
                return u
            start = p.astype(jnp.float32)
            x = start + jnp.asarray(u, jnp.float32)
            return _landing(start, x, u, _drawn(x, p.dtype, key))

        steps = jax.tree.map(rounded, updates, jax.tree.unflatten(structure, keys), params)
        return steps, StochasticRoundState(state.count + 1)

    return optax.GradientTransformation(init_fn, update_fn)


class KahanSumState(NamedTuple):
    """What rounding has left out of each parameter.

    Attributes:
      compensation: int16 arrays of the parameters' shapes, in units of 2^-16 of the distance from
        the parameter to the next larger number of its type; `optax.MaskedNode` for parameters of 32
        bits or more.
    """

    compensation: Any


def kahan_sum() -> optax.GradientTransformation:
    r"""Adds what rounding left out of 16-bit parameters to their next update (Kahan summation).

    .. math::
      x = p + c + u, \qquad u' = \mathrm{round}(x) - p, \qquad
      c \leftarrow x - \mathrm{round}(x)

    p + c is the parameter that float32 training would have, to float32's precision, and p that
    parameter rounded to the nearest 16-bit number. c takes 2 bytes a parameter, as it would in the
    parameter's own type: but it's kept as a 16-bit integer in units of 2^-16 of p's last place,
    since in bfloat16, whose 8 bits c would share out between its exponent and itself, an update
    below 2^-18 of p would be lost again (a rate of 3e-6 on weights of 1), and in float32 it would
    take as much memory as a float32 copy of the parameters. Place it last in a chain, behind the
    learning rate, and outside of `dynamic_loss_scale`, which shows what it wraps float32
    parameters.

    Returns:
      A transform, which needs the parameters. The updates of leaves of fewer than 32 bits are
      float32, so that `optax.apply_updates` lands on the rounded value; those of others pass
      unchanged. An update of zero moves nothing. A sum beyond the type's range that is finite in
      float32 becomes the type's largest number; an infinite or NaN one stays that.

    Raises:
      ValueError: At `init`, a leaf that is not floating point; `update` without parameters.

    Example:
      >>> tx = optax.chain(optax.sgd(1e-3), kahan_sum())
      >>> params = jnp.ones(1, jnp.bfloat16)
      >>> state = tx.init(params)
      >>> for _ in range(200):
      ...     updates, state = tx.update(jnp.ones(1), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params)
      [0.800781]

    References:
      Kahan, Further remarks on reducing truncation errors, 1965; Zamirai et al., Revisiting
      BFloat16 training, 2020, section 4.2.
    """

    def init_fn(params: optax.Params) -> KahanSumState:
        check_floating(params)
        return KahanSumState(
            jax.tree.map(
                lambda p: jnp.zeros_like(p, jnp.int16) if _is_narrow(p) else optax.MaskedNode(),
                params,
            )
        )

    def update_fn(
        updates: optax.Updates, state: KahanSumState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, KahanSumState]:
        check_given(params)

        def summed(u: Any, p: Any, compensation: Any) -> _Sum:
            if not _is_narrow(p):
                return _Sum(u, compensation)
            start = p.astype(jnp.float32)
            unit, _ = _units(start, p.dtype)
            x = start + compensation.astype(jnp.float32) * unit + jnp.asarray(u, jnp.float32)
            nearest = jnp.copysign(_Grid.of(p.dtype).nearest(jnp.abs(x)), x)
            _, per_unit = _units(nearest, p.dtype)
            left = jnp.rint((x - nearest) * per_unit)
            most = 2 ** (_BITS - 1) - 1  # half a unit in the last place
            left = jnp.where(jnp.isfinite(left), jnp.clip(left, -most, most), 0)
            return _Sum(_landing(start, x, u, nearest), left.astype(jnp.int16))

        def each(choose: Callable[[_Sum], Any]) -> Any:
            return jax.tree.map(choose, sums, is_leaf=lambda x: isinstance(x, _Sum))

        sums = jax.tree.map(summed, updates, params, state.compensation)
        return each(lambda s: s.update), KahanSumState(each(lambda s: s.compensation))

    return optax.GradientTransformation(init_fn, update_fn)


class _Sum(NamedTuple):
    update: Any
    compensation: Any


def _is_narrow(p: Any) -> bool:
    return hasattr(p, "dtype") and jnp.dtype(p.dtype).itemsize < 4


def _landing(start: jax.Array, x: jax.Array, u: Any, target: jax.Array) -> jax.Array:
    """The update that leads from `start` to `target`; `u` itself where no number is reached."""
    return jnp.where(jnp.isfinite(x), target - start, jnp.asarray(u, jnp.float32))


class _Grid(NamedTuple):
    """The numbers of a narrow type, as float32 arithmetic sees them.

    Nothing here is cast to the type: where a cast is followed by one back, XLA may compute neither
    (it calls that excess precision, and does so on GPUs at any distance), and would round nothing.

    Attributes:
      dropped: Bits of a float32's mantissa that the type lacks.
      least: Its smallest normal number.
      quantum: The distance between its numbers below that.
      largest: Its largest finite number.
    """

    dropped: int
    least: float
    quantum: float
    largest: float

    @classmethod
    def of(cls, dtype: Any) -> "_Grid":
        """That of a type."""
        info = jnp.finfo(dtype)
        dropped = int(jnp.finfo(jnp.float32).nmant) - int(info.nmant)
        sizes = (float(x) for x in (info.smallest_normal, info.smallest_subnormal, info.max))
        return cls(dropped, *sizes)

    def below(self, size: jax.Array) -> jax.Array:
        """The largest number that isn't above `size >= 0`."""
        return self._placed(size, lambda bits: bits, jnp.floor)

    def above(self, low: jax.Array) -> jax.Array:
        """The next number; infinite behind the largest."""
        step = jnp.uint32(1 << self.dropped)
        high = self._placed(low, lambda bits: bits + step, lambda units: units + 1)
        return jnp.where(low >= self.largest, jnp.inf, high)

    def nearest(self, size: jax.Array) -> jax.Array:
        """The nearest number to `size >= 0`, of two the even one."""
        half = jnp.uint32((1 << (self.dropped - 1)) - 1)
        return self._placed(size, lambda x: x + half + ((x >> self.dropped) & 1), jnp.rint)

    def _placed(
        self,
        size: jax.Array,
        move: Callable[[jax.Array], jax.Array],
        whole: Callable[[jax.Array], jax.Array],
    ) -> jax.Array:
        bits = move(jax.lax.bitcast_convert_type(size, jnp.uint32))
        kept = jnp.uint32(2**32 - (1 << self.dropped))
        found = jax.lax.bitcast_convert_type(bits & kept, jnp.float32)
        # A bfloat16 is as small as a float32, and what lies below is flushed.
        if self.least > float(jnp.finfo(jnp.float32).smallest_normal):
            found = jnp.where(size < self.least, whole(size / self.quantum) * self.quantum, found)
        return jnp.minimum(found, self.largest)


def _drawn(x: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    """One of the two neighbors of x in a type, each as likely as it is near."""
    size, grid = jnp.abs(x), _Grid.of(dtype)
    low = grid.below(size)
    high = grid.above(low)
    share = (size - low) / (high - low)  # 0 above the largest number, whose neighbor is infinite
    threshold = (share * 2.0**32).astype(jnp.uint32)
    up = jax.random.bits(key, x.shape) < threshold
    return jnp.copysign(jnp.where(up, high, low), x)


def _units(value: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """2^-16 of the distance to the next larger number of a type, and the inverse of that."""
    info = jnp.finfo(dtype)
    # Normal numbers both, which no processor flushes to zero.
    least = max(float(info.smallest_normal), 2.0**-100)
    scale, inverse = numerics.power_of_two(jnp.maximum(jnp.abs(value), least))
    digits = 2.0 ** (info.nmant + _BITS)
    return scale / digits, inverse * digits
