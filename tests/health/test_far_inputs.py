"""Inputs that drown what tells them apart: in what they have in common, or in one of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj
from vanishjax.report.diagnosis_plot import _scales

KEYS = jax.random.split(jax.random.key(0), 8)
X = jax.random.normal(KEYS[0], (64, 8, 6))
LABELS = jnp.arange(64) % 4
ADAM, MOMENTUM = optax.adam(1e-3), optax.sgd(0.01, 0.9)


def drawn(key, *shape):
    return jax.random.normal(key, shape) / np.prod(shape[:-1]) ** 0.5


def dense(w, x, normalize=lambda y: y):
    return jax.nn.relu(normalize(x[:, 0] @ w["dense"] + w["b"]))


def normed(w, x):
    """Normalized by the layer: what all inputs have in common stays."""
    return dense(w, x, lambda y: (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True))


def batch_normed(w, x):
    """Normalized over the batch, which takes it off."""
    return dense(w, x, lambda y: (y - y.mean(0)) / y.std(0))


def convolved(w, x):
    spec = jax.lax.conv_dimension_numbers(x.shape, w["conv"].shape, ("NWC", "WIO", "NWC"))
    y = jax.lax.conv_general_dilated(x, w["conv"], (1,), "VALID", dimension_numbers=spec)
    return jax.nn.gelu(y + w["b"]).mean(1)


def recurrent(w, x):
    def step(h, now):
        return jnp.tanh(0.01 * (now @ w["dense"]) + h @ w["again"] + w["b"]), None

    return jax.lax.scan(step, jnp.zeros((len(x), 16)), jnp.moveaxis(x, 1, 0))[0]


def attended(w, x):
    q, k, v = jnp.einsum("bti,iko->kbto", x, w["qkv"])
    return (jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / 1e6) @ v).mean(1)


def beside_positions(w, x):
    """A second kernel takes in what is the same for all inputs."""
    return dense(w, x) + jnp.ones((len(x), 1)) @ w["position"]


@functools.cache
def loss_of(first):
    def loss(p, batch):
        logits = first(p, batch[0]) @ p["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    return loss


def network(first, spoil):
    params = {
        "dense": drawn(KEYS[1], 6, 16),
        "conv": drawn(KEYS[2], 3, 6, 16),
        "again": drawn(KEYS[3], 16, 16),
        "qkv": drawn(KEYS[4], 6, 3, 16) * 3**0.5,
        "position": drawn(KEYS[5], 1, 16),
        "b": jnp.zeros(16),
        "head": drawn(KEYS[6], 16, 4),
    }
    return loss_of(first), params, (spoil(X), LABELS)


def finding(first, spoil, tx):
    found = vj.diagnose(*network(first, spoil), tx)
    return next((one for one in found.findings if one.rule == "mean_collapse"), None)


def in_units(units):
    return lambda x: x * jnp.array(units)


DOLLARS = (1.0, 2e4, 3.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (dense, "dense"),
        (normed, "dense"),
        (convolved, "conv"),
        (recurrent, "dense"),
        (attended, "qkv"),
        (beside_positions, "dense"),
    ],
)
def test_the_kernel_that_takes_them_in_is_named(first, name):
    """Both a mean of hundreds of deviations and features in units of their own."""
    assert finding(first, lambda x: x, ADAM) is None
    far = finding(first, lambda x: x + 300, ADAM)
    np.testing.assert_allclose(far.evidence["intake_energy"] ** -0.5, 300, rtol=0.3)
    uneven = finding(first, in_units(DOLLARS), ADAM)
    # How far draws of six features range is a matter of chance.
    assert 0.5 < uneven.evidence["feature_evenness"] * 2e4 < 2
    for found in (far, uneven):
        assert found.severity == "critical"
        assert {layer.partition("@")[0] for layer in found.layers} == {name}
        assert found.remedy_ids == ("standardize", "standardize_inside")


def test_a_normalization_over_the_batch_takes_off_means_and_not_units():
    assert finding(batch_normed, lambda x: x + 300, ADAM) is None
    found = finding(batch_normed, in_units(DOLLARS), ADAM)
    assert (found.severity, found.layers) == ("critical", ("dense",))
    assert 0.5 < found.evidence["feature_evenness"] * 2e4 < 2


def test_how_far_is_too_far_depends_on_the_optimizer():
    severities = {
        (mean, name): (found := finding(dense, lambda x, m=mean: x + m, tx)) and found.severity
        for mean in (3, 20, 50)
        for name, tx in (("adam", ADAM), ("momentum", MOMENTUM))
    }
    assert severities == {
        (3, "adam"): None,
        (3, "momentum"): None,
        (20, "adam"): None,
        (20, "momentum"): "critical",
        (50, "adam"): "critical",
        (50, "momentum"): "critical",
    }


def test_one_column_of_many_is_enough():
    years = 2010 + 5 * X[:, :, :1]
    assert finding(dense, lambda x: jnp.concatenate([years, x[..., 1:]], -1), ADAM)


def test_what_another_path_leads_past_is_a_warning():
    def beside(w, x):
        return dense(w, x + 300) + jax.nn.relu(x[:, 1] @ w["other"])

    loss, params, batch = network(beside, lambda x: x)
    found = vj.diagnose(loss, params | {"other": drawn(KEYS[7], 6, 16)}, batch, ADAM)
    (own,) = [one for one in found.findings if one.rule == "mean_collapse"]
    assert own.severity == "warning"
    assert own.layers == ("dense",)
    assert "trains past" in own.cause


def test_a_rare_category_has_nothing_in_common_to_drown_in():
    rare = jnp.zeros(512, int).at[0].set(1)
    table, head = drawn(KEYS[1], 2, 16), drawn(KEYS[6], 16, 4)

    def loss(p, batch):
        logits = jax.nn.relu(p["table"][batch[0]]) @ p["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    params = {"table": table, "head": head}
    found = vj.diagnose(loss, params, (rare, 1 + rare), MOMENTUM)
    assert np.isnan(found.probe.intake_energy).all()
    assert "The inputs" not in str(found)


def test_only_first_kernels_are_measured():
    loss, params, batch = network(dense, lambda x: x)
    probe = vj.health.probe(loss, params, batch)
    assert np.isfinite(probe.intake_energy).tolist() == [True, False]
    y = np.asarray(X[:, 0] @ params["dense"], np.float64)
    energy = ((y - y.mean(0)) ** 2).sum() / (y**2).sum()
    np.testing.assert_allclose(probe.intake_energy[0], energy, rtol=1e-5)


def test_how_uneven_is_too_uneven_depends_on_the_optimizer_and_on_half_of_them():
    def severity(units, tx):
        found = finding(normed, in_units(units), tx)
        return found and found.severity

    assert severity((400, 1, 1, 1, 1, 1), ADAM) is None
    assert severity((1000, 1, 1, 1, 1, 1), MOMENTUM) == "critical"
    assert severity((100, 1, 1, 1, 1, 1), MOMENTUM) is None
    # What few features hold back is little.
    assert severity((1e4, 1e4, 1e4, 1e4, 1, 1), ADAM) is None
    assert severity((1e4, 1e4, 1e4, 1, 1, 1), ADAM) == "critical"


def test_features_that_never_change_have_no_units():
    def spoil(x):
        return jnp.where(jnp.arange(6) < 4, 7.0, x)

    loss, params, batch = network(dense, spoil)
    probe = vj.health.probe(loss, params, batch)
    x = spoil(X[:, 0])
    ranges = np.sort(np.asarray(x.max(0) - x.min(0)))[4:]
    np.testing.assert_allclose(probe.feature_evenness[0], ranges[0] / ranges[1], rtol=1e-5)
    assert np.isnan(probe.feature_evenness[1])


@pytest.mark.parametrize(("large", "verdict"), [(4, "sick"), (5, "healthy")])
def test_five_large_features_are_enough(large, verdict):
    def spoil(x):
        return jnp.tile(x, 20)[..., :100] * jnp.where(jnp.arange(100) < large, 1.0, 1e-5)

    loss, params, batch = network(dense, spoil)
    params = params | {"dense": drawn(KEYS[1], 100, 16)}
    assert vj.diagnose(loss, params, batch, ADAM).verdict == verdict


def test_rare_features_are_in_units_like_the_others():
    words = jax.nn.one_hot(jnp.arange(64) ** 2 % 61 % 6, 6).at[:, 5].set(0).at[0, 5].set(1)
    assert finding(dense, lambda x: words[:, None], ADAM) is None


def test_the_picture_has_a_scale_for_uneven_features():
    verdict = vj.diagnose(*network(normed, in_units(DOLLARS)), ADAM).to_dict()
    evidence = {one["rule"]: one["evidence"] for one in verdict["findings"]}
    said = {name: (text, place) for name, text, place in _scales(verdict["probe"], evidence)}
    text, place = said["inputs"]
    assert text == "most vary by 1 / 1.31e+04 of the largest"
    assert 0.5 < place < 0.8


def test_the_picture_has_a_scale_for_it():
    verdict = vj.diagnose(*network(dense, lambda x: x + 100), ADAM).to_dict()
    evidence = {one["rule"]: one["evidence"] for one in verdict["findings"]}
    places = {name: place for name, _, place in _scales(verdict["probe"], evidence)}
    assert 0.5 < places["inputs"] < 0.8


def test_what_the_kernel_makes_up_for_is_even():
    loss, params, batch = network(normed, in_units(DOLLARS))
    params = params | {"dense": params["dense"] / jnp.array(DOLLARS)[:, None]}
    assert vj.diagnose(loss, params, batch, ADAM).probe.feature_evenness[0] > 0.1
    # Entries that training has made small are no units.
    loss, params, batch = network(normed, in_units(np.ones(6)))
    params = params | {"dense": params["dense"].at[2:].multiply(1e-6)}
    assert vj.diagnose(loss, params, batch, ADAM).probe.feature_evenness[0] > 0.1
