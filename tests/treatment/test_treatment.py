"""cure: what it accepts, records, refuses and leaves alone; each remedy on what it must cure."""

import dataclasses
import functools
import itertools
import json
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental.ode import odeint
from jax.sharding import NamedSharding, PartitionSpec

import vanishjax as vj
from tests.treatment.test_remedies import assert_recipe_makes, keeping_traces
from vanishjax.treatment import Context, acceptance, remedies, starts, steps
from vanishjax.treatment.batches import divide, sequence
from vanishjax.treatment.judgement import (
    beats_constant,
    gets_as_far,
    improvement,
    keeps_up,
    learns,
    learns_by_itself,
)
from vanishjax.treatment.loss import trained_loss
from vanishjax.treatment.progress import Progress, Raced, Relief, Wave
from vanishjax.treatment.trial import Run, race, run_alike

KEY = jax.random.key(0)
STEPS = 40
SGD = optax.sgd(0.1)


@functools.cache
def data(batches=16, size=64, features=8):
    x = jax.random.normal(KEY, (batches, size, features))
    return tuple((inputs, jnp.argmax(inputs[:, :4], axis=1)) for inputs in x)


def new_network(activation="sigmoid", depth=16, **options):
    options = {"tx": vj.adam(3e-3), "key": jax.random.key(1)} | options
    return vj.mlp_problem(8, (32,) * depth, 4, activation=activation, **options)


@functools.cache
def known_network(*architecture, **options):
    """What was compiled for its loss is found again by the next test."""
    return keeping_traces(new_network(*architecture, **options))


def network(activation="sigmoid", depth=16, tx=None, **options):
    problem = known_network(activation, depth, **options)
    return problem if tx is None else dataclasses.replace(problem, tx=tx)


@functools.cache
def context(problem=None):
    return Context(problem or network(), data()[0])


def names(treatment):
    return {trial.remedy: trial.outcome for trial in treatment.trials}


@pytest.fixture(scope="module")
def cured():
    problem = network()
    return problem, vj.cure(problem, data(), steps=STEPS, key=KEY)


def test_a_collapsed_sigmoid_network_is_cured(cured):
    _, treatment = cured
    assert names(treatment) == {
        "untreated": "untreated",
        "lsuv": "accepted",
        "small_lsuv": "better",
        "slow_lsuv": "accepted",  # not as far yet, and more certain to get there
        "slow_small_lsuv": "no better",
    }
    assert [remedy.name for remedy in treatment.accepted] == ["slow_lsuv"]
    assert not treatment.before.healthy
    assert treatment.after.healthy
    untreated, accepted = (
        next(trial for trial in treatment.trials if trial.outcome == outcome)
        for outcome in ("untreated", "accepted")
    )
    assert accepted.loss < 0.9 * untreated.loss
    assert accepted.accuracy > untreated.accuracy + 0.2
    assert "mean_collapse" in untreated.rules
    assert not accepted.rules
    assert treatment.cost == 5 * STEPS + 3 * 5
    assert treatment.recipe.splitlines() == [
        "params = vj.initializers.pca(loss_fn, params, batch)",
        "params = vj.initializers.lsuv(loss_fn, params, batch)",
        "params = vj.treatment.match_targets(loss_fn, params, batch, below=0.4)",
        "tx = optax.chain(tx, optax.scale(0.3))",
    ]


def test_nothing_of_the_users_is_changed(cured):
    problem, _ = cured
    again = new_network()
    chex.assert_trees_all_equal(problem.params, again.params)


def test_the_state_that_comes_back_is_that_of_the_trial(cured):
    """The same steps by hand, from the treated start, end where the treatment does."""
    _, treatment = cured
    problem = treatment.start
    trained_on, *_ = divide(data(), STEPS)
    batches = sequence(trained_on, STEPS, jax.random.split(KEY)[0])
    state = vj.TrainState.create(problem.params, problem.tx)
    step, losses = vj.make_train_step(problem.loss_fn, problem.tx), []
    for i in range(STEPS):
        state, metrics = step(state, jax.tree.map(lambda x, i=i: x[i], batches))
        losses.append(float(metrics["loss"]))
    chex.assert_trees_all_close(treatment.problem.params, dict(state.params), atol=2e-3)
    chex.assert_trees_all_equal_shapes_and_dtypes(treatment.opt_state, state.opt_state)
    accepted = [trial for trial in treatment.trials if trial.outcome == "accepted"]
    np.testing.assert_allclose(accepted[-1].losses, losses, atol=1e-3)


def test_it_is_deterministic_under_a_key(cured):
    _, treatment = cured
    again = vj.cure(network(), data(), steps=STEPS, key=KEY)
    chex.assert_trees_all_equal(again.problem.params, treatment.problem.params)
    assert again.to_dict()["trials"] == treatment.to_dict()["trials"]


def test_the_same_cure_on_batches_spread_over_devices(cured):
    _, treatment = cured
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(data(), NamedSharding(mesh, PartitionSpec("data")))
    tried = [starts.lsuv(context())]
    again = vj.cure(network(), spread, steps=STEPS, key=KEY, remedies=tried)
    assert names(again) == {"untreated": "untreated", "lsuv": "accepted"}
    whole = {trial.remedy: trial.loss for trial in treatment.trials}
    for trial in again.trials:
        np.testing.assert_allclose(trial.loss, whole[trial.remedy], rtol=0.05)


def test_remedies_are_combined_until_it_is_healthy():
    """Half a cure, then the other half on top of it."""
    full = starts.lsuv(context())

    def half(problem):
        params = full.apply(problem).params
        deep = problem.params["hidden_stack"]
        mixed = jax.tree.map(
            lambda new, old: new.at[-3:].set(old[-3:]), params["hidden_stack"], deep
        )
        return dataclasses.replace(problem, params={**params, "hidden_stack": mixed})

    problem = network()
    tried = [vj.Remedy("half", half), vj.Remedy("rest", full.apply)]
    treatment = vj.cure(problem, data(), steps=STEPS, remedies=tried)
    assert treatment.after.healthy
    assert {"half", "rest"} & {one.name for one in treatment.accepted}


@pytest.mark.parametrize(("variance", "accepted"), [(0.4, "local"), (0.2, "lsuv")])
def test_of_two_that_get_about_as_far_the_one_that_changes_less_is_taken(variance, accepted):
    """From the lower start the smaller kernels come about .9 and .7 as far as the others."""

    def smaller(problem):
        loss_fn = context().loss(problem)
        params = vj.initializers.lsuv(loss_fn, problem.params, data()[0], variance=variance)
        return dataclasses.replace(problem, params=params)

    tried = [starts.lsuv(context()), vj.Remedy("local", smaller, local=True)]
    treatment = vj.cure(network(), data(), steps=STEPS, remedies=tried, key=KEY)
    assert [one.name for one in treatment.accepted] == [accepted]
    losses = {trial.remedy: trial.loss for trial in treatment.trials}
    assert losses["local"] > 1.2 * losses["lsuv"]


def test_in_a_short_training_a_slower_form_must_come_as_far():
    lsuv = starts.lsuv(context())
    slow = dataclasses.replace(lsuv, name="slow", safer_than="lsuv", rate=0.5)
    tried = [lsuv, slow]
    treatment = vj.cure(
        network(), data(), steps=STEPS, remedies=tried, key=KEY, total_steps=5 * STEPS
    )
    assert names(treatment) == {"untreated": "untreated", "lsuv": "accepted", "slow": "no better"}
    assert [one.name for one in treatment.accepted] == ["lsuv"]


