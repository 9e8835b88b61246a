"""What belongs together: views, places, members of sets, nodes, clicks, acts, noise and image."""

import functools
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.dynamics import forward, stack
from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.images import classifier, gaussian
from benchmarks.real_zoo.network import Network, Task, network, regression
from benchmarks.real_zoo.sequences import cross_entropy, of_nnx
from benchmarks.real_zoo.text import entropy


@functools.cache
def _views() -> Task:
    """Two views of a digit, each of three quarters of its pixels; chance is one code for all."""
    rng, made = np.random.default_rng(101), []
    for images in (tasks.digits().train[0], tasks.digits().test[0][:64]):
        views = [images * (rng.random(images.shape) < 0.75) for _ in range(2)]
        made.append(tuple(x.astype(np.float32) for x in views))
    return Task(*made, (float(np.log(127.0)),))


def simclr(
    name: str,
    *ails: str,
    scale: float = 1.4,
    normal: bool = True,
    counts: tuple[float, float] = (0.0, 1.0),
    **rest: Any,
) -> Network:
    """Two views told from all others (NT-Xent), by directions or, if not `normal`, raw products."""

    def codes(p: Any, x: Any) -> Any:
        h = jax.nn.relu(forward(p["encoder"], counts[0] + counts[1] * x, jax.nn.relu))
        z = forward(p["projector"], h, jax.nn.relu)
        return z * jax.lax.rsqrt(jnp.sum(z**2, -1, keepdims=True) + 1e-12) if normal else z

    def loss(p: Any, batch: Any) -> Any:
        z, many = codes(p, jnp.concatenate(batch)), len(batch[0])
        likeness = z @ z.T / 0.2 - 1e9 * jnp.eye(2 * many)
        return cross_entropy(likeness, (jnp.arange(2 * many) + many) % (2 * many))

    def init(key: Any) -> Any:
        first, second = jax.random.split(key)
        encoder = stack(first, (64, 64, 64), scale)
        return {"encoder": encoder, "projector": stack(second, (64, 32, 16), scale)}

    own = {"kind": "SimCLR", "library": "plain", "task": _views, "ails": ails, "steps": 300}
    return network(name, loss, init, **{"batch": 64} | own | rest)


@functools.cache
def _spots() -> Task:
    """Noisy pictures, 10 x 10, of a bright spot and a dark one; where the bright one is."""
    rng = np.random.default_rng(102)
    rows, columns = np.mgrid[-1:1:10j, -1:1:10j]

    def spot() -> Any:
        at = rng.uniform(-0.8, 0.8, (1024, 2, 1, 1))
        return at, np.exp(-((rows - at[:, 0]) ** 2 + (columns - at[:, 1]) ** 2) / 0.08)

    (place, bright), (_, dark) = spot(), spot()
    light = 2 * bright - 2 * dark + 0.3 * rng.standard_normal(bright.shape)
    train, test = parted(light[..., None], place[..., 0, 0])
    return Task(train, test, (float(np.mean(np.var(test[1], axis=0))),))


def keypoint(name: str, *ails: str, last: float = 1.0, **rest: Any) -> Network:
    """Convolutions, a softmax over all pixels, and the mean place by it."""
    normal = functools.partial(hk.initializers.VarianceScaling, distribution="normal")

    def made(x: Any) -> Any:
        for number in range(2):
            x = jax.nn.relu(hk.Conv2D(12, 3, w_init=normal(2.0), name=f"conv_{number}")(x))
        scores = hk.Conv2D(1, 1, w_init=normal(last**2), name="map")(x)[..., 0]
        shares = jax.nn.softmax(scores, (1, 2))
        line = jnp.linspace(-1, 1, 10)
        return jnp.stack([shares.sum(2) @ line, shares.sum(1) @ line], -1)

    model = hk.without_apply_rng(hk.transform(made))
    init = lambda key: model.init(key, jnp.zeros((2, 10, 10, 1)))  # noqa: E731
    own = {"kind": "keypoint", "library": "Haiku", "task": _spots, "ails": ails, "steps": 300}
    return regression(name, init, model.apply, **{"batched": False} | own | rest)


