r"""Mean-field theory of signals in wide networks: how far a gradient gets.

With weights W ~ N(0, sigma_w2 / fan_in), biases b ~ N(0, sigma_b2) and E over a standard normal z,
one layer maps the variance q of its pre-activations and the correlation c of two inputs to

    q <- sigma_w2 E[f(sqrt(q) z)^2] + sigma_b2,    c <- (sigma_w2 E[f(u1) f(u2)] + sigma_b2) / q*,

and the squared norm of the gradient is multiplied by chi = sigma_w2 E[f'(sqrt(q*) z)^2] at every
layer on the way back. All is computed in float64 to 1e-10, kinks included.

`shape` is the finite-depth side of it: the affine change of an activation under which a plain
chain of a given depth keeps gradients and the differences of inputs alike.

An activation is a key of `vanishjax.activations.ACTIVATIONS` or any continuous elementwise JAX
function.

References:
  Poole et al., Exponential expressivity in deep neural networks through transient chaos, 2016.
  Schoenholz et al., Deep information propagation, 2017.
  Pennington et al., Resurrecting the sigmoid in deep learning through dynamical isometry, 2017.
  Roberts et al., The principles of deep learning theory, 2022, chapter 5.
"""

from vanishjax.theory.criticality import CriticalPoint, critical_point, critical_sigma_w2
from vanishjax.theory.fixed_points import FixedPoint, fixed_point, trainable_depth
from vanishjax.theory.maps import chi, correlation_map, sum_log_chi, variance_map
from vanishjax.theory.shaping import Shape, leaky_slope, shape

__all__ = [
    "CriticalPoint",
    "FixedPoint",
    "Shape",
    "chi",
    "correlation_map",
    "critical_point",
    "critical_sigma_w2",
    "fixed_point",
    "leaky_slope",
    "shape",
    "sum_log_chi",
    "trainable_depth",
    "variance_map",
]
