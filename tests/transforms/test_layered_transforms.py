"""The transforms that see layers: against loops in doubles and optax; masks; and bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import vanishjax as vj
from tests.trajectory import assert_close, run, side_by_side

STEPS = 10
SHAPES = {
    "kernel": (5, 7),
    "tall": (9, 3),
    "heads": (6, 2, 3),
    "convolution": (3, 3, 2, 4),
    "bias": (7,),
    "gain": (),
}
MATRICES = {"kernel", "tall"}  # what optax takes for one


def random_tree(seed, dtype=np.float32, only=frozenset(SHAPES)):
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(s).astype(dtype) for k, s in SHAPES.items() if k in only}


def random_problem(dtype=np.float32, only=frozenset(SHAPES)):
    grads = [random_tree(i, dtype, only) for i in range(STEPS)]
    return jax.tree.map(lambda *g: np.stack(g), *grads), random_tree(99, dtype, only)


# Float64 loops. Each yields the updates of one array and moves it.


def norm(x):
    return np.sqrt(np.sum(x * x))


def apart(step):
    """A loop over a rule without memory."""

    def loop(grads, w):
        for g in grads:
            u = step(g, w)
            yield u
            w = w + u

    return loop


def trust(g, w, c=1.0, eps=0.0, least=0.0):
    own, target = max(norm(g), least), max(norm(w), least)
    return g if own == 0 or target == 0 else g * c * target / (own + eps)


def centre(g, output=0):
    if g.ndim < 2:
        return g
    out = np.array(g)
    for o in range(g.shape[output]):
        where = [slice(None)] * g.ndim
        where[output] = o
        out[tuple(where)] -= g[tuple(where)].mean()
    return out


def clip_units(g, w, share=0.1):
    g, w = np.array(g), np.array(w)
    if g.ndim < 2 or sum(n > 1 for n in g.shape) < 2:
        return g * min(1, share * max(norm(w), 1e-3) / norm(g))
    for unit in np.ndindex(g.shape[1:] if g.ndim < 4 else g.shape[-1:]):
        where = (slice(None), *unit) if g.ndim < 4 else (..., *unit)
        g[where] *= min(1, share * max(norm(w[where]), 1e-3) / norm(g[where]))
    return g


def newton_schulz(g, steps=5, coefficients=(3.4445, -4.7750, 2.0315)):
    if g.ndim < 2:
        return g
    a, b, c = coefficients
    x = g.reshape(-1, g.shape[-1]) / norm(g)
    for _ in range(steps):
        x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
    return x.reshape(g.shape)


def by_shape(g, rms=None):
    if g.ndim < 2:
        return g
    fan_in, fan_out = g.size / g.shape[-1], g.shape[-1]
    return g * (
        max(1, fan_out / fan_in) ** 0.5 if rms is None else rms * max(fan_in, fan_out) ** 0.5
    )


def moments(grads, b1, b2, nesterov=False):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        mean = m / (1 - b1**t)
        if nesterov:
            mean = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        yield mean, np.sqrt(v / (1 - b2**t))


def adam_relative(grads, w, eps, root, b1=0.9, b2=0.999, nesterov=False):
    for m, r in moments(grads, b1, b2, nesterov):
        unit = np.sqrt(np.mean(r * r))
        yield m / (np.sqrt(r * r + root * unit * unit) + eps * unit)


def atan2(grads, w, scale, nesterov=False):
    for m, r in moments(grads, 0.9, 0.999, nesterov):
        yield scale * np.arctan2(m, r)


def muon_momentum(grads, w, nesterov):  # of what isn't a matrix, the momentum itself
    for m, _ in moments(grads, 0.95, 0.0, nesterov):
        yield newton_schulz(m)


def lars(grads, w, rate, decay, look_ahead):
    trace = 0.0
    for g in grads:
        step = -rate * trust(g + decay * w, w, c=0.001)
        trace = 0.9 * trace + step
        u = step + 0.9 * trace if look_ahead else trace
        yield u
        w = w + u


def lamb(grads, w, rate, decay):
    for m, r in moments(grads, 0.9, 0.999):
        u = -rate * trust(m / (r + 1e-6) + decay * w, w)
        yield u
        w = w + u


def muon(grads, w, rate, decay, adam_decay, eps=1e-8, root=0.0):
    if w.ndim >= 2:
        directions = (by_shape(u) for u in muon_momentum(grads, w, True))
    else:
        directions, decay = adam_relative(grads, w, eps, root, nesterov=True), adam_decay
    yield from decayed(directions, w, rate, decay)


def decayed(directions, w, rate, decay):
    for direction in directions:
        u = -rate * (direction + decay * w)
        yield u
        w = w + u


LOOPS = {
    "normalize_by_layer": (
        vj.normalize_by_layer(),
        apart(lambda g, w: g / np.sqrt(np.mean(g * g))),
    ),
    "clip_by_layer_norm": (
        vj.clip_by_layer_norm(2.0),
        apart(lambda g, w: g * min(1, 2.0 / norm(g))),
    ),
    "adaptive_clip": (vj.adaptive_clip(0.1), apart(clip_units)),
    "centralize": (vj.centralize(), apart(lambda g, w: centre(g))),
    "centralize-flax": (vj.centralize(output_axis=-1), apart(lambda g, w: centre(g, -1))),
    # A ratio of 1 takes a scalar to exactly 0, and from there on rounding decides.
    "scale_by_trust_ratio": (
        vj.scale_by_trust_ratio(trust_coefficient=0.3),
        apart(lambda g, w: trust(g, w, 0.3)),
    ),
    "scale_by_trust_ratio-all": (
        vj.scale_by_trust_ratio(3.0, 0.1, 0.5),
        apart(lambda g, w: trust(g, w, 0.1, 0.5, 3.0)),
    ),
    "scale_by_shape": (vj.scale_by_shape(), apart(lambda g, w: by_shape(g))),
    "scale_by_shape-rms": (vj.scale_by_shape(0.2), apart(lambda g, w: by_shape(g, 0.2))),
    "orthogonalize": (vj.orthogonalize(), apart(lambda g, w: newton_schulz(g))),
    "orthogonalize-cubic": (
        vj.orthogonalize(8, (1.5, -0.5, 0.0)),
        apart(lambda g, w: newton_schulz(g, 8, (1.5, -0.5, 0.0))),
    ),
    "scale_by_muon": (vj.scale_by_muon(), lambda g, w: muon_momentum(g, w, True)),
    "scale_by_muon-plain": (
        vj.scale_by_muon(nesterov=False),
        lambda g, w: muon_momentum(g, w, False),
    ),
    "scale_by_adam-relative": (
        vj.scale_by_adam(eps=0.3, eps_root=0.2, eps_relative=True),
        lambda g, w: adam_relative(g, w, 0.3, 0.2),
    ),
    "scale_by_adam-relative-nesterov": (
        vj.scale_by_adam(0.8, 0.9, eps=0.3, eps_relative=True, nesterov=True),
        lambda g, w: adam_relative(g, w, 0.3, 0.0, 0.8, 0.9, nesterov=True),
    ),
    "scale_by_adam_atan2": (vj.scale_by_adam_atan2(scale=1.27), lambda g, w: atan2(g, w, 1.27)),
    "scale_by_adam_atan2-nesterov": (
        vj.scale_by_adam_atan2(nesterov=True),
        lambda g, w: atan2(g, w, 1.0, nesterov=True),
    ),
    "lars": (vj.lars(0.5, 0.1), lambda g, w: lars(g, w, 0.5, 0.1, False)),
    "lars-nesterov": (vj.lars(0.5, nesterov=True), lambda g, w: lars(g, w, 0.5, 0.0, True)),
    "lamb": (vj.lamb(0.1, weight_decay=0.1), lambda g, w: lamb(g, w, 0.1, 0.1)),
    "muon": (
        vj.muon(0.1, weight_decay=0.1, adam_weight_decay=0.2),
        lambda g, w: muon(g, w, 0.1, 0.1, 0.2),
    ),
    "muon-eps": (
        vj.muon(0.1, eps=0.3, adam_eps_root=0.2),
        lambda g, w: muon(g, w, 0.1, 0.0, 0.0, 0.3, 0.2),
    ),
    "adam_atan2": (
        vj.adam_atan2(0.1, weight_decay=0.1, scale=1.27),
        lambda g, w: decayed(atan2(g, w, 1.27), w, 0.1, 0.1),
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_equals_float64_loop(name):
    # In doubles, so that a formula that is off by 1e-6 can't hide behind rounding.
    tx, loop = LOOPS[name]
    with jax.enable_x64(True):
        grads, params = random_problem(np.float64)
        ours, _ = run(tx, grads, params, move=True)
        for path, w in params.items():
            assert_close(ours[path], np.stack(list(loop(grads[path], w))), 1e-9)


# Optax, where it is right: single layers of ordinary gradients.

SCHEDULE = optax.linear_schedule(0.1, 0.01, 8)
MASK = {path: path not in ("bias", "tall") for path in SHAPES}


def convolutions(params):
    """Optax's way to say what a matrix is, as our rule has it."""
    return jax.tree.map(
        lambda p: (
            contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1)
            if p.ndim >= 2
            else None
        ),
        params,
    )


