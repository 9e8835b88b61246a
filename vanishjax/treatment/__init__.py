"""Cures: remedies, trials beside the untreated network, and what is accepted."""

from vanishjax.treatment.cure import Treatment, cure
from vanishjax.treatment.remedies import fitting_remedies
from vanishjax.treatment.remedy import Remedy
from vanishjax.treatment.trial import Trial

__all__ = ["Remedy", "Treatment", "Trial", "cure", "fitting_remedies"]
