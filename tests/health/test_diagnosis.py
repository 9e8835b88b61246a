"""Verdicts: every rule on a network that it is for and on one that it isn't, and what they say."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

import vanishjax as vj
from vanishjax.health import rules
from vanishjax.health.rules import Examination, apply_rules
from vanishjax.report import diagnosis_text, layer_ranges

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (128, 8))
Y = jnp.arange(128) % 4
BATCH = (X, Y)
ADAM, OPTAX_ADAM = vj.adam(1e-3), optax.adam(1e-3)


# The same object for the same network, so that what is compiled for its loss is found again.
@functools.cache
def mlp(activation="tanh", depth=3, width=48, **settings):
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    settings.setdefault("kernel_init", init)
    return vj.mlp_problem(8, (width,) * depth, 4, activation=activation, **settings)


def scaled(problem, factor):
    """Kernels of so much times the variance; the biases are zeros."""
    params = jax.tree.map(lambda x: np.asarray(x) * np.float32(factor**0.5), problem.params)
    return dataclasses.replace(problem, params=params)


def verdict(problem, tx=None, batch=BATCH):
    return vj.diagnose(problem.loss_fn, problem.params, batch, tx)


def rule_of(problem, tx=None, **settings):
    return [one.rule for one in verdict(problem, tx, **settings).findings]


def loss_of(problem, change):
    """The problem with its loss changed."""
    return vj.Problem(lambda p, b: change(problem.loss_fn(p, b)), problem.params, problem.tx)


def exploding():
    return scaled(mlp("relu", 64), 16.0)


def overflowing():
    return scaled(mlp("relu", 64), 128.0)


def dead():
    problem = mlp("relu", 8)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x - 20.0 if "bias" in str(path) and "hidden" in str(path) else x,
        problem.params,
    )
    return dataclasses.replace(problem, params=params)


def saturated():
    return scaled(mlp("tanh", 3), 10000.0)


def vanishing():
    return mlp("relu", 64)


def collapsed():
    return mlp("sigmoid", 16)


def narrow_rank():
    return scaled(mlp("relu", 160, width=32), 2.0)


def all_zero():
    return scaled(mlp("tanh", 3), 0.0)


def one_class():
    problem = scaled(mlp("relu", 3), 2.0)
    return vj.Problem(
        lambda p, b: jnp.mean(
            (jax.nn.softmax(problem.predict_fn(p, b[0])[:, :1])[:, 0] - b[1]) ** 2
        ),
        problem.params,
        problem.tx,
    )


def float16():
    problem = mlp("tanh", 3, dtype=jnp.float16, param_dtype=jnp.float16)
    return loss_of(problem, lambda loss: loss * 1e-6)


@functools.cache
def tiny_loss():
    return loss_of(scaled(mlp("relu", 3), 2.0), lambda loss: loss * 1e-13)


HEALTHY = {
    "relu": lambda: scaled(mlp("relu", 8), 2.0),
    "tanh": lambda: mlp("tanh", 16),
    "sigmoid": lambda: mlp("sigmoid", 2),
    "rezero": lambda: scaled(mlp("relu", 48, residual="rezero"), 2.0),
    "residual": lambda: mlp("tanh", 48, residual="scaled"),
    "critical": lambda: mlp("tanh", 48, kernel_init=vj.initializers.critical_orthogonal("tanh")),
    "bfloat16": lambda: mlp("tanh", 4, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16),
}
SICK = {
    "exploding_gradient": exploding,
    "nonfinite": overflowing,
    "dead_units": dead,
    "saturated_units": saturated,
    "vanishing_gradient": vanishing,
    "mean_collapse": collapsed,
    "rank_collapse": narrow_rank,
    "zero_gradient": one_class,
    "underflow": float16,
    "blind_optimizer": tiny_loss,
}


@pytest.fixture(scope="module")
def sick():
    """Every sick network's verdict, made once; only one of them is its optimizer's fault."""
    adam = {"blind_optimizer": OPTAX_ADAM}
    return {rule: verdict(make(), adam.get(rule)) for rule, make in SICK.items()}


@functools.cache
def healthy(name):
    return verdict(HEALTHY[name](), ADAM)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_networks_are_left_alone(name):
    found = healthy(name)
    assert found.healthy
    assert not [one for one in found.findings if one.severity != "note"]
    assert "Healthy" in str(found)


@pytest.mark.parametrize("rule", SICK)
def test_every_rule_fires_first_where_it_should(sick, rule):
    found = sick[rule]
    assert not found.healthy
    assert found.findings[0].rule == rule
    assert found.findings[0].severity == "critical"
    assert found.findings[0].layers
    assert found.findings[0].remedies
    assert set(SICK) < set(rules.RULES)


def test_a_float16_gradient_that_underflows_before_the_last_kernel_is_no_zero():
    problem = mlp("tanh", 3, dtype=jnp.float16, param_dtype=jnp.float16)

    def loss_fn(params, batch):
        x, labels, scale = batch
        logits = jax.nn.log_softmax(problem.predict_fn(params, x).astype(jnp.float16))
        each = -jnp.take_along_axis(logits, labels[:, None], 1)
        return jnp.mean(each, dtype=jnp.float16) * scale

    for scale, first in ((1e-6, "underflow"), (3e-7, "underflow"), (0.0, "zero_gradient")):
        found = vj.diagnose(loss_fn, problem.params, (*BATCH, jnp.float16(scale)))
        assert found.findings[0].rule == first


def test_a_float16_head_that_is_tied_underflows_as_the_rest_does():
    keys = jax.random.split(KEY)
    params = {
        "embedding": jax.random.normal(keys[0], (8, 16), jnp.float16),
        "hidden": jax.random.normal(keys[1], (16, 16), jnp.float16) / 4,
    }

    def loss_fn(params, batch):
        h = jnp.tanh(params["embedding"][batch[1]] @ params["hidden"])
        logits = jax.nn.log_softmax(h @ params["embedding"].T)
        return -jnp.mean(logits[:, 0], dtype=jnp.float16) * 1e-6

    found = vj.diagnose(loss_fn, params, BATCH)
    assert [one.rule for one in found.findings if one.severity == "critical"] == ["underflow"]
    assert np.isfinite(found.probe.constant_loss)


def test_names_the_layers(sick):
    names = [one.layers for one in sick["dead_units"].findings]
    assert names == [("hidden_0/kernel", *(f"hidden_stack/kernel[{i}]" for i in range(7)))]
    # Only those further than 30 nats from the output starve: the last 43 of 64 don't.
    found = sick["vanishing_gradient"].findings[0]
    assert found.rule == "vanishing_gradient"
    assert found.layers[0] == "hidden_0/kernel"
    assert found.layers == sick["vanishing_gradient"].probe.names[: len(found.layers)]
    assert 15 < len(found.layers) < 27


def _of(problem):
    return problem.loss_fn, problem.params, BATCH


@pytest.mark.parametrize(
    "makes", [(vanishing, exploding), (collapsed,), (HEALTHY["relu"],)], ids=["64", "16", "8"]
)
def test_the_losss_scale_changes_no_verdict(makes):
    loss_fn = makes[0]().loss_fn

    def times(params, batch):
        return batch[2] * loss_fn(params, batch[:2])

    for make in makes:
        params = make().params
        one, *others = (
            vj.diagnose(times, params, (*BATCH, jnp.float32(factor))) for factor in (1, 1e-6, 1e6)
        )
        for other in others:
            assert [(f.rule, f.layers) for f in other.findings] == [
                (f.rule, f.layers) for f in one.findings
            ]
            assert other.healthy == one.healthy


@pytest.mark.parametrize("rule", ["vanishing_gradient", "mean_collapse"])
def test_twice_the_batch_changes_no_verdict(sick, rule):
    doubled = jnp.concatenate([X, X]), jnp.concatenate([Y, Y])
    assert rule_of(SICK[rule](), batch=doubled) == [one.rule for one in sick[rule].findings]


def test_twice_the_batch_makes_no_healthy_network_sick():
    doubled = jnp.concatenate([X, X]), jnp.concatenate([Y, Y])
    assert verdict(mlp("relu", 24), batch=doubled).healthy


def test_momentum_is_held_to_a_stricter_limit():
    problem = mlp("relu", 24)
    assert verdict(problem, ADAM).healthy
    assert rule_of(problem, vj.sgd(0.1, 0.9)) == ["vanishing_gradient"]


@pytest.mark.parametrize("features", [8, 1])
def test_units_that_start_equal_are_copies(features):
    """Not where there is but one feature, on which all units lie on a line."""
    problem = vj.mlp_problem(features, (32,) * 3, 4, activation="tanh", tx=ADAM)
    x = jax.random.normal(jax.random.key(0), (64, features))
    equal = jax.tree.map(lambda x: jnp.full_like(x, 0.1), problem.params)
    told = vj.diagnose(problem.loss_fn, equal, (x, jnp.arange(64) % 4), ADAM)
    rules = {one.rule: one for one in told.findings if one.severity == "critical"}
    assert ("rank_collapse" in rules) == (features > 1), str(told)
    if features > 1:
        assert "copies of one another" in rules["rank_collapse"].cause
    drawn = vj.diagnose(problem.loss_fn, problem.params, (x, jnp.arange(64) % 4), ADAM)
    assert drawn.healthy, str(drawn)


def test_only_an_optimizer_with_eps_is_blind():
    problem = tiny_loss()
    found = verdict(problem, OPTAX_ADAM)
    assert "blind_optimizer" in [one.rule for one in found.findings]
    assert found.effectiveness.shape == (len(found.probe.parameters.layers),)
    assert "blind_optimizer" in rule_of(problem, ADAM)
    for tx in (vj.adam(1e-3, eps_relative=True), vj.adam_atan2(1e-3), vj.lion(1e-4)):
        assert verdict(problem, tx).healthy
    # Nor is one whose steps shrink with the gradient, and don't move anything here.
    assert rule_of(problem, vj.sgd(0.1)) == ["learning_rate"]


@pytest.mark.parametrize(
    ("depth", "severities"),
    [(2, []), (3, []), (5, ["warning"]), (6, ["warning"]), (9, ["critical"])],
)
def test_sigmoids_that_learn_late_are_warned_of(depth, severities):
    """Of three Adam makes up for what is lost; five lose as much as it takes hundreds of steps."""
    found = verdict(mlp("sigmoid", depth))
    assert [one.severity for one in found.findings if one.rule == "mean_collapse"] == severities
    assert found.healthy == ("critical" not in severities)
    assert ("starts late" in str(found)) == (severities == ["warning"])


def test_zero_gradients_say_why():
    zeros = verdict(all_zero())
    assert "single" not in str(zeros)
    one = vj.mlp_problem(8, (16,) * 3, 1, activation="relu", loss="squared_error")
    lone = vj.Problem(
        lambda p, b: jnp.mean((jax.nn.softmax(one.predict_fn(p, b[0]))[:, 0] - b[1]) ** 2),
        one.params,
        one.tx,
    )
    assert "softmax over a single unit" in str(verdict(lone))
    (found,) = zeros.findings
    assert (found.rule, found.severity) == ("zero_gradient", "critical")

    plain = mlp("tanh", 1)
    flat = {
        "rounding": lambda p, b: jnp.round(plain.loss_fn(p, b) * 10) / 10,
        "sign": lambda p, b: jnp.sign(plain.loss_fn(p, b)),
        "one kernel": lambda p, b: jnp.round(jnp.sum(b[0] @ p["hidden_0"]["kernel"])),
    }
    for loss_fn in flat.values():
        (found,) = vj.diagnose(loss_fn, plain.params, BATCH).findings
        assert (found.rule, found.severity) == ("zero_gradient", "critical")
        assert "that of a rounding, a sign or a comparison" in found.cause
    with pytest.warns(vj.LayerOrderWarning):
        (found,) = vj.diagnose(lambda p, b: jnp.float32(1.0), plain.params, BATCH).findings
    assert "doesn't depend on the parameters" in found.cause

    params = plain.params | {"spare": {"kernel": jnp.ones((3, 3))}}
    (found,) = vj.diagnose(plain.loss_fn, params, BATCH).findings
    assert found.layers == ("spare/kernel",)
    assert found.severity == "warning"
    assert "never uses" in found.cause

    def frozen(p, b):
        return plain.loss_fn(p | {"hidden_0": jax.lax.stop_gradient(p["hidden_0"])}, b)

    (found,) = vj.diagnose(frozen, plain.params, BATCH).findings
    assert found.severity == "note"
    assert "stop_gradient" in found.cause

    rezero = healthy("rezero")
    assert [one.severity for one in rezero.findings] == ["note"]
    assert "alpha" in rezero.findings[0].cause


def test_nan_in_the_parameters_and_in_the_loss_are_told_apart(sick):
    problem = mlp()
    params = jax.tree.map(jnp.array, problem.params)
    params["output"]["kernel"] = params["output"]["kernel"].at[0, 0].set(jnp.nan)
    (found, *_) = vj.diagnose(problem.loss_fn, params, BATCH).findings
    assert found.layers == ("output/kernel",)
    assert "parameters themselves" in found.cause

    logs = vj.Problem(
        lambda p, b: jnp.mean(jnp.log(problem.predict_fn(p, b[0]))), problem.params, problem.tx
    )
    assert "logarithm" in verdict(logs).findings[0].cause
    assert "overflows" in sick["nonfinite"].findings[0].cause


def test_a_converged_network_raises_no_alarm():
    problem = scaled(mlp("relu", 3), 2.0)
    tx = vj.adam(3e-3)
    step = vj.make_train_step(problem.loss_fn, tx)
    state = vj.TrainState.create(problem.params, tx)
    for _ in range(1500):
        state, metrics = step(state, BATCH)
    assert metrics["loss"] < 1e-3
    found = vj.diagnose(problem.loss_fn, state.params, BATCH, tx)
    assert found.healthy, str(found)


def test_rules_are_pure_functions_of_what_was_measured(sick):
    for one in sick.values():
        again = apply_rules(Examination(one.probe, one.effectiveness))
        named = {f.rule: f.layers for f in one.findings}
        assert {f.rule: f.layers for f in again}.items() <= named.items()


def test_the_report_reads_from_the_top(sick):
    text = str(sick["mean_collapse"])
    lines = text.splitlines()
    assert lines[0] == "Won't train: mean collapse and vanishing gradient."
    assert "    1. re-initialize and center" in text
    assert "hidden_stack/kernel[0..3]" in text or "hidden_stack/kernel[0.." in text
    assert max(map(len, lines)) <= 80
    table = text[text.index("layer   ") :].splitlines()
    assert table[1].startswith("hidden_0/kernel")
    assert table[-1].startswith("output/kernel")
    assert "..." in text  # the middle of a deep network


@pytest.mark.parametrize("rule", SICK)
def test_verdicts_are_json_and_pictures(sick, rule, tmp_path):
    found = sick[rule].to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["healthy"] is False
    assert len(found["probe"]["log_chi"]) == len(found["probe"]["names"])
    path = sick[rule].plot(tmp_path / f"{rule}.png")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] == 1500
    assert (pixels < 128).mean() > 0.005


def test_a_report_fits_a_screen_and_leaves_out_boxes():
    found = vj.diagnose(*_of(mlp("sigmoid", 24)), ADAM).to_dict()
    assert len(found["findings"]) == 3
    lines = diagnosis_text(found).splitlines()
    assert 30 < len(lines) <= 40
    assert any(line.startswith("...") for line in lines)
    assert lines[-1].startswith("output/kernel")


def test_a_verdict_on_a_raw_model_names_no_boxes():
    model = nnx.Sequential(*(nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(3)))
    found = vj.diagnose(
        lambda model, x: jnp.mean(model(x) ** 2), model, jnp.ones((8, 4)), optax.adam(1e-3)
    )
    assert found.probe.names == tuple(f"layers/{i}/kernel" for i in range(3))
    assert "/value" not in str(found.to_dict())


def test_ranges_of_layers():
    assert layer_ranges(["a/0/w", "a/1/w", "b"]) == "a/0..1/w, b"
    assert layer_ranges([f"Dense_{i}" for i in range(3)] + ["out"]) == "Dense_0..2, out"
    assert layer_ranges([]) == ""


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_kernel_that_holds_what_is_not_finite_is_named(activation):
    # Of 4,096 entries: XLA on a CPU drops NaN from reductions of arrays that large.
    problem = mlp(activation, depth=3, width=64)
    for bad in (np.nan, np.inf):
        kernel = problem.params["hidden_stack"]["kernel"].at[1, 7, 9].set(bad)
        hidden = problem.params["hidden_stack"] | {"kernel": kernel}
        params = problem.params | {"hidden_stack": hidden}
        (finding,) = vj.diagnose(problem.loss_fn, params, BATCH).findings
        assert (finding.rule, finding.layers) == ("nonfinite", ("hidden_stack/kernel[1]",))


def test_a_parameter_that_is_not_a_number_is_named_even_where_the_loss_is_finite():
    params = {"w": jnp.ones((8, 4)), "spare": jnp.full((64, 64), jnp.nan)}
    found = vj.diagnose(lambda p, x: jnp.mean((x @ p["w"]) ** 2), params, X)
    assert [(one.rule, one.layers) for one in found.findings][:1] == [("nonfinite", ("spare",))]


def test_doubles_are_judged_in_doubles():
    with jax.enable_x64(True):
        params = {"a": jnp.eye(4, dtype=jnp.float64) * 1e-3, "b": jnp.ones((4, 2), jnp.float64)}
        batch = jnp.asarray(np.random.default_rng(0).standard_normal((16, 4)) * 1e45)

        def loss_fn(p, x):
            return 1e-138 * jnp.mean((jnp.tanh(x @ (p["a"] * 1e-45)) @ p["b"]) ** 2)

        found = vj.diagnose(loss_fn, params, batch, vj.adam(1e-3))
        probe = found.probe
        assert 0 < probe.loss < 1e-138
        np.testing.assert_allclose(probe.preactivation_rms[0], 1e-3, rtol=0.3)
        assert (probe.gradient_rms > 0).all()
        np.testing.assert_allclose(np.log(probe.gradient_rms), probe.log_gradient_rms, rtol=1e-4)
        # Adam takes g / (g + 1e-8) of its step.
        rms = probe.parameters.rms
        np.testing.assert_allclose(found.effectiveness, rms / (rms + 1e-8), rtol=0.2)
        assert "blind_optimizer" in [one.rule for one in found.findings]
        tiny = vj.probe(lambda p, x: jnp.mean((1e-60 * x @ p["a"]) ** 2), params, batch / 1e45)
        np.testing.assert_allclose(tiny.preactivation_rms[0] * 1e63, 1.0, rtol=0.3)
    with pytest.raises(ValueError, match="infinite or NaN"):
        vj.probe(lambda p, x: jnp.mean(x * p), jnp.ones(4), np.full((3, 4), 1e45))


def experts():
    """Two layers of four experts each, side by side in one array, and two heads."""
    keys = jax.random.split(KEY, 5)
    params = {
        "up": jax.random.normal(keys[0], (4, 8, 16)) / 3,
        "down": jax.random.normal(keys[1], (4, 16, 8)) / 8,
        "policy": 0.1 * jax.random.normal(keys[2], (8, 4)),
        "value": 0.1 * jax.random.normal(keys[3], (8, 1)),
    }

    def loss_fn(params, batch):
        h = jax.nn.relu(jnp.einsum("bi,eio->beo", batch[0], params["up"]))
        h = jnp.tanh(jnp.einsum("bei,eio->beo", h, params["down"]).sum(1))
        value = jnp.mean(((h @ params["value"])[:, 0] - batch[0][:, 0]) ** 2)
        losses = optax.softmax_cross_entropy_with_integer_labels(h @ params["policy"], batch[1])
        return losses.mean() + value

    return loss_fn, params


def test_a_stack_that_is_used_at_once_is_several_kernels_and_all_heads_count():
    loss_fn, params = experts()
    found = vj.diagnose(loss_fn, params, BATCH, OPTAX_ADAM)
    assert found.verdict == "healthy"
    probe = found.probe
    assert probe.names[:2] == ("up", "down")
    gradients = jax.jit(jax.grad(loss_fn))(params, BATCH)
    sizes = dict(zip(probe.names, probe.gradient_rms, strict=True))
    for name in params:
        assert sizes[name] == pytest.approx(np.sqrt(np.mean(gradients[name] ** 2)), rel=1e-5)
    named = np.array(probe.parameters.layers.names)[probe.is_kernel].tolist()
    assert sorted(named) == ["down[0]", "down[1]", "down[2]", "down[3]", "policy", "up", "value"]
    # The best constant output is that of all heads.
    assert set(probe.heads) == {"policy", "value"}
    best = np.log(4) + float(np.var(X[:, 0]))
    assert probe.constant_loss == pytest.approx(best, rel=1e-3)

    # A bad start of one head among others.
    params |= {"policy": 1e4 * params["policy"]}
    first = vj.diagnose(loss_fn, params, BATCH, OPTAX_ADAM).findings[0]
    assert (first.rule, first.layers) == ("bad_start", ("policy",))
    started = vj.initializers.small_output(loss_fn, params, BATCH)
    assert jax.jit(loss_fn)(started, BATCH) < 1.2 * probe.constant_loss


@pytest.mark.parametrize("power", [1, 2])
def test_targets_that_are_thousands_of_steps_away(power):
    problem = vj.mlp_problem(8, (32, 32), 1, activation="tanh", loss="squared_error")

    def loss_fn(params, batch):
        return jnp.mean(jnp.abs(problem.predict_fn(params, batch[0])[:, 0] - batch[1]) ** power)

    warm = optax.adam(optax.linear_schedule(0.0, 1e-3, 100))
    for unit, sick in ((1.0, False), (1e5, True)):
        targets = unit * (3 + X[:, 0] * X[:, 1])
        for tx in (None, OPTAX_ADAM, warm):
            found = vj.diagnose(loss_fn, problem.params, (X, targets), tx)
            assert [one.rule for one in found.findings if one.severity == "critical"] == (
                ["bad_start"] if sick else []
            )
            if sick:
                assert found.findings[0].remedy_ids == ("match_targets", "standardize_targets")
        assert found.probe.constant_loss == pytest.approx(
            float(np.mean(np.abs(targets - np.median(targets)) if power == 1 else np.var(targets))),
            rel=0.02,
        )


@pytest.mark.parametrize("scale", [1.0, 3e3, 1e5])
def test_the_best_constant_output_of_logits_that_are_multiplied(scale):
    """The biases, which libraries draw, are as many times too large, and it has to undo them."""
    problem = vj.mlp_problem(8, (32, 32), 6, activation="tanh")
    biases = jax.random.uniform(jax.random.key(1), (6,), minval=-0.15, maxval=0.15)
    params = problem.params | {"output": problem.params["output"] | {"bias": biases}}
    shares = jnp.array([0.3, 0.3, 0.2, 0.1, 0.05, 0.05])
    labels = jax.random.categorical(jax.random.key(3), jnp.log(shares), shape=(len(X),))

    def loss_fn(params, batch):
        logits = scale * problem.predict_fn(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    found = vj.diagnose(loss_fn, params, (X, labels), OPTAX_ADAM)
    shares = np.bincount(labels, minlength=6) / len(X)
    entropy = -np.sum(shares * np.log(np.where(shares > 0, shares, 1)))
    assert found.probe.constant_loss == pytest.approx(entropy, rel=1e-2)
    critical = [one.rule for one in found.findings if one.severity == "critical"]
    assert critical == ([] if scale == 1 else ["bad_start"])


def equation(u, t, derivative):
    slope = {
        "grad": lambda: jax.vmap(jax.grad(u))(t),
        "jvp": lambda: jax.vmap(lambda x: jax.jvp(u, (x,), (1.0,))[1])(t),
    }[derivative]()
    return jnp.mean((slope + u(1.0)) ** 2) + (u(0.0) - 1) ** 2


@pytest.mark.parametrize("derivative", ["grad", "jvp"])
def test_the_best_constant_solution_of_a_differential_equation(derivative):
    """It has no slope: what is left is c^2 + (c - 1)^2."""
    problem = vj.mlp_problem(1, (16, 16), 1, activation="tanh", loss="squared_error")

    def loss_fn(params, t):
        def u(x):
            return problem.predict_fn(params, jnp.reshape(x, (1, 1)))[0, 0]

        return equation(u, t, derivative)

    found = vj.probe(loss_fn, problem.params, jnp.linspace(0.0, 1.0, 32))
    assert found.constant_loss == pytest.approx(0.5, rel=1e-3)


def test_the_best_constant_output_of_a_head_that_is_used_at_every_step():
    problem = vj.mlp_problem(8, (16,), 1, activation="tanh", loss="squared_error")

    def loss_fn(params, batch):
        h, total = batch[0], 0.0
        for step in range(3):
            h = jnp.roll(h, 1, axis=1)
            total += jnp.mean((problem.predict_fn(params, h)[:, 0] - step) ** 2)
        return total / 3

    found = vj.probe(loss_fn, problem.params, BATCH)
    assert found.constant_loss == pytest.approx(np.var([0, 1, 2]), rel=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_best_constant_values_by_temporal_differences_are_those_of_both_networks(dtype):
    """Of a target that is apart, bfloat16's rounding makes one that swallows all rewards."""
    problem = vj.mlp_problem(8, (16,), 2, activation="relu", param_dtype=dtype, dtype=dtype)
    rewards = jnp.tanh(X[:, 0])

    def loss_fn(params, x):
        before = problem.predict_fn(params, x)[:, 0]
        after = problem.predict_fn(jax.lax.stop_gradient(params), x[::-1]).max(-1)
        target = rewards + 0.5 * after.astype(jnp.float32)
        return jnp.mean((before - target.astype(dtype)) ** 2).astype(jnp.float32)

    found = vj.probe(loss_fn, problem.params, X.astype(dtype))
    assert found.constant_loss == pytest.approx(float(np.var(rewards)), rel=0.05)


