"""One table of remedies for advice, trials and README; recipes that do what was tried."""

import ast
import dataclasses
import functools
import itertools
import json
import typing

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from benchmarks.record import RESULTS
from benchmarks.tables import remedy_id
from vanishjax.health import FITTING, REMEDIES, finding, fitting
from vanishjax.health.advice import traits
from vanishjax.layers.traced import KeptTrace
from vanishjax.treatment import Context, starts, steps
from vanishjax.treatment.remedies import KNOWN
from vanishjax.treatment.remedy import in_order, in_parts
from vanishjax.treatment.trial import race

KEY = jax.random.fold_in(jax.random.key(5), 7)
BATCH = jax.random.normal(jax.random.key(0), (32, 6)), jnp.arange(32) % 4
# A rate and a key that no short text gives by chance.
RATE = 1e-3 * 1.2345678901


def network(activation="relu", depth=3, **options):
    options = {"tx": optax.adam(3e-3), "key": jax.random.key(1)} | options
    return vj.mlp_problem(6, (8,) * depth, 4, activation=activation, **options)


def keeping_traces(problem):
    """The same problem, for which what is compiled of a trace is found again."""
    return dataclasses.replace(problem, loss_fn=KeptTrace(problem.loss_fn))


PROBLEM = keeping_traces(network())


def context(problem=PROBLEM, **settings):
    # A step of 30 times the size of kernels, for remedies that look at it.
    given = {
        "learning_rate": RATE,
        "total_steps": 77,
        "key": KEY,
        "relative_step": 30.0,
        "decay": 0.1,
    }
    return Context(problem, BATCH, **given | settings)


def run_recipe(recipe, problem, batch=BATCH):
    """What the recipe leaves in a script's parameters and transform."""
    script = {
        "vj": vj,
        "jax": jax,
        "jnp": jnp,
        "optax": optax,
        "loss_fn": problem.plain_loss,
        "params": problem.params,
        "batch": batch,
        "tx": problem.tx,
    }
    exec(recipe, script)  # noqa: S102  # as a user does
    return script["params"], script["tx"]


def updates_of(tx, params, gradients):
    """Two steps' updates."""
    state, found = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        found.append(updates)
    return found


def program_of(tx, params):
    """Two steps' updates as a program of any gradients: its equations, and the arrays in them."""
    traced = jax.make_jaxpr(functools.partial(updates_of, tx))(params, [params, params])
    return str(traced.jaxpr), traced.consts


def assert_recipe_makes(problem, recipe, treated, batch=BATCH):
    """The same parameters to the last bit, and a transform that does the same to any gradients."""
    params, tx = run_recipe(recipe, problem, batch)
    chex.assert_trees_all_equal(params, treated.params)
    (found, arrays), (expected, others) = (program_of(one, params) for one in (tx, treated.tx))
    assert found == expected
    chex.assert_trees_all_equal(arrays, others)


ATTENTION = ("small_queries", "small_branches", "identity_attention", "slow_identity_attention")
RECURRENT = ("long_memory", "slow_long_memory")
UNITS = ("standardize_outputs",)  # of targets that are none here
ELSEWHERE = ("rezero", *ATTENTION, *RECURRENT, *UNITS)


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in ELSEWHERE])
def test_a_recipe_is_what_was_tried(name):
    # Inputs of unit size need no remedy.
    batch = jax.tree.map(lambda x: x + name.startswith("standardize") * 1000, BATCH)
    remedy = KNOWN[name](dataclasses.replace(context(), batch=batch))
    assert remedy.name == name
    treated = remedy.treat(PROBLEM)
    assert_recipe_makes(PROBLEM, remedy.lines, treated, batch)
    if remedy.part == "kernels":
        before, after = (p.params["hidden_0"]["kernel"] for p in (PROBLEM, treated))
        assert not np.array_equal(before, after)


