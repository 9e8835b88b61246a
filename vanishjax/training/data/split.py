"""Stratified splits of exact size."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np

from vanishjax.training.data.errors import DataError
from vanishjax.training.data.raw import Array


def check_fraction(name: str, fraction: float) -> None:
    """Rejects a fraction that would leave one side of a split empty.

    Args:
      name: Name of the argument, for the message.
      fraction: Fraction to hold out.

    Raises:
      DataError: Unless it is a number strictly between 0 and 1.

    Example:
      >>> check_fraction("validation_split", 1.0)
      Traceback (most recent call last):
      ...
      vanishjax.training.data.errors.DataError: validation_split is 1.0; it must be between 0 and 1,
      both excluded, such as 0.2
    """
    if isinstance(fraction, bool) or not isinstance(fraction, Real) or not 0 < fraction < 1:
        raise DataError(
            f"{name} is {fraction!r}; it must be between 0 and 1, both excluded, such as 0.2"
        )


def hold_out(
    strata: Array, fraction: float, rng: np.random.Generator, *, name: str, keep: int = 1
) -> tuple[Array, Array]:
    """Splits examples in two, each class in the same proportion.

    round(fraction * n) of the n examples are held out. Each class's share of them is its exact
    quota rounded down, and the examples still missing go to the largest remainders. As far as the
    number allows, each class is held out at least once and stays at least `keep` times.

    Args:
      strata: `[n]` class of each example, from 0; all equal for a plain random split.
      fraction: Fraction to hold out.
      rng: Source of randomness; the split depends on nothing else.
      name: Name of the argument that asks for the split, for the messages.
      keep: Examples of each class that must stay.

    Returns:
      Indices of the examples that stay and of those held out, both in random order, so that the
      first few are a fair sample.

    Raises:
      DataError: If a class has too few examples, or the fraction leaves a side too small.

    Example:
      >>> labels = np.repeat([0, 1], [30, 10])
      >>> stay, held = hold_out(labels, 0.25, np.random.default_rng(0), name="test_split")
      >>> np.bincount(labels[stay]), np.bincount(labels[held])
      (array([22,  8]), array([8, 2]))
    """
    counts = np.bincount(strata)
    classes = np.flatnonzero(counts)
    counts = counts[classes]
    if counts.min() <= keep:
        rarest = int(np.argmin(counts))
        which = f"class {classes[rarest]} has" if len(classes) > 1 else "there are"
        raise DataError(
            f"{which} too few examples to split: {counts[rarest]}, where {keep + 1} are needed,"
            " one for each part"
        )
    size, most = math.floor(fraction * len(strata) + 0.5), len(strata) - keep * len(classes)
    if not 1 <= size <= most:
        raise DataError(
            f"{name} {fraction:g} holds out {size} of {len(strata)} examples; choose it so that"
            f" from 1 to {most} are held out"
        )
    # In a random order, with the examples of each class beside one another: the first of each.
    order = rng.permutation(len(strata))
    # NumPy sorts small integers stably in linear time.
    small = np.min_scalar_type(classes[-1])
    order = order[np.argsort(strata[order].astype(small), kind="stable")]
    place = np.arange(len(strata)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.zeros(len(strata), bool)
    held[order[place < np.repeat(_shares(counts, size, keep), counts)]] = True
    return rng.permutation(np.flatnonzero(~held)), rng.permutation(np.flatnonzero(held))


def _shares(counts: Array, size: int, keep: int) -> Array:
    quota = counts * size / counts.sum()
    low = np.full_like(counts, 1 if size >= len(counts) else 0)
    high = counts - keep
    shares = np.clip(np.floor(quota).astype(int), low, high)
    while (missing := size - int(shares.sum())) != 0:
        if missing > 0:
            shares[np.argmax(np.where(shares < high, quota - shares, -np.inf))] += 1
        else:
            shares[np.argmin(np.where(shares > low, quota - shares, np.inf))] -= 1
    return shares
