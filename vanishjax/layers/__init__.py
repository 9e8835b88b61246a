"""How a parameter tree divides into layers, in the order in which the data meets them."""

from vanishjax.layers.division import Layers, Leaf
from vanishjax.layers.order import LayerOrderWarning, find_layers

__all__ = ["LayerOrderWarning", "Layers", "Leaf", "find_layers"]
