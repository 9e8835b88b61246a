import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vanishjax.training.data import DataError
from vanishjax.training.data.split import check_fraction, hold_out


def split(strata, fraction, seed=0, keep=1):
    return hold_out(strata, fraction, np.random.default_rng(seed), name="split", keep=keep)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(3, 40), min_size=1, max_size=8),
    st.floats(0.01, 0.99),
    st.integers(1, 2),
    st.integers(0, 9),
)
def test_sizes_and_shares(counts, fraction, keep, seed):
    strata = np.repeat(np.arange(len(counts)), counts)
    n, k = len(strata), len(counts)
    size = int(np.floor(n * fraction + 0.5))
    if not 1 <= size <= n - keep * k:
        with pytest.raises(DataError, match=f"holds out {size} of {n} examples"):
            split(strata, fraction, seed, keep)
        return
    stay, held = split(strata, fraction, seed, keep)
    assert len(held) == size
    np.testing.assert_array_equal(np.sort(np.concatenate([stay, held])), np.arange(n))
    shares = np.bincount(strata[held], minlength=k)
    assert (np.array(counts) - shares >= keep).all()
    if size >= k:
        assert (shares >= 1).all()
    quota = np.array(counts) * size / n
    if (quota >= 1).all() and (np.array(counts) - quota >= keep).all():
        assert (np.abs(shares - quota) < 1).all()


def test_the_largest_remainders_get_what_is_left():
    # Quotas 1.5, 1.3 and 2.2 of 5: the half gets the one that is missing.
    stay, held = split(np.repeat([0, 1, 2], [15, 13, 22]), 0.1)
    np.testing.assert_array_equal(np.bincount(np.repeat([0, 1, 2], [15, 13, 22])[held]), [2, 1, 2])
    assert len(stay) == 45


@pytest.mark.parametrize(
    ("counts", "fraction", "shares"),
    [
        # Quotas 1.8 and 0.2, but each class comes once as long as that is possible.
        ([30, 3], 0.06, [1, 1]),
        # Quotas 0.3 (three times), 4 and 5.1: what the rare ones get, those nearest to theirs give.
        ([3, 3, 3, 40, 51], 0.1, [1, 1, 1, 3, 4]),
    ],
)
def test_rare_classes_are_held_out_too(counts, fraction, shares):
    strata = np.repeat(np.arange(len(counts)), counts)
    np.testing.assert_array_equal(np.bincount(strata[split(strata, fraction)[1]]), shares)


def test_the_seed_decides():
    strata = np.arange(100) % 4
    for one, two in zip(split(strata, 0.3, seed=1), split(strata, 0.3, seed=1), strict=True):
        np.testing.assert_array_equal(one, two)
    assert set(split(strata, 0.3, seed=1)[1]) != set(split(strata, 0.3, seed=2)[1])


def test_the_order_is_random_within_each_side():
    stay, held = split(np.repeat([0, 1], 50), 0.5)
    for side in (stay, held):
        assert 5 < (side[:20] < 50).sum() < 15


def test_every_example_has_the_same_chance():
    strata = np.repeat([0, 1], [5, 20])
    held = np.zeros(25)
    for seed in range(400):
        held[split(strata, 0.4, seed)[1]] += 1
    np.testing.assert_allclose(held / 400, 0.4, atol=0.1)


def test_too_few_of_a_class():
    strata = np.array([0] * 10 + [7] * 2)
    split(strata, 0.5)
    with pytest.raises(DataError, match="class 7 has too few examples to split: 2, where 3"):
        split(strata, 0.5, keep=2)


@pytest.mark.parametrize("fraction", [0, 1, 0.0, 1.0, -0.1, 1.5, float("nan"), True, "0.2", None])
def test_fractions_lie_between_0_and_1(fraction):
    with pytest.raises(DataError, match=r"validation_split is .* between 0 and 1, both excluded"):
        check_fraction("validation_split", fraction)


def test_good_fractions():
    for fraction in (0.01, 0.5, np.float32(0.99)):
        check_fraction("validation_split", fraction)


def test_a_class_keeps_its_examples_in_the_order_drawn():
    """One example after the other, as the split was first written: the same data set for a seed."""
    strata = np.random.default_rng(1).choice([0, 1, 5, 300], 500, p=[0.1, 0.5, 0.3, 0.1])
    rng = np.random.default_rng(0)
    stay, held = hold_out(strata, 0.2, np.random.default_rng(0), name="split")
    shares = np.bincount(strata[held])
    taken, expected = np.zeros(len(shares), int), np.zeros(500, bool)
    for index in rng.permutation(500):
        if taken[strata[index]] < shares[strata[index]]:
            taken[strata[index]] += 1
            expected[index] = True
    np.testing.assert_array_equal(stay, rng.permutation(np.flatnonzero(~expected)))
    np.testing.assert_array_equal(held, rng.permutation(np.flatnonzero(expected)))


def test_millions_of_examples_are_split_in_seconds():
    """In the time of a few random orders of them; a loop takes that of ten and more."""
    strata = np.random.default_rng(1).integers(0, 10, 1_000_000)

    def seconds(function, *arguments):
        began = time.process_time()
        function(*arguments)
        return time.process_time() - began

    order = min(seconds(np.random.default_rng(0).permutation, len(strata)) for _ in range(3))
    assert min(seconds(split, strata, 0.2) for _ in range(3)) < 6 * order
