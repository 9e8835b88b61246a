"""What databases give: claims, purchases, accounts, shoppers, patients, shops."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import gaussian
from benchmarks.real_zoo.instruments import standard
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import cross_entropy, of_equinox, of_linen, of_nnx
from benchmarks.real_zoo.text import entropy

# Levels and spreads of what columns hold, as they come.
# Dollars a year, years of age, miles a year, year of make, share without claims, credit score.
DRIVERS = np.array(
    [[5.8e4, 44.0, 1.2e4, 2012.0, 0.7, 690.0], [2.1e4, 13.0, 4e3, 6.0, 0.2, 70.0]], np.float32
)
# Seconds since, cents.
EVENTS = np.array([[1.33e6, 4.2e3], [7.8e5, 3e3]], np.float32)
# Euros, days since it was opened, payments a day, share of them abroad.
ACCOUNTS = np.array([[1.2e4, 1500.0, 4.0, 0.02], [7e3, 900.0, 2.0, 0.01]], np.float32)
# Dollars a year, years of age, visits, minutes; dollars, grams, cubic centimeters, stars.
PEOPLE = np.array([[5.5e4, 41.0, 12.0, 35.0], [2.4e4, 14.0, 5.0, 15.0]], np.float32)
GOODS = np.array([[80.0, 900.0, 2.5e3, 4.1], [40.0, 400.0, 1.1e3, 0.5]], np.float32)
# Platelets a microliter, millimoles of sodium, kelvins, beats a minute, moles of creatinine.
PATIENTS = np.array([[2.5e5, 140.0, 310.2, 80.0, 8e-5], [7e4, 4.0, 0.7, 15.0, 2e-5]], np.float32)


# Claims.


@functools.cache
def _claims() -> Task:
    """Six numbers of a driver, in standard units, and what was paid."""
    rng = np.random.default_rng(121)
    x = rng.standard_normal((1536, 6))
    y = 0.5 * x[:, 0] + np.tanh(2 * x[:, 1]) - 0.6 * np.abs(x[:, 2]) + 0.6 * x[:, 4]
    y += 0.7 * np.sin(1.5 * x[:, 3]) - 0.5 * x[:, 5] + 0.3 * x[:, 1] * x[:, 4]
    train, test = parted(x, standard(y + 0.1 * rng.standard_normal(1536)))
    return Task(train, test, (float(np.var(test[1])),))


class Claims(nn.Module):
    """A ResNet for tables: blocks of a norm and two layers, a norm and the answer."""

    raw: bool = False
    first: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Answers to rows."""
        norm = functools.partial(nn.BatchNorm, use_running_average=False)
        x = DRIVERS[0] + DRIVERS[1] * x if self.raw else x
        x = norm(name="columns")(x) if self.first else x
        x = nn.Dense(48, name="into")(x)
        for number in range(2):
            y = nn.Dense(64, kernel_init=gaussian(1.4), name=f"up_{number}")(norm()(x))
            x = x + nn.Dense(48, name=f"down_{number}")(nn.relu(y))
        return nn.Dense(1, name="head")(nn.relu(norm()(x)))[:, 0]


def claims(name: str, *ails: str, raw: bool = False, first: bool = False, **rest: Any) -> Network:
    """A ResNet for tables, its columns `raw` or not, a norm `first` or not."""
    init, apply = of_linen(Claims(raw, first), jnp.zeros((2, 6)))
    own = {"kind": "tabular ResNet", "library": "linen", "task": _claims, "ails": ails}
    return regression(name, init, apply, **{"steps": 300} | own | rest)


# Purchases.


@functools.cache
def _purchases() -> Task:
    """Sixteen of six kinds, how long ago and how large, in standard units; recent spending."""
    rng = np.random.default_rng(122)
    kinds, ago = rng.integers(0, 6, (1536, 16)), rng.uniform(0, 3.4, (1536, 16))
    size = rng.gamma(2.0, 0.7, (1536, 16))
    spent = (size * (kinds < 3) * np.exp(-ago) - 0.5 * size * (kinds == 5)).sum(1)
    numbers = np.stack([ago - 1.7, size - 1.4], -1)
    train, test = parted(kinds.astype(np.int32), numbers, standard(spent))
    return Task(train, test, (float(np.var(test[2])),))