@pytest.mark.parametrize(
    "names",
    [
        ("slow_lsuv", "adam_atan2"),
        ("adam_atan2", "slow_looks_linear"),
        ("loss_scale", "adam_atan2"),
        ("clip", "muon"),
        ("loss_scale", "clip", "muon"),
        ("loss_scale", "slow_redraw"),
        ("stochastic_round", "rate_by_10"),
        ("less_decay", "rate_x3"),
        ("standardize_inside", "adam_atan2"),
        ("standardize_inside", "slow_lsuv", "muon", "stochastic_round"),
    ],
    ids="+".join,
)
def test_a_recipe_of_several(names):
    far = any(name.startswith("standardize") for name in names)
    batch = jax.tree.map(lambda x: x + far * 1000, BATCH)
    parts = in_parts(KNOWN[name](dataclasses.replace(context(), batch=batch)) for name in names)
    treated = PROBLEM
    for remedy in parts:
        treated = remedy.treat(treated)
    assert_recipe_makes(PROBLEM, "\n".join(remedy.lines for remedy in parts), treated, batch)
    state = treated.tx.init(treated.params)
    if "loss_scale" in names:
        assert vj.read_loss_scale(state) == steps.LOSS_SCALE
    if "clip" in names:
        large = jax.tree.map(lambda x: jnp.full_like(x, 1e6), treated.params)
        gradients = [large, large]
        plain = KNOWN["muon"](context()).treat(PROBLEM).tx
        with_clip, without = (
            jax.jit(functools.partial(updates_of, tx))(PROBLEM.params, gradients)
            for tx in (treated.tx, plain)
        )
        assert not jax.tree.all(jax.tree.map(np.array_equal, with_clip, without))


def test_another_optimizer_leaves_the_users_own_loss_scale():
    problem = network(tx=vj.dynamic_loss_scale(optax.adam(1e-3), initial_scale=64.0))
    remedy = KNOWN["adam_atan2"](context(problem, loss_scale=64.0))
    treated = remedy.treat(problem)
    assert vj.read_loss_scale(treated.tx.init(treated.params)) == 64
    assert_recipe_makes(problem, remedy.lines, treated)


@pytest.mark.parametrize("key", [jax.random.PRNGKey(3), jax.random.key(3, impl="rbg")], ids=str)
def test_any_kind_of_key_is_printed_as_used(key):
    remedy = KNOWN["redraw"](context(key=key))
    assert_recipe_makes(PROBLEM, remedy.lines, remedy.treat(PROBLEM))


def test_another_architecture_is_a_comment():
    remedy = KNOWN["rezero"](context())
    assert all(line.startswith("# ") for line in remedy.lines.splitlines())
    assert run_recipe(remedy.lines, PROBLEM) == (PROBLEM.params, PROBLEM.tx)


def test_the_table_is_whole():
    rules = set(typing.get_args(finding.Rule))
    assert set(FITTING) <= rules
    assert set(KNOWN) <= set(REMEDIES)
    # What can be tried comes first.
    assert set(list(REMEDIES)[: len(KNOWN)]) == set(KNOWN)
    for fit in FITTING.values():
        assert {*fit.advised, *fit.also_tried} <= set(REMEDIES)
    for name, advice in REMEDIES.items():
        assert name.isidentifier()
        assert not advice.text.endswith(".")


@pytest.mark.parametrize("name", REMEDIES)
def test_code_in_the_table_is_python_of_this_package(name):
    code = REMEDIES[name].code
    if code is None:
        return
    assert "\n" not in code
    names = [ast.unparse(node) for node in ast.walk(ast.parse(code)) if is_attribute(node)]
    for root, *path in (name.split(".") for name in names):
        value = {"vj": vj, "optax": optax, "jax": jax}.get(root)
        for part in path if value is not None else ():
            value = getattr(value, part)


def is_attribute(node):
    return isinstance(node, ast.Attribute) and "(" not in ast.unparse(node)