def test_a_slower_form_that_keeps_up_is_taken():
    """Even where the faster one cured the network and is ahead; one that falls behind isn't."""
    lsuv = starts.lsuv(context())
    slow, crawling = (
        dataclasses.replace(lsuv, name=name, safer_than="lsuv", rate=rate)
        for name, rate in (("slow", 0.5), ("crawling", 0.02))
    )
    other = dataclasses.replace(slow, name="other", safer_than=None)
    tried = [lsuv, crawling, slow, other]
    treatment = vj.cure(network(), data(), steps=STEPS, remedies=tried, key=KEY)
    assert names(treatment) == {
        "untreated": "untreated",
        "lsuv": "accepted",
        "crawling": "no better",
        "slow": "accepted",
    }
    assert [one.name for one in treatment.accepted] == ["slow"]
    losses = {trial.remedy: trial.loss for trial in treatment.trials}
    assert losses["lsuv"] < losses["slow"] < losses["crawling"]


def test_a_transform_that_refuses_the_parameters_is_recorded():
    def refuse(_):
        raise TypeError("hidden_0/kernel: refused")

    lsuv = starts.lsuv(context())
    picky = vj.Remedy(
        "picky",
        lambda problem: dataclasses.replace(
            problem, tx=optax.GradientTransformation(refuse, problem.tx.update)
        ),
    )
    treatment = vj.cure(network(), data(), steps=STEPS, remedies=[picky, lsuv], key=KEY)
    outcomes = {trial.remedy: (trial.outcome, trial.reason) for trial in treatment.trials}
    assert outcomes["picky"] == ("failed", "TypeError: hidden_0/kernel: refused")
    assert "lsuv" in outcomes


def looks_healthy(rate=1e-2):
    problem = network("tanh", depth=2)
    return vj.Problem(problem.loss_fn, problem.params, vj.adam(rate))


def test_a_network_that_only_looks_healthy_is_treated():
    """Its rate is far too small, which no look at one step tells."""
    problem = looks_healthy(rate=3e-5)
    assert vj.diagnose(problem, data()[0]).verdict == "healthy"
    told = []
    treatment = vj.cure(problem, data(), steps=STEPS, on_trial=told.append)
    assert [trial.remedy for trial in told] == [trial.remedy for trial in treatment.trials]
    (found, *_) = treatment.before.findings
    assert found.rule == "does_not_learn"
    assert "fit_rate" in [remedy.name for remedy in treatment.accepted]
    assert treatment.trials[0].outcome == "untreated"
    assert "does not learn: " in str(treatment)


def test_what_is_about_to_be_trained_is_announced():
    """Every trial but what is refused, and how many others are known to follow."""
    seen = []
    treatment = vj.cure(
        network(depth=4, tx=SGD),
        data(),
        steps=2,
        total_steps=4,
        on_trial=lambda trial: seen.append(trial.remedy),
        on_wave=lambda names, waiting: seen.append((names, waiting)),
    )
    waves = [one for one in seen if isinstance(one, tuple)]
    (first, most), *_, (last, least) = waves
    assert seen[0] == waves[0]
    assert first[0] == "untreated"
    assert most > least == 0
    assert last == ("other rates",)
    announced = {name for names, _ in waves for name in names}
    ran = {one.remedy for one in treatment.trials if one.steps == 2}
    assert {name.rpartition(" + ")[2] for name in ran} <= announced
    for before, after in itertools.pairwise(seen):
        assert not (isinstance(before, tuple) and isinstance(after, tuple)), seen


def test_a_network_that_has_learned_already_need_not_learn_more():
    problem, batches = network("tanh", depth=2, tx=vj.adam(1e-2)), data()
    state = vj.TrainState.create(problem)
    step = jax.jit(vj.make_train_step(problem))
    for _ in range(15):
        for batch in batches:
            state, _ = step(state, batch)
    still = dataclasses.replace(problem, params=state.params, tx=vj.sgd(0.0))
    treatment = vj.cure(still, batches, steps=5)
    assert treatment.trials == ()
    assert treatment.before.verdict == "healthy"


def test_labels_that_mean_nothing_make_no_network_sick():
    """It looks healthy, learns nothing, and nothing else does."""
    labels = jax.random.randint(KEY, (16, 64), 0, 4)
    batches = [(x, y) for (x, _), y in zip(data(), labels, strict=True)]
    problem = looks_healthy(rate=1e-3)
    treatment = vj.cure(problem, batches, steps=20)
    assert treatment.accepted == ()
    assert treatment.problem is problem
    assert [one.rule for one in treatment.before.findings] == ["does_not_learn"]


@pytest.mark.parametrize("total_steps", [None, 100])
@pytest.mark.parametrize(("place", "where"), [(4, "that of step "), (3, "held-out batch 1")])
def test_what_is_wrong_on_another_batch_is_named_and_not_treated(place, where, total_steps):
    """A division by 0 in the loss: no parameters make up for that."""

    problem = looks_healthy()

    def loss_fn(params, batch):
        weight = jnp.sum(jnp.maximum(batch[0][:, 0], 0.0))
        return problem.loss_fn(params, batch) * weight / weight

    batches = [*data()]
    batches[place] = (-jnp.abs(batches[place][0]), batches[place][1])
    divided = dataclasses.replace(problem, loss_fn=loss_fn)
    treatment = vj.cure(divided, batches, steps=20, total_steps=total_steps)
    (found,) = treatment.before.findings
    assert found.rule == "nonfinite"
    assert "0 / 0 is NaN" in found.cause
    assert [trial.remedy for trial in treatment.trials] == ["untreated"]
    assert treatment.cost == 20 + 3 + 3
    (note,) = treatment.notes
    said = "the network looks healthy on the first batch: what is wrong was found on "
    assert note.startswith(said + where)
    said = str(treatment)
    assert said.startswith("Nothing to try: no parameters and no optimizer make up for this.")
    assert "add a small number to the divisor" in said


def test_a_problem_without_a_transform_is_refused():
    problem = network("tanh", depth=2)
    with pytest.raises(ValueError, match="this problem has no transform"):
        vj.cure(vj.Problem(problem.loss_fn, problem.params), data(), steps=2)


def remedy(name, **changes):
    return vj.Remedy(name, lambda problem: dataclasses.replace(problem, **changes))


def broken(problem):
    raise RuntimeError("no such layer\nmore")


def test_remedies_that_raise_diverge_or_do_nothing_are_recorded():
    problem = network()
    wild = optax.chain(optax.scale(1e30), optax.sgd(1e30))
    tried = [
        vj.Remedy("broken", broken),
        remedy("placebo", tx=vj.adam(2e-3)),
        remedy("wild", tx=wild),
    ]
    seen = []
    treatment = vj.cure(problem, data(), steps=10, remedies=tried, on_trial=seen.append)
    assert names(treatment) == {
        "broken": "failed",
        "untreated": "untreated",
        "placebo": "no better",
        "wild": "diverged",
    }
    assert list(treatment.trials) == seen
    assert treatment.trials[1].reason == "RuntimeError: no such layer"
    assert treatment.accepted == ()
    assert treatment.problem is problem
    assert str(treatment).startswith("Nothing helped, at the cost of ")
    json.dumps(treatment.to_dict(), allow_nan=False)