def faint_chain(activation, depth, width=32):
    """Layers as libraries draw them, kernels and biases alike, of one input."""

    def init(key, inputs, outputs):
        limit = inputs**-0.5
        kernel, bias = jax.random.split(key)
        return {
            "kernel": jax.random.uniform(kernel, (inputs, outputs), minval=-limit, maxval=limit),
            "bias": jax.random.uniform(bias, (outputs,), minval=-limit, maxval=limit),
        }

    sizes = (1, *(width,) * depth, 1)
    keys = jax.random.split(KEY, depth + 1)
    layers = [init(key, a, b) for key, a, b in zip(keys, sizes, sizes[1:], strict=False)]

    def u(layers, t):
        h = jnp.reshape(t, (1,))
        for layer in layers[:-1]:
            h = activation(h @ layer["kernel"] + layer["bias"])
        return (h @ layers[-1]["kernel"] + layers[-1]["bias"])[0]

    return layers, u


def test_a_derivative_does_not_see_what_all_inputs_have_in_common():
    """At depth 24 the equation is solved in a thousand steps, and the curve is never learned."""
    layers, u = faint_chain(jnp.tanh, 24)
    t = jnp.linspace(0.0, 3.0, 64)

    def curve(layers, t):
        return jnp.mean((jax.vmap(lambda t: u(layers, t))(t) - jnp.sin(t)) ** 2)

    def equation(layers, t):
        def solution(t):
            return u(layers, t)

        slope = jax.grad(solution)
        residual = jax.vmap(jax.grad(slope))(t) + jax.vmap(solution)(t)
        return jnp.mean(residual**2) + solution(0.0) ** 2 + (slope(0.0) - 1) ** 2

    assert vj.diagnose(curve, layers, t).findings[0].rule == "mean_collapse"
    found = vj.diagnose(equation, layers, t)
    assert found.verdict == "healthy"
    assert found.probe.in_derivatives.any()
    assert "@: a kernel's uses in turn" in str(found)


