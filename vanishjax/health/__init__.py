"""What ails a network: seen before the first step, and while it trains."""

from vanishjax.health.course import assess
from vanishjax.health.diagnosis import Diagnosis, diagnose
from vanishjax.health.finding import Finding
from vanishjax.health.measurements import ParameterGradients, Probe
from vanishjax.health.monitor import MonitorState, monitor, read_health
from vanishjax.health.observation import Health
from vanishjax.health.probe import probe
from vanishjax.health.remedies import FITTING, REMEDIES, Advice, Fitting, fitting
from vanishjax.health.response import Response, effectiveness, step_response

__all__ = [
    "FITTING",
    "REMEDIES",
    "Advice",
    "Diagnosis",
    "Finding",
    "Fitting",
    "Health",
    "MonitorState",
    "ParameterGradients",
    "Probe",
    "Response",
    "assess",
    "diagnose",
    "effectiveness",
    "fitting",
    "monitor",
    "probe",
    "read_health",
    "step_response",
]
