"""Attention that starts as the identity, in models of any make."""

import functools
import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vanishjax as vj
from vanishjax.initializers import identity_attention

KEY = jax.random.key(0)
POSITIONS, WIDTH, HEADS, DEPTH = 12, 32, 2, 8
UNROLLED = 4  # layers of attention alone
X = jax.random.normal(KEY, (16, POSITIONS, WIDTH))


class Block(nn.Module):
    """Attention and an MLP, without skips."""

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        y = nn.LayerNorm()(x)
        x = nn.MultiHeadDotProductAttention(HEADS, name="attention")(y, y, mask=mask)
        return nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))


class Carried(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Block()(x), None


def stack(x):
    axes, keys = {"params": 0}, {"params": True}
    return nn.scan(Carried, axes, split_rngs=keys, length=DEPTH)()(x, None)[0]


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(stack(x))


def linen(module):
    def loss_fn(params, x):
        return jnp.mean(module.apply(params, x) ** 2)

    return loss_fn, module.init(KEY, X)


def of_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.List(
                nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
                for _ in range(UNROLLED)
            )
            self.head = nnx.Linear(WIDTH, 4, rngs=rngs)

        def __call__(self, x):
            for attention in self.attention:
                x = attention(x)
            return self.head(x)

    graph, params = nnx.split(Net(nnx.Rngs(0)))

    def loss_fn(params, x):
        return jnp.mean(nnx.merge(graph, params)(x) ** 2)

    return loss_fn, params


def of_equinox():
    keys = jax.random.split(KEY, UNROLLED + 1)
    made = [eqx.nn.MultiheadAttention(HEADS, WIDTH, key=key) for key in keys[:-1]]
    params, static = eqx.partition((made, eqx.nn.Linear(WIDTH, 4, key=keys[-1])), eqx.is_array)

    def forward(model, x):
        attentions, head = model
        for attention in attentions:
            x = attention(x, x, x)
        return jax.vmap(head)(x)

    def loss_fn(params, x):
        return jnp.mean(jax.vmap(lambda one: forward(eqx.combine(params, static), one))(x) ** 2)

    return loss_fn, params


MODELS = {
    "linen, stacked": lambda: linen(Stacked()),
    "nnx": of_nnx,
    "equinox": of_equinox,
}


@functools.cache
def started(name):
    loss_fn, params = MODELS[name]()
    return loss_fn, params, identity_attention(loss_fn, params, X)


@pytest.mark.parametrize("name", MODELS)
def test_positions_stay_apart(name):
    loss_fn, params, new = started(name)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    before, after = (vj.probe(loss_fn, one, X) for one in (params, new))
    assert before.token_energy < 0.02
    assert after.token_energy > 0.3
    # No row is one-hot, so queries and keys can learn.
    assert all(share < 0.9 for _, share in after.softmaxes)


def test_queries_and_keys_are_equal_and_orthogonal_and_of_the_variance_it_says():
    own = started("nnx")[2].attention[0]
    for part in ("kernel", "bias"):
        np.testing.assert_array_equal(own.query[part][...], own.key[part][...])
    kernel = own.query.kernel[...].reshape(WIDTH, WIDTH)
    square = kernel.T @ kernel
    np.testing.assert_allclose(square, square[0, 0] * jnp.eye(WIDTH), atol=1e-4 * square[0, 0])
    query = jnp.einsum("bpi,ihd->bphd", X, own.query.kernel[...]) + own.query.bias[...]
    expected = 1.5 * np.log(POSITIONS * UNROLLED) / (WIDTH / HEADS) ** 0.5
    assert float(jnp.mean(query**2)) == pytest.approx(expected, rel=1e-3)
    assert float(jnp.abs(jnp.mean(query, (0, 1))).max()) < 1e-5
    value = jnp.einsum("bpi,ihd->bphd", X, own.value.kernel[...]) + own.value.bias[...]
    assert float(jnp.mean(value**2)) == pytest.approx(1, rel=1e-3)


def with_mlp(params, x, act=jax.nn.gelu, between=None):
    """Attention, then kernels with an activation between each two."""
    attention, mlp = params
    q, k, v = (x @ attention[name] for name in "qkv")
    x = scores(q, k) @ v
    for layer in mlp[:-1]:
        x = act(x @ layer["kernel"] + layer["bias"])
        x = x if between is None else between(x)
    return x @ mlp[-1]["kernel"] + mlp[-1]["bias"]


def mlp_of(*widths):
    keys = iter(jax.random.split(KEY, 99))
    attention = {name: jax.random.normal(next(keys), (WIDTH, WIDTH)) for name in "qkv"}
    return attention, [
        {"kernel": jax.random.normal(next(keys), pair), "bias": jnp.ones(pair[1])}
        for pair in itertools.pairwise((WIDTH, *widths))
    ]


def mlp_alone(params, x, **kinds):
    """The MLP where attention passes on what it's given."""
    attention = {
        "q": jnp.zeros((WIDTH, WIDTH)),
        "k": jnp.zeros((WIDTH, WIDTH)),
        "v": jnp.eye(WIDTH),
    }
    return with_mlp((attention, params[1]), x[:, None], **kinds)[:, 0]


WIDTHS = {
    "as wide as the input": (WIDTH, 8),
    "twice": (2 * WIDTH, WIDTH),
    "four times": (4 * WIDTH, WIDTH),
    "a quarter": (WIDTH // 4, WIDTH),
    "two hidden layers": (4 * WIDTH, 2 * WIDTH, WIDTH),
    "three, of which the second is the widest": (2 * WIDTH, 4 * WIDTH, 2 * WIDTH, WIDTH),
}


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("act", [jax.nn.gelu, jax.nn.relu, jax.nn.leaky_relu])
def test_rectifiers_between_two_kernels_start_linear(act, widths):
    params = identity_attention(lambda p, x: jnp.mean(with_mlp(p, x, act) ** 2), mlp_of(*widths), X)
    mlp = functools.partial(mlp_alone, params, act=act)
    x = X[:, 0]
    offset = mlp(jnp.zeros((1, WIDTH)))
    # GELU's pairs cancel but for rounding.
    np.testing.assert_allclose(mlp(3 * x) - offset, 3 * (mlp(x) - offset), atol=1e-4)
    matrix = mlp(jnp.eye(WIDTH)) - offset
    values = jnp.linalg.svd(matrix, compute_uv=False)
    rank = min(WIDTH, widths[-1], *(n // 2 for n in widths[:-1]))
    np.testing.assert_allclose(values[:rank], values[0], rtol=1e-3)
    np.testing.assert_allclose(values[rank:], 0, atol=1e-3 * values[0])


NOT_IN_PAIRS = {
    "odd functions": ((2 * WIDTH, WIDTH), {"act": jnp.tanh}),
    "an odd number of units": ((WIDTH + 1, WIDTH), {}),
    "something between": ((2 * WIDTH, WIDTH), {"between": lambda x: x[..., ::-1]}),
    "more outputs than arrive": ((4 * WIDTH, 2 * WIDTH), {}),
}


@pytest.mark.parametrize(("widths", "kinds"), NOT_IN_PAIRS.values(), ids=NOT_IN_PAIRS)
def test_others_are_orthogonal(widths, kinds):
    params = identity_attention(
        lambda p, x: jnp.mean(with_mlp(p, x, **kinds) ** 2), mlp_of(*widths), X
    )
    for layer in params[1]:
        values = jnp.linalg.svd(layer["kernel"], compute_uv=False)
        np.testing.assert_allclose(values, values[0], rtol=1e-4)


def scores(q, k):
    return jax.nn.softmax(q @ k.transpose(0, 2, 1) / q.shape[-1] ** 0.5)


def crossed(params, x):
    memory = jnp.cos(x)
    y = scores(x @ params["q"], memory @ params["k"]) @ (memory @ params["v"])
    return jnp.mean((y @ params["out"]) ** 2)


def fused(params, x):
    q, k, v = jnp.split(x @ jnp.concatenate([params[name] for name in "qkv"], axis=1), 3, axis=-1)
    return jnp.mean((scores(q, k) @ v @ params["out"]) ** 2)


def no_attention(params, x):
    for kernel in params.values():
        x = jnp.tanh(x @ kernel)
    return jnp.mean(jax.nn.softmax(x) ** 2)


@pytest.mark.parametrize("loss_fn", [crossed, fused, no_attention])
def test_other_networks_are_refused_by_name(loss_fn):
    keys = jax.random.split(KEY, 4)
    params = {
        name: jax.random.normal(key, (WIDTH, WIDTH))
        for name, key in zip(("q", "k", "v", "out"), keys, strict=True)
    }
    with pytest.raises(ValueError, match="no attention of a sequence to itself was found"):
        identity_attention(loss_fn, params, X)


class Language(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(13, WIDTH)(tokens)
        x += self.param("position", nn.initializers.normal(0.02), (tokens.shape[1], WIDTH))
        return nn.Dense(13)(nn.LayerNorm()(stack(x)))


@pytest.mark.slow
def test_a_transformer_without_skips_is_cured():
    # Each token follows from the one before it, by three chances in four.
    rng = np.random.default_rng(0)
    follows = rng.permutation(13)
    tokens = [rng.integers(0, 13, (8, 24))]
    for _ in range(POSITIONS):
        drawn = rng.integers(0, 13, (8, 24))
        tokens.append(np.where(rng.random((8, 24)) < 0.75, follows[tokens[-1]], drawn))
    batches = jnp.asarray(np.stack(tokens, axis=-1))
    model = Language()
    params = model.init(KEY, batches[0, :, :-1])

    def loss_fn(params, tokens):
        logits = model.apply(params, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    treatment = vj.cure(vj.Problem(loss_fn, params, optax.adam(1e-3)), batches, steps=60)
    assert treatment.trials[0].rules == ("token_collapse",)
    assert [one.name.removeprefix("slow_") for one in treatment.accepted] == ["identity_attention"]
    assert treatment.after.healthy
    assert "identity_attention" in treatment.recipe
    # The untreated one stays where a constant output is: at about log(13) = 2.56.
    found = {one.remedy: one.loss for one in treatment.trials}
    assert found["untreated"] > 2.4
    assert found["identity_attention"] < 2.0