def test_what_lowers_the_loss_but_not_the_cause_is_not_accepted():
    """A bias of the last layer can learn how frequent the classes are, whatever ails the rest."""
    batches = [(x, jnp.where(y > 1, 0, y)) for x, y in data()]
    problem = network(tx=optax.sgd(1e-4))
    treatment = vj.cure(problem, batches, steps=STEPS, remedies=[remedy("sgd", tx=optax.sgd(0.3))])
    trial = treatment.trials[-1]
    assert trial.loss < 0.98 * treatment.trials[0].loss
    assert trial.outcome == "no better"
    assert "the cause is still there" in trial.reason


def test_what_takes_the_cause_away_gets_more_time_where_nothing_helped():
    """From unit variance the loss starts higher than a constant output's, and falls below later."""
    problem = network(depth=8, tx=SGD)

    def unmatched(problem):
        params = vj.initializers.lsuv(problem.plain_loss, problem.params, data()[0])
        return dataclasses.replace(problem, params=params)

    given = [vj.Remedy("lsuv", unmatched), steps.clip(context(problem))]
    seen = []
    treatment = vj.cure(problem, data(), steps=4, remedies=given, key=KEY, on_trial=seen.append)
    told = [(trial.remedy, trial.steps, trial.outcome) for trial in treatment.trials]
    assert told == [
        ("untreated", 4, "untreated"),
        ("lsuv", 4, "no better"),
        ("clip", 4, "no better"),
        ("untreated", 16, "untreated"),
        ("lsuv", 16, "accepted"),  # not what left the cause
    ]
    assert seen == list(treatment.trials)
    assert treatment.cost == 3 * 4 + 2 * 16 + 3 * 4
    shown = str(treatment).splitlines()
    assert any(line.startswith("✓ lsuv, 16 steps") for line in shown)
    assert any(line.startswith("  untreated  ") for line in shown)


def test_a_trial_scales_the_loss_as_a_training_step_does():
    """A transform that divides gradients by a scale gets them multiplied by it."""
    plain = network(depth=8, tx=SGD)
    scaled = dataclasses.replace(plain, tx=vj.dynamic_loss_scale(SGD, initial_scale=2.0**10))
    lsuv = starts.lsuv(context(plain))
    treatments = [
        vj.cure(problem, data(), steps=16, remedies=[lsuv], key=KEY) for problem in (scaled, plain)
    ]
    for a, b in zip(*(treatment.trials for treatment in treatments), strict=True):
        assert len(a.losses) == 16
        np.testing.assert_allclose(a.losses, b.losses, rtol=1e-3)


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (lambda: network(depth=8, tx=SGD), {"lsuv", "small_lsuv"}),
        (lambda: network("relu", 48), {"looks_linear", "rezero"}),
        (lambda: scaled_kernels(50.0), {"lsuv", "redraw"}),
        (lambda: zeros(), {"redraw"}),
        (lambda: poisoned(), {"redraw"}),
    ],
    ids=["sgd", "rank collapse", "saturated", "zeros", "nan"],
)
def test_each_cause_has_its_cure(problem, expected):
    sick = problem()
    treatment = vj.cure(sick, data(), steps=60, key=KEY)
    accepted = {one.name.removeprefix("slow_") for one in treatment.accepted}
    assert accepted & expected, str(treatment)
    assert_recipe_makes(sick, treatment.recipe, treatment.start, treatment.batch)
    assert treatment.trials[0].remedy == "untreated"


def test_a_healthy_network_is_left_alone():
    problem = network("tanh", depth=4)
    treatment = vj.cure(problem, data(), steps=STEPS)
    assert treatment.problem is problem
    assert treatment.start is problem
    assert treatment.accepted == ()
    assert treatment.trials == ()
    assert treatment.opt_state is None
    assert treatment.cost == STEPS + 3
    assert treatment.recipe == ""
    learning = treatment.after.learning
    assert len(learning.losses) == STEPS + 1
    assert learning.learns
    assert str(treatment).startswith("Healthy: nothing to cure. In 40 steps as it is its loss went")


def test_redraw_leaves_scales_and_the_structure():
    problem = zeros()
    params = starts.redraw(context(problem)).apply(problem).params
    chex.assert_trees_all_equal_shapes_and_dtypes(params, problem.params)
    assert vj.diagnose(problem.loss_fn, params, data()[0]).healthy


def test_redraw_raises_gains_from_the_dead():
    """All at 0 let nothing by; one of several at 0 ends a branch, as it's meant to."""
    ones, nothing = jnp.ones(3), jnp.zeros(3)
    kernel = {"kernel": jnp.zeros((3, 3))}
    for first, second, found in (
        (nothing, nothing, (ones, ones)),
        (2 * ones, nothing, (2 * ones, nothing)),
        (2 * ones, nothing.at[1].set(jnp.nan), (2 * ones, ones)),
        (ones * jnp.inf, nothing, (ones, ones)),
    ):
        params = {"a": {"scale": first}, "b": {"scale": second}, "c": kernel}
        drawn = jax.jit(vj.initializers.redraw)(jax.random.key(0), params)
        chex.assert_trees_all_equal((drawn["a"]["scale"], drawn["b"]["scale"]), found)


def test_mirrored_kernels_are_for_rectifiers():
    for problem in (network("tanh", 4), network("sigmoid", 8)):
        with pytest.raises(ValueError, match="its activations aren't rectifiers"):
            starts.looks_linear(context(problem)).apply(problem)
    for activation in ("leaky_relu", "gelu"):
        problem = network(activation, 8)
        treated = starts.looks_linear(context(problem)).apply(problem)
        chex.assert_trees_all_equal_shapes(treated.params, problem.params)


def test_more_time_is_for_a_kind_in_all_its_forms():
    """A few steps don't tell at which rate many get anywhere."""
    kinds = {
        name: vj.Remedy(name, lambda problem: problem, safer_than=safer)
        for name, safer in (("a", None), ("slow_a", "a"), ("b", None), ("c", None), ("d", None))
    }
    losses = {"slow_a": 1.0, "b": 1.1, "a": 1.2, "c": 1.3, "d": 1.4}
    relieved = tuple(Relief(kinds[name], loss, seen()) for name, loss in losses.items())
    progress = Progress(network(), seen(), relieved=relieved)
    assert [one.name for one in progress.furthest(3)] == ["slow_a", "a", "b", "c"]


def test_the_same_kernels_drawn_anew_are_no_kind_of_their_own():
    names = ("redraw", "lsuv", "slow_lsuv", "muon", "clip")
    relieved = tuple(
        Relief(vj.Remedy(name, lambda problem: problem, safer_than=safer), loss, seen())
        for loss, name in enumerate(names)
        for safer in ["lsuv" if name == "slow_lsuv" else None]
    )
    progress = Progress(network(), seen(), relieved=relieved)
    assert [one.name for one in progress.furthest(2)] == ["redraw", "muon"]


def test_a_slower_form_that_keeps_up_goes_before_what_came_farther(monkeypatch):
    """In one wave: what came farther is tried again, on top of it."""
    probe = types.SimpleNamespace(
        constant_loss=np.nan,
        activations=(),
        is_chain=np.ones(3, bool),
        memory=(),
        in_derivatives=np.zeros(3, bool),
    )
    sick = types.SimpleNamespace(
        verdict="sick",
        probe=probe,
        findings=(types.SimpleNamespace(rule="vanishing_gradient", severity="critical"),),
    )
    healthy = types.SimpleNamespace(verdict="healthy", probe=probe, findings=())
    monkeypatch.setattr(acceptance, "_examine_trained", lambda problem, batch: healthy)
    fast, slow = (dataclasses.replace(remedy(name), part="kernels") for name in ("fast", "slow"))
    slow, other = dataclasses.replace(slow, safer_than="fast"), remedy("other")
    progress = Progress(
        network(), sick, accepted=(fast,), best=run(np.array([1.0, 1.1]), 2.3), leading={"fast"}
    )
    setting = types.SimpleNamespace(
        before=sick, length=np.inf, context=types.SimpleNamespace(batch=None)
    )
    runs = (other, run(np.array([0.3, 0.4]), 2.3)), (slow, run(np.array([1.1, 1.2]), 2.3))
    then = acceptance.judge(setting, progress, Wave((), ()), Raced(runs))
    assert [one.name for one in then.accepted] == ["slow"]
    assert names(then) == {"slow": "accepted", "fast + other": "better"}


