"""Small models of every kind, each with the order of its layers as a reader of its code sees it.

The expected names were written from the models' definitions, not from what `find_layers` said.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (6, 4))
SEQUENCE = jax.random.normal(KEY, (6, 5, 4))


class Model(NamedTuple):
    """A loss, its arguments, and what should be found."""

    loss_fn: Callable[[Any, Any], Any]
    params: Any
    batch: Any
    names: list[str]
    depths: list[int] | None = None
    tied: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()


def weights(*names: str, shape: tuple[int, ...] = (4, 4)) -> dict[str, jax.Array]:
    keys = jax.random.split(KEY, len(names))
    return {name: 0.5 * jax.random.normal(k, shape) for name, k in zip(names, keys, strict=True)}


def both(*paths: str, kernel: str = "kernel", bias: str = "bias") -> list[str]:
    """A kernel, then its bias, for each path."""
    return [f"{path}/{part}" for path in paths for part in (kernel, bias)]


# Flax linen.


def linen(module: nn.Module, x: Any, names: list[str], **found: Any) -> Model:
    params = module.init(KEY, x)

    def loss_fn(params: Any, x: Any) -> jax.Array:
        return jnp.mean(module.apply(params, x) ** 2)

    return Model(loss_fn, params, x, names, **found)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(12):
            x = jnp.tanh(nn.Dense(4)(x))
        return x


def linen_mlp() -> Model:
    names = both(*(f"params/Dense_{i}" for i in range(12)))
    return linen(Mlp(), X, names, depths=list(range(1, 25)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.gelu(nn.Dense(4)(x)), None


class Remat(nn.Module):
    @nn.compact
    def __call__(self, x):
        for name in ("z", "m", "a"):
            x, _ = nn.remat(Block)(name=name)(x)
        return nn.Dense(1, name="b_head")(x)


def linen_remat() -> Model:
    names = both("params/z/Dense_0", "params/m/Dense_0", "params/a/Dense_0", "params/b_head")
    return linen(Remat(), X, names, depths=list(range(1, 9)))


class Scanned(nn.Module):
    axis: int = 0
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="z_in")(x)
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        scan = nn.scan(
            block,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = scan(name="hidden")(x, None)
        return nn.Dense(1, name="a_out")(x)


SCANNED = [
    *both("params/z_in"),
    "params/hidden/Dense_0/kernel[0]",
    "params/hidden/Dense_0/bias[0]",
    "params/hidden/Dense_0/kernel[1]",
    "params/hidden/Dense_0/bias[1]",
    "params/hidden/Dense_0/kernel[2]",
    "params/hidden/Dense_0/bias[2]",
    *both("params/a_out"),
]


def linen_scan() -> Model:
    return linen(Scanned(), X, SCANNED, depths=list(range(1, 11)))


def linen_scan_remat() -> Model:
    return linen(Scanned(remat=True), X, SCANNED, depths=list(range(1, 11)))


def linen_scan_last_axis() -> Model:
    return linen(Scanned(axis=1), X, SCANNED, depths=list(range(1, 11)))


class ConvNet(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        for name in ("b", "a"):
            x = nn.Conv(3, (3, 3), name=f"conv_{name}")(x)
            x = nn.BatchNorm(not self.train, name=f"norm_{name}")(x)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        return nn.Dense(1)(x.mean((1, 2)))


def conv(*, train: bool) -> Model:
    module = ConvNet(train)
    images = jax.random.normal(KEY, (2, 8, 8, 1))
    variables = module.init(KEY, images)
    statistics = variables["batch_stats"]

    def loss_fn(params, images):
        out, updated = module.apply(
            {"params": params, "batch_stats": statistics}, images, mutable=["batch_stats"]
        )
        return jnp.mean(out**2), updated

    names = []
    for name in "ba":
        names += both(f"conv_{name}")
        names += [f"norm_{name}/scale", f"norm_{name}/bias"]
    return Model(loss_fn, variables["params"], images, [*names, *both("Dense_0")])


def conv_batch_norm_training() -> Model:
    return conv(train=True)


def conv_batch_norm_inference() -> Model:
    return conv(train=False)


class Recurrent(nn.Module):
    cell: Any
    scanned: bool

    @nn.compact
    def __call__(self, x):
        cell = self.cell(4, name="cell")
        if self.scanned:
            h = nn.RNN(cell)(x)[:, -1]
        else:
            carry = cell.initialize_carry(KEY, x[:, 0].shape)
            for t in range(x.shape[1]):
                carry, h = cell(carry, x[:, t])
        return nn.Dense(1, name="a_head")(h)


def recurrent(cell: Any, order: list[str], *, scanned: bool) -> Model:
    """The state's weights are met at a new depth every time, the input's aren't."""
    own = [f"params/cell/{name}" for name in order]
    tied = tuple(f"params/cell/{name}" for name in order if name[0] == "h")
    names = [*own, *both("params/a_head")]
    return linen(Recurrent(cell, scanned), SEQUENCE, names, tied=tied)


