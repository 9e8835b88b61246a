"""Programs are kept for the next call, and let go when others have come."""

import gc
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vanishjax as vj
from vanishjax.compilation import calls_in_haste, jit_once, jit_recent

MAPS = Path("/proc/self/maps")


class Factor:
    """A static argument."""


def count_traces(compiler):
    traced = []

    def scaled(factor, x):
        traced.append(factor)
        return 2 * x

    return compiler(scaled, static_argnums=0), traced


@pytest.mark.parametrize("compiler", [jit_once, jit_recent])
def test_a_program_serves_the_same_arguments_again(compiler):
    fn, traced = count_traces(compiler)
    one, two = Factor(), Factor()
    for factor, x in [(one, 1.0), (one, 3.0), (two, 1.0), (one, np.ones(2)), (one, jnp.ones(2))]:
        np.testing.assert_array_equal(fn(factor, x), 2 * x)
    assert traced == [one, two, one]


@pytest.mark.parametrize("compiler", [jit_once, jit_recent])
def test_static_arguments_are_let_go(compiler):
    fn = compiler(lambda factor, x: 2 * x, static_argnums=0)
    factor = Factor()
    alive = weakref.ref(factor)
    fn(factor, 1.0)
    del factor
    for _ in range(8):
        fn(Factor(), 1.0)
    gc.collect()
    assert alive() is None


def test_inside_another_program_it_is_a_part_of_that():
    fn, traced = count_traces(jit_recent)
    assert jax.jit(lambda x: fn(None, x))(3.0) == 6
    assert jax.vmap(lambda x: fn(None, x))(jnp.arange(3.0)).tolist() == [0, 2, 4]
    assert len(traced) == 2


def turning(loop):
    """A loop of 100,000 turns, each of which computes a thousand numbers."""

    def scan(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(x), None), x, length=100_000)[0]

    def bounded(x):
        return jax.lax.fori_loop(0, 100_000, lambda _, x: jnp.sin(x), x)

    def inside(x):
        return jax.lax.cond(x[0] > 0, jax.jit(scan), lambda x: x, x)

    return {"scan": scan, "bounded": bounded, "inside": inside}[loop]


@pytest.mark.parametrize("loop", ["scan", "bounded", "inside"])
def test_all_the_turns_of_a_loop_are_work(loop):
    assert calls_in_haste(jax.make_jaxpr(turning(loop))(jnp.ones(1_000))) < 1
    assert calls_in_haste(jax.make_jaxpr(jnp.sin)(jnp.ones(1_000))) > 1_000


def test_where_nobody_knows_how_often_a_loop_turns_a_hundred_times_count():
    def until(x):
        return jax.lax.while_loop(lambda x: x[0] < 1, jnp.sin, x)

    assert calls_in_haste(jax.make_jaxpr(until)(jnp.ones(1_000))) > 1
    assert calls_in_haste(jax.make_jaxpr(until)(jnp.ones(1_000_000))) < 1


def test_a_kernel_larger_than_its_image_is_more_work():
    """XLA's compiler for CPUs writes loops for those convolutions; others are a library's."""

    def convolved(size, taps):
        order = ("NHWC", "HWIO", "NHWC")
        return jax.make_jaxpr(
            lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=order)
        )(jnp.ones((8, size, size, 64)), jnp.ones((taps, taps, 64, 64)))

    same = calls_in_haste(convolved(4, 3))
    assert same == calls_in_haste(convolved(4, 4)) == calls_in_haste(convolved(4, 1))
    np.testing.assert_allclose(calls_in_haste(convolved(4, 5)), same / (8 * 25 * 64))


def test_nothing_is_left_slower_by_a_second():
    """However many operations it has."""

    def program(length):
        def many(x):
            for _ in range(length):
                x = jnp.sin(x)
            return x

        return jax.make_jaxpr(many)(jax.ShapeDtypeStruct((2**20,), jnp.float32))

    assert 2 < calls_in_haste(program(2_000)) < 4
    assert calls_in_haste(program(2_100)) == 0


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere all is optimized")
@pytest.mark.parametrize(("entries", "quick_calls"), [(10, 12), (1_200_000, 5), (10_000_000, 0)])
def test_what_computes_little_is_optimized_if_it_is_called_often(monkeypatch, entries, quick_calls):
    jit, used = jax.jit, []

    def noted(fn, **options):
        program = jit(fn, **options)

        def call(x):
            used.append("compiler_options" in options)
            return program(x)

        call.trace = program.trace
        return call

    monkeypatch.setattr(jax, "jit", noted)
    fn = jit_once(lambda x: 2 * x)
    for _ in range(12):
        np.testing.assert_array_equal(fn(np.ones(entries, np.float32)), 2)
    assert used == [True] * quick_calls + [False] * (12 - quick_calls)


@pytest.mark.skipif(not MAPS.exists(), reason="memory maps are counted as Linux shows them")
def test_verdicts_on_many_networks_leave_nothing_behind():
    def examine(width):
        def loss(w, x):  # a new function each time, as in a sweep
            return jnp.mean(jnp.tanh(x @ w) ** 2)

        vj.diagnose(loss, jnp.full((3, width), 0.5), jnp.eye(3), vj.sgd(0.1))
        return len(MAPS.read_text().splitlines())

    counts = [examine(2 + number % 2) for number in range(11)]
    # Four programs of each kind are kept, and nothing is added from then on.
    assert counts[-1] <= counts[5] + 20
