"""What squashes the output before the loss, so that the loss can't come down."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from vanishjax.health.examination import Examination
from vanishjax.health.start import high_floor

N = 64
X = jax.random.normal(jax.random.key(0), (N, 8))
LABELS = jnp.argmax(X[:, :4], axis=1)
TARGETS = X[:, :1]
CLASSES = {"w": jax.random.normal(jax.random.key(1), (8, 4)) / 8**0.5, "b": jnp.zeros(4)}
ONE = jax.tree.map(lambda x: x[..., :1], CLASSES)


def outputs(params, x):
    return x @ params["w"] + params["b"]


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def classifier(of):
    """A loss of four logits."""
    return (lambda params, x: of(outputs(params, x))), CLASSES


def regression(squash, targets=TARGETS):
    return (lambda params, x: jnp.mean((squash(outputs(params, x)) - targets) ** 2)), ONE


def softmax_by_hand(x):
    e = jnp.exp(x - jax.lax.stop_gradient(x.max(axis=1, keepdims=True)))
    return e / e.sum(axis=1, keepdims=True)


def binary(of):
    return (lambda params, x: of(outputs(params, x)[:, 0]).mean()), ONE


def twice_sigmoid(logits):
    return optax.sigmoid_binary_cross_entropy(jax.nn.sigmoid(logits), (LABELS > 1) * 1.0)


def alike(x, temperature=0.5):
    """A contrastive loss: what is normalized is bounded, and squashed by nothing."""
    z = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    scores = z @ z.T / temperature
    return optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(N)).mean()


SQUASHED = {
    "softmax": classifier(lambda x: cross_entropy(jax.nn.softmax(x))),
    "softmax, by hand": classifier(lambda x: cross_entropy(softmax_by_hand(x))),
    "sigmoid": classifier(lambda x: cross_entropy(jax.nn.sigmoid(x))),
    "sigmoid, twice": binary(twice_sigmoid),
    "tanh, bfloat16": regression(
        lambda x: jnp.tanh(x.astype(jnp.bfloat16)).astype(jnp.float32), 100 * TARGETS
    ),
    "relu": regression(jax.nn.relu),
    "clamp": regression(lambda x: jnp.clip(x, -0.1, 0.1)),
}
FREE = {
    "a cross-entropy": classifier(cross_entropy),
    "tanh under unit targets": regression(jnp.tanh),
    "a logarithm of clipped probabilities": classifier(
        lambda x: -jnp.log(jnp.clip(jax.nn.softmax(x)[jnp.arange(N), LABELS], 1e-7)).mean()
    ),
    "squares of probabilities": classifier(
        lambda x: jnp.mean((jax.nn.softmax(x) - jax.nn.one_hot(LABELS, 4)) ** 2)
    ),
    "an expected cost": classifier(
        lambda x: jnp.mean(jnp.sum(jax.nn.softmax(x) * (1 + jnp.abs(X[:, :4])), axis=1))
    ),
    "normalized outputs": classifier(alike),
    "a bounded loss": regression(lambda x: 3 * jnp.exp(-((x - TARGETS) ** 2)), 3.0),
}


@functools.cache
def diagnosed(name):
    loss_fn, params = (SQUASHED | FREE)[name]
    return vj.diagnose(loss_fn, params, X)


@pytest.mark.parametrize("name", SQUASHED)
def test_what_squashes_is_named_with_its_line(name):
    (finding,) = (one for one in diagnosed(name).findings if one.rule == "does_not_learn")
    assert finding.severity == "critical"
    if name != "clamp":  # `jnp.clip` was compiled in another place
        assert finding.where.operation == name.split(",")[0]
        assert finding.where.file.endswith("test_floor.py")
    assert finding.remedy_ids[0] == "raw_output"
    by_squares = name.startswith(("tanh", "relu", "clamp"))
    assert ("standardize_targets" in finding.remedy_ids) == by_squares
    evidence = finding.evidence
    assert evidence["least_loss_without"] < evidence["least_loss"] < evidence["constant_loss"]
    assert f"{finding.evidence['least_loss']:.3g}" in finding.cause


@pytest.mark.parametrize("name", FREE)
def test_what_lets_the_loss_come_down_is_no_alarm(name):
    assert "does_not_learn" not in {one.rule for one in diagnosed(name).findings}


def test_the_least_losses_are_theorys():
    """Of one-hot probabilities p the cross-entropy of n classes is ln(1 + (n - 1) / e)."""
    floor = diagnosed("softmax").probe.floor
    np.testing.assert_allclose(floor.loss, np.log(1 + 3 / np.e), rtol=1e-5)
    np.testing.assert_allclose(floor.without, 0, atol=1e-6)
    floor = diagnosed("relu").probe.floor
    np.testing.assert_allclose(floor.loss, np.mean(np.minimum(TARGETS, 0) ** 2), rtol=1e-3)
    np.testing.assert_allclose(floor.growth, 2, atol=0.02)


def test_training_says_so_too():
    """Trained to its end, the squashed loss is where the finding says, and the other is below."""
    ends = []
    for name, of in (SQUASHED["softmax"], FREE["a cross-entropy"]):
        tx = optax.adam(0.3)
        step = vj.make_train_step(name, tx)
        state = vj.TrainState.create(of, tx)
        for _ in range(300):
            state, metrics = step(state, X)
        ends.append(float(metrics["loss"]))
    assert ends[0] > np.log(1 + 3 / np.e) - 1e-3
    assert ends[1] < 0.2


def test_it_is_said_in_report_picture_and_json_and_no_remedy_is_tried(tmp_path, figures):
    verdict = diagnosed("softmax")
    assert "The softmax before the loss squashes it" in " ".join(str(verdict).split())
    assert verdict.to_dict()["probe"]["floor"]["where"].endswith("softmax")
    verdict.plot(tmp_path / "verdict.png")
    said = {text.get_text() for text in figures[0].axes[1].texts}
    assert {"loss", "no lower than 0.744, a constant's 1.37"} <= said
    assert diagnosed("a cross-entropy").probe.to_dict()["floor"] is None
    treatment = vj.cure(vj.Problem(*SQUASHED["softmax"], vj.adam(1e-2)), [X] * 4, steps=5)
    assert {trial.remedy for trial in treatment.trials} <= {"untreated"}


def by_all(params, x):
    """All outputs less all targets."""
    return jnp.mean((outputs(params, x) - TARGETS[:, 0]) ** 2)


def ranked(params, x):
    """Pairs of outputs against pairs of targets."""
    scores = outputs(params, x)
    return jnp.mean(jax.nn.softplus(-(scores - scores.T) * jnp.sign(TARGETS - TARGETS.T)))


def test_outputs_that_meet_all_targets_are_told_with_their_line():
    verdict = vj.diagnose(by_all, ONE, X)
    (finding,) = (one for one in verdict.findings if one.rule == "does_not_learn")
    assert finding.where.file.endswith("test_floor.py")
    assert finding.remedy_ids == ("same_shapes",)
    np.testing.assert_allclose(finding.evidence["least_loss"], np.var(TARGETS), rtol=1e-3)
    assert verdict.to_dict()["probe"]["floor"]["kind"] == "crossed"


@pytest.mark.parametrize("loss_fn", [ranked, regression(lambda x: x)[0]])
def test_pairs_of_outputs_are_no_alarm(loss_fn):
    assert vj.probe(loss_fn, ONE, X).floor is None


@pytest.mark.parametrize("beyond", [0.0, 1.0])
def test_nothing_is_squashed_where_nothing_else_is_to_be_won(beyond):
    """Beside losses of 1e10 the best output without it may be no better, or worse, in float32."""
    loss_fn, params = SQUASHED["softmax"]
    verdict = vj.diagnose(loss_fn, params, X, optax.adam(1e-3))
    assert [one.rule for one in verdict.findings] == ["does_not_learn"]
    probe = verdict.probe
    floor = probe.floor._replace(loss=probe.constant_loss, without=probe.constant_loss + beyond)
    assert high_floor(Examination(dataclasses.replace(probe, floor=floor))) is None
    assert high_floor(Examination(probe)) is not None
