"""Recurrent cells that start with a memory as long as the sequence, in models of any make."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vanishjax as vj
from vanishjax.initializers import long_memory

KEY = jax.random.key(0)
STEPS, UNITS, EXAMPLES = 40, 16, 24
X = jax.random.normal(KEY, (EXAMPLES, STEPS, 6))
START = jnp.zeros((EXAMPLES, UNITS))
TIMES = 1 + (STEPS - 2) * (np.arange(UNITS) + 0.5) / UNITS


def of_linen(cell, **settings):
    rnn = nn.RNN(cell(UNITS), **settings)
    return lambda params, x: jnp.mean(rnn.apply(params, x)[:, -1] ** 2), rnn.init(KEY, X)


def of_nnx(cell):
    problem = vj.Problem.from_nnx(
        nnx.RNN(cell(6, UNITS, rngs=nnx.Rngs(0))), lambda rnn, x: jnp.mean(rnn(x)[:, -1] ** 2)
    )
    return problem.plain_loss, problem.params


def of_equinox(cell):
    params, static = eqx.partition(cell(6, UNITS, key=KEY), eqx.is_inexact_array)

    def loss_fn(params, x):
        own = eqx.combine(params, static)

        def last(sequence):
            h = jnp.zeros(UNITS)
            start = (h, h) if isinstance(own, eqx.nn.LSTMCell) else h
            h, _ = jax.lax.scan(lambda h, x: (own(x, h), None), start, sequence)
            return h[0] if isinstance(h, tuple) else h

        return jnp.mean(jax.vmap(last)(x) ** 2)

    return loss_fn, params


def of_haiku(cell):
    def run(x):
        own = cell(UNITS)
        return hk.dynamic_unroll(own, x.swapaxes(0, 1), own.initial_state(len(x)))[0][-1]

    net = hk.without_apply_rng(hk.transform(run))
    return lambda params, x: jnp.mean(net.apply(params, x) ** 2), net.init(KEY, X)


def minimal(step):
    """A cell of one gate, from one kernel of inputs and state."""
    kernel = jax.random.normal(KEY, (6 + UNITS, 2 * UNITS)) / 5

    def loss_fn(params, x):
        def one(h, x):
            y = jnp.concatenate([x, h], axis=-1) @ params["kernel"] + params["bias"]
            gate, new = jnp.split(y, 2, axis=-1)
            return step(jax.nn.sigmoid(gate), h, jnp.tanh(new)), None

        return jnp.mean(jax.lax.scan(one, START, x.swapaxes(0, 1))[0] ** 2)

    return loss_fn, {"bias": jnp.zeros(2 * UNITS), "kernel": kernel}


@functools.cache
def remembering(name):
    """A gated network of this name: its loss, its parameters and those of a long memory."""
    loss_fn, params = GATED[name][0]()
    return loss_fn, params, long_memory(loss_fn, params, X)


def changed(before, after):
    pairs = zip(
        jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after), strict=True
    )
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(y)
        for (path, x), y in pairs
        if (x != y).any()
    }


GATED = {
    "linen LSTM": (lambda: of_linen(nn.LSTMCell), "params/cell/hf/bias", 0, 1),
    "linen LSTM, one kernel": (
        lambda: of_linen(nn.OptimizedLSTMCell),
        "params/cell/hf/bias",
        0,
        1,
    ),
    "linen GRU": (lambda: of_linen(nn.GRUCell), "params/cell/iz/bias", 0, 1),
    "linen GRU, backwards": (
        lambda: of_linen(nn.GRUCell, reverse=True),
        "params/cell/iz/bias",
        0,
        1,
    ),
    "linen, minimal": (lambda: of_linen(nn.MGUCell), "params/cell/if/bias", 0, 1),
    "nnx LSTM": (lambda: of_nnx(nnx.LSTMCell), "cell/hf/bias", 0, 1),
    "nnx GRU": (lambda: of_nnx(nnx.GRUCell), "cell/dense_i/bias", 1, 1),
    "Equinox LSTM": (lambda: of_equinox(eqx.nn.LSTMCell), "bias", 1, 1),
    "Equinox GRU": (lambda: of_equinox(eqx.nn.GRUCell), "bias", 1, 1),
    "Haiku LSTM": (lambda: of_haiku(hk.LSTM), "lstm/linear/b", 2, 1),
    # Its sigmoid is of two gates at once, of which one resets.
    "Haiku GRU": (lambda: of_haiku(hk.GRU), "gru/b", 0, -1),
    "keeps": (lambda: minimal(lambda z, h, n: z * h + (1 - z) * n), "bias", 0, 1),
    "forgets": (lambda: minimal(lambda z, h, n: (1 - z) * h + z * n), "bias", 0, -1),
    "moves": (lambda: minimal(lambda z, h, n: h + z * (n - h)), "bias", 0, -1),
}


@pytest.mark.parametrize("name", GATED)
def test_gates_on_what_is_kept_open_and_nothing_else_moves(name):
    _, path, block, sign = GATED[name]
    _, params, new = remembering(name)
    found = changed(params, new)
    (own,) = [p for p in found if p.endswith(path)]
    assert list(found) == [own]
    gates = slice(block * UNITS, (block + 1) * UNITS)
    np.testing.assert_allclose(found[own][gates], sign * np.log(TIMES), rtol=1e-6)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
        for path, x in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    others = np.delete(np.arange(leaves[own].size), np.r_[gates])
    np.testing.assert_array_equal(found[own][others], leaves[own][others])


@functools.cache
def slopes_of(loss_fn):
    return jax.jit(jax.grad(loss_fn, argnums=1))


def known(loss_fn, params):
    """How much of the loss depends on the first step, beside the last one."""
    slopes = np.abs(slopes_of(loss_fn)(params, X))
    return slopes[:, 0].mean() / slopes[:, -1].mean()


@pytest.mark.parametrize("name", ["linen LSTM", "linen GRU", "Equinox GRU"])
def test_the_first_step_is_heard_at_the_last(name):
    loss_fn, params, new = remembering(name)
    assert known(loss_fn, params) < 1e-5
    assert known(loss_fn, new) > 1e-2


def test_the_picture_tells_of_a_short_memory_and_what_lengthens_it(figures, tmp_path):
    loss_fn, params, new = remembering("linen LSTM")
    tx = optax.adam(1e-3)
    for own, noted in ((params, True), (new, False)):
        verdict = vj.diagnose(loss_fn, own, X, tx)
        assert verdict.healthy
        verdict.plot(tmp_path / "verdict.png")
        texts = [text.get_text() for text in figures[-1].axes[1].texts]
        said = " ".join(" ".join(texts).split())
        assert ("Noted: memory; if that matters: recurrent cells" in said) == noted
        assert ("Nothing to mend." in said) != noted


def test_two_biases_of_one_gate_come_to_one():
    keys = jax.random.split(KEY, 2)
    params = {
        "of_inputs": jnp.ones(UNITS),
        "of_state": jnp.ones(UNITS),
        "gate": jax.random.normal(keys[0], (UNITS, UNITS)) / 4,
        "new": jax.random.normal(keys[1], (UNITS, UNITS)) / 4,
    }

    def loss_fn(params, x):
        def step(h, x):
            z = x[:, :1] + params["of_inputs"] + h @ params["gate"] + params["of_state"]
            return jax.nn.sigmoid(z) * h + jnp.tanh(h @ params["new"] + x[:, :1]), None

        return jnp.mean(jax.lax.scan(step, START, x.swapaxes(0, 1))[0] ** 2)

    made = long_memory(loss_fn, params, X)
    both = made["of_inputs"], made["of_state"]
    np.testing.assert_allclose(sum(both), np.log(TIMES), rtol=1e-6)
    assert any((bias == 0).all() for bias in both)


def cell(activation, *, together=False, layers=0, scale=1.0, dtype=jnp.float32):
    """A simple cell on embedded inputs; with layers, a scan over those of scans over time."""
    stack = (layers,) if layers else ()
    keys = jax.random.split(KEY, 3)
    params = {
        "b": jnp.full((*stack, UNITS), 0.3),
        "u": scale * jax.random.normal(keys[0], (*stack, UNITS, UNITS)) / UNITS**0.5,
        "w": jax.random.normal(keys[1], (*stack, UNITS, UNITS)) / UNITS**0.5,
        "first": jax.random.normal(keys[2], (6, UNITS)) / 6**0.5,
    }
    if together:
        params["u"] = jnp.concatenate([params.pop("w"), params["u"]], axis=-2)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    return cell_loss(activation, together, bool(layers), dtype), params


@functools.cache
def cell_loss(activation, together, layers, dtype):
    def through(own, x):
        def step(h, x):
            taken = jnp.concatenate([x, h], axis=-1) if together else h
            y = taken @ own["u"] + own["b"] + (0 if together else x @ own["w"])
            h = activation(y)
            return h, h

        return jax.lax.scan(step, START.astype(dtype), x)[1], None

    def states(params, x):
        own = {name: params[name] for name in params if name != "first"}
        x = x.swapaxes(0, 1).astype(dtype) @ params["first"]
        return (
            jax.lax.scan(lambda x, own: through(own, x), x, own)[0]
            if layers
            else through(own, x)[0]
        )

    return lambda params, x: jnp.mean(states(params, x)[-1].astype(jnp.float32) ** 2)


def own_part(params, *, together=False):
    u = np.asarray(params["u"], np.float64)
    return u[..., UNITS:, :] if together else u


@pytest.mark.parametrize("together", [False, True], ids=["two kernels", "one kernel"])
@pytest.mark.parametrize("layers", [0, 3])
def test_a_simple_cell_keeps_its_value_on_a_turn(together, layers):
    for scale in (0.1, 1.0, 6.0):
        loss_fn, params = cell(jnp.tanh, together=together, layers=layers, scale=scale)
        made = long_memory(loss_fn, params, X)
        for own in own_part(made, together=together).reshape(-1, UNITS, UNITS):
            values = np.linalg.svd(own, compute_uv=False)
            assert np.ptp(values) < 1e-4  # a rotation, times the gain that makes up for the slope
            assert 1 <= values[0] < 1.5
        assert known(loss_fn, made) > 0.03
        np.testing.assert_array_equal(made["first"], params["first"])


def test_what_is_added_to_a_cell_has_no_mean_and_is_small():
    loss_fn, params = cell(jax.nn.sigmoid)
    made = long_memory(loss_fn, params, X + 1.0)
    x = np.asarray(X + 1.0) @ np.asarray(made["first"]) @ np.asarray(made["w"])
    added = x.reshape(-1, UNITS) - x.reshape(-1, UNITS).mean(0)
    np.testing.assert_allclose(added.std(), 0.5 * STEPS**-0.5, rtol=1e-3)
    # A sigmoid at rest hands on a half of every unit, which its bias takes out again.
    rest = x.reshape(-1, UNITS).mean(0) + np.asarray(made["b"]) + 0.5 * own_part(made).sum(0)
    np.testing.assert_allclose(rest, 0, atol=0.02)
    assert np.linalg.norm(own_part(made), 2) > 4


@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.leaky_relu])
def test_a_rectifier_gets_the_identity_and_stays_off_zero(activation):
    loss_fn, params = cell(activation)
    made = long_memory(loss_fn, params, X)
    np.testing.assert_array_equal(made["u"], np.eye(UNITS))
    assert known(loss_fn, made) > 0.1 * known(loss_fn, params)
    assert known(loss_fn, made) > 0.3


@pytest.mark.parametrize("kernel", [0.0, jnp.nan])
def test_a_kernel_that_is_nothing_becomes_the_identity(kernel):
    loss_fn, params = cell(jnp.tanh)
    made = long_memory(loss_fn, params | {"u": jnp.full_like(params["u"], kernel)}, X)
    own = own_part(made)
    np.testing.assert_allclose(own, own[0, 0] * np.eye(UNITS), atol=1e-6)
    assert np.isfinite(own).all()


def test_types_and_structure_stay():
    loss_fn, params = cell(jnp.tanh, layers=2, dtype=jnp.bfloat16)
    made = long_memory(loss_fn, params, X)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
    assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype(jnp.bfloat16)}
    own = own_part(made).reshape(-1, UNITS, UNITS)
    for one in own:
        assert np.ptp(np.linalg.svd(one, compute_uv=False)) < 0.05


def test_padded_sequences_and_shared_inputs():
    rnn = nn.RNN(nn.SimpleCell(UNITS, recurrent_kernel_init=nn.initializers.lecun_normal()))
    params, lengths = rnn.init(KEY, X), jnp.full(EXAMPLES, STEPS)

    def loss_fn(params, x):
        return jnp.mean(rnn.apply(params, x, seq_lengths=lengths)[:, -1] ** 2)

    found = changed(params, long_memory(loss_fn, params, X))
    kernel = found["params/cell/h/kernel"]
    assert np.ptp(np.linalg.svd(kernel, compute_uv=False)) < 1e-4

    # A kernel that others need as it is isn't made smaller.
    loss_fn, params = cell(jnp.tanh)

    def shared(params, x):
        return loss_fn(params, x) + jnp.mean((x[:, 0] @ params["first"] @ params["w"]) ** 2)

    made = long_memory(shared, params, X)
    np.testing.assert_array_equal(made["w"], params["w"])
    assert np.ptp(np.linalg.svd(own_part(made), compute_uv=False)) < 1e-4


def without_bias():
    loss_fn, params = minimal(lambda z, h, n: z * h + (1 - z) * n)
    nothing = jnp.zeros(2 * UNITS)
    return lambda params, x: loss_fn(params | {"bias": nothing}, x), {"kernel": params["kernel"]}


def chain():
    problem = vj.mlp_problem(6, (UNITS,) * 4, 4)
    labels = jnp.arange(EXAMPLES) % 4
    return lambda params, x: problem.plain_loss(params, (x[:, 0], labels)), problem.params


def stacked_layers():
    """A scan over layers, each with a kernel of its own, is no recurrent cell."""
    params = {"u": jax.random.normal(KEY, (8, UNITS, UNITS)) / 4, "b": jnp.zeros((8, UNITS))}

    def loss_fn(params, x):
        h = jnp.pad(x[:, 0], ((0, 0), (0, UNITS - 6)))
        step = lambda h, own: (jnp.tanh(h @ own["u"] + own["b"]), None)  # noqa: E731
        return jnp.mean(jax.lax.scan(step, h, params)[0] ** 2)

    return loss_fn, params


def two_steps():
    loss_fn, params = of_linen(nn.LSTMCell)
    return lambda params, x: loss_fn(params, x[:, :2]), params


@pytest.mark.parametrize("make", [chain, without_bias, stacked_layers, two_steps])
def test_what_has_no_such_cell_is_refused(make):
    loss_fn, params = make()
    with pytest.raises(ValueError, match="no cell was found that could remember longer"):
        long_memory(loss_fn, params, X)


def test_a_highway_over_layers_is_left_alone():
    params = {
        "u": jax.random.normal(KEY, (8, UNITS, 2 * UNITS)) / 4,
        "b": jnp.zeros((8, 2 * UNITS)),
    }

    def loss_fn(params, x):
        def step(h, own):
            gate, new = jnp.split(h @ own["u"] + own["b"], 2, axis=-1)
            return jax.nn.sigmoid(gate) * h + jnp.tanh(new), None

        h = jnp.pad(x[:, 0], ((0, 0), (0, UNITS - 6)))
        return jnp.mean(jax.lax.scan(step, h, params)[0] ** 2)

    with pytest.raises(ValueError, match="no cell was found"):
        long_memory(loss_fn, params, X)


def recall(cell, lag, seed=0):
    """Numbers of which the first is to be told at the end, and a network for that."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Embed(4, 8, embedding_init=nn.initializers.normal(0.5))(x)
            return nn.Dense(4)(nn.RNN(cell(24))(x)[:, -1])

    numbers = np.random.default_rng(seed).integers(0, 4, (24 * 32, lag)).astype(np.int32)
    batches = [(jnp.asarray(own), jnp.asarray(own[:, 0])) for own in numbers.reshape(24, 32, lag)]
    net = Net()

    def loss_fn(params, batch):
        logits = net.apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    return vj.Problem(loss_fn, net.init(KEY, batches[0][0]), optax.adam(3e-3)), batches


@pytest.mark.slow
def test_cure_lets_an_lstm_remember():
    problem, batches = recall(nn.LSTMCell, 25)
    treatment = vj.cure(problem, batches, steps=100)
    assert {remedy.name for remedy in treatment.accepted} & {"long_memory", "slow_long_memory"}
    trials = {trial.remedy: trial for trial in treatment.trials}
    assert trials["untreated"].loss > 1.3  # a guess is ln 4
    assert trials["long_memory"].loss < 0.95
    assert "vj.initializers.long_memory(loss_fn, params, batch)" in treatment.recipe
