"""What ails a network: seen before the first step, and while it trains."""

from vanishjax.health.finding import Finding
from vanishjax.health.probe import ParameterGradients, Probe, probe

__all__ = ["Finding", "ParameterGradients", "Probe", "probe"]