# The state is zero at first: what multiplies it meets the data where it's added to the input's.
LSTM = [f"i{gate}/kernel" for gate in "ifgo"] + [
    f"h{gate}/{part}" for gate in "ifgo" for part in ("bias", "kernel")
]
GRU = [
    *("ir/kernel", "iz/kernel", "in/kernel", "ir/bias", "iz/bias", "in/bias"),
    *("hr/kernel", "hz/kernel", "hn/bias", "hn/kernel"),
]


def lstm_unrolled() -> Model:
    return recurrent(nn.LSTMCell, LSTM, scanned=False)


def lstm_scanned() -> Model:
    return recurrent(nn.LSTMCell, LSTM, scanned=True)


def gru_unrolled() -> Model:
    return recurrent(nn.GRUCell, GRU, scanned=False)


def gru_scanned() -> Model:
    return recurrent(nn.GRUCell, GRU, scanned=True)


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(7, 4, name="table")
        x = embed(tokens)
        y = nn.LayerNorm(name="z_norm")(x)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(y, y)
        y = nn.LayerNorm(name="b_norm")(x)
        x = x + nn.Dense(4, name="mlp_out")(nn.relu(nn.Dense(8, name="mlp_up")(y)))
        return embed.attend(nn.LayerNorm(name="a_norm")(x))


def tied_transformer() -> Model:
    names = [
        "table/embedding",
        *("z_norm/scale", "z_norm/bias"),
        *(f"attention/{x}/kernel" for x in ("query", "key", "value")),
        *(f"attention/{x}/bias" for x in ("query", "key", "value")),
        *both("attention/out"),
        *("b_norm/scale", "b_norm/bias"),
        *both("mlp_up", "mlp_out"),
        *("a_norm/scale", "a_norm/bias"),
    ]
    return linen(
        Transformer(),
        jnp.array([[1, 2, 3], [4, 5, 6]]),
        [f"params/{name}" for name in names],
        depths=[1, 2, 3, 4, 4, 4, 5, 5, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        tied=("params/table/embedding",),
    )


# Flax nnx.


class NnxList(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(11)])

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


class NnxScan(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def create(rngs):
            return nnx.Linear(4, 4, rngs=rngs)

        self.blocks = create(rngs)
        self.a_head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return jnp.tanh(layer(x))

        return self.a_head(forward(x, self.blocks))


def of_nnx(model: nnx.Module, names: list[str]) -> Model:
    graph, params = nnx.split(model)

    def loss_fn(params, x):
        return jnp.mean(nnx.merge(graph, params)(x) ** 2)

    return Model(loss_fn, params, X, names, depths=list(range(1, len(names) + 1)))


def nnx_list() -> Model:
    names = both(*(f"layers/{i}" for i in range(11)))
    return of_nnx(NnxList(nnx.Rngs(0)), names)


def nnx_scan() -> Model:
    names = [f"blocks/{part}[{i}]" for i in range(3) for part in ("kernel", "bias")]
    return of_nnx(NnxScan(nnx.Rngs(0)), [*names, *both("a_head")])


# Equinox and Haiku.


def equinox_mlp() -> Model:
    model = eqx.nn.MLP(4, 1, 4, depth=11, key=KEY)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, x):
        return jnp.mean(jax.vmap(eqx.combine(params, static))(x) ** 2)

    return Model(loss_fn, params, X, both(*(f"layers/{i}" for i in range(12)), kernel="weight"))


def haiku_mlp() -> Model:
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4] * 11)(x)))
    names = both(*(f"mlp/~/linear_{i}" for i in range(11)), kernel="w", bias="b")
    params = net.init(KEY, X)
    return Model(lambda params, x: jnp.mean(net.apply(params, x) ** 2), params, X, names)


def haiku_gru() -> Model:
    def forward(x):
        core = hk.GRU(4)
        out, _ = hk.dynamic_unroll(core, x, core.initial_state(6), time_major=False)
        return hk.Linear(1)(out[:, -1])

    net = hk.without_apply_rng(hk.transform(forward))
    params = net.init(KEY, SEQUENCE)
    # b is cut in two, one half meets the gates' inputs, the other the candidate's.
    names = ["gru/w_i", "gru/w_h", "gru/b", "linear/w", "linear/b"]
    tied = ("gru/b", "gru/w_h")
    return Model(
        lambda params, x: jnp.mean(net.apply(params, x) ** 2), params, SEQUENCE, names, tied=tied
    )