def test_depth_asks_for_small_variance_and_small_steps():
    """At this depth unit variance is chaos, and the rate given tears any initialization down."""
    key = jax.random.key(2)
    problem = vj.mlp_problem(8, (32,) * 96, 4, activation="tanh", tx=vj.adam(3e-3), key=key)
    params = {**problem.params}
    params["hidden_stack"] = jax.tree.map(lambda x: 0.6 * x, params["hidden_stack"])
    sick = vj.Problem(problem.loss_fn, params, problem.tx, predict_fn=problem.predict_fn)
    treatment = vj.cure(sick, data(), steps=STEPS, key=KEY)
    assert [one.name for one in treatment.accepted] == ["slow_small_lsuv"], str(treatment)
    assert treatment.recipe.splitlines() == [
        "params = vj.initializers.pca(loss_fn, params, batch)",
        "params = vj.initializers.lsuv(loss_fn, params, batch, variance=0.1)",
        "params = vj.treatment.match_targets(loss_fn, params, batch, below=0.4)",
        "tx = optax.chain(tx, optax.scale(0.05))",  # (14 / 97)^1.5
    ]


def test_new_kernels_replace_new_kernels_but_leave_the_optimizer():
    """Of what was accepted before, a remedy leaves in force what it doesn't set itself."""
    kernels, again = starts.lsuv(context()), starts.looks_linear(context())
    optimizer, clip = steps.adam_atan2(context()), steps.clip(context())
    accepted = (kernels, optimizer, clip)
    assert [one.name for one in again.follows(accepted)] == ["adam_atan2", "clip"]
    assert [one.name for one in steps.muon(context()).follows(accepted)] == ["lsuv", "clip"]
    assert clip.follows(accepted[:2]) == accepted[:2]
    assert starts.rezero(context()).follows(accepted) == ()


def test_slower_is_a_part_of_every_step():
    problem = network(tx=optax.sgd(0.5))
    gradient = jax.tree.map(np.sin, problem.params)
    for depth, rate in ((1, 0.3), (64, 0.1), (1000, 0.002)):
        treated = steps.slower(starts.lsuv(context()), depth).treat(problem)
        updates, _ = treated.tx.update(gradient, treated.tx.init(treated.params), treated.params)
        expected = jax.tree.map(lambda g, rate=rate: -0.5 * rate * g, gradient)
        chex.assert_trees_all_close(updates, expected, rtol=1e-6)
        again = steps.slower(starts.redraw(context()), depth)
        assert again.treat(problem).tx is treated.tx  # so that both run side by side
    assert again.safer_than == "redraw"


DIRECTIONS = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 4)))[0].T


@pytest.fixture(scope="module")
def wide():
    """Inputs that vary in four directions out of thirty-two, and kernels of eight outputs."""
    inputs = np.random.default_rng(1).standard_normal((64, 4)) @ DIRECTIONS
    batch = jnp.asarray(inputs, jnp.float32), jnp.arange(64) % 4
    problem = vj.mlp_problem(32, (8,) * 6, 4, activation="relu", key=jax.random.key(1))
    return Context(problem, batch)


@pytest.mark.parametrize("name", ["lsuv", "small_lsuv", "looks_linear", "redraw"])
def test_new_kernels_look_where_the_inputs_vary(name, wide):
    problem, remedy = wide.problem, remedies.KNOWN[name](wide)
    assert "vj.initializers.pca(loss_fn, params, batch)" in remedy.recipe
    kernel = np.asarray(remedy.apply(problem).params["hidden_0"]["kernel"])
    span = np.linalg.svd(kernel)[0][:, : np.linalg.matrix_rank(kernel, tol=1e-4)]
    # All that the inputs are made of lies among the kernel's directions.
    np.testing.assert_allclose(np.linalg.norm(DIRECTIONS @ span, axis=1), 1.0, atol=1e-4)
    drawn = np.linalg.svd(np.asarray(problem.params["hidden_0"]["kernel"]))[0][:, :8]
    assert np.all(np.linalg.norm(DIRECTIONS @ drawn, axis=1) < 0.9)


@pytest.mark.parametrize(
    ("gain", "better", "said"),
    [
        (0.3, True, "lower by 0.3, more than"),
        (0.01, False, "lower by 0.01, not more than"),
        (-0.01, False, "higher by 0.01, not more than"),
        (-0.3, False, "higher by 0.3, more than"),
    ],
)
def test_held_out_loss_is_compared_beyond_the_noise(gain, better, said):
    """The noise of these four batches, two standard errors of their differences, is .05."""
    differences = np.array([-1.0, 1.0, -1.0, 1.0]) * 0.05 * 3**0.5 / 2
    before = run(np.array([1.0, 2.0, 3.0, 4.0]))
    after = run(before.held_out - gain - differences)
    assert improvement(after, before) == (better, f"held-out loss {said} 0.05")


def test_losses_that_differ_by_decades_are_lower_where_every_one_is():
    """Two standard errors of 1e9 and 1e8 are as much as their mean."""
    before, after = run(np.array([1e9, 1e8])), run(np.array([0.2, 0.1]))
    assert improvement(after, before) == (
        True,
        "held-out loss lower by 5.5e+08, and less than half on every batch",
    )
    assert not improvement(run(np.array([0.2, 6e7])), before)[0]
    # Each is halved, though not to half of the least, and the hardest makes the mean uncertain.
    before = run(np.array([60.0, 20.0, 3.3]))
    better, said = improvement(run(np.array([1.6, 1.7, 1.5])), before)
    assert better, said
    assert not improvement(run(np.array([1.6, 1.7, 1.7])), before)[0]


def run(held_out, first=0.0):
    problem = vj.Problem(lambda w, x: w * x, jnp.ones(()), optax.sgd(0.1))
    return Run(problem, problem.params, (), None, np.full(1, first), first, held_out, None)


def seen(constant=np.nan):
    """What a trial's judge reads of a diagnosis."""
    return types.SimpleNamespace(
        verdict="healthy", probe=types.SimpleNamespace(constant_loss=constant)
    )


@pytest.mark.parametrize(
    ("start", "end", "length", "kept_up", "part"),
    [
        # One that starts from somewhere else is compared from the lower of both starts.
        (3.6, 0.6, np.inf, True, "half of the "),
        (3.6, 0.6, 1, False, "the "),
        (9.9, 2.0, np.inf, False, "half of the "),
        (1.6, 0.9, np.inf, True, "half of the "),
        (1.6, 1.2, np.inf, False, "half of the "),
        (2.3, 0.9, np.inf, True, "half of the "),
        (2.3, 1.4, np.inf, True, "half of the "),
        (2.3, 1.4, 20, True, "half of the "),
        (2.3, 1.6, np.inf, False, "half of the "),
        (2.3, 0.1, np.inf, True, "half of the "),
        (2.3, 1.1, 15, True, "0.67 of the "),
        (2.3, 1.2, 15, False, "0.67 of the "),
        (2.3, 0.6, 10, False, "the "),
        (2.3, 0.6, 1, False, "the "),
        (2.3, 0.4, 1, True, "the "),
    ],
)
def test_a_slower_run_must_come_the_farther_the_shorter_the_training(
    start, end, length, kept_up, part
):
    fast = run(np.array([0.4, 0.6]), 2.3)  # 1.8 down
    found, said = keeps_up(run(np.array([end, end]), start), fast, length, seen())
    assert found == kept_up
    lower = min(start, 2.3)
    relation = "at least" if kept_up else "less than"
    assert said == (
        f"the loss came {lower - end:.3g} below {lower:.3g}, {relation} {part}faster one's "
        f"{lower - 0.5:.3g}{', and slower is safer' if kept_up else ''}"
    )


