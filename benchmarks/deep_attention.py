"""Transformers of 12 and 24 blocks without skips and normalization.

A token is a row of an image whose pixels are averaged two by two, with a learned position; a block
is attention of all rows to all, four heads, and an MLP of one hidden layer; the last kernel takes
in the mean of the tokens. Beside what is started as the identity stand the same network from
Flax's start, and one with skip connections and LayerNorm. Batches and the choice of rates are those
of `benchmarks.deep_chains`.

    python -m benchmarks deep_attention --data-dir FOLDER_OF_mnist_AND_fashion-mnist
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.deep_chains import IDENTITY, IDENTITY_BY_DEPTH, LECUN, Linear, measure

SIDE, POOL, HEADS, WIDER = 28, 2, 4, 2


class Network(NamedTuple):
    """What is trained, and on what."""

    depth: int
    skips: bool = False
    data: str = "mnist"
    width: int = 64
    batch_size: int = 64
    steps: int = 1200

    def problem(self, inputs, critical, key):
        """The network at its start: a problem whose images are flat."""
        del inputs, critical
        side, keys = SIDE // POOL, jax.random.split(key, 4)

        def block(key):
            keys = dict(
                zip(("query", "key", "value", "out"), jax.random.split(key, 4), strict=True)
            )
            up, down = jax.random.split(jax.random.fold_in(key, 4))
            square = {name: dense(k, self.width, self.width) for name, k in keys.items()}
            wide = WIDER * self.width
            return square | {
                "up": dense(up, self.width, wide),
                "down": dense(down, wide, self.width),
            }

        params = {
            "first": dense(keys[0], side, self.width),
            "places": 0.5 * jax.random.normal(keys[1], (side, self.width)),
            "blocks": jax.vmap(block)(jax.random.split(keys[2], self.depth)),
            "last": dense(keys[3], self.width, 10),
        }
        return Transformer(params, self)


def dense(key, inputs, outputs):
    """A kernel with biases of zero."""
    return {"kernel": LECUN(key, (inputs, outputs)), "bias": jnp.zeros(outputs)}


class Transformer(NamedTuple):
    """A transformer as a problem."""

    params: object
    network: Network

    def predict_fn(self, params, inputs):
        """Logits."""
        heads, own = HEADS, self.network.width // HEADS

        def apply(p, x):
            return x @ p["kernel"] + p["bias"]

        def attention(p, x):
            q, k, v = (
                apply(p[name], x).reshape(*x.shape[:2], heads, own)
                for name in ("query", "key", "value")
            )
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / own**0.5
            mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
            return apply(p["out"], mixed.reshape(x.shape))

        def mlp(p, x):
            return apply(p["down"], jax.nn.gelu(apply(p["up"], x)))

        def block(x, p):
            for part in (attention, mlp):
                x = x + part(p, normalized(x)) if self.network.skips else part(p, x)
            return x, None

        side = SIDE // POOL
        x = inputs.reshape(-1, side, POOL, side, POOL).mean((2, 4))
        x = apply(params["first"], x) + params["places"]
        x, _ = jax.lax.scan(block, x, params["blocks"])
        x = normalized(x) if self.network.skips else x
        return apply(params["last"], x.mean(1))

    loss_fn = Linear.loss_fn


def normalized(x):
    """LayerNorm without gains."""
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def of_depth(depth, contenders, **settings):
    """A network on each data set."""
    return [
        (Network(depth, data=data, **settings), contenders) for data in ("mnist", "fashion_mnist")
    ]


BARE = (IDENTITY, IDENTITY_BY_DEPTH, "optax adam")
PARTS = {
    "reference": of_depth(2, ("optax adam",)) + of_depth(12, ("optax adam",), skips=True),
    "12": of_depth(12, BARE),
    "24": of_depth(24, BARE),
}
QUICK = {"12": [(Network(3, width=16, steps=20), BARE[:1])]}


def main():
    """Trains transformers without skips."""
    measure("deep_attention", __doc__, PARTS, QUICK)


if __name__ == "__main__":
    main()