MUONS = {
    "muon": ({}, {}),
    "muon-plain": ({"nesterov": False}, {"nesterov": False}),
    "muon-rms": ({"consistent_rms": 0.2}, {"consistent_rms": 0.2}),
    "muon-decay": tuple(
        {
            "weight_decay": 0.1,
            "weight_decay_mask": MASK,
            "adam_weight_decay": 0.2,
            "adam_learning_rate": SCHEDULE,
            "beta": 0.9,
            "ns_steps": 3,
        }
        for _ in range(2)
    ),
}


@pytest.mark.parametrize("name", MUONS)
@pytest.mark.parametrize("kernels", ["matrices", "convolutions"])
def test_muon_equals_optax(name, kernels):
    # In doubles: in single precision both carry the rounding that Newton-Schulz amplifies.
    ours, theirs = MUONS[name]
    dimensions = {}
    if kernels == "convolutions":
        dimensions = {"muon_weight_dimension_numbers": convolutions}
    with jax.enable_x64(True):
        only = MATRICES | {"bias", "gain"} if kernels == "matrices" else frozenset(SHAPES)
        grads, params = random_problem(np.float64, only)
        if "weight_decay_mask" in ours:
            ours = ours | {"weight_decay_mask": {path: MASK[path] for path in only}}
            theirs = theirs | {"weight_decay_mask": {path: MASK[path] for path in only}}
        mine, _ = run(vj.muon(0.1, **ours), grads, params, move=True)
        peer, _ = run(contrib.muon(0.1, **theirs, **dimensions), grads, params, move=True)
        assert_close(mine, peer)