def test_a_slower_run_that_only_guesses_does_not_keep_up():
    """It comes half of the way from a start far above what a constant output reaches."""
    fast, slow = run(np.array([0.6, 0.64]), 3.4), run(np.array([1.9, 1.91]), 3.4)
    assert keeps_up(slow, fast, np.inf, seen())[0]
    found, said = keeps_up(slow, fast, np.inf, seen(2.06))
    assert not found
    assert said == "the loss came 0.155 below 2.06, less than half of the faster one's 1.44"
    # Where the fast one guesses as well, it is the way down from the start that counts.
    worse = run(np.array([2.2, 2.2]), 3.4)
    assert keeps_up(worse, run(np.array([2.05, 2.15]), 3.4), np.inf, seen(2.06))[0]


def test_one_that_fell_less_than_a_loss_that_rose_does_not_keep_up():
    fast = run(np.array([2.4, 2.6]), 2.3)  # .2 up
    assert keeps_up(run(np.array([2.4]), 2.3), fast, np.inf, seen())[0]
    assert not keeps_up(run(np.array([2.6]), 2.3), fast, np.inf, seen())[0]


@pytest.mark.parametrize(
    ("end", "untreated", "constant", "enough"),
    [
        (0.4, 1.0, 1.0, True),
        (0.6, 1.0, 1.0, False),
        # Half of what exploded, or of what diverged, is no more than a constant.
        (0.9, 1e6, 1.0, False),
        (0.4, 1e6, 1.0, True),
        (0.9, np.inf, 1.0, False),
        (0.9, np.nan, 1.0, False),
        (0.4, np.nan, 1.0, True),
        (0.9, np.nan, np.nan, True),
        (0.9, 1e6, np.nan, True),
    ],
)
def test_enough_is_half_of_what_a_constant_loses_too(end, untreated, constant, enough):
    runs = run(np.array([end])), run(np.array([untreated]))
    assert learns(*runs, seen(constant)) is enough


def test_weight_decay_that_is_far_too_strong_is_taken_off():
    tx = optax.chain(optax.add_decayed_weights(3.0), optax.sgd(0.1))
    sick = dataclasses.replace(network("tanh", 2), tx=tx)
    treatment = vj.cure(sick, data(), steps=STEPS, total_steps=10 * STEPS)
    assert "less_decay" in {one.name for one in treatment.accepted}, str(treatment)
    assert treatment.before.decay == pytest.approx(0.3, rel=1e-3)
    assert "tx = vj.treatment.without_decay(tx)" in treatment.recipe
    light = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1))
    tried = vj.cure(dataclasses.replace(sick, tx=light), data(), steps=STEPS).trials
    assert "less_decay" not in {one.remedy for one in tried}


@pytest.mark.parametrize(
    ("decayed", "plain"),
    [
        (vj.adamw(0.01, weight_decay=0.5), vj.adam(0.01)),
        (optax.chain(optax.add_decayed_weights(0.5), optax.adam(0.01)), optax.adam(0.01)),
        (optax.sgd(0.1), optax.sgd(0.1)),
    ],
    ids=["adamw", "l2", "none"],
)
def test_without_decay_nothing_is_taken(decayed, plain):
    params = data()[0][0]
    tx = vj.treatment.without_decay(decayed)
    for gradient in (jnp.zeros_like(params), params**2):
        found, expected = (
            jax.jit(one.update)(gradient, one.init(params), params)[0] for one in (tx, plain)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(TypeError, match="inner must be a gradient transform"):
        vj.treatment.without_decay(0.1)


def test_a_larger_rate_is_for_a_short_training():
    """That follows is as long as a few trials: what is faster in one is so in the whole."""
    small = jax.tree.map(lambda x: 0.1 * x, network("tanh", 4).params)
    sick = dataclasses.replace(network("tanh", 4), params=small, tx=optax.sgd(0.01))
    short = vj.cure(sick, data(), steps=STEPS, total_steps=5 * STEPS)
    names = {one.name for one in short.accepted}
    assert names & {"rate_x3", "rate_x10"}, str(short)
    assert not {"rate_x3", "rate_x10"} <= names
    long = vj.cure(sick, data(), steps=STEPS, total_steps=50 * STEPS)
    assert not any("rate_x" in one.remedy for one in long.trials)


def test_what_learns_is_lower_than_what_exploded_and_is_right_by_chance_on_a_batch():
    """Measured on a recurrent network whose kernel is 1.3 times the identity."""
    exploded, guess = run(np.array([0.0, 34.6, 44.2])), 1.54
    learned = run(np.array([0.26, 0.24, 0.20]))
    assert not improvement(learned, exploded)[0]
    better, said = improvement(learned, exploded, seen(guess))
    assert better
    assert said == "held-out loss lower by 26, and below that of a constant output"
    for other in ([1.55, 1.77, 1.75], [0.0, 3.65, 0.18], [0.0, 0.0, 14.1]):
        assert not improvement(run(np.array(other)), exploded, seen(guess))[0]
    # One that learns too, and a constant that isn't known.
    assert not improvement(learned, run(np.array([0.0, 1.2, 1.6])), seen(guess))[0]
    assert not improvement(learned, exploded, seen())[0]


def test_a_guess_that_is_lucky_on_the_batches_held_out_is_not_learning():
    """Measured on an LSTM that remembers nothing of its four symbols, and on one that does."""
    before = seen(1.378)
    guess = run(np.array([1.343, 1.391, 1.351]), 1.392)
    assert np.mean(guess.held_out) < 1.378
    assert not learns_by_itself(guess, before)
    assert learns_by_itself(run(np.array([1.143, 1.191, 1.151]), 1.392), before)


def test_a_loss_that_falls_in_its_last_digits_is_not_learning():
    """Measured on codes of inputs that are alike to six digits."""
    alike = run(np.array([4.84417915, 4.84417677, 4.8441782]), 4.844185829)
    assert alike.progress > 0
    assert not learns_by_itself(alike, seen(4.844186783))
    assert beats_constant(alike, seen(4.844186783))
    assert learns_by_itself(run(np.array([4.843, 4.842, 4.8425]), 4.844), seen(4.844186783))


def test_a_constant_that_rounds_to_a_loss_of_zero_is_no_bound():
    """As behind a critic whose outputs differ by less than their last digits."""
    learned = run(np.array([1.4e-15, 1.6e-15]), 4.8e-14)
    assert beats_constant(learned, seen(0.0))
    assert beats_constant(learned, seen(1e-14))
    assert not beats_constant(learned, seen(1e-16))


def test_losses_beyond_the_root_of_a_floats_range_are_compared():
    def loss(w, batch):
        return w * batch.mean()

    tx = optax.sgd(0.0)
    problems = [vj.Problem(loss, jnp.asarray(w), tx) for w in (1e25, 1.0)]
    huge, small = race(problems, jnp.ones((2, 3)), jnp.array([[1.0], [1.1], [1.2]]))
    assert huge.finite
    better, said = improvement(small, huge)
    assert better
    assert said == "held-out loss lower by 1.1e+25, more than 1.2e+24"


@pytest.mark.parametrize(
    ("constant", "starts", "ends", "found"),
    [
        (2.3, (2.3, 2.8), (1.97, 1.9), True),  # .82 of the way from the lower start
        (2.3, (2.3, 2.8), (2.0, 1.9), False),  # .75
        (2.3, (2.8, 2.3), (2.0, 1.9), False),
        (2.3, (40.0, 2.8), (3.9, 1.9), False),  # above the other's start
        (2.3, (40.0, 40.0), (2.4, 1.9), False),  # no better than a constant output
        (2.3, (40.0, 2.8), (1.91, 1.9), True),  # within the noise
        (np.nan, (2.3, 2.8), (1.97, 1.9), True),  # where the constant isn't known
    ],
)
def test_how_far_a_run_got_is_counted_from_the_lower_start(constant, starts, ends, found):
    """The first of each pair changes less."""
    local, best = (run(np.full(4, end), start) for start, end in zip(starts, ends, strict=True))
    assert gets_as_far(local, best, seen(constant)) == found


def test_activations_that_run_away_get_tiny_kernels():
    whole = network(jnp.exp, 6)
    problem = vj.Problem(whole.loss_fn, whole.params, whole.tx, predict_fn=whole.predict_fn)
    treatment = vj.cure(problem, data(), steps=STEPS, key=KEY)
    assert [one.name for one in treatment.accepted] == ["tiny_lsuv"], str(treatment)
    assert names(treatment)["lsuv"] == names(treatment)["slow_lsuv"] == "diverged"
    assert treatment.recipe.splitlines() == [
        "params = vj.initializers.lsuv(loss_fn, params, batch, variance=0.01)",
        "layers = vj.find_layers(params, loss_fn, batch)",
        "tx = vj.muon(0.0003, layers=layers)",
    ]


def scaled_kernels(factor):
    problem = network("tanh", 4)
    params = jax.tree.map(lambda x: factor * x, problem.params)
    return dataclasses.replace(problem, params=params)


def zeros():
    problem = network("tanh", 4)
    return dataclasses.replace(problem, params=jax.tree.map(jnp.zeros_like, problem.params))


def poisoned():
    problem = network("tanh", 4)
    params = jax.tree.map(lambda x: x, problem.params)
    params["hidden_0"]["kernel"] = params["hidden_0"]["kernel"].at[0, 0].set(jnp.nan)
    return dataclasses.replace(problem, params=params)


def test_a_model_of_ones_own_without_a_factory():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(10):
                x = nn.sigmoid(nn.Dense(32)(x))
            return nn.Dense(4)(x)

    def loss_fn(params, batch):
        outputs = Net().apply({"params": params}, batch[0])
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])
        return losses.mean(), {"outputs": outputs}

    params = Net().init(KEY, data()[0][0])["params"]
    treatment = vj.cure(vj.Problem(loss_fn, params, vj.adam(3e-3)), data(), steps=60)
    assert [one.name for one in treatment.accepted] == ["slow_lsuv"]
    assert treatment.trials[-1].accuracy is None
    assert "rezero" not in names(treatment)


