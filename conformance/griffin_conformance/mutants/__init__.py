"""Wrong on purpose: variants of right programs, one fault each, that the suite has to catch.

:mod:`~griffin_conformance.mutants.hunting` has the suite hunt them;
:mod:`~griffin_conformance.mutants.separation` measures how far outside they lie.
"""

from griffin_conformance.mutants.mutant import NO_FAULT, Mutant, mutate
from griffin_conformance.mutants.of_models import MUTANTS

__all__ = ["MUTANTS", "NO_FAULT", "Mutant", "mutate"]
