"""Transformers for tokens, in the ordinary style of four libraries."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.real_zoo import tasks
from benchmarks.real_zoo.network import Network, network

LENGTH, VOCABULARY = tasks.LENGTH, tasks.VOCABULARY


def cross_entropy(logits: Any, labels: Any) -> Any:
    """Mean over all positions."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def of_classes(apply: Any) -> Callable[[Any, Any], Any]:
    """The loss of logits of a batch's first part against its second."""
    return lambda p, batch: cross_entropy(apply(p, batch[0]), batch[1])


def next_token(name: str, init: Any, apply: Any, **rest: Any) -> Network:
    """A causal language model: `apply(params, tokens)` gives the logits of what follows each."""

    def loss(p: Any, batch: Any) -> Any:
        (tokens,) = batch
        return cross_entropy(apply(p, tokens[:, :-1]), tokens[:, 1:])

    return network(name, loss, init, **{"task": tasks.language} | rest)


class Experts(nn.Module):
    """A mixture of four experts, each seen by all tokens and weighed by a router."""

    features: int
    bias: float = 0.0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """`[..., features]`."""
        weights = nn.softmax(nn.Dense(4, name="router")(x))
        init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
        up = self.param("up", init, (4, x.shape[-1], 2 * self.features))
        down = self.param("down", init, (4, 2 * self.features, self.features))
        bias = self.param("bias", nn.initializers.constant(self.bias), (4, 2 * self.features))
        h = nn.relu(jnp.einsum("...d,edh->...eh", x, up) + bias)
        return jnp.einsum("...eh,ehd,...e->...d", h, down, weights)


class Block(nn.Module):
    """Attention and an MLP, with or without skips and normalization."""

    heads: int = 2
    norm: str = "pre"
    skip: bool = True
    gain: float | None = None
    mlp: str | None = "gelu"
    causal: bool = True
    bias: float = 0.0
    dtype: Any = jnp.float32

    def feed(self, x: Any) -> Any:
        """The block's second half."""
        width, types = x.shape[-1], {"dtype": self.dtype, "param_dtype": self.dtype}
        if self.mlp == "experts":
            return Experts(width, self.bias)(x)
        bias = nn.initializers.constant(self.bias)
        h = nn.Dense(2 * width, bias_init=bias, name="up", **types)(x)
        if self.mlp == "swiglu":
            h = nn.silu(h) * nn.Dense(2 * width, name="gate", **types)(x)
        else:
            h = getattr(nn, self.mlp or "relu")(h)
        return nn.Dense(width, name="down", **types)(h)

    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        """`[batch, positions, features]`."""
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        types = {"dtype": self.dtype, "param_dtype": self.dtype}
        attention = nn.MultiHeadDotProductAttention(self.heads, name="attention", **types)
        branches = [lambda y: attention(y, y, mask=mask)]
        if self.mlp is not None:
            branches.append(self.feed)
        for number, branch in enumerate(branches):
            y = branch(nn.LayerNorm(**types)(x) if self.norm == "pre" else x)
            if self.gain is not None:
                y *= self.param(f"gain_{number}", nn.initializers.constant(self.gain), y.shape[-1:])
            x = x + y if self.skip else y
            x = nn.LayerNorm(**types)(x) if self.norm == "post" else x
        return x, None


class Transformer(nn.Module):
    """Token by token logits."""

    depth: int = 2
    width: int = 32
    scanned: bool = False
    dead: bool = False
    block: Any = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        """`[batch, positions]` of integers."""
        types = {"dtype": self.dtype, "param_dtype": self.dtype}
        x = nn.Embed(VOCABULARY + 1, self.width, name="embed", **types)(tokens)
        init = nn.initializers.normal(0.02)
        x += self.param("position", init, x.shape[1:], self.dtype)
        settings = dict(self.block or {}) | {"dtype": self.dtype}
        if self.scanned:
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x, _ = nn.scan(Block, length=self.depth, **axes)(**settings, name="blocks")(x, None)
        else:
            for number in range(self.depth):
                own = {"bias": -50.0, "mlp": "relu"} if self.dead and number == 1 else {}
                x, _ = Block(**settings | own, name=f"block_{number}")(x)
        return nn.Dense(VOCABULARY, name="head", **types)(nn.LayerNorm(**types)(x))