PAIRS = {
    "centralize": (vj.centralize(), optax.centralize()),
    "scale_by_trust_ratio": (
        vj.scale_by_trust_ratio(trust_coefficient=0.3),
        optax.scale_by_trust_ratio(trust_coefficient=0.3),
    ),
    "scale_by_trust_ratio-all": (
        vj.scale_by_trust_ratio(3.0, 0.1, 0.5),
        optax.scale_by_trust_ratio(3.0, 0.1, 0.5),
    ),
    "adaptive_clip": (vj.adaptive_clip(0.1), optax.adaptive_grad_clip(0.1)),
    "adaptive_clip-eps": (vj.adaptive_clip(0.2, 2.0), optax.adaptive_grad_clip(0.2, 2.0)),
    "lars": (vj.lars(0.5), optax.lars(0.5)),
    "lars-decay": (vj.lars(SCHEDULE, 0.1), optax.lars(SCHEDULE, 0.1)),
    "lars-masks": (
        vj.lars(0.5, 0.1, MASK, 0.01, 0.1, MASK, 0.8, nesterov=True),
        optax.lars(0.5, 0.1, MASK, 0.01, 0.1, MASK, 0.8, nesterov=True),
    ),
    "lamb": (vj.lamb(0.1), optax.lamb(0.1)),
    "lamb-all": (
        vj.lamb(SCHEDULE, 0.8, 0.9, 1e-3, 1e-2, 0.1, MASK),
        optax.lamb(SCHEDULE, 0.8, 0.9, 1e-3, 1e-2, 0.1, MASK),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_optax_in_single_precision(name):
    ours, theirs = PAIRS[name]
    grads, params = random_problem()
    mine, _ = run(ours, grads, params, move=True)
    peer, _ = run(theirs, grads, params, move=True)
    assert_close(mine, peer)


def test_a_layer_of_zeros_is_left_where_optax_leaves_it():
    params = {"w": np.ones((2, 3), np.float32), "zero": np.zeros(3, np.float32)}
    grads = {"w": np.zeros((1, 2, 3), np.float32), "zero": np.ones((1, 3), np.float32)}
    for ours, theirs in (PAIRS["scale_by_trust_ratio"], PAIRS["lars"], PAIRS["lamb"]):
        assert_close(run(ours, grads, params)[0], run(theirs, grads, params)[0])


def test_adam_mask_of_a_whole_subtree():
    params = {"embedding": {"table": jnp.ones((4, 3))}, "kernel": jnp.ones((3, 3))}
    state = vj.muon(0.1, adam_mask={"embedding": True, "kernel": False}).init(params)
    mu = state.inner_states["muon"].inner_state[0].mu
    assert isinstance(mu["embedding"]["table"], optax.MaskedNode)
    assert mu["kernel"].shape == (3, 3)


# Masks and partitions with Layers of the whole tree.


def stacked():
    params = {
        "stack": {"kernel": jnp.arange(1.0, 25).reshape(2, 4, 3), "bias": jnp.ones((2, 3))},
        "head": jnp.ones((3, 2)),
    }
    layers = vj.find_layers(params)
    axes = {"stack/kernel": (0,), "stack/bias": (0,), "head": ()}
    leaves = tuple(dataclasses.replace(leaf, axes=axes[leaf.path]) for leaf in layers.leaves)
    layers = vj.Layers(leaves, tuple(range(5)), tuple(range(5)))
    rng = np.random.default_rng(0)
    grads = jax.tree.map(
        lambda p: rng.standard_normal((3, *p.shape)).astype(np.float32) ** 5, params
    )
    return params, layers, grads


LAYERED = {
    "clip_by_layer_norm": lambda layers: vj.clip_by_layer_norm(0.1, layers),
    "adaptive_clip": lambda layers: vj.adaptive_clip(0.1, layers=layers),
    "normalize_by_layer": vj.normalize_by_layer,
    "centralize": vj.centralize,
    "scale_by_trust_ratio": lambda layers: vj.scale_by_trust_ratio(layers=layers),
    "orthogonalize": lambda layers: vj.orthogonalize(layers=layers),
    "scale_by_muon": lambda layers: vj.scale_by_muon(layers=layers),
    "scale_by_shape": lambda layers: vj.scale_by_shape(layers=layers),
    "scale_by_adam": lambda layers: vj.scale_by_adam(eps_relative=True, layers=layers),
    "adam": lambda layers: vj.adam(0.1, eps_relative=True, layers=layers),
    "lars": lambda layers: vj.lars(0.1, layers=layers),
    "lamb": lambda layers: vj.lamb(0.1, layers=layers),
    "muon": lambda layers: vj.muon(0.1, layers=layers),
    "skip_nonfinite": lambda layers: vj.skip_nonfinite(layers=layers),
}
every_layered = pytest.mark.parametrize("name", LAYERED)


@every_layered
def test_mask_and_partition_with_layers_of_the_whole_tree(name):
    params, layers, grads = stacked()
    make = LAYERED[name]
    mask = {"stack": {"kernel": True, "bias": False}, "head": True}
    parts = {"ours": make(layers), "theirs": optax.sgd(1.0)}
    txs = {
        "whole": make(layers),
        "masked": optax.masked(make(layers), mask),
        "partitioned": optax.partition(parts, {"stack": "ours", "head": "theirs"}),
    }
    found, _ = run(side_by_side(txs), grads, params)
    whole, masked, partitioned = (found[kind] for kind in txs)
    assert_close(masked["stack"]["kernel"], whole["stack"]["kernel"])
    assert_close(masked["head"], whole["head"])
    np.testing.assert_array_equal(masked["stack"]["bias"], grads["stack"]["bias"])
    assert_close(partitioned["stack"], whole["stack"])
    np.testing.assert_array_equal(partitioned["head"], -grads["head"])


# Bad input: a clear error with the path, or it works.


@every_layered
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"stack": jnp.ones((2, 3))}, "w: expected an array of shape .3, 2., found nothing"),
        ({"w": jnp.ones((3, 2)), "other": jnp.ones(2)}, "other: no such parameter"),
        ({"w": jnp.ones((3, 3))}, r"w: expected shape \(3, 2\), got \(3, 3\)"),
        ({}, "w: expected an array of shape .3, 2., found nothing"),
    ],
    ids=["missing", "more", "shape", "empty"],
)
def test_layers_of_another_tree(name, params, message):
    layers = vj.find_layers({"w": jnp.ones((3, 2))})
    if "stack" in params:
        message = "stack: no such parameter|" + message
    with pytest.raises(ValueError, match=message):
        LAYERED[name](layers).init(params)