@functools.cache
def _auctions() -> Task:
    """Twelve bids with what each is for, in three numbers; the highest bid's first number."""
    rng = np.random.default_rng(103)
    x = rng.standard_normal((2560, 12, 4))
    train, test = parted(x, x[np.arange(2560), x[..., 0].argmax(1), 1])
    return Task(train, test, (float(np.var(test[1])),))


def set_transformer(
    name: str,
    *ails: str,
    keys: float = 1.0,
    divided: bool = True,
    dtype: Any = jnp.float32,
    **rest: Any,
) -> Network:
    """Self-attention among members, a learned query, its answer; parameters of `dtype`."""
    types = {"param_dtype": dtype, "dtype": dtype}

    class Attention(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            make = functools.partial(nnx.Linear, 32, 32, **types, rngs=rngs)
            self.query, self.key = (make(kernel_init=gaussian(keys)) for _ in range(2))
            self.value, self.out = make(), make()

        def __call__(self, x: Any, memory: Any) -> Any:
            scores = self.query(x) @ self.key(memory).swapaxes(1, 2)
            shares = jax.nn.softmax(scores / 32**0.5 if divided else scores)
            x = x + shares @ self.value(memory)
            return x + nnx.relu(self.out(x))

    class SetTransformer(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            own = types | {"rngs": rngs}
            self.into = nnx.Linear(4, 32, **own)
            self.among, self.pool = Attention(rngs), Attention(rngs)
            self.seed = nnx.Param(jax.random.normal(rngs.params(), (1, 1, 32), dtype))
            self.head = nnx.Linear(32, 1, **own)

        def __call__(self, x: Any) -> Any:
            x = self.into(x)
            seed = jnp.tile(self.seed[...], (len(x), 1, 1))
            return self.head(self.pool(seed, self.among(x, x)))[:, 0, 0].astype(jnp.float32)

    init, apply = of_nnx(SetTransformer)
    own = {"kind": "set transformer", "library": "nnx", "task": _auctions, "ails": ails}
    return regression(name, init, apply, **{"steps": 400} | own | rest)


def _yes_or_no(name: str, init: Any, apply: Any, **rest: Any) -> Network:
    def loss(p: Any, batch: Any) -> Any:
        return optax.sigmoid_binary_cross_entropy(apply(p, *batch[:-1]), batch[-1]).mean()

    return network(name, loss, init, **rest)


@functools.cache
def _friends() -> Any:
    """Who of 48 people, in four circles, is known to be whose friend; the rest of the pairs."""
    rng = np.random.default_rng(104)
    circle, (a, b) = rng.integers(0, 4, 48), np.triu_indices(48, 1)
    order = rng.permutation(len(a))
    a, b = a[order].astype(np.int32), b[order].astype(np.int32)
    linked = rng.random(len(a)) < np.where(circle[a] == circle[b], 0.9, 0.06)
    train, test = parted(a, b, linked.astype(np.float64))
    known = np.eye(48, dtype=np.float32)
    known[train[0], train[1]] += train[2]
    known[train[1], train[0]] += train[2]
    return known / known.sum(1, keepdims=True), Task(train, test, (entropy(test[2].astype(int)),))


def links(name: str, *ails: str, spread: float = 0.3, **rest: Any) -> Network:
    """Embeddings averaged over friends, twice; pairs by their products (LightGCN)."""

    class Links(nn.Module):
        @nn.compact
        def __call__(self, a: Any, b: Any) -> Any:
            own = nn.initializers.normal(spread)
            x = nn.Embed(48, 16, embedding_init=own, name="people")(jnp.arange(48))
            near = jnp.asarray(_friends()[0])
            x = (x + near @ x + near @ (near @ x)) / 3
            x = nn.Dense(16, kernel_init=nn.initializers.orthogonal(2.0), name="turn")(x)
            bias = self.param("bias", nn.initializers.zeros, ())
            return jnp.sum(x[a] * x[b], -1) + bias

    module = Links()
    apply = lambda p, a, b: module.apply({"params": p}, a, b)  # noqa: E731
    init = lambda key: module.init(key, *jnp.zeros((2, 1), int))["params"]  # noqa: E731
    own = {"kind": "links", "library": "linen", "ails": ails, "steps": 300, "batch": 64}
    return _yes_or_no(name, init, apply, **{"task": lambda: _friends()[1]} | own | rest)


@functools.cache
def _clicks() -> Task:
    """Five categories of ten and three numbers; clicks depend on what meets what."""
    rng = np.random.default_rng(105)
    kinds, x = rng.integers(0, 10, (4096, 5)), rng.standard_normal((4096, 3))
    worth = rng.standard_normal((5, 10))
    one = np.stack([worth[i][kinds[:, i]] for i in range(5)], 1)
    score = one[:, 0] + 1.5 * one[:, 1] * one[:, 2] + one[:, 3] * x[:, 0] + x[:, 1] - 0.5
    clicked = rng.random(4096) < 1 / (1 + np.exp(-2 * score))
    train, test = parted(kinds.astype(np.int32), x, clicked.astype(np.float64))
    return Task(train, test, (entropy(test[2].astype(int)),))


def clicks(name: str, *ails: str, depth: int = 2, spread: float = 0.3, **rest: Any) -> Network:
    """Crossed embeddings beside a deep tower (DCN)."""

    class Crossed(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            own = nnx.initializers.normal(spread)
            make = lambda: nnx.Embed(10, 5, embedding_init=own, rngs=rngs)  # noqa: E731
            self.fields = nnx.List(make() for _ in range(5))
            self.crosses = nnx.List(nnx.Linear(28, 28, rngs=rngs) for _ in range(depth))
            he = {"kernel_init": nnx.initializers.he_normal(), "rngs": rngs}
            self.tower = nnx.List([nnx.Linear(28, 32, **he), nnx.Linear(32, 32, **he)])
            self.head = nnx.Linear(60, 1, rngs=rngs)

        def __call__(self, kinds: Any, x: Any) -> Any:
            told = [field(kinds[:, i]) for i, field in enumerate(self.fields)]
            start = crossed = deep = jnp.concatenate([*told, x], -1)
            for cross in self.crosses:
                crossed = crossed + start * cross(crossed)
            for layer in self.tower:
                deep = nnx.relu(layer(deep))
            return self.head(jnp.concatenate([crossed, deep], -1))[:, 0]

    init, apply = of_nnx(Crossed)
    own = {"kind": "clicks", "library": "nnx", "task": _clicks, "ails": ails, "steps": 400}
    return _yes_or_no(name, init, apply, **{"batch": 64} | own | rest)


@functools.cache
def _offers() -> Task:
    """What is seen, and what each of five acts is worth; chance does always the same."""
    rng = np.random.default_rng(106)
    seen, one, two = rng.standard_normal((2048, 5)), *rng.standard_normal((2, 5, 5))
    worth = np.tanh(seen @ one / 2) + 0.5 * np.sin(seen @ two / 2)
    train, test = parted(seen, worth)
    best = test[1].max(1)
    return Task(train, test, (float(best.mean() - test[1].mean(0).max()), float(np.var(best))))


def actor(name: str, *ails: str, last: float = 0.01, **rest: Any) -> Network:
    """A policy by the expected worth of its acts, and a critic; judged by what the policy loses."""

    def made(x: Any) -> Any:
        w_init = hk.initializers.Orthogonal(1.4)
        body = functools.partial(hk.nets.MLP, w_init=w_init, activate_final=True)
        acts = hk.Linear(5, w_init=hk.initializers.Orthogonal(last), name="acts")
        value = hk.Linear(1, name="value")(body((48, 48), name="critic")(x))
        return acts(body((48, 48), activation=jnp.tanh, name="actor")(x)), value[:, 0]

    model = hk.without_apply_rng(hk.transform(made))

    def parts(p: Any, batch: Any) -> Any:
        logits, value = model.apply(p, batch[0])
        best = batch[1].max(1)
        earned = jnp.sum(jax.nn.softmax(logits) * batch[1], -1)
        return jnp.mean(best - earned), jnp.mean((value - best) ** 2)

    return Network(
        name=name,
        init=lambda key: model.init(key, jnp.zeros((2, 5))),
        loss=lambda p, batch: sum(parts(p, batch)),
        parts=parts,
        ails=ails,
        **{"kind": "expected policy", "library": "Haiku", "task": _offers, "steps": 400} | rest,
    )


@functools.cache
def _noised() -> Task:
    """Digits with noise, how far they are gone, and the noise."""
    rng, made = np.random.default_rng(107), []
    for count, images in ((4096, tasks.digits().train[0]), (512, tasks.digits().test[0])):
        x, noise = images[rng.integers(0, len(images), count)], rng.standard_normal((count, 64))
        t = rng.random(count)
        seen = np.cos(np.pi / 2 * t)[:, None] * x + np.sin(np.pi / 2 * t)[:, None] * noise
        made.append(tuple(a.astype(np.float32) for a in (seen, t, noise)))
    return Task(*made, (float(np.mean(made[1][2] ** 2)),))


class Denoiser(nn.Module):
    """Branches that the time shifts and scales (FiLM)."""

    depth: int = 3
    norm: bool = True
    gain: float = 1.0
    raw: bool = False

    @nn.compact
    def __call__(self, x: Any, t: Any) -> Any:
        """The noise in flat images."""
        waves = 2.0 ** jnp.arange(5) * t[:, None]
        told = (
            1e3 * t[:, None] if self.raw else jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], 1)
        )
        told = nn.silu(nn.Dense(32, name="time")(told))
        x = nn.Dense(64, name="into")(x)
        for number in range(self.depth):
            y = nn.LayerNorm(name=f"norm_{number}")(x) if self.norm else x
            film = nn.Dense(128, kernel_init=gaussian(0.3), name=f"film_{number}")(told)
            shift, scale = jnp.split(film, 2, -1)
            y = nn.silu(nn.Dense(64, name=f"up_{number}")(y * (1 + scale) + shift))
            down = nn.Dense(64, kernel_init=gaussian(self.gain), name=f"down_{number}")
            x = x + down(y)
        return nn.Dense(64, name="out")(x)


def denoiser(name: str, *ails: str, **settings: Any) -> Network:
    """A diffusion model of digits; `settings` of `Denoiser` or `Network`."""
    fields = ("depth", "norm", "gain", "raw")
    module = Denoiser(**{k: settings.pop(k) for k in fields if k in settings})
    init = lambda key: module.init(key, jnp.zeros((2, 64)), jnp.zeros(2))["params"]  # noqa: E731
    apply = lambda p, x, t: module.apply({"params": p}, x, t)  # noqa: E731
    own = {"kind": "FiLM denoiser", "library": "linen", "task": _noised, "ails": ails}
    return regression(name, init, apply, **{"steps": 400} | own | settings)


def snn(name: str, *ails: str, depth: int = 8, **rest: Any) -> Network:
    """Dense layers of SELUs, whose outputs normalize themselves; another `activation`, `w_init`."""
    f, w_init = rest.pop("activation", jax.nn.selu), rest.pop("w_init", None)

    def made(x: Any) -> Any:
        for number in range(depth):
            x = f(hk.Linear(40, w_init=w_init, name=f"hidden_{number}")(x))
        return hk.Linear(10, w_init=w_init, name="head")(x)

    model = hk.without_apply_rng(hk.transform(made))
    init = lambda key: model.init(key, jnp.zeros((2, 64)))  # noqa: E731
    own = {"kind": "SNN", "library": "Haiku", "ails": ails, "steps": 300}
    return classifier(name, init, model.apply, **own | rest)