def test_nothing_is_advised_that_failed_when_it_was_measured():
    matrix = json.loads((RESULTS / "cure.json").read_text())["results"]["matrix"]
    measured = 0
    for network_name, row in matrix.items():
        shares = {remedy_id(name): share for name, share in row.items() if name != "diagnosis"}
        if row["diagnosis"] in FITTING:
            for name in FITTING[row["diagnosis"]].advised:
                if shares.get(name) is not None:  # refused, or not to be tried
                    measured += 1
                    assert shares[name] > 0.49, (network_name, name)
    assert measured > 10


def test_what_cure_tries_is_in_the_order_of_the_table():
    tried = fitting(["vanishing_gradient", "underflow"])
    places = [list(REMEDIES).index(name) for name in tried]
    assert places == sorted(places)
    assert tried[0] == "loss_scale"
    assert fitting(["memory"])[0] == "long_memory"
    assert fitting(["memory"])[-1] not in KNOWN


def test_a_finding_takes_remedies_of_the_table_alone():
    with pytest.raises(ValueError, match=r"memory: remedy_ids must be ids .* got \['prayer'\]"):
        vj.Finding("memory", "note", (), {}, "It forgets.", ("prayer",))
    own = vj.Finding("nonfinite", "critical", (), {}, "0 / 0.", ("add 1e-6 to the divisor",))
    assert (own.remedies, own.code) == (("add 1e-6 to the divisor",), (None,))
    one = vj.Finding("memory", "note", (), {}, "It forgets.", ("gates", "leaky_relu"))
    assert one.remedies[0] == "a forget gate that starts open; without gates, an LSTM or a GRU"
    assert one.to_dict()["remedy_ids"] == ["gates", "leaky_relu"]
    assert one.to_dict()["remedies"] == list(one.remedies)
    assert one.to_dict()["code"] == [None, "h = jax.nn.leaky_relu(h)"]


def scaled(problem, factor):
    params = jax.tree.map(lambda x: factor * x, problem.params)
    return dataclasses.replace(problem, params=params)


def advice_of(problem, rule):
    found = vj.diagnose(problem.loss_fn, problem.params, BATCH).findings
    return next(one for one in found if one.rule == rule)


@pytest.mark.parametrize(
    ("activation", "never", "first"),
    [
        ("relu", ("tanh", "relu)"), "slow_looks_linear"),
        ("tanh", ("tanh",), "lsuv"),
        ("sigmoid", ("rectifier", "relu"), "lsuv"),
    ],
)
def test_a_network_is_not_told_what_it_has(activation, never, first):
    vanished = advice_of(scaled(network(activation, 40), 0.5), "vanishing_gradient")
    assert vanished.remedy_ids[0] == first
    for word in never:
        assert word not in " ".join(vanished.remedies)


def test_an_exploding_tanh_chain_is_not_told_what_fails_there():
    wide = vj.mlp_problem(6, (32,) * 64, 4, activation="tanh")
    found = advice_of(scaled(wide, 5.0), "exploding_gradient")
    assert found.remedy_ids == ("slow_small_lsuv", "tiny_lsuv", "rezero")


def test_a_network_with_skips_is_not_told_to_add_them():
    def loss_fn(params, batch):
        h = batch[0] @ params["first"]
        for kernel in params["blocks"]:
            h = h + jax.nn.relu(h @ kernel)
        return jnp.mean((h @ params["last"]) ** 2)

    draw = jax.nn.initializers.normal(1.0)
    keys = jax.random.split(KEY, 22)
    params = {
        "first": draw(keys[0], (6, 8)),
        "blocks": [3 * draw(key, (8, 8)) for key in keys[1:-1]],
        "last": draw(keys[-1], (8, 2)),
    }
    verdict = vj.diagnose(loss_fn, params, BATCH)
    assert "residual" in traits(verdict.probe)
    found = next(one for one in verdict.findings if one.rule == "exploding_gradient")
    assert "rezero" not in found.remedy_ids
    assert found.remedy_ids[:2] == ("small_branches", "slow_looks_linear")