def language(name: str, kind: str, *ails: str, twin: str | None = None, **settings: Any) -> Network:
    """A causal language model in linen; `settings` of `Transformer`, `Block` or `Network`."""
    module, rest = _module(settings | {"causal": True})
    example = jnp.zeros((1, LENGTH), jnp.int32)
    return next_token(
        name,
        lambda key: module.init(key, example)["params"],
        lambda p, tokens: module.apply({"params": p}, tokens),
        kind=kind,
        library="linen",
        twin=twin,
        ails=ails,
        **rest,
    )


def encoder(name: str, *ails: str, twin: str | None = None, **settings: Any) -> Network:
    """A BERT: hidden tokens told from their neighbors."""
    module, rest = _module({"norm": "post"} | settings | {"causal": False})
    example = jnp.zeros((1, LENGTH), jnp.int32)

    def loss(p: Any, batch: Any) -> Any:
        tokens, hidden = batch
        logits = module.apply({"params": p}, jnp.where(hidden, VOCABULARY, tokens))
        each = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        return jnp.sum(each * hidden) / jnp.sum(hidden)

    return network(
        name,
        loss,
        lambda key: module.init(key, example)["params"],
        kind="encoder",
        library="linen",
        task=tasks.masked_language,
        twin=twin,
        ails=ails,
        **rest,
    )


def _module(settings: dict[str, Any]) -> tuple[Transformer, dict[str, Any]]:
    own = {k: settings.pop(k) for k in ("depth", "width", "scanned", "dead") if k in settings}
    if "dtype" in settings:
        own["dtype"] = settings.pop("dtype")
    fields = ("heads", "norm", "skip", "gain", "mlp", "causal", "bias")
    block = {k: settings.pop(k) for k in fields if k in settings}
    return Transformer(**own, block=nn.FrozenDict(block)), settings


# The same in other libraries.


class NnxBlock(nnx.Module):
    """Pre-norm, causal."""

    def __init__(self, width: int, rngs: nnx.Rngs, *, skip: bool) -> None:
        self.skip = skip
        self.first, self.second = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """`[batch, positions, features]`."""
        y = self.attention(self.first(x), mask=nnx.make_causal_mask(x[..., 0]))
        x = x + y if self.skip else y
        y = self.down(nnx.gelu(self.up(self.second(x))))
        return x + y if self.skip else y


class NnxTransformer(nnx.Module):
    """Token by token logits."""

    def __init__(self, depth: int, width: int, rngs: nnx.Rngs, *, skip: bool = True) -> None:
        self.embed = nnx.Embed(VOCABULARY, width, rngs=rngs)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (LENGTH, width)))
        self.blocks = nnx.List(NnxBlock(width, rngs, skip=skip) for _ in range(depth))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, VOCABULARY, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        """`[batch, positions]` of integers."""
        x = self.embed(tokens) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def of_linen(module: nn.Module, *example: Any) -> tuple[Any, Any]:
    """`init(key)` and `apply(params, *inputs)` of a linen module that takes such examples."""

    def init(key: Any) -> Any:
        return module.init(key, *example)["params"]

    def apply(params: Any, *inputs: Any) -> Any:
        # In training BatchNorm doesn't read what it has kept, and what it keeps is dropped.
        return module.apply({"params": params}, *inputs, mutable=["batch_stats"])[0]

    return init, apply


def of_nnx(make: Any) -> tuple[Any, Any]:
    """`init(key)` and `apply(params, *inputs)` of an nnx module made by `make(rngs)`."""

    @functools.cache
    def fixed() -> Any:
        with jax.ensure_compile_time_eval():
            graph, _, rest = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)
            return graph, rest

    def init(key: Any) -> Any:
        return nnx.state(make(nnx.Rngs(key)), nnx.Param)

    def apply(params: Any, *inputs: Any) -> Any:
        graph, rest = fixed()
        # Variables of this trace: BatchNorm writes to what it keeps.
        return nnx.merge(graph, params, jax.tree.map(jnp.asarray, rest))(*inputs)

    return init, apply