@every_layered
@pytest.mark.parametrize("axis", [2, -1])
def test_a_stack_axis_that_is_not_there(name, axis):
    params = {"block": {"w": jnp.ones((3, 2))}}
    layers = vj.find_layers(params)
    leaf = dataclasses.replace(layers.leaves[0], axes=(axis,))
    layers = dataclasses.replace(layers, leaves=(leaf,))
    with pytest.raises(ValueError, match=rf"block/w: stack axis {axis} .* shape \(3, 2\)"):
        LAYERED[name](layers).init(params)


@every_layered
@pytest.mark.parametrize("leaf", [np.arange(3), np.ones(2, np.complex64)], ids=["int", "complex"])
def test_a_leaf_that_is_not_real_floating_point(name, leaf):
    with pytest.raises(ValueError, match="block/w: expected a real floating-point"):
        LAYERED[name](None).init({"block": {"w": leaf}})


TREES = {
    "none": {"none": None, "w": jnp.ones((2, 2))},
    "scalar": {"scalar": jnp.ones(()), "number": 2.0},
    "empty": {},
    "empty-tuple": (),
    "no-entries": {"nothing": jnp.zeros((0, 2)), "w": jnp.ones(2)},
}


@every_layered
@pytest.mark.parametrize("explicit", [True, False])
def test_trees_that_work(name, explicit):
    txs = {
        kind: LAYERED[name](vj.find_layers(params) if explicit else None)
        for kind, params in TREES.items()
    }
    states = {kind: tx.init(TREES[kind]) for kind, tx in txs.items()}

    @jax.jit  # all by one program
    def updated(trees, states):
        given = ((tx, trees[kind], states[kind]) for kind, tx in txs.items())
        return dict(zip(txs, (tx.update(t, state, t)[0] for tx, t, state in given), strict=True))

    found = updated(TREES, states)
    for kind, params in TREES.items():
        assert jax.tree.structure(found[kind]) == jax.tree.structure(params), kind
        assert all(np.all(np.isfinite(u)) for u in jax.tree.leaves(found[kind])), kind


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (vj.clip_by_layer_norm, {"max_norm": -1.0}, "max_norm must not be negative, got -1.0"),
        (vj.clip_by_layer_norm, {"max_norm": float("nan")}, "max_norm must not be negative"),
        (vj.adaptive_clip, {"clipping": -0.1}, "clipping must not be negative"),
        (vj.adaptive_clip, {"eps": -0.1}, "eps must not be negative"),
        (vj.scale_by_trust_ratio, {"min_norm": -1}, "min_norm must not be negative"),
        (vj.scale_by_trust_ratio, {"trust_coefficient": -1}, "trust_coefficient must not be"),
        (vj.scale_by_trust_ratio, {"eps": -1}, "eps must not be negative"),
        (vj.orthogonalize, {"steps": -1}, "steps must not be negative, got -1"),
        (vj.scale_by_muon, {"beta": 1.0}, r"beta must lie in \[0, 1\), got 1.0"),
        (vj.scale_by_muon, {"ns_steps": -2}, "steps must not be negative, got -2"),
        (vj.scale_by_shape, {"consistent_rms": -0.2}, "consistent_rms must not be negative"),
        (vj.scale_by_adam_atan2, {"b2": -0.1}, "b2 must lie"),
        (vj.scale_by_adam_atan2, {"scale": -1}, "scale must not be negative"),
        (vj.lars, {"momentum": -0.9}, "decay must lie"),
        (vj.lars, {"eps": -1e-8}, "eps must not be negative"),
        (vj.lamb, {"b1": 1.5}, "b1 must lie"),
        (vj.muon, {"beta": -0.1}, "beta must lie"),
        (vj.muon, {"adam_b2": 1}, "b2 must lie"),
        (vj.muon, {"adam_weight_decay": -0.1}, "adam_weight_decay must not be negative"),
        *(
            (factory, {"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1")
            for factory in (vj.adamw, vj.nadamw, vj.lion, vj.adam_atan2, vj.lars, vj.lamb, vj.muon)
        ),
    ],
)
def test_bad_arguments(factory, arguments, message):
    if factory in (
        vj.adamw,
        vj.nadamw,
        vj.lion,
        vj.adam_atan2,
        vj.lars,
        vj.lamb,
        vj.muon,
    ):
        arguments = {"learning_rate": 0.1} | arguments
    with pytest.raises(ValueError, match=message):
        factory(**arguments)


@pytest.mark.parametrize("factory", [vj.scale_by_trust_ratio, vj.adaptive_clip])
def test_parameters_are_needed(factory):
    tx, params = factory(), {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, tx.init(params))


def test_gradients_of_another_tree_than_the_parameters():
    tx, params = vj.scale_by_trust_ratio(), {"a": jnp.ones(2), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"b: missing|b: expected|b: no such"):
        tx.update({"a": jnp.ones(2)}, tx.init(params), params)
    with pytest.raises(ValueError, match=r"a: expected shape \(3,\), got \(2,\)"):
        tx.update({"a": jnp.ones(3), "b": jnp.ones(3)}, tx.init(params), params)