def test_a_recurrent_network_is_not_told_to_change_kernels_that_stay_as_they_are():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.RNN(nn.SimpleCell(8))(x)[:, -1])

    x = jax.random.normal(KEY, (16, 30, 4))
    params = Net().init(KEY, x)["params"]
    probe = vj.probe(lambda p, x: jnp.mean(Net().apply({"params": p}, x) ** 2), params, x)
    assert traits(probe) == {"recurrent", "loop", "unit_slope"}


def stateful(problem):
    """The same network with dropout of its inputs, a count of steps, metrics, and an evaluation."""

    def loss_fn(params, batch, *, state, key):
        inputs, labels = batch
        kept = jax.random.bernoulli(key, 0.9, inputs.shape)
        loss = problem.loss_fn(params, (inputs * kept, labels))
        return loss + 100.0, ({"steps": state["steps"] + 1}, {"loss_again": loss})

    def evaluate_fn(params, batch, *, state, key):
        assert key is None
        return problem.loss_fn(params, batch), (state, {})

    return vj.Problem(
        loss_fn,
        problem.params,
        problem.tx,
        model_state={"steps": jnp.zeros([], jnp.int32)},
        has_aux=True,
        with_key=True,
        with_state=True,
        evaluate_fn=evaluate_fn,
    )


def test_a_problem_with_state_keys_metrics_and_an_evaluation_is_cured():
    x = jax.random.normal(jax.random.key(0), (8, 64, 6))
    batches = [(inputs, jnp.argmax(inputs[:, :4], axis=1)) for inputs in x]
    problem = stateful(network("sigmoid", 14, tx=vj.adam(3e-3)))
    lsuv = KNOWN["lsuv"](Context(problem, batches[0]))
    tried = [lsuv, dataclasses.replace(steps.slower(lsuv, 14), rate=0.01)]
    treatment = vj.cure(problem, batches, steps=30, remedies=tried)
    outcomes = {trial.remedy: trial.outcome for trial in treatment.trials}
    assert outcomes["lsuv"] == "accepted", str(treatment)
    assert outcomes["slow_lsuv"] == "no better"
    assert int(treatment.problem.model_state["steps"]) == 30
    assert int(treatment.start.model_state["steps"]) == int(problem.model_state["steps"]) == 0
    # Trained by the loss with 100 more, judged by the other.
    assert all(trial.losses[0] > 100 for trial in treatment.trials if len(trial.losses))
    assert all(trial.loss < 50 for trial in treatment.trials if trial.outcome != "failed")
    assert_recipe_makes(problem, treatment.recipe, treatment.start, treatment.batch)


def test_labels_that_cannot_be_learned_accept_nothing():
    """Better steps move the output bias to how frequent the labels are, and that is all."""
    keys = jax.random.split(jax.random.key(3))
    x = jax.random.normal(keys[0], (16, 64, 6))
    y = jax.random.choice(keys[1], 4, (16, 64), p=jnp.array([0.7, 0.1, 0.1, 0.1]))
    problem = network("sigmoid", 16, tx=optax.sgd(1e-3))
    tried = [KNOWN[name](Context(problem, (x[0], y[0]))) for name in ("small_lsuv", "adam_atan2")]
    treatment = vj.cure(problem, list(zip(x, y, strict=True)), steps=40, remedies=tried)
    assert treatment.accepted == ()
    small, untreated = treatment.trials[1], treatment.trials[0]
    assert small.loss < 0.9 * untreated.loss
    assert "one output for all inputs reaches" in small.reason


def test_every_step_of_a_trial_draws_anew():
    def loss_fn(w, batch, *, key):
        return w * jax.random.normal(key) if key is not None else w

    problem = vj.Problem(loss_fn, jnp.ones(()), optax.sgd(0.0), with_key=True)
    one, other = (
        race([problem], jnp.ones((5, 2)), jnp.ones((2, 2)), jax.random.key(i))[0] for i in (1, 2)
    )
    assert len({*one.losses.tolist(), *other.losses.tolist()}) == 10
    np.testing.assert_array_equal(one.held_out, 1.0)