# Plain functions.


def chain(*names: str, **found: Any) -> Model:
    def loss_fn(params, x):
        for name in names:
            x = jnp.tanh(x @ params[name])
        return jnp.mean(x)

    return Model(loss_fn, weights(*names), X, list(names), **found)


def plain() -> Model:
    return chain("c", "a", "d", "b", depths=[1, 2, 3, 4])


def tied_weight() -> Model:
    def loss_fn(params, x):
        return jnp.mean(jnp.tanh(jnp.tanh(x @ params["b"]) @ params["a"]) @ params["b"])

    return Model(loss_fn, weights("a", "b"), X, ["b", "a"], tied=("b",))


def residual() -> Model:
    def loss_fn(params, x):
        for name in "cab":
            x = x + jnp.tanh(x @ params[name])
        return jnp.mean(x**2)

    return Model(loss_fn, weights("a", "b", "c"), X, ["c", "a", "b"], depths=[1, 2, 3])


def no_batch() -> Model:
    data = np.asarray(X)

    @jax.jit
    def loss_fn(params, _):
        return jnp.mean(jnp.tanh(data @ params["b"]) @ params["a"])

    return Model(loss_fn, weights("a", "b"), None, ["b", "a"])


def regularized() -> Model:
    """Weight normalization, casts and a penalty on all weights, one of them not in the net."""

    def loss_fn(params, x):
        for name in "dac":
            w = params[name]
            w = params[f"{name}_gain"] * w / jnp.linalg.norm(w, axis=0)
            x = jnp.tanh(x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16))
        penalty = sum(jnp.sum(w**2) for w in jax.tree.leaves(params))
        return (jnp.mean(x.astype(jnp.float32)) + 0.1 * penalty) * 2.0 / 3.0

    params = weights("a", "c", "d", "z_unused")
    params |= {f"{name}_gain": jnp.ones(4) for name in "acd"}
    names = ["d", "d_gain", "z_unused", "a", "a_gain", "c", "c_gain"]
    return Model(loss_fn, params, X, names, [1, 1, 1, 2, 2, 3, 3], unused=("z_unused",))


def vmapped() -> Model:
    """A loss per example, with the penalty inside."""

    def one(params, x):
        y = jnp.tanh(x @ params["b"]) @ params["a"]
        return jnp.sum(y**2) + sum(jnp.sum(w**2) for w in params.values())

    def loss_fn(params, x):
        return jnp.mean(jax.vmap(one, (None, 0))(params, x))

    return Model(loss_fn, weights("a", "b"), X, ["b", "a"], depths=[1, 2])


def scalar_biases() -> Model:
    """One unit a layer: a bias is a sum of scalars, just as a penalty is."""

    def loss_fn(params, x):
        h = jnp.mean(x)
        for name in "ba":
            h = jnp.tanh(h * params[name] + params[f"{name}_bias"])
        return h

    params = dict.fromkeys(("a", "b", "a_bias", "b_bias"), 0.5)
    names = ["b", "b_bias", "a", "a_bias"]
    return Model(loss_fn, params, X, names, depths=[1, 2, 3, 4])


def while_loop() -> Model:
    def loss_fn(params, x):
        def body(state):
            i, x = state
            return i + 1, jnp.tanh(x @ params["a_loop"])

        _, y = lax.while_loop(lambda state: state[0] < 3, body, (0, x @ params["z_in"]))
        return jnp.mean(y @ params["b_out"])

    params = weights("a_loop", "b_out", "z_in")
    return Model(loss_fn, params, X, ["z_in", "a_loop", "b_out"], tied=("a_loop",))


def cond() -> Model:
    def loss_fn(params, x):
        y = jnp.tanh(x @ params["z"])
        y = lax.cond(y.sum() > 0, lambda y: y @ params["c"], lambda y: y @ params["d"], y)
        index = jnp.argmax(y[0])
        y = lax.switch(index, [lambda y: y @ params["b"], jnp.tanh, jnp.sin, jnp.cos], y)
        return jnp.mean(y @ params["a"])

    # A cond keeps its branch for False first.
    names = ["z", "d", "c", "b", "a"]
    return Model(loss_fn, weights("a", "b", "c", "d", "z"), X, names, depths=[1, 2, 2, 3, 4])


