"""Cures: remedies, trials beside the untreated network, and what is accepted.

`cure` tries the remedies that fit the cause on your own network, each for a few steps beside the
untreated one, from the same parameters on the same batches. It accepts what improves both the
cause's statistic and the held-out loss by more than the noise, once the network learns more than
one output for all inputs, or says that nothing helped.

>>> import jax, jax.numpy as jnp
>>> import vanishjax as vj
>>> sick = vj.mlp_problem(8, (32,) * 24, 4, activation="sigmoid", tx=vj.adam(3e-3))
>>> x = jax.random.normal(jax.random.key(0), (16, 64, 8))
>>> batches = [(inputs, jnp.argmax(inputs[:, :4], axis=1)) for inputs in x]
>>> treatment = vj.cure(sick, batches, steps=60)
>>> [(trial.remedy, trial.outcome) for trial in treatment.trials[:3]]
[('untreated', 'untreated'), ('small_lsuv', 'accepted'), ('lsuv', 'better')]

`treatment.problem` and `treatment.opt_state` go on from there; what you passed in is as it was, and
a healthy network comes back untouched at the cost of one trial, unless its inputs or targets are
far from standard, or another rate, other kernels or another optimizer are better for a short
training to come, and it learns twice as much when that is mended. `treatment.recipe` is Python that
gives the cured network as the trial started it, to the last bit, from your `loss_fn`, `params` and
`tx` and from `batch`, which is `treatment.batch`. A remedy that can't be applied is recorded, with
its reason, and stops nothing. A remedy is a function from a `Problem` to a `Problem`: pass your own
as `remedies=[vj.Remedy(name, apply)]`. Which remedies fit which cause stands in
`vanishjax.health.REMEDIES` and `FITTING`.

Where model, initialization and loss must stay as they are, transforms alone go far. `deep_muon`
takes the mean activation out of every kernel's gradient (`deflate`), orthogonalizes what is left,
and moves each bias so that the layer's mean output stays (`center`). `polar_growth` draws the
kernels toward orthogonal ones at the gain read off the first gradient; `recondition=True` moves
them there in the first step. They see gradients and parameters only:

>>> layers = vj.find_layers(sick, batches[0])
>>> tx = vj.polar_growth(vj.deep_muon(0.01, total_steps=2250, layers=layers), layers=layers)
"""

from vanishjax.treatment.context import Context
from vanishjax.treatment.coordinates import Coordinates, standardize_inside
from vanishjax.treatment.cure import cure
from vanishjax.treatment.decay import without_decay
from vanishjax.treatment.inputs import standardize_inputs
from vanishjax.treatment.output_units import OutputUnits, standardize_outputs
from vanishjax.treatment.outputs import match_targets
from vanishjax.treatment.remedies import fitting_remedies
from vanishjax.treatment.remedy import Remedy
from vanishjax.treatment.treatment import Treatment
from vanishjax.treatment.trial import Trial

__all__ = [
    "Context",
    "Coordinates",
    "OutputUnits",
    "Remedy",
    "Treatment",
    "Trial",
    "cure",
    "fitting_remedies",
    "match_targets",
    "standardize_inputs",
    "standardize_inside",
    "standardize_outputs",
    "without_decay",
]
