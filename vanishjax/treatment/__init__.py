"""Cures: remedies, trials beside the untreated network, and what is accepted."""

from vanishjax.treatment.cure import cure
from vanishjax.treatment.remedies import Context, fitting_remedies
from vanishjax.treatment.remedy import Remedy
from vanishjax.treatment.treatment import Treatment
from vanishjax.treatment.trial import Trial

__all__ = ["Context", "Remedy", "Treatment", "Trial", "cure", "fitting_remedies"]