def test_what_needs_a_rectifier_refuses_before_it_looks(monkeypatch):
    def looked(*_):
        raise AssertionError("it looked")

    found = vj.probe(network("tanh"), BATCH)
    monkeypatch.setattr(starts, "probe", looked)
    monkeypatch.setattr("vanishjax.treatment.context.find_layers", looked)
    for name in ("looks_linear", "slow_looks_linear"):
        make = context(network("tanh"), probe=found)
        if name == "slow_looks_linear":
            make.__dict__["layers"] = vj.find_layers(make.problem.params)
        with pytest.raises(ValueError, match="its activations aren't rectifiers"):
            KNOWN[name](make).treat(make.problem)


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        h = nn.Embed(11, 16)(tokens)
        for _ in range(2):
            h = h + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(h))
            h = h + nn.Dense(16)(nn.relu(nn.Dense(32)(nn.LayerNorm()(h))))
        return nn.Dense(11)(h)


@functools.cache
def transformer(scale=1.0):
    """Two blocks that predict the token two places before, queries and keys scaled."""

    def loss_fn(params, tokens):
        h = params["embedding"][tokens]
        for block in params["blocks"]:
            q, k, v = (h @ block[name] for name in ("query", "key", "value"))
            h = h + jax.nn.softmax(q @ k.mT / 4, axis=-1) @ v @ block["out"]
            h = h + jax.nn.relu(h @ block["up"]) @ block["down"]
        logits = (h @ params["head"])[:, 2:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, :-2]).mean()

    keys = iter(jax.random.split(KEY, 14))

    def kernel(inputs, outputs, size=1.0):
        return size * jax.random.normal(next(keys), (inputs, outputs)) / inputs**0.5

    def block():
        shapes = {"value": (16, 16), "out": (16, 16), "up": (16, 32), "down": (32, 16)}
        kernels = {name: kernel(*shape) for name, shape in shapes.items()}
        return kernels | {name: kernel(16, 16, scale) for name in ("query", "key")}

    blocks = [block() for _ in range(2)]
    params = {"embedding": kernel(11, 16, 4.0), "blocks": blocks, "head": kernel(16, 11)}
    return keeping_traces(vj.Problem(loss_fn, params, optax.adam(3e-3)))


TOKENS = jax.random.randint(KEY, (12, 16, 6), 0, 11)


@pytest.mark.parametrize("name", ["small_output", *ATTENTION])
def test_recipes_for_a_transformer(name):
    problem = transformer()
    remedy = KNOWN[name](Context(problem, TOKENS[0]))
    treated = remedy.treat(problem)
    assert_recipe_makes(problem, remedy.lines, treated, TOKENS[0])
    changed = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: not np.array_equal(a, b), problem.params, treated.params)
    )
    kernels = {path[-1].key for path, one in changed if one}
    expected = {
        "small_queries": {"query", "key"},
        "small_branches": {"out", "down"},
        "small_output": {"head"},
    }
    every = {path[-1].key for path, _ in changed}
    assert kernels == expected.get(name, every)
    counts = {"small_output": 1, "small_queries": 4, "small_branches": 4}
    assert sum(one for _, one in changed) == counts.get(name, len(changed))


def test_what_is_for_attention_refuses_other_networks_by_name():
    reasons = ("no softmax", "no residual branch", *2 * ["no attention of a sequence to itself"])
    for name, said in zip(ATTENTION, reasons, strict=True):
        with pytest.raises(ValueError, match=said):
            KNOWN[name](context()).treat(PROBLEM)


