"""A Hugging Face Flax model, trained as by its own call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vanishjax as vj

transformers = pytest.importorskip("transformers", exc_type=ImportError)
if not hasattr(transformers, "FlaxGPT2LMHeadModel"):
    pytest.skip("the Flax models left transformers with its version 5", allow_module_level=True)

TOKENS = jax.random.randint(jax.random.key(0), (8, 9), 0, 32)
STEPS = 4
# The attention's dropout draws otherwise on every call of the model, so it is off for both.
NO_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)


@pytest.fixture(scope="module")
def model():
    config = transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=8, **NO_DROPOUT
    )
    return transformers.FlaxGPT2LMHeadModel(config, input_shape=(1, 8))


def cross_entropy(logits, tokens):
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def inputs_of(tokens):
    tokens = tokens[:, :-1]
    return tokens, jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(8), tokens.shape)


def problem_of(model, tx):
    def loss_fn(apply, tokens):
        return cross_entropy(apply(*inputs_of(tokens)).logits, tokens)

    return vj.Problem.from_linen(model.module, {"params": model.params}, loss_fn, tx)


def test_gpt2_trains_as_by_its_own_call(model):
    tx = optax.adam(1e-2)
    problem = problem_of(model, tx)
    state = vj.training.TrainState.create(problem)
    step = vj.training.make_train_step(problem)
    ours = []
    for _ in range(STEPS):
        state, metrics = step(state, TOKENS)
        ours.append(float(metrics["loss"]))

    @jax.jit
    def bare(params, opt_state):
        def loss(params):
            return cross_entropy(model(TOKENS[:, :-1], params=params, train=True).logits, TOKENS)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    params, opt_state, theirs = model.params, tx.init(model.params), []
    for _ in range(STEPS):
        params, opt_state, value = bare(params, opt_state)
        theirs.append(float(value))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert ours[-1] < ours[0] - 0.05


def test_gpt2_is_looked_into(model):
    problem = problem_of(model, optax.adam(1e-3))
    verdict = vj.diagnose(problem, TOKENS)
    assert verdict.verdict == "healthy", str(verdict)
    # Its kernels are [outputs, inputs], which nothing but the contraction tells.
    leaves = {leaf.path: leaf for leaf in vj.find_layers(problem, TOKENS).leaves}
    matrix = leaves["transformer/h/0/mlp/c_fc/kernel"].matrix
    assert (matrix.inputs, matrix.outputs) == ((1,), (0,))


def test_gpt2_drops_out_in_training_alone():
    config = transformers.GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=32, n_positions=8, resid_pdrop=0.5
    )
    dropping = transformers.FlaxGPT2LMHeadModel(config, input_shape=(1, 8))
    problem = problem_of(dropping, optax.adam(1e-3))

    @functools.partial(jax.jit, static_argnums=1)
    def loss(seed, training):
        key = jax.random.key(seed) if training else None
        return problem.evaluate(problem.params, TOKENS, key=key, training=training).loss

    assert loss(0, True) != loss(1, True)
    expected = cross_entropy(dropping(TOKENS[:, :-1]).logits, TOKENS)
    np.testing.assert_allclose(loss(0, False), expected, rtol=1e-6)
