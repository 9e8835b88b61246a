"""Decoders of menus, encoders of recipes."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import next_token, of_classes, of_equinox, of_linen
from benchmarks.real_zoo.text import entropy

DAYS, DISHES, COURSES = 4, 9, 10
WORDS, STEPS = 8, 10

# Menus.


@functools.cache
def menus() -> Task:
    """A day, a first dish, and the dishes that follow; the day says which follows which."""
    rng = np.random.default_rng(1511)
    after = np.stack([rng.permutation(DISHES) for _ in range(DAYS)])
    day, menu = rng.integers(0, DAYS, 3072), np.zeros((3072, COURSES + 1), np.int32)
    menu[:, 0], menu[:, 1] = DISHES + day, rng.integers(0, DISHES, 3072)
    for place in range(1, COURSES):
        slips = rng.uniform(size=3072) < 0.03
        menu[:, place + 1] = np.where(
            slips, rng.integers(0, DISHES, 3072), after[day, menu[:, place]]
        )
    train, test = parted(menu)
    return Task(train, test, (entropy(test[0][:, 1:]),))


class Menus(nn.Module):
    """Blocks of causal attention and SiLU behind norms, scaled; the embedding gives the logits."""

    depth: int
    skip: bool
    scale: float

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        """Logits of the dish after each."""
        normal = nn.initializers.normal(0.2)
        embed = nn.Embed(DISHES + DAYS, 32, embedding_init=normal, name="dishes")
        x = embed(tokens) + self.param("courses", normal, (COURSES, 32))[: tokens.shape[1]]
        mask = nn.make_causal_mask(tokens)
        for number in range(self.depth):
            y = nn.LayerNorm(name=f"norm_{number}_a")(x)
            y = nn.MultiHeadDotProductAttention(2, name=f"attention_{number}")(y, mask=mask)
            x = self.joined(x, y, f"scale_{number}_a")
            y = nn.Dense(64, name=f"up_{number}")(nn.LayerNorm(name=f"norm_{number}_b")(x))
            x = self.joined(x, nn.Dense(32, name=f"down_{number}")(nn.silu(y)), f"scale_{number}_b")
        return embed.attend(nn.LayerNorm(name="norm_last")(x))

    def joined(self, x: Any, y: Any, name: str) -> Any:
        """A block's outputs beside its inputs."""
        y = y * self.param(name, nn.initializers.constant(self.scale), (32,))
        return x + y if self.skip else y


@functools.cache
def ordered(name: str, *, depth: int = 2, skip: bool = True, scale: float = 1.0) -> Network:
    """The dishes of a menu by a pre-LN decoder with a tied embedding and LayerScale."""
    init, apply = of_linen(Menus(depth, skip, scale), jnp.zeros((2, COURSES), int))
    own = {"kind": "tied pre-LN decoder", "library": "linen", "task": menus, "steps": 300}
    return next_token(name, init, apply, **own, rates=(2e-3, 6e-3))


# Recipes.


@functools.cache
def recipes() -> Task:
    """Ten steps of eight words, and which of the first three words comes last."""
    rng = np.random.default_rng(1512)
    words = rng.integers(0, WORDS, (3072, STEPS))
    words[:, 0] = rng.integers(0, 3, 3072)
    last = STEPS - 1 - (words[:, ::-1] < 3).argmax(1)
    which = words[np.arange(3072), last]
    train, test = parted(words.astype(np.int32), which.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


class PostNorm(eqx.Module):
    """Attention of two heads and an MLP, each with its sum normalized."""

    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    norms: list[eqx.nn.LayerNorm]

    def __init__(self, key: Any) -> None:
        one, two = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(2, 24, key=one)
        self.mlp = eqx.nn.MLP(24, 24, 48, 1, jax.nn.gelu, key=two)
        self.norms = [eqx.nn.LayerNorm(24), eqx.nn.LayerNorm(24)]

    def __call__(self, x: Any, skip: bool) -> Any:
        """The next vectors."""
        y = self.attention(x, x, x)
        x = jax.vmap(self.norms[0])(x + y if skip else y)
        y = jax.vmap(self.mlp)(x)
        return jax.vmap(self.norms[1])(x + y if skip else y)


class Recipes(eqx.Module):
    """Words and their places, blocks, and logits of the mean vector."""

    words: eqx.nn.Embedding
    places: Any
    blocks: list[PostNorm]
    word: eqx.nn.Linear
    skip: bool = eqx.field(static=True)

    def __init__(self, depth: int, skip: bool, key: Any) -> None:
        one, two, three, *rest = jax.random.split(key, 3 + depth)
        self.words = eqx.nn.Embedding(WORDS, 24, key=one)
        self.places = jax.random.normal(two, (STEPS, 24))
        self.blocks, self.skip = [PostNorm(k) for k in rest], skip
        self.word = eqx.nn.Linear(24, 3, key=three)

    def __call__(self, words: Any) -> Any:
        """Logits of the three words."""
        x = jax.vmap(self.words)(words) + self.places
        for block in self.blocks:
            x = block(x, self.skip)
        return self.word(x.mean(0))


@functools.cache
def cooked(name: str, *, depth: int = 2, skip: bool = True) -> Network:
    """Which word comes last by a post-LN encoder."""
    init, apply = of_equinox(lambda key: Recipes(depth, skip, key))
    own = {"kind": "post-LN encoder of recipes", "library": "Equinox", "task": recipes}
    return network(name, of_classes(apply), init, **own, steps=300, rates=(2e-3, 6e-3))