class Purchases(eqx.Module):
    """Kinds, times and sizes embedded and added, two pre-norm blocks, and the mean."""

    kinds: Any
    numbers: Any
    projections: list[Any]
    mlps: list[Any]
    norms: list[Any]
    head: Any
    raw: bool = eqx.field(static=True)
    factor: float = eqx.field(static=True)

    def __init__(self, key: Any, raw: bool, spread: float, factor: float) -> None:
        keys = iter(jax.random.split(key, 8))
        self.kinds = spread * jax.random.normal(next(keys), (6, 24))
        self.numbers = eqx.nn.Linear(2, 24, key=next(keys))
        self.projections = [eqx.nn.Linear(24, 72, key=next(keys)) for _ in range(2)]
        self.mlps = [eqx.nn.MLP(24, 24, 48, 1, jax.nn.gelu, key=next(keys)) for _ in range(2)]
        self.norms = [eqx.nn.LayerNorm(24) for _ in range(5)]
        self.head = eqx.nn.Linear(24, 1, key=next(keys))
        self.raw, self.factor = raw, factor

    def __call__(self, kinds: Any, numbers: Any) -> Any:
        """What is spent after `[purchases]` and `[purchases, 2]`."""
        numbers = EVENTS[0] + EVENTS[1] * numbers if self.raw else numbers
        x = self.kinds[kinds] + jax.vmap(self.numbers)(numbers)
        norms = iter(self.norms)
        for projection, mlp in zip(self.projections, self.mlps, strict=True):
            queries, keys, values = jnp.split(jax.vmap(projection)(jax.vmap(next(norms))(x)), 3, -1)
            x = x + jax.nn.softmax(queries @ keys.T * self.factor) @ values
            x = x + jax.vmap(mlp)(jax.vmap(next(norms))(x))
        return self.head(jax.vmap(next(norms))(x).mean(0))[0]


def purchases(
    name: str,
    *ails: str,
    raw: bool = False,
    spread: float = 0.5,
    factor: float = 24**-0.5,
    **rest: Any,
) -> Network:
    """A transformer over events, their numbers `raw` or not; `factor` of scores."""
    init, apply = of_equinox(lambda key: Purchases(key, raw, spread, factor))
    own = {"kind": "event transformer", "library": "Equinox", "task": _purchases, "ails": ails}
    return regression(name, init, apply, **{"steps": 300} | own | rest)


# Accounts.


@functools.cache
def _accounts() -> Task:
    """Sixteen accounts, which of them pay which, and a class that depends on their partners."""
    rng = np.random.default_rng(123)
    x, linked = rng.standard_normal((640, 16, 4)), rng.random((640, 16, 16)) < 0.15
    linked |= linked.swapaxes(1, 2) | np.roll(np.eye(16, dtype=bool), 1, 1)
    shares = linked / linked.sum(-1, keepdims=True)
    score = shares @ x[..., 1:2] * 2 + np.tanh(x[..., :1]) + 0.7 * x[..., 2:3]
    kinds = np.digitize(score[..., 0], (-0.6, 0.6)).astype(np.int32)
    train, test = parted(x, shares, kinds)
    return Task(train, test, (entropy(test[2]),))


def accounts(
    name: str, *ails: str, depth: int = 2, own: bool = True, raw: bool = False, **rest: Any
) -> Network:
    """Means over partners, with a node's `own` state or without; unit length after each layer."""

    def init(key: Any) -> Any:
        keys = jax.random.split(key, depth + 1)
        sizes = ((4, 32), *((32, 32),) * (depth - 1))
        layers = [stack(k, ((1 + own) * a, b))[0] for k, (a, b) in zip(keys, sizes, strict=False)]
        return {"layers": layers, "head": stack(keys[-1], (32, 32, 3))}

    def loss(p: Any, batch: Any) -> Any:
        x, shares, kinds = batch
        x = ACCOUNTS[0] + ACCOUNTS[1] * x if raw else x
        for one in p["layers"]:
            y = jnp.concatenate([x, shares @ x], -1) if own else shares @ x
            x = jax.nn.relu(y @ one["w"] + one["b"])
            x = x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)
        return cross_entropy(forward(p["head"], x, jax.nn.relu), kinds)

    settings = {"kind": "GraphSAGE", "library": "plain", "task": _accounts, "ails": ails}
    return network(name, loss, init, **{"steps": 300, "rates": (4e-3, 1e-2)} | settings | rest)