def custom_rules() -> Model:
    @jax.custom_jvp
    def soft(x, w):
        return jnp.log1p(jnp.exp(x @ w))

    soft.defjvp(lambda primals, tangents: (soft(*primals), tangents[0] @ primals[1]))

    @jax.custom_vjp
    def straight(x, w):
        return jnp.sign(x @ w)

    straight.defvjp(
        lambda x, w: (straight(x, w), (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g)
    )

    def loss_fn(params, x):
        x = soft(x, params["c"])
        return jnp.mean(straight(jax.nn.relu(x @ params["b"]), params["a"]))

    return Model(loss_fn, weights("a", "b", "c"), X, ["c", "b", "a"], depths=[1, 2, 3])


# Scans.


def scan_model(*, reverse: bool, length: int = 3, axis: int = 0) -> Model:
    """Stacked kernels and gains in a residual scan, as by hand."""

    def loss_fn(params, x):
        def body(x, layer):
            w, gain, b = layer
            return x + gain * jnp.tanh(x @ w + b), None

        stacks = (jnp.moveaxis(params["w"], axis, 0), params["gain"], params["b"])
        x, _ = lax.scan(body, x @ params["z_in"], stacks, reverse=reverse)
        return jnp.mean(x @ params["a_out"])

    params = {
        **weights("z_in", "a_out"),
        "w": jnp.moveaxis(jnp.ones((length, 4, 4)), 0, axis),
        "gain": jnp.ones(length),
        "b": jnp.ones((length, 4)),
    }
    order = reversed(range(length)) if reverse else range(length)
    stacked = [f"{name}[{i}]" for i in order for name in ("w", "b", "gain")]
    names = ["z_in", *stacked, "a_out"]
    return Model(loss_fn, params, X, names, depths=list(range(1, len(names) + 1)))


def scan_forward() -> Model:
    return scan_model(reverse=False)


def scan_reverse() -> Model:
    return scan_model(reverse=True)


def scan_long() -> Model:
    return scan_model(reverse=False, length=300)


def scan_of_one() -> Model:
    return scan_model(reverse=False, length=1)


def scan_last_axis() -> Model:
    return scan_model(reverse=True, axis=2)


def scan_normalized() -> Model:
    """Kernels are cast and normalized before the scan runs along them."""

    def loss_fn(params, x):
        w = params["w"].astype(jnp.bfloat16)
        w = w / jnp.sqrt(jnp.sum(w**2, axis=(1, 2), keepdims=True))
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x.astype(jnp.bfloat16), w)
        return jnp.mean(x)

    return Model(loss_fn, {"w": jnp.ones((3, 4, 4))}, X, ["w[0]", "w[1]", "w[2]"], [1, 2, 3])


def scan_prepared() -> Model:
    """A first scan prepares the kernels that a second one applies."""

    def loss_fn(params, x):
        _, w = lax.scan(lambda _, w: (None, w / jnp.linalg.norm(w)), None, params["w"])
        x, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)
        return jnp.mean(x)

    return Model(loss_fn, {"w": jnp.ones((3, 4, 4))}, X, ["w[0]", "w[1]", "w[2]"], [1, 2, 3])


def scan_outputs() -> Model:
    """The head sees what every layer put out."""

    def loss_fn(params, x):
        def body(x, w):
            x = jnp.tanh(x @ w)
            return x, x

        return jnp.mean(lax.scan(body, x, params["w"])[1].mean(0) @ params["a"])

    params = {"a": jnp.ones((4, 1)), "w": jnp.ones((5, 4, 4))}
    names = [*(f"w[{i}]" for i in range(5)), "a"]
    return Model(loss_fn, params, X, names, depths=[1, 2, 3, 4, 5, 6])


def scan_nested() -> Model:
    def loss_fn(params, x):
        def inner(x, w):
            return jnp.tanh(x @ w), None

        def outer(x, layer):
            kernels, bias = layer
            x, _ = lax.scan(inner, x, kernels)
            return x + bias, None

        x, _ = lax.scan(outer, x, (params["w"], params["b"]))
        return jnp.mean(x @ params["a"])

    params = {"a": jnp.ones((4, 1)), "b": jnp.ones((4, 4)), "w": jnp.ones((4, 3, 4, 4))}
    names = []
    for i in range(4):
        names += [f"w[{i},0]", f"w[{i},1]", f"w[{i},2]", f"b[{i}]"]
    return Model(loss_fn, params, X, [*names, "a"], depths=list(range(1, 18)))


