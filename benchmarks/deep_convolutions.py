"""Plain convolutional networks of 64 and 256 layers, no skips and no normalization.

Three by three convolutions, all of one width, on images whose pixels are averaged four by four in
squares of two; the last kernel takes in all positions, or their mean. Two ways to pad: around the
edge to the other side, where all positions are alike, and with zeros, as everybody does, where
means at the border aren't those that `deep_adam` knows. Contenders, batches and the choice of rates
are those of `benchmarks.deep_chains`; "critical orthogonal" has delta-orthogonal kernels (Xiao et
al. 2018).

    python -m benchmarks deep_convolutions --data-dir FOLDER_OF_mnist_AND_fashion-mnist
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.deep_chains import LECUN, OURS, Linear, measure
from vanishjax.activations import ACTIVATIONS
from vanishjax.initializers import critical_orthogonal

SIDE, POOL, TAPS = 28, 2, 3
RIVALS = ("critical orthogonal, optax adam", "optax adam")


class Network(NamedTuple):
    """What is trained, and on what."""

    depth: int
    activation: str
    data: str = "mnist"
    padding: str = "zeros"  # or "around"
    head: str = "positions"  # what the last kernel takes in; or "mean"
    width: int = 32
    batch_size: int = 64
    steps: int = 1200

    def problem(self, inputs, critical, key):
        """The network at its start: a problem whose images are flat."""
        del inputs
        keys = jax.random.split(key, self.depth + 1)
        start = centered(self.activation) if critical else LECUN
        hidden = (TAPS, TAPS, self.width, self.width)
        places = 1 if self.head == "mean" else (SIDE // POOL) ** 2
        params = {
            "first": dense(start(keys[0], (TAPS, TAPS, 1, self.width))),
            "hidden": dense(jax.vmap(lambda k: start(k, hidden))(keys[1:-1])),
            "last": dense(LECUN(keys[-1], (places * self.width, 10))),
        }
        return Convolutions(params, self)


def dense(kernel):
    """A kernel with biases of zero."""
    return {"kernel": kernel, "bias": jnp.zeros((*kernel.shape[:-4], kernel.shape[-1]))}


def centered(activation):
    """The critical orthogonal matrix in the middle of a kernel, and zeros around it."""
    draw = critical_orthogonal(activation)
    middle = TAPS // 2

    def init(key, shape):
        return jnp.zeros(shape).at[middle, middle].set(draw(key, shape[-2:]))

    return init


class Convolutions(NamedTuple):
    """A network of convolutions as a problem."""

    params: object
    network: Network

    def predict_fn(self, params, inputs):
        """Logits."""
        f = ACTIVATIONS[self.network.activation]

        def layer(x, p):
            if self.network.padding == "around":
                edge = TAPS // 2
                x = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)), mode="wrap")
                padding = "VALID"
            else:
                padding = "SAME"
            y = jax.lax.conv_general_dilated(
                x,
                p["kernel"],
                (1, 1),
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            return f(y + p["bias"])

        side = SIDE // POOL
        x = inputs.reshape(-1, side, POOL, side, POOL, 1).mean((2, 4))
        x = layer(x, params["first"])
        x, _ = jax.lax.scan(lambda x, p: (layer(x, p), None), x, params["hidden"])
        x = x.mean((1, 2)) if self.network.head == "mean" else x.reshape(len(x), -1)
        return x @ params["last"]["kernel"] + params["last"]["bias"]

    loss_fn = Linear.loss_fn


def of_depth(depth, contenders, **settings):
    """One network of each activation on each data set."""
    return [
        (Network(depth, f, data, **settings), contenders)
        for data in ("mnist", "fashion_mnist")
        for f in ("tanh", "relu")
    ]


PARTS = {
    "reference": of_depth(4, RIVALS[1:]),
    "64": of_depth(64, (*OURS, *RIVALS)),
    "256": of_depth(256, (*OURS, *RIVALS)),
    "around": of_depth(64, OURS[:1], padding="around"),
    "mean": of_depth(64, OURS[:1], head="mean"),
}
QUICK = {"64": [(Network(8, "tanh", width=8, steps=20), OURS[:1])]}


def main():
    """Trains plain convolutional networks."""
    measure("deep_convolutions", __doc__, PARTS, QUICK)


if __name__ == "__main__":
    main()
