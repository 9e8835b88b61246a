"""What is wrong with a network: seen before the first step, and while it trains.

`diagnose` says whether a network will train, which layers starve, why, and what to do:

>>> import jax, jax.numpy as jnp
>>> import vanishjax as vj
>>> deep = vj.mlp_problem(64, (64,) * 24, 10, activation="sigmoid", tx=vj.adam(1e-3))
>>> batch = jax.random.normal(jax.random.key(0), (128, 64)), jnp.arange(128) % 10
>>> verdict = vj.diagnose(deep, batch)
>>> verdict.verdict, [finding.rule for finding in verdict.findings]
('sick', ['mean_collapse', 'vanishing_gradient', 'blind_optimizer'])
>>> str(verdict).splitlines()[0]
"Won't train: mean collapse and vanishing gradient."

`str(verdict)` is a report, `verdict.plot("verdict.png")` draws what is left of the gradient, layer
by layer. `verdict` is "unknown" where something that matters couldn't be measured, and
`diagnose(..., steps=100)` then trains a copy to find out. NaN is traced to the line that makes it
(`Finding.where`). `probe` gives the numbers behind it for any loss: its taps rescale the cotangent
on the way back, so that they are right at depth 1,000, where every gradient is exactly 0.

While training goes on, `monitor` rides inside the compiled step, in a state of fixed shape:

>>> layers = vj.find_layers(deep, batch)
>>> tx = vj.monitor(vj.adam(1e-3), layers=layers, every=16)
>>> state = vj.TrainState.create(deep.params, tx)
>>> state, _ = vj.make_train_step(deep.loss_fn, tx)(state, batch)
>>> health = vj.read_health(state.opt_state)
>>> health.gradient_norm.shape, float(health.effectiveness.min()) < 1e-6
((50,), True)

The first layer's gradient is 1e-17 here, and Adam's epsilon takes all but a billionth of its step.
"""

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
