"""How a parameter tree divides into layers, in the order in which the data meets them.

A leaf of shape `[layers, ...]` from `nn.scan` or `nnx.scan` is many layers, not one. `find_layers`
finds them for any model in JAX:

>>> import jax, jax.numpy as jnp
>>> import vanishjax as vj
>>> problem = vj.mlp_problem(64, (32,) * 100, 10, activation="tanh")
>>> batch = (jnp.ones((8, 64)), jnp.zeros(8, int))
>>> layers = vj.find_layers(problem, batch)
>>> len(layers), layers.names[:2], layers.names[-3]
(202, ('hidden_0/kernel', 'hidden_0/bias'), 'hidden_stack/bias[98]')
>>> gradient = jax.grad(problem.loss_fn)(problem.params, batch)
>>> layers.norms(gradient).shape
(202,)
>>> tx = vj.lars(0.1, layers=layers)  # a trust ratio for each of the 100 layers

Each kernel knows which of its axes are inputs and which outputs, from the product in which the data
meets it: attention's, experts', convolutions' and einsum's, too.
"""

from vanishjax.layers.dense import Dense, dense_layers
from vanishjax.layers.division import Layers, Leaf
from vanishjax.layers.order import LayerOrderWarning, find_layers

__all__ = ["Dense", "LayerOrderWarning", "Layers", "Leaf", "dense_layers", "find_layers"]
