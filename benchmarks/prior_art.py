"""How centering was done before: what `deep_chains` measures ours beside.

Mean-normalized SGD takes the means of a layer's inputs from the forward pass, where `deep_adam`
and `center` read them off gradients; linearly constrained weights take what a mean common to all
units would do out of the kernels themselves.
"""

import jax
import jax.numpy as jnp
import optax

import vanishjax as vj
from vanishjax.activations import ACTIVATIONS

FIRST = "hidden_0"


@jax.custom_vjp
def mean_normalized(inputs, kernel, bias):
    """A dense layer `[batch, in] -> [batch, out]`, whose gradients are steps of this method.

    With the batch's mean input m and gradients G of the kernel and g of the bias, they are
    G - m g^T and g - (G - m g^T)^T m: those in which the layer is `(inputs - m) @ kernel + bias`,
    said for a bias that knows of no m (Wiesler, Richard, Schlueter and Ney, "Mean-normalized
    stochastic gradient for large-scale deep learning", ICASSP 2014).
    """
    return inputs @ kernel + bias


def _forward(inputs, kernel, bias):
    return mean_normalized(inputs, kernel, bias), (inputs, kernel)


def _backward(kept, cotangent):
    inputs, kernel = kept
    mean = inputs.mean(axis=0)
    to_kernel = (inputs - mean).T @ cotangent
    return cotangent @ kernel.T, to_kernel, cotangent.sum(axis=0) - mean @ to_kernel


mean_normalized.defvjp(_forward, _backward)


def mean_normalized_loss(network):
    """The loss of a stacked chain of `deep_chains` with these gradients."""
    activation = ACTIVATIONS[network.activation]

    def loss_fn(params, batch):
        inputs, labels = batch

        def layer(inputs, own):
            return activation(mean_normalized(inputs, own["kernel"], own["bias"])), None

        hidden, _ = layer(inputs, params[FIRST])
        hidden, _ = jax.lax.scan(layer, hidden, params["hidden_stack"])
        return vj.losses.cross_entropy(mean_normalized(hidden, **params["output"]), labels)

    return loss_fn


def constrained(params):
    """Kernels `[..., in, out]` without their mean over the inputs, but for the first one's.

    So no mean that all units share reaches a preactivation (Kutsuna, "Linearly constrained weights:
    reducing activation shift for faster training of neural networks", ECML PKDD 2019). The paper
    multiplies free weights by an orthonormal basis of what is left; by gradient descent that is the
    same as this projection of kernels and gradients.
    """
    return {
        name: own
        if name == FIRST
        else own | {"kernel": own["kernel"] - own["kernel"].mean(axis=-2, keepdims=True)}
        for name, own in params.items()
    }


def constrained_start(loss_fn, params, batch):
    """The kernels given, constrained; their biases have no mean to take off any more."""
    del loss_fn, batch
    return {
        name: own if name == FIRST else own | {"bias": jnp.zeros_like(own["bias"])}
        for name, own in constrained(params).items()
    }


def constrain():
    """The projection as a transform."""
    return optax.stateless(lambda updates, _: constrained(updates))