# Shoppers.


@functools.cache
def _shoppers() -> Task:
    """Four numbers of a shopper and four of what that one bought, all in standard units."""
    rng = np.random.default_rng(125)
    people, turn = rng.standard_normal((1280, 4)), np.linalg.qr(rng.standard_normal((4, 4)))[0]
    goods = people @ turn
    goods = goods + 0.3 * np.sin(2 * goods[:, ::-1]) + 0.15 * rng.standard_normal(goods.shape)
    train, test = parted(people, goods)
    return Task(train, tuple(x[:64] for x in test), (float(np.log(64.0)),))


def retrieval(
    name: str, *ails: str, raw: bool = False, temperature: float = 0.1, **rest: Any
) -> Network:
    """A tower for shoppers, one for goods, and who bought what among all of a batch."""

    def tower(x: Any, name: str) -> Any:
        x = hk.nets.MLP([48, 48, 16], activation=jax.nn.gelu, name=name)(x)
        return x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)

    def made(people: Any, goods: Any) -> Any:
        people = PEOPLE[0] + PEOPLE[1] * people if raw else people
        goods = GOODS[0] + GOODS[1] * goods if raw else goods
        return tower(people, "people") @ tower(goods, "goods").T / temperature

    model = hk.without_apply_rng(hk.transform(made))

    def loss(p: Any, batch: Any) -> Any:
        logits = model.apply(p, *batch)
        return cross_entropy(logits, jnp.arange(len(logits)))

    init = lambda key: model.init(key, jnp.zeros((2, 4)), jnp.zeros((2, 4)))  # noqa: E731
    own = {"kind": "retrieval", "library": "Haiku", "task": _shoppers, "ails": ails, "steps": 300}
    return network(name, loss, init, **{"batch": 64} | own | rest)


# Patients.