def test_what_is_for_recurrent_networks():
    rnn = nn.RNN(nn.LSTMCell(6))
    batch = jax.random.normal(KEY, (8, 12, 3))

    def loss_fn(params, x):
        return jnp.mean((rnn.apply(params, x)[:, -1] - 1) ** 2)

    problem = vj.Problem(loss_fn, rnn.init(KEY, batch), optax.adam(1e-3))
    for name in RECURRENT:
        remedy = KNOWN[name](dataclasses.replace(context(problem), batch=batch))
        assert_recipe_makes(problem, remedy.lines, remedy.treat(problem), batch)
        # Cells can be opened whatever kernels were drawn.
        assert remedy.part not in {one.part for one in (KNOWN["redraw"](context()),)}
        with pytest.raises(ValueError, match="no cell was found that could remember longer"):
            KNOWN[name](context()).treat(PROBLEM)
    assert KNOWN["slow_long_memory"](context()).rate == steps.SLOWER


def test_depth_counts_kernels_alone():
    """The biases of heads have two axes, and are no kernels; most kernels of a block are beside."""
    tokens = jax.random.randint(KEY, (4, 5), 0, 11)
    params = Transformer().init(KEY, tokens)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = [x for path, x in leaves if path[-1].key in ("kernel", "embedding")]
    assert any(x.ndim > 1 and path[-1].key == "bias" for path, x in leaves)

    def loss_fn(params, batch):
        logits = Transformer().apply({"params": params}, batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch).mean()

    problem = vj.Problem(loss_fn, params, optax.adam(1e-3))
    own = Context(problem, tokens)
    assert own.depth == len(kernels)
    assert KNOWN["slow_identity_attention"](own).rate == steps.SLOWER


@pytest.mark.parametrize(("total", "tried"), [(300, True), (3000, False)])
def test_what_is_warned_of_is_mended_before_a_short_training(total, tried):
    """Of some kernels float16 has no gradients: the network learns, but less than it can."""
    half = {"dtype": jnp.float16, "param_dtype": jnp.float16}
    plain = vj.mlp_problem(8, (32, 32, 32), 1, activation="tanh", loss="squared_error", **half)
    x = jax.random.normal(jax.random.key(1), (16, 64, 8), jnp.float16)
    batches = [(one, jnp.tanh(one[:, :1] + one[:, 1:2])) for one in x]
    least, second, *_ = np.sort(vj.probe(plain.loss_fn, plain.params, batches[0]).log_gradient_rms)
    smallest = float(jnp.finfo(jnp.float16).smallest_subnormal)
    factor = jnp.float16(2 * smallest / np.exp((least + second) / 2))

    def loss_fn(params, batch):
        return plain.loss_fn(params, batch) * factor

    problem = vj.Problem(loss_fn, plain.params, vj.adam(3e-3, eps=1e-12))
    treatment = vj.cure(problem, batches, steps=40, total_steps=total)
    assert treatment.before.healthy
    assert [(one.rule, one.severity) for one in treatment.before.findings] == [
        ("underflow", "warning")
    ]
    names = {one.remedy for one in treatment.trials}
    assert ("loss_scale" in names) == tried, str(treatment)


def test_identity_attention_bears_larger_steps_in_a_short_training():
    deep = context(network(depth=60))
    short = dataclasses.replace(deep, short=True)
    rates = [KNOWN["slow_identity_attention"](one).rate for one in (deep, short)]
    assert rates == [0.1, steps.SLOWER]
    assert {KNOWN["slow_lsuv"](one).rate for one in (deep, short)} == {0.1}
    assert {KNOWN["slow_long_memory"](one).rate for one in (deep, short)} == {steps.SLOWER}


def test_saturated_attention_is_cured():
    sick = transformer(scale=30.0)
    treatment = vj.cure(sick, TOKENS, steps=40)
    assert treatment.trials[0].rules == ("saturated_attention",)
    # And nothing slower: that half as far is far enough goes for chains.
    assert [one.name for one in treatment.accepted] == ["small_queries"], str(treatment)
    assert treatment.after.healthy


