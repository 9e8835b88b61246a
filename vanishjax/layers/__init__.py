"""How a parameter tree divides into layers, in the order in which the data meets them."""

from vanishjax.layers.dense import Dense, dense_layers
from vanishjax.layers.division import Layers, Leaf
from vanishjax.layers.order import LayerOrderWarning, find_layers

__all__ = ["Dense", "LayerOrderWarning", "Layers", "Leaf", "dense_layers", "find_layers"]
