"""The stopwatch of the benchmarks: what is planted is what it reports."""

import numpy as np
import pytest

from benchmarks import timing


class Machine:
    """A clock and contenders that advance it; the machine may slow down as it goes."""

    def __init__(self, slowdown=1.0):
        self.now, self.slowdown, self.pace = 0.0, slowdown, 1.0
        self.rng = np.random.default_rng(0)

    def clock(self):
        return self.now

    def contender(self, work, noise=0.0):
        def run():
            self.pace *= self.slowdown
            self.now += work * self.pace * self.rng.lognormal(0.0, noise)

        return run


def measured(machine, contenders, turns=40, **settings):
    samples = timing.by_turns(contenders, turns, clock=machine.clock, **settings)
    return timing.ratio(*samples.values())


@pytest.mark.parametrize("planted", [1.0, 2.0, 0.5])
def test_what_is_planted_is_reported(planted):
    machine = Machine()
    pair = {"a": machine.contender(planted, 0.2), "b": machine.contender(1.0, 0.2)}
    found = measured(machine, pair, turns=1000)
    assert found["median"] == pytest.approx(planted, rel=0.05)
    low, high = found["quartiles"]
    assert low < planted < high
    assert len(found["samples"]) == 1000


@pytest.mark.parametrize("planted", [1.0, 2.0])
def test_a_machine_that_slows_down_changes_no_ratio(planted):
    machine = Machine(slowdown=1.02)
    pair = {"a": machine.contender(planted), "b": machine.contender(1.0)}
    found = measured(machine, pair)
    assert machine.pace > 4
    assert found["median"] == pytest.approx(planted, rel=0.03)


def test_neither_gains_by_coming_second():
    machine, order = Machine(), []

    def run(name):
        def step():
            # The second of a turn finds the cache that the first one warmed.
            machine.now += 1.0 if len(order) % 2 else 1.2
            order.append(name)

        return step

    found = measured(machine, {"a": run("a"), "b": run("b")}, warm_up=0)
    assert order[:4] == ["a", "b", "b", "a"]
    assert found["median"] == pytest.approx(1.0, abs=0.02)


def test_warm_up_does_not_count():
    machine, calls = Machine(), []

    def slow_at_first():
        machine.now += 100.0 if len(calls) < 2 else 1.0
        calls.append(None)

    samples = timing.by_turns({"a": slow_at_first}, 3, warm_up=2, clock=machine.clock)
    assert samples == {"a": [1.0, 1.0, 1.0]}


def test_results_are_awaited():
    machine = Machine()

    class Pending:
        def block_until_ready(self):
            machine.now += 3.0
            return self

    assert timing.seconds(lambda: {"x": Pending()}, machine.clock) == 3.0


def test_compiled_reports_and_computes():
    compiled = timing.Compiled(lambda x: x + 1, np.float32(1.0))
    assert compiled(np.float32(1.0)) == 2.0
    assert compiled.trace_seconds > 0
    assert compiled.compile_seconds > 0