def test_the_report_leads_from_a_model_to_the_recipe_and_back(cured):
    problem, treatment = cured
    assert "problem.model" not in str(treatment)
    problem = dataclasses.replace(problem, assemble=lambda params, _: params)
    of_model = dataclasses.replace(
        treatment, problem=dataclasses.replace(treatment.problem, assemble=problem.assemble)
    )
    _, code = str(of_model).split("from_linen or from_equinox):\n")
    known = {"vj": vj, "optax": optax, "problem": problem, "batch": treatment.batch}
    exec("\n".join(map(str.strip, code.splitlines())), known)  # noqa: S102 - what a user pastes
    chex.assert_trees_all_equal(known["model"], treatment.start.params)


def test_what_changes_nothing_says_so_instead_of_running():
    def loss_fn(params, x):
        for _ in range(5):
            x = jnp.tanh(x @ params["w"])
        return jnp.mean((x - 1) ** 2)

    recurrent = vj.Problem(loss_fn, {"w": jnp.eye(8)}, vj.adam(1e-3))
    looked = Context(recurrent, jax.random.normal(KEY, (32, 8)))
    for make in (starts.lsuv, starts.tiny_lsuv, starts.zero_means):
        with pytest.raises(ValueError, match="takes in its own work"):
            make(looked).apply(recurrent)


def test_biases_that_kill_all_units_are_made_up_for_alone():
    problem = network("relu", depth=3)
    stack = problem.params["hidden_stack"]
    dead = stack | {"bias": stack["bias"] - 30}
    sick = dataclasses.replace(problem, params=problem.params | {"hidden_stack": dead})
    treatment = vj.cure(sick, data(), steps=STEPS)
    assert treatment.before.findings[0].rule == "dead_units"
    assert [one.name for one in treatment.accepted] == ["zero_means"], str(treatment)
    for before, after in zip(
        *(jax.tree_util.tree_leaves_with_path(p.params) for p in (sick, treatment.start)),
        strict=True,
    ):
        if "kernel" in jax.tree_util.keystr(before[0]):
            np.testing.assert_array_equal(before[1], after[1])
    assert_recipe_makes(sick, treatment.recipe, treatment.start, treatment.batch)


def test_new_kernels_meet_targets_of_a_tenth():
    """Unit outputs would be a hundred times worse than none."""
    problem = vj.mlp_problem(
        8, (32,) * 12, 1, activation="sigmoid", loss="squared_error", tx=vj.adam(3e-3)
    )
    batches = [(x, jnp.sin(2 * x[:, :1]) / 10) for x, _ in data()]
    given = [starts.lsuv(Context(problem, batches[0]))]
    treatment = vj.cure(problem, batches, steps=STEPS, remedies=given)
    assert treatment.accepted, str(treatment)
    start = problem.loss_fn(treatment.start.params, batches[0])
    assert start < 1.5 * jnp.mean(batches[0][1] ** 2) + 0.02


def test_loss_scale_gives_a_float16_network_its_gradient_back():
    problem = network("tanh", 4, dtype=jnp.float16, param_dtype=jnp.float16)
    faint = dataclasses.replace(
        problem, loss_fn=lambda p, b: problem.loss_fn(p, b).astype(jnp.float16) * 2e-6
    )
    batch = (data()[0][0].astype(jnp.float16), data()[0][1])
    treated = steps.loss_scale(context()).apply(faint)

    def zero_share(gradient):
        return np.mean([float((g == 0).mean()) for g in jax.tree.leaves(gradient)])

    losses = [trained_loss(one) for one in (faint, treated)]
    same = [float(jax.jit(loss_fn)(faint.params, batch)) for loss_fn in losses]
    assert same[0] == same[1]
    lost, kept = (jax.jit(jax.grad(loss_fn))(faint.params, batch) for loss_fn in losses)
    assert zero_share(lost) > 0.3
    assert zero_share(kept) < 0.1
    updates, _ = jax.jit(treated.tx.update)(kept, treated.tx.init(treated.params), treated.params)
    assert all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))