def test_a_rate_too_small_in_any_type_is_raised():
    """As 16-bit parameters lose the updates; rounding them with care learns nothing either."""
    rate = 3e-6
    sick = transformer()
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), sick.params)
    sick = dataclasses.replace(sick, params=narrow, tx=optax.adam(rate))
    treatment = vj.cure(sick, TOKENS, steps=40)
    assert treatment.trials[0].rules == ("lost_updates",)
    outcomes = {trial.remedy: trial.outcome for trial in treatment.trials}
    assert outcomes["stochastic_round"] == outcomes["kahan_sum"] == "no better"
    # At a rate at which the network learns, what rounding loses of it may count.
    accepted, *rounding = treatment.accepted
    assert accepted.name == "fit_rate"
    assert {one.part for one in rounding} <= {"rounding"}
    assert 1e-4 < accepted.rate * rate < 1e-2
    assert f"tx = optax.chain(tx, optax.scale({accepted.rate!r}))" in treatment.recipe
    assert_recipe_makes(sick, treatment.recipe, treatment.start, treatment.batch)
    assert treatment.after.healthy


def test_one_rate_takes_the_place_of_another_and_comes_before_rounding():
    """What is scaled after it was rounded is no longer what the parameters can hold."""
    fit, by_10, rounding = (
        KNOWN[name](context()) for name in ("fit_rate", "rate_by_10", "stochastic_round")
    )
    assert by_10.follows((rounding, fit)) == (rounding,)
    assert in_order((rounding, by_10)) == (by_10, rounding)


RATES = {
    "adam .3": (optax.adam(0.3), "learning_rate", "critical"),
    "adam 3": (optax.adam(3.0), "learning_rate", "critical"),
    "sgd 100": (optax.sgd(100.0), "learning_rate", "critical"),
    "sgd 10, momentum": (optax.sgd(10.0, momentum=0.9), "does_not_learn", "critical"),
    "adam 1e-7": (optax.adam(1e-7), "learning_rate", "critical"),
    "sgd 1e-6": (optax.sgd(1e-6), "learning_rate", "critical"),
}


@functools.cache
def teachable():
    return keeping_traces(vj.mlp_problem(8, (64,) * 3, 4, activation="relu"))


@functools.cache
def lessons():
    keys = jax.random.split(jax.random.key(1), 12)
    teacher = jax.random.normal(KEY, (8, 4))
    inputs = [jax.random.normal(key, (64, 8)) for key in keys]
    return [(x, jnp.argmax(x @ teacher, axis=1)) for x in inputs]


@pytest.mark.parametrize("name", RATES)
def test_a_rate_of_any_size_is_brought_to_where_it_learns(name):
    tx, rule, severity = RATES[name]
    problem = dataclasses.replace(teachable(), tx=tx)
    treatment = vj.cure(problem, lessons(), steps=40)
    found = {one.rule: one.severity for one in treatment.before.findings}
    assert found[rule] == severity
    # Nothing else was wrong, and nothing else is tried on top.
    assert [one.name for one in treatment.accepted] == ["fit_rate"]
    assert treatment.cost <= 3 * 43
    assert treatment.after.healthy
    (fitted,) = (trial for trial in treatment.trials if trial.remedy == "fit_rate")
    assert fitted.loss < 0.75 * treatment.before.probe.constant_loss
    assert_recipe_makes(problem, treatment.recipe, treatment.start, treatment.batch)


def test_a_rate_that_learns_too_slowly_for_a_short_training_is_raised():
    slow = dataclasses.replace(teachable(), tx=optax.adam(2.5e-4))
    short = vj.cure(slow, lessons(), steps=40, total_steps=200)
    assert short.before.healthy
    assert {one.name for one in short.accepted} <= {"fit_rate", "rate_x3"}
    assert "fit_rate" in {one.name for one in short.accepted}, str(short)
    assert short.trials[-1].loss < 0.5 * short.trials[0].loss
    for problem, total in ((slow, 4000), (dataclasses.replace(slow, tx=optax.adam(1e-3)), 200)):
        left = vj.cure(problem, lessons(), steps=40, total_steps=total)
        assert left.problem is problem, str(left)