def test_a_kernel_that_is_used_layer_after_layer_collapses_though_the_first_use_does_not():
    kernel = jax.random.normal(KEY, (8, 8)) / 8**0.5

    def loss_fn(w, batch):
        h = batch[0]
        for _ in range(16):
            h = jax.nn.sigmoid(h @ w["kernel"])
        return jnp.mean((h @ w["head"] - batch[0][:, :4]) ** 2)

    params = {"kernel": kernel, "head": jnp.ones((8, 4)) * jnp.arange(4)}
    found = vj.diagnose(loss_fn, params, BATCH)
    assert not found.probe.in_derivatives.any()
    assert found.findings[0].rule == "mean_collapse"


def test_a_list_of_batches_in_the_place_of_one_is_said():
    problem = vj.mlp_problem(8, (16,), 4)
    with pytest.raises(Exception, match="unpack") as caught:
        vj.diagnose(problem, [BATCH] * 3)
    said = "The batch is a list of 3 that look alike: if these are batches, pass one of them."
    assert said in caught.value.__notes__


@functools.cache
def starved():
    """A network that starves, its layers, and parameters with which it doesn't."""
    problem = mlp("sigmoid", 48, width=32)
    layers = vj.find_layers(problem.params, problem.loss_fn, BATCH)
    return problem, layers, vj.initializers.shaped(problem.loss_fn, problem.params, BATCH)


@pytest.mark.parametrize("kind", ["deep_adam", "recondition", "adam"])
def test_what_an_optimizer_moves_first_is_judged_where_it_goes(kind, tmp_path, figures):
    """The parameters given starve; what those optimizers train doesn't."""
    problem, layers, shaped = starved()
    tx = {
        "deep_adam": lambda: vj.deep_adam(3e-3, 1000, activation="sigmoid", layers=layers),
        "recondition": lambda: optax.chain(vj.recondition(vj.muon(0.01), layers=layers)),
        "adam": lambda: ADAM,
    }[kind]()
    found = vj.diagnose(problem.loss_fn, problem.params, BATCH, tx)
    assert found.is_moved == (kind != "adam")
    assert found.healthy == (kind != "adam"), str(found)
    assert ("that the optimizer moves to" in str(found)) == found.is_moved
    found.plot(tmp_path / "verdict.png")
    assert ("that the optimizer moves to" in figures[0].get_supxlabel()) == found.is_moved
    # Parameters that are there already stay.
    if kind != "recondition":
        assert not vj.diagnose(problem.loss_fn, shaped, BATCH, tx).is_moved