def test_a_remedy_that_cannot_run_is_recorded():
    """Whatever it raises, and wherever; the others in its wave run all the same."""
    problem = network(depth=24)

    def raises(error):
        def apply(problem):
            raise error

        return vj.Remedy(type(error).__name__, apply)

    def loss_that_raises(params, batch):
        raise ArithmeticError

    def slower(problem):
        return dataclasses.replace(problem, params=jax.tree.map(lambda x: 0.9 * x, problem.params))

    structure = {"other": jnp.ones(3)}
    wide = jax.tree.map(lambda x: jnp.ones((7, *x.shape)), problem.params)
    tried = [
        vj.Remedy("scaled", slower),
        remedy("structure", params=structure),
        remedy("shapes", params=wide),
        remedy("empty", params={}),
        remedy("loss", loss_fn=loss_that_raises),
        raises(RecursionError("deep")),
        raises(StopIteration()),
        raises(MemoryError()),
        vj.Remedy("nothing", lambda problem: None),
    ]
    treatment = vj.cure(problem, data(4, 16), steps=2, remedies=tried)
    outcomes = names(treatment)
    assert outcomes.pop("untreated") == "untreated"
    assert outcomes.pop("scaled") == "no better"
    assert outcomes == {one.name: "failed" for one in tried[1:]}
    reasons = {trial.remedy: trial.reason for trial in treatment.trials}
    assert reasons["structure"].startswith("with the parameters it makes, ScopeParamNotFoundError:")
    assert reasons["loss"] == "ArithmeticError"
    assert reasons["RecursionError"] == "RecursionError: deep"
    assert treatment.problem is problem

    with pytest.raises(KeyboardInterrupt):
        vj.cure(problem, data(4, 16), steps=2, remedies=[raises(KeyboardInterrupt())])


def test_parameters_of_another_type_are_no_part_of_the_same_wave():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), network(depth=2).params)
    full = network(depth=2)
    assert run_alike(full, full)
    assert not run_alike(full, dataclasses.replace(full, params=half))
    assert not run_alike(full, dataclasses.replace(full, params={"other": jnp.ones(2)}))


def test_batches_of_another_shape_are_named():
    problem, batches = network("tanh", depth=2), data(6, 16)
    short = jax.tree.map(lambda x: x[:5], batches[0])
    for mixed in ([*batches, short], [short, *batches]):
        treatment = vj.cure(problem, mixed, steps=9)
        (note,) = treatment.notes
        assert note == (
            "1 of 7 batches were left out: [5, 8], [5] where the others have [16, 8], [16]"
        )
        assert note in " ".join(str(treatment).split())
        assert treatment.to_dict()["notes"] == [note]
    assert vj.cure(problem, batches, steps=9).notes == ()


def test_a_key_and_a_number_may_come_first_in_a_batch():
    problem = network(depth=24)

    def loss_fn(params, batch):
        return problem.loss_fn(params, (batch["x"], batch["y"]))

    batches = [{"a": KEY, "b": 2.0, "x": x, "y": y} for x, y in data(4, 16)]
    same = [{"x": x, "y": y} for x, y in data(4, 16)]
    sick = vj.Problem(loss_fn, problem.params, problem.tx)
    slow = vj.Remedy("slow", lambda p: dataclasses.replace(p, tx=vj.adam(1e-4)))
    treatments = [vj.cure(sick, some, steps=2, remedies=[slow]) for some in (batches, same)]
    assert names(treatments[0]) == names(treatments[1])
    for one, other in zip(*(treatment.trials for treatment in treatments), strict=True):
        np.testing.assert_array_equal(one.losses, other.losses)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batches": [*data()[:5], (data()[5][0].at[3, 2].set(jnp.nan), data()[5][1])]},
            r"batch 5\[0\] \(counted from 0\) holds 1 values that are infinite or NaN",
        ),
        (
            {"batches": [*data()[:2], *data(3, 5)[:2]]},
            r"got 2: .*2 of 4 batches were left out: \[5, 8\], \[5\] where the others",
        ),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, got 2.5"),
        ({"steps": True}, "steps must be a whole number of at least 1, got True"),
        ({"total_steps": -3}, "total_steps must be a whole number of at least 1, got -3"),
        ({"learning_rate": -1.0}, "learning_rate must be a positive number, got -1.0"),
        ({"batches": data()[:2]}, "needs 3 batches of one shape or more, .* got 2"),
        ({"batches": []}, "got 0"),
        ({"batches": [(jnp.full((4, 8), jnp.nan), jnp.zeros(4, int))] * 3}, "NaN"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        vj.cure(network(depth=2), **({"batches": data(), "steps": 5} | arguments))
    with pytest.raises(TypeError, match=r"a Problem first, got Dense: .*Problem\.from_nnx"):
        vj.cure(nn.Dense(3), data(), steps=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": None}, "batches must be a list of what loss_fn takes, got NoneType"),
        ({"batches": {"x": data()[0][0]}}, "batches must be a list .* got dict"),
        ({"remedies": ["lsuv"]}, "remedies must be vanishjax.Remedy, got str"),
    ],
)
def test_input_of_another_kind(arguments, message):
    with pytest.raises(TypeError, match=message):
        vj.cure(network(depth=2), **({"batches": data(), "steps": 5} | arguments))