@functools.cache
def _patients() -> Task:
    """Five values of a laboratory, in standard units, and who was ill."""
    rng = np.random.default_rng(126)
    x = rng.standard_normal((2048, 5))
    score = np.abs(x) @ np.array([1.0, 1.5, 0.0, 1.0, 0.0]) + 2 * np.tanh(2 * x[:, 2])
    score = 3 * (score + x[:, 4] - 2.6)
    train, test = parted(x, (rng.random(2048) < 1 / (1 + np.exp(-score))).astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class Additive(nn.Module):
    """A network for each column, and the sum of what they say."""

    raw: bool = False
    last: float = 1.0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Probabilities of rows."""
        x, own = PATIENTS[0] + PATIENTS[1] * x if self.raw else x, []
        for number in range(x.shape[1]):
            h = x[:, number, None]
            for layer, width in enumerate((32, 16)):
                h = nn.relu(nn.Dense(width, name=f"column_{number}_{layer}")(h))
            head = nn.Dense(1, kernel_init=gaussian(self.last), name=f"column_{number}_head")
            own.append(head(h)[:, 0])
        return nn.sigmoid(sum(own))


def additive(name: str, *ails: str, raw: bool = False, last: float = 1.0, **rest: Any) -> Network:
    """An additive model, values `raw` or not, its heads by `last`; probabilities are clipped."""
    init, apply = of_linen(Additive(raw, last), jnp.zeros((2, 5)))

    def loss(p: Any, batch: Any) -> Any:
        shares, ill = jnp.clip(apply(p, batch[0]), 1e-7, 1 - 1e-7), batch[1]
        return -jnp.mean(ill * jnp.log(shares) + (1 - ill) * jnp.log(1 - shares))

    own = {"kind": "additive model", "library": "linen", "task": _patients, "ails": ails}
    return network(name, loss, init, **{"steps": 400, "rates": (4e-3, 1e-2)} | own | rest)


# Shops.


@functools.cache
def _shops() -> Task:
    """Sixteen days of sales, price, weather and staff, what kind of shop; the next day's sales."""
    rng = np.random.default_rng(127)
    kinds, x = rng.integers(0, 4, 1536), rng.standard_normal((1536, 17, 4))
    for day in range(1, 17):
        x[:, day] = 0.8 * x[:, day - 1] + 0.6 * x[:, day]
    taste = np.array([0.8, 0.3, -0.3, -0.8])[kinds]
    sales = 0.7 * x[:, 15, 0] + taste * x[:, 15, 1] - 0.5 * np.abs(x[:, 12:16, 2].mean(1)) + taste
    train, test = parted(x[:, :16], kinds.astype(np.int32), standard(sales))
    return Task(train, test, (float(np.var(test[2])),))


def temporal_fusion(
    name: str, *ails: str, gate: float = 0.0, dtype: Any = jnp.float32, **rest: Any
) -> Network:
    """Chosen variables, an LSTM, gates and attention; `gate` is a bias, parameters of `dtype`."""
    types = {"param_dtype": dtype, "dtype": dtype}

    class Gated(nnx.Module):
        """A branch that a gate lets through, added to what came in, and a norm."""

        def __init__(self, into: int, rngs: nnx.Rngs) -> None:
            make = functools.partial(nnx.Linear, **types, rngs=rngs)
            bias = nnx.initializers.constant(gate)
            self.past = make(into, 16) if into != 16 else None
            self.up, self.out = make(into, 16), make(16, 16)
            self.gate = make(16, 16, bias_init=bias)
            self.norm = nnx.LayerNorm(16, **types, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            h = nnx.elu(self.up(x))
            x = self.past(x) if self.past is not None else x
            return self.norm(x + nnx.sigmoid(self.gate(h)) * self.out(h))

    class TemporalFusion(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            make = functools.partial(nnx.Linear, **types, rngs=rngs)
            self.kinds = nnx.Embed(4, 16, **types, rngs=rngs)
            self.columns = nnx.List(make(1, 16) for _ in range(4))
            self.each = nnx.List(Gated(16, rngs) for _ in range(4))
            self.chosen, self.choice = Gated(80, rngs), make(16, 4)
            again = {"recurrent_kernel_init": gaussian(1.0)}
            self.recurrent = nnx.RNN(nnx.OptimizedLSTMCell(16, 16, **again, **types, rngs=rngs))
            self.after, self.last = Gated(16, rngs), Gated(16, rngs)
            self.query, self.memory = make(16, 16), make(16, 32)
            self.head = make(16, 1)

        def __call__(self, x: Any, kinds: Any) -> Any:
            x = x.astype(dtype)
            each = [layer(x[..., n, None]) for n, layer in enumerate(self.columns)]
            static = jnp.broadcast_to(self.kinds(kinds)[:, None], each[0].shape)
            shares = nnx.softmax(self.choice(self.chosen(jnp.concatenate([*each, static], -1))))
            each = [layer(one) for layer, one in zip(self.each, each, strict=True)]
            x = jnp.einsum("btnd,btn->btd", jnp.stack(each, 2), shares) + static
            x = self.after(x + self.recurrent(x))
            keys, values = jnp.split(self.memory(x), 2, -1)
            scores = jnp.einsum("bd,btd->bt", self.query(x[:, -1]), keys) / 4
            x = x[:, -1] + jnp.einsum("bt,btd->bd", nnx.softmax(scores), values)
            return self.head(self.last(x))[:, 0].astype(jnp.float32)

    init, apply = of_nnx(TemporalFusion)
    own = {"kind": "temporal fusion", "library": "nnx", "task": _shops, "ails": ails}
    return regression(name, init, apply, **{"steps": 300} | own | rest)