def nnx_language(name: str, depth: int, width: int, *ails: str, **settings: Any) -> Network:
    """A causal language model in nnx."""
    skip = settings.pop("skip", True)
    init, apply = of_nnx(lambda rngs: NnxTransformer(depth, width, rngs, skip=skip))
    rest = {"kind": "pre-LN language model", "library": "nnx"}
    return next_token(name, init, apply, **rest | settings, ails=ails)


class EqxTransformer(eqx.Module):
    """Pre-norm, causal, for one sequence."""

    embed: Any
    position: Any
    attentions: list[Any]
    norms: list[Any]
    ups: list[Any]
    downs: list[Any]
    head: Any

    def __init__(self, depth: int, width: int, key: Any) -> None:
        keys = iter(jax.random.split(key, 4 + 3 * depth))
        self.embed = eqx.nn.Embedding(VOCABULARY, width, key=next(keys))
        self.position = 0.02 * jax.random.normal(next(keys), (LENGTH, width))
        self.attentions = [
            eqx.nn.MultiheadAttention(2, width, key=next(keys)) for _ in range(depth)
        ]
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(2 * depth + 1)]
        self.ups = [eqx.nn.Linear(width, 2 * width, key=next(keys)) for _ in range(depth)]
        self.downs = [eqx.nn.Linear(2 * width, width, key=next(keys)) for _ in range(depth)]
        self.head = eqx.nn.Linear(width, VOCABULARY, key=next(keys))

    def __call__(self, tokens: Any) -> Any:
        """`[positions]` of integers."""
        x = jax.vmap(self.embed)(tokens) + self.position
        mask = jnp.tril(jnp.ones((len(x), len(x)), bool))
        norms = iter(self.norms)
        for attention, up, down in zip(self.attentions, self.ups, self.downs, strict=True):
            y = jax.vmap(next(norms))(x)
            x = x + attention(y, y, y, mask)
            y = jax.vmap(next(norms))(x)
            x = x + jax.vmap(lambda h, up=up, down=down: down(jax.nn.gelu(up(h))))(y)
        return jax.vmap(self.head)(jax.vmap(next(norms))(x))


def of_equinox(make: Any) -> tuple[Any, Any]:
    """`init(key)` and `apply(params, *inputs)` of an Equinox module made by `make(key)`."""

    @functools.cache
    def fixed() -> Any:
        with jax.ensure_compile_time_eval():
            return eqx.filter(make(jax.random.key(0)), eqx.is_inexact_array, inverse=True)

    def init(key: Any) -> Any:
        return eqx.filter(make(key), eqx.is_inexact_array)

    def apply(params: Any, *inputs: Any) -> Any:
        return jax.vmap(eqx.combine(params, fixed()))(*inputs)

    return init, apply


def eqx_language(name: str, depth: int, width: int, **settings: Any) -> Network:
    """A causal language model in Equinox."""
    init, apply = of_equinox(lambda key: EqxTransformer(depth, width, key))
    rest = {"kind": "pre-LN language model", "library": "Equinox"}
    return next_token(name, init, apply, **rest | settings)


def hk_language(name: str, depth: int, width: int, *ails: str, **settings: Any) -> Network:
    """A causal language model in Haiku, with skips or with attention alone."""
    bare = settings.pop("bare", False)

    def forward(tokens: Any) -> Any:
        x = hk.Embed(VOCABULARY, width)(tokens)
        x += hk.get_parameter("position", x.shape[1:], init=hk.initializers.RandomNormal(0.02))
        mask = jnp.tril(jnp.ones((1, 1, x.shape[1], x.shape[1])))
        init = hk.initializers.VarianceScaling()

        def norm(x: Any) -> Any:
            return hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)

        for _ in range(depth):
            attention = hk.MultiHeadAttention(2, width // 2, w_init=init)
            if bare:
                x = attention(x, x, x, mask)
                continue
            y = norm(x)
            x = x + attention(y, y, y, mask)
            x = x + hk.nets.MLP([2 * width, width], activation=jax.nn.gelu)(norm(x))
        return hk.Linear(VOCABULARY)(norm(x))

    model = hk.without_apply_rng(hk.transform(forward))
    example = jnp.zeros((1, LENGTH), jnp.int32)
    rest = {"kind": "pre-LN language model", "library": "Haiku"}
    init = lambda key: model.init(key, example)  # noqa: E731
    return next_token(name, init, model.apply, **rest | settings, ails=ails)