def scan_nested_crossed() -> Model:
    """The outer scan runs along the later axis of the kernels, and backwards."""

    def loss_fn(params, x):
        def outer(x, kernels):
            return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, kernels)

        w = jnp.swapaxes(params["w"], 0, 1)
        return jnp.mean(lax.scan(outer, x, w, reverse=True)[0])

    names = ["w[0,2]", "w[1,2]", "w[0,1]", "w[1,1]", "w[0,0]", "w[1,0]"]
    return Model(loss_fn, {"w": jnp.ones((2, 3, 4, 4))}, X, names, depths=[1, 2, 3, 4, 5, 6])


def scan_over_time() -> Model:
    """Only the data are a sequence: the weights are constants of the scan."""

    def loss_fn(params, x):
        def body(h, x):
            h = jnp.tanh(x @ params["z"] + h @ params["h"])
            return h, h

        h, _ = lax.scan(body, jnp.zeros((6, 4)), jnp.swapaxes(x, 0, 1))
        return jnp.mean(h @ params["a"])

    names = ["z", "h", "a"]
    return Model(loss_fn, weights("a", "h", "z"), SEQUENCE, names, tied=("h",))


def scan_in_parallel() -> Model:
    """A sum over experts: none is deeper than another."""

    def loss_fn(params, x):
        def body(total, w):
            return total + jnp.tanh(x @ w), None

        return jnp.mean(lax.scan(body, jnp.zeros((6, 4)), params["w"])[0] @ params["a"])

    params = {"a": jnp.ones((4, 1)), "w": jnp.ones((3, 4, 4))}
    return Model(loss_fn, params, X, ["w[0]", "w[1]", "w[2]", "a"], depths=[1, 1, 1, 2])


def scan_penalised() -> Model:
    """The penalty is gathered in the scan that runs the layers."""

    def loss_fn(params, x):
        def body(carry, w):
            x, penalty = carry
            return (jnp.tanh(x @ w), penalty + jnp.sum(w**2)), None

        (x, penalty), _ = lax.scan(body, (x, 0.0), params["w"])
        return jnp.mean(x) + penalty

    return Model(loss_fn, {"w": jnp.ones((3, 4, 4))}, X, ["w[0]", "w[1]", "w[2]"], [1, 2, 3])


# Without a gradient.


def unused() -> Model:
    def loss_fn(params, x):
        y = jnp.tanh(x @ params["c"])
        dead = y @ params["b_aux"]
        return jnp.mean(y @ params["a"]), jnp.sum(dead)

    params = weights("a", "b_aux", "c")
    return Model(loss_fn, params, X, ["c", "a", "b_aux"], [1, 2, 2], unused=("b_aux",))


def stopped() -> Model:
    """A frozen backbone and a frozen gain; the last layer feeds the loss through integers only."""

    def loss_fn(params, x):
        y = jax.jit(lambda y: lax.stop_gradient(jnp.tanh(y)))(x @ params["d_frozen"])
        y = y @ params["c"] * lax.stop_gradient(params["b_frozen"])
        return jnp.mean(y) + jnp.argmax(y @ params["a_hard"])

    params = {**weights("a_hard", "c", "d_frozen"), "b_frozen": jnp.ones(4)}
    frozen = ("a_hard", "b_frozen", "d_frozen")
    names = ["d_frozen", "c", "b_frozen", "a_hard"]
    return Model(loss_fn, params, X, names, depths=[1, 2, 3, 4], stopped=frozen)


def straight_through() -> Model:
    """The rounded weight carries no gradient, the weight beside it does."""

    def loss_fn(params, x):
        for name in "ba":
            w = params[name]
            x = x @ (w + lax.stop_gradient(jnp.round(w) - w))
        return jnp.mean(x**2)

    return Model(loss_fn, weights("a", "b"), X, ["b", "a"], depths=[1, 2])


ZOO = {
    build.__name__: build
    for build in (
        linen_mlp,
        linen_remat,
        linen_scan,
        linen_scan_remat,
        linen_scan_last_axis,
        conv_batch_norm_training,
        conv_batch_norm_inference,
        lstm_unrolled,
        lstm_scanned,
        gru_unrolled,
        gru_scanned,
        tied_transformer,
        nnx_list,
        nnx_scan,
        equinox_mlp,
        haiku_mlp,
        haiku_gru,
        plain,
        tied_weight,
        residual,
        no_batch,
        regularized,
        vmapped,
        scalar_biases,
        while_loop,
        cond,
        custom_rules,
        scan_forward,
        scan_reverse,
        scan_long,
        scan_of_one,
        scan_last_axis,
        scan_normalized,
        scan_prepared,
        scan_outputs,
        scan_nested,
        scan_nested_crossed,
        scan_over_time,
        scan_in_parallel,
        scan_penalised,
        unused,
        stopped,
        straight_through,
    )
}