def test_a_remedy_that_makes_no_problem_is_told():
    nothing = vj.Remedy("nothing", lambda problem: None)
    treatment = vj.cure(network(depth=24), data(), steps=2, remedies=[nothing])
    (failed,) = [one for one in treatment.trials if one.outcome == "failed"]
    assert failed.reason == "TypeError: apply must return a Problem, got NoneType"


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_labels_that_nothing_tells_are_not_learned(seed):
    """Whatever classes the batch that is looked at happens to hold: these hold the rare ones."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (8, 64, 8))
    labels = jax.random.choice(keys[1], 4, (8, 64), p=jnp.array([0.7, 0.1, 0.1, 0.1]))
    labels = labels.at[0].set(jnp.arange(64) % 4)
    problem = network("tanh", 2)
    last = list(problem.params)[-1]
    params = {**problem.params, last: jax.tree.map(lambda w: 60 * w, problem.params[last])}
    sick = dataclasses.replace(problem, params=params, tx=optax.adam(1e-3))
    treatment = vj.cure(sick, list(zip(x, labels, strict=True)), steps=40)
    assert treatment.before.verdict == "sick"
    assert not treatment.accepted, str(treatment)


def test_batches_are_divided_and_gone_through_in_passes():
    batches = [jnp.full(2, i) for i in range(16)] + [jnp.full(1, 99)]
    on, held, notes = divide(batches, 100)
    assert notes == ("1 of 17 batches were left out: [1] where the others have [2]",)
    assert [int(b[0]) for b in held] == [3, 7, 11, 15]
    assert len(on) == 12
    order = np.asarray(sequence(on, 30, KEY)[:, 0])
    assert sorted(order[:12]) == sorted(int(b[0]) for b in on) == sorted(order[12:24])
    assert list(order[:12]) != list(order[12:24])
    # Of an endless stream only what trials can use is taken.
    endless = iter(lambda: jnp.zeros(2), None)
    assert len(divide(endless, 10)[0]) == 10
    three = divide(batches[:3], 10)
    assert [len(part) for part in three] == [2, 1, 0]


def test_the_figure(tmp_path, cured, figures):
    _, treatment = cured
    first, *others = treatment.trials
    several = dataclasses.replace(first, remedy="standardize_inside + match_targets")
    path = dataclasses.replace(treatment, trials=(several, *others)).plot(tmp_path / "race.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names[0].replace("\n", " ").startswith("standardize_inside + match_targets (")
    assert max(len(line) for name in names for line in name.splitlines()) <= 36


def test_a_figure_of_many_trials_names_a_few(tmp_path, cured, figures):
    """Untreated, what was accepted, and what came next; the legend had left the curves no room."""
    _, treatment = cured
    untreated, *others = treatment.trials
    accepted = next(one for one in others if one.outcome == "accepted")
    worse = [
        dataclasses.replace(untreated, remedy=f"other_{i}", outcome="no better", loss=9.0 - 0.1 * i)
        for i in range(20)
    ]
    trials = (untreated, *worse, accepted)
    dataclasses.replace(treatment, trials=trials).plot(tmp_path / "race.png")
    (figure,) = figures
    axes = figure.axes[0]
    names = [text.get_text().split(" ")[0] for text in axes.get_legend().get_texts()]
    least = [f"other_{i}" for i in range(14, 20)]
    assert names == ["untreated", *least, accepted.remedy, "14"]
    assert len(axes.lines) == len(trials)


def test_a_trial_that_is_not_named_does_not_flatten_the_others(tmp_path, cured, figures):
    _, treatment = cured
    untreated, *others = treatment.trials
    accepted = next(one for one in others if one.outcome == "accepted")
    several = [dataclasses.replace(accepted, remedy=f"other_{i}") for i in range(8)]
    wild = dataclasses.replace(
        untreated, remedy="wild", outcome="no better", loss=90.0, losses=30 * untreated.losses
    )
    dataclasses.replace(treatment, trials=(untreated, *several, wild)).plot(tmp_path / "race.png")
    (figure,) = figures
    (axes,) = figure.axes
    drawn = [max(line.get_ydata()) for line in axes.lines]
    assert axes.get_ylim()[1] < 2 * max(drawn[:-2]) < max(drawn)


def solved(p, batch):
    """A differential equation whose every kernel is inside an adaptive solver of few steps."""

    def slope(y, t, p):
        return jnp.tanh(y @ p["w"]) @ p["v"]

    end = odeint(slope, batch[0], jnp.array([0.0, 1.0]), p, mxstep=40)[-1]
    return jnp.mean((end - jnp.roll(batch[0], 1, 1)) ** 2)


TX = optax.adam(3e-3)


@functools.cache
def treated(scale):
    shapes = {"w": (8, 16), "v": (16, 8)}
    params = {
        name: scale * jax.random.normal(jax.random.key(i), shape) / shape[0] ** 0.5
        for i, (name, shape) in enumerate(shapes.items())
    }
    problem = vj.Problem(solved, params, TX)
    return problem, vj.cure(problem, data(4, 32), steps=20)


def test_what_cannot_be_measured_is_treated_if_it_does_not_learn_by_itself():
    """Its loss falls by a half, and stands at 1e20."""
    _, treatment = treated(60.0)
    assert treatment.before.verdict == "unknown"
    assert names(treatment) == {
        "untreated": "untreated",
        "redraw": "accepted",
        "slow_redraw": "no better",
    }
    untreated, accepted, _ = treatment.trials
    assert untreated.loss > 1e15
    assert accepted.loss < 2
    said = " ".join(str(treatment).split())
    assert said.startswith("Improved by redraw, at the cost of 69 training steps; whether it is")
    assert "unmeasured: No kernel's output could be measured" in said


def tied(size):
    """Two symbols whose sum is the label; their table is the last kernel too."""
    tables, hidden = jax.random.normal(KEY, (10, 24)), jax.random.normal(KEY, (72, 48)) / 7
    params = {"embed": size * tables[:8], "places": size * tables[8:]}
    params |= {"up": hidden[:48], "down": hidden[48:].T}

    def norm(x):
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)

    def loss(p, batch):
        x = norm(p["embed"][batch[0]] + p["places"]).reshape(len(batch[0]), -1)
        logits = norm(jax.nn.relu(x @ p["up"]) @ p["down"]) @ p["embed"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    return vj.Problem(loss, params, optax.adam(4e-3))


def test_where_nothing_that_fits_the_cause_helps_what_fits_no_known_cause_is_tried():
    """A smaller table is drowned by that of the places, which isn't a kernel."""
    symbols = np.random.default_rng(0).integers(0, 8, (6, 64, 2)).astype(np.int32)
    batches = [(jnp.asarray(own), jnp.asarray(own.sum(-1) % 8)) for own in symbols]
    treatment = vj.cure(tied(100.0), batches, steps=20, learning_rate=4e-3)
    assert [one.rule for one in treatment.before.findings] == ["bad_start"]
    tried = [trial.remedy for trial in treatment.trials]
    assert tried[:5] == ["untreated", "small_output", "lsuv", "match_targets", "slow_lsuv"]
    # What a remedy raised is told without a class that users can't see.
    refused = treatment.trials[3].reason
    assert refused.startswith("ValueError: the last layer can't be matched to the targets: its")
    assert not {"accepted", "better"} & {trial.outcome for trial in treatment.trials[:5]}
    assert {"rate_by_10", "redraw"} <= set(tried[5:])
    assert [one.name for one in treatment.accepted] == ["redraw"]


def test_what_cannot_be_measured_and_learns_by_itself_is_left_alone():
    problem, treatment = treated(1.0)
    assert treatment.before.verdict == "unknown"
    outcomes = names(treatment)
    assert outcomes.pop("untreated") == "untreated"
    assert outcomes == dict.fromkeys(("redraw", "slow_redraw", "clip"), "no better")
    assert treatment.problem is problem
    assert not treatment.is_needed
    said = " ".join(str(treatment).split())
    assert said.startswith("Unknown at first sight, and no remedy lets it learn twice as much")
    assert "In 20 steps its loss went from 1." in said


@pytest.mark.parametrize(
    ("factor", "scale", "title"),
    [(60.0, "log", "Improved by redraw"), (1.0, "linear", "No remedy does much better")],
)
def test_a_race_over_many_decades_is_drawn_on_a_logarithmic_axis(
    factor, scale, title, tmp_path, figures
):
    treated(factor)[1].plot(tmp_path / "race.png")
    (figure,) = figures
    (axes,) = figure.axes
    assert axes.get_yscale() == scale
    assert title in [text.get_text() for text in figure.texts]
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_a_recurrent_nnx_model_merged_in_the_loss_is_tried():
    class Reader(nnx.Module):
        def __init__(self, rngs):
            self.recurrent = nnx.RNN(nnx.SimpleCell(1, 8, rngs=rngs))
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.head(self.recurrent(x)[:, -1])

    graph, params, rest = nnx.split(Reader(nnx.Rngs(0)), nnx.Param, ...)

    def predict(params, x):
        return nnx.merge(graph, params, jax.tree.map(jnp.asarray, rest))(x[:, :, None])

    def loss_fn(params, batch):
        logits = predict(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    problem = vj.Problem(loss_fn, params, vj.adam(3e-3), predict_fn=predict)
    treatment = vj.cure(problem, data(6, 16), steps=3, remedies=[remedies.KNOWN["lsuv"](context())])
    assert not [trial for trial in treatment.trials if trial.outcome == "failed"], str(treatment)
    assert names(treatment)["untreated"] == "untreated"


def test_the_text_names_the_line_that_makes_nan():
    def loss_fn(params, batch):
        return jnp.mean(jnp.sqrt(batch[0] @ params["w"] * 0.0) ** 3)

    problem = vj.Problem(loss_fn, {"w": jnp.ones((8, 3))}, vj.adam(1e-3))
    treatment = vj.cure(problem, data(), steps=2)
    (fault,) = [one for one in treatment.before.findings if one.rule == "nonfinite"]
    assert f"    at {fault.where}" in str(treatment)
