"""What ails a network: seen before the first step, and while it trains."""

from vanishjax.health.diagnosis import Diagnosis, diagnose
from vanishjax.health.finding import Finding
from vanishjax.health.probe import ParameterGradients, Probe, probe

__all__ = ["Diagnosis", "Finding", "ParameterGradients", "Probe", "diagnose", "probe"]
