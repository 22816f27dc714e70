"""Is the suite able to tell? Every mutant against all of it: ``griffin-np conformance mutants``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from griffin_conformance.backends import Backend
from griffin_conformance.certificate import Certificate, certify
from griffin_conformance.checks import EFFORTS
from griffin_conformance.mutants.mutant import Mutant, mutate
from griffin_conformance.mutants.of_checkpoints import MUTANTS as OF_CHECKPOINTS
from griffin_conformance.mutants.of_models import MUTANTS
from griffin_conformance.mutants.of_quantised import (
    QUANTISED_MUTANTS,
    QuantisedMutant,
    mutate_quantised,
)

__all__ = ["EVERY", "NAMED_AMONG", "Autopsy", "hunt", "wrong_backend"]

EVERY: tuple[Mutant, ...] = (*MUTANTS, *OF_CHECKPOINTS, *QUANTISED_MUTANTS)
"""All mutants, of every level."""

NAMED_AMONG = 3
"""The clause that a mutant violates has to be among so many that the suite suspects first."""


def wrong_backend(mutant: Mutant, dtype: str = "") -> Backend:
    """A backend with the fault, by default in the first dtype in which it is one."""
    if isinstance(mutant, QuantisedMutant):
        return mutate_quantised(mutant, dtype or mutant.dtypes[0])
    return mutate(mutant, dtype or "float32")


@dataclass
class Autopsy:
    """What the suite says of a mutant.

    Attributes
    ----------
    mutant : Mutant
    profile : str
        The quickest in which it died with its clause named, or else the last tried.
    certificate : Certificate
    """

    mutant: Mutant
    profile: str
    certificate: Certificate

    @property
    def killed(self) -> bool:
        """Whether any check fails."""
        return any(v.failed and not v.inconclusive for v in self.certificate.verdicts)

    @property
    def place(self) -> int:
        """Of its clause among those suspected, from 1; 0 if it is not among them."""
        suspected = self.certificate.violated
        return suspected.index(self.mutant.clause) + 1 if self.mutant.clause in suspected else 0

    @property
    def named(self) -> bool:
        """Whether its clause is among the first."""
        return self.killed and 0 < self.place <= NAMED_AMONG

    def __str__(self) -> str:
        suspected = ", ".join(self.certificate.violated[:NAMED_AMONG]) or "nothing"
        verdict = "killed" if self.killed else "LIVES"
        named = "" if self.named else "  NOT NAMED"
        told = f"{verdict}  {self.mutant.clause:9}{self.mutant.name:44}{self.profile:9}"
        return f"{told}{suspected}{named}"


def hunt(
    mutant: Mutant, profiles: Sequence[str] = ("smoke", "default"), names: Sequence[str] = ()
) -> Autopsy:
    """Run the suite on a mutant until it is killed and its clause named.

    Without shrinking; each check ends at its first failure.

    Parameters
    ----------
    mutant : Mutant
    profiles : sequence of str
        Tried in turn.
    names : sequence of str
        Only these checks; all by default.
    """
    for profile in profiles:
        certificate = certify(
            wrong_backend(mutant), names=names, max_examples=EFFORTS[profile], shrink=False
        )
        autopsy = Autopsy(mutant, profile, certificate)
        if autopsy.named:
            break
    return autopsy


def hunt_all(
    mutants: Sequence[Mutant], say: Callable[[str], None], profiles: Sequence[str]
) -> list[Autopsy]:
    """All of some mutants, one after the other."""
    found = []
    for mutant in mutants:
        found.append(hunt(mutant, profiles))
        say(str(found[-1]))
    return found
