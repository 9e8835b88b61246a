"""Decoders of bracelets, encoders of auctions."""

import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.real_zoo.estimators import parted
from benchmarks.real_zoo.network import Network, Task, network
from benchmarks.real_zoo.sequences import cross_entropy, of_classes, of_nnx
from benchmarks.real_zoo.text import entropy

BEADS, MOTIF, LENGTH = 8, 4, 12
BIDS, SALES = 8, 9

# Bracelets.


@functools.cache
def bracelets() -> Task:
    """Four beads, repeated with a few slips; all beads after the first four are foretold."""
    rng = np.random.default_rng(1611)
    beads = np.tile(rng.integers(0, BEADS, (3072, MOTIF)), LENGTH // MOTIF)
    slips = rng.uniform(size=beads.shape) < 0.02
    beads = np.where(slips, rng.integers(0, BEADS, beads.shape), beads)
    train, test = parted(beads.astype(np.int32))
    return Task(train, test, (entropy(test[0][:, MOTIF:]),))


def _norm(x: Any, name: str) -> Any:
    return hk.LayerNorm(-1, create_scale=True, create_offset=True, name=name)(x)


@functools.cache
def strung(name: str, *, depth: int = 2, skip: bool = True, gain: float = 1.0) -> Network:
    """The beads of a bracelet by a pre-LN decoder, each of whose branches has a gain."""
    kernels = hk.initializers.VarianceScaling(1.0, "fan_in")

    def joined(x: Any, y: Any, name: str) -> Any:
        y = y * hk.get_parameter(name, (), init=hk.initializers.Constant(gain))
        return x + y if skip else y

    def forward(beads: Any) -> Any:
        x = hk.Embed(BEADS, 32, w_init=hk.initializers.RandomNormal(0.5), name="beads")(beads)
        places = hk.initializers.RandomNormal(0.5)
        x = x + hk.get_parameter("places", (LENGTH, 32), init=places)[: beads.shape[1]]
        mask = jnp.tril(jnp.ones((1, 1, beads.shape[1], beads.shape[1])))
        for number in range(depth):
            y = _norm(x, f"norm_{number}_a")
            attend = hk.MultiHeadAttention(2, 16, w_init=kernels, name=f"attention_{number}")
            y = attend(y, y, y, mask=mask)
            x = joined(x, y, f"gain_{number}_a")
            y = jax.nn.gelu(hk.Linear(64, name=f"up_{number}")(_norm(x, f"norm_{number}_b")))
            y = hk.Linear(32, name=f"down_{number}")(y)
            x = joined(x, y, f"gain_{number}_b")
        return hk.Linear(BEADS, name="bead")(_norm(x, "norm_last"))

    net = hk.without_apply_rng(hk.transform(forward))

    def init(key: Any) -> Any:
        return net.init(key, jnp.zeros((2, LENGTH - 1), jnp.int32))

    def loss(p: Any, batch: Any) -> Any:
        logits = net.apply(p, batch[0][:, :-1])
        return cross_entropy(logits[:, MOTIF - 1 :], batch[0][:, MOTIF:])

    own = {"kind": "pre-LN decoder of bracelets", "library": "Haiku", "task": bracelets}
    return network(name, loss, init, **own, steps=300, rates=(2e-3, 5e-3))


# Auctions.


@functools.cache
def auctions() -> Task:
    """Nine bids, one of them marked as the reserve, and which bids are at least that."""
    rng = np.random.default_rng(1612)
    bids, rows = rng.integers(0, BIDS, (3072, SALES)), np.arange(3072)
    marked = rng.integers(0, SALES, 3072)
    reached = bids >= bids[rows, marked][:, None]
    bids[rows, marked] += BIDS
    train, test = parted(bids.astype(np.int32), reached.astype(np.int32))
    return Task(train, test, (entropy(test[1]),))


@functools.cache
def bid(name: str, *, unit: float = 1.0) -> Network:
    """Which bids are good by a post-LN encoder; the loss may be in some unit."""

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.attention = nnx.MultiHeadAttention(2, 24, decode=False, rngs=rngs)
            self.up, self.down = nnx.Linear(24, 48, rngs=rngs), nnx.Linear(48, 24, rngs=rngs)
            self.norm_a, self.norm_b = nnx.LayerNorm(24, rngs=rngs), nnx.LayerNorm(24, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.norm_a(x + self.attention(x))
            return self.norm_b(x + self.down(nnx.relu(self.up(x))))

    class Auctions(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.bids = nnx.Embed(2 * BIDS, 24, rngs=rngs)
            self.blocks = nnx.List(Block(rngs) for _ in range(2))
            self.good = nnx.Linear(24, 2, rngs=rngs)

        def __call__(self, bids: Any) -> Any:
            x = self.bids(bids)
            for block in self.blocks:
                x = block(x)
            return self.good(x)

    init, apply = of_nnx(Auctions)
    classes = of_classes(apply)
    own = {"kind": "post-LN encoder of auctions", "library": "nnx", "task": auctions}
    own = own | {"steps": 300, "rates": (2e-3, 5e-3)}
    parts = lambda p, batch: (classes(p, batch),)  # noqa: E731
    loss = lambda p, batch: unit * classes(p, batch)  # noqa: E731
    return Network(name=name, init=init, loss=loss, parts=parts, **own)