def test_a_rate_that_fits_is_left_alone():
    healthy = dataclasses.replace(context(), relative_step=0.02)
    with pytest.raises(ValueError, match=r"changes kernels by 2.0e-02 of their size already"):
        KNOWN["fit_rate"](healthy).treat(PROBLEM)
    unknown = dataclasses.replace(context(), relative_step=None)
    with pytest.raises(ValueError, match="no kernel is known to move"):
        KNOWN["fit_rate"](unknown).treat(PROBLEM)
    small = dataclasses.replace(context(), relative_step=1e-6)
    with pytest.raises(ValueError, match=r"changes kernels by 1.0e-06 of their size alone"):
        KNOWN["rate_by_10"](small).treat(PROBLEM)
    assert KNOWN["fit_rate"](small).rate == 1e4


def test_what_is_not_for_a_transformer_refuses_by_name_without_training():
    tokens = jax.random.randint(KEY, (6, 4, 5), 0, 11)
    params = Transformer().init(KEY, tokens[0])["params"]

    def loss_fn(params, batch):
        logits = Transformer().apply({"params": params}, batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch).mean()

    problem = vj.Problem(loss_fn, params, optax.adam(1e-3))
    with pytest.raises(ValueError, match="no bias beside it"):
        KNOWN["looks_linear"](Context(problem, tokens[0])).treat(problem)
    treated = KNOWN["deep_muon"](Context(problem, tokens[0])).treat(problem)
    with pytest.raises(ValueError, match="no bias beside it"):
        jax.eval_shape(treated.tx.init, params)


def test_a_loss_is_traced_once_for_all_remedies():
    calls = []

    def loss_fn(params, batch):
        calls.append(params)
        return vj.losses.squared_error(jnp.tanh(batch[0] @ params["w"]) @ params["v"], batch[1])

    params = {"w": jnp.ones((3, 8)), "v": jnp.ones((8, 1))}
    x = jax.random.normal(KEY, (32, 3))
    problem = vj.Problem(loss_fn, params, vj.adam(1e-3))
    context = Context(problem, (x, x[:, :1]))
    made = [KNOWN[name](context).treat(problem) for name in ("lsuv", "small_output")]
    assert len(calls) == 1
    for one in made:
        assert not (one.params["v"] == params["v"]).all()


def test_a_differential_equations_small_kernels_are_drawn_anew():
    """Outputs of unit variance in 20 layers of tanh make second derivatives of thousands."""
    keys = jax.random.split(jax.random.key(0), 21)
    sizes = (1, *(24,) * 20, 1)
    kernels = [
        jax.random.normal(key, shape) / shape[0] ** 0.5
        for key, shape in zip(keys, itertools.pairwise(sizes), strict=True)
    ]
    kernels[:-1] = [0.3 * kernel for kernel in kernels[:-1]]
    params = {"kernels": kernels, "biases": [jnp.zeros(24)] * 20}

    def height(params, x):
        h = x[None]
        for kernel, bias in zip(params["kernels"], params["biases"], strict=False):
            h = jnp.tanh(h @ kernel + bias)
        return (h @ params["kernels"][-1])[0]

    def loss(params, x):
        bend = jax.vmap(jax.grad(jax.grad(height, 1), 1), (None, 0))(params, x)
        ends = height(params, jnp.zeros(())) ** 2 + height(params, jnp.ones(())) ** 2
        return jnp.mean((bend + jnp.pi**2 * jnp.sin(jnp.pi * x)) ** 2) / 50 + ends

    batches = list(jax.random.uniform(jax.random.key(9), (8, 32)))
    problem = vj.Problem(loss, params, optax.adam(2e-3))
    treatment = vj.cure(problem, batches, steps=80, total_steps=5000)
    assert any("redraw" in one.name for one in treatment.accepted), treatment
    losses = [float(loss(one.params, batches[-1])) for one in (problem, treatment.problem)]
    assert losses[1] < 0.3 * losses[0]
