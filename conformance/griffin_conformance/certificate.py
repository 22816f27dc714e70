"""Ask everything of a backend: the suite as one call."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from griffin_conformance.backends import Backend, find_backend
from griffin_conformance.checks import (
    EXAMPLES,
    LEVELS,
    Check,
    Verdict,
    find_checks,
    json_number,
)
from griffin_conformance.runner import run_check

__all__ = ["Certificate", "certify", "reproduce"]


@dataclass
class Certificate:
    """All verdicts about a backend.

    Attributes
    ----------
    backend : Backend
    verdicts : list of Verdict
    asked : dict
        How it was made: seed and number of examples.
    seconds : float
    """

    backend: Backend
    verdicts: list[Verdict] = field(default_factory=list)
    asked: dict = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def conforms(self) -> bool:
        """Whether nothing is violated that a backend must do, and something was seen to hold.

        At every level that was asked for: a backend that shows nothing is not certified.
        """
        return not any(v.violates for v in self.verdicts) and not self.unseen

    @property
    def levels(self) -> list[str]:
        """Levels that were asked for."""
        return [level for level in LEVELS if self.counts(level)]

    @property
    def unseen(self) -> list[str]:
        """Levels at which every required check was skipped."""
        must = [v for v in self.verdicts if v.check.must]
        asked = {v.check.level for v in must}
        return sorted(asked - {v.check.level for v in must if v.status != "skipped"})

    @property
    def outcome(self) -> str:
        """The verdict in words."""
        if self.conforms:
            return f"conforms at {', '.join(self.levels)}"
        if not any(v.violates for v in self.verdicts):
            return f"is not certified: it shows nothing at {', '.join(self.unseen)}"
        if all(v.inconclusive for v in self.verdicts if v.violates):
            return "is not certified: too few examples were drawn"
        return "VIOLATES the specification"

    @property
    def worst(self) -> float:
        """Largest observed / allowed of all required checks."""
        return max((v.ratio for v in self.verdicts if v.check.must), default=0.0)

    def counts(self, level: str) -> Counter:
        """How many checks of a level passed, failed and were skipped."""
        return Counter(v.status for v in self.verdicts if v.check.level == level)

    def to_dict(self) -> dict:
        """As JSON values."""
        strata = sum((v.strata for v in self.verdicts), Counter())
        return {
            "backend": self.backend.name,
            "dtype": self.backend.dtype,
            "versions": self.backend.versions(),
            **self.asked,
            "conforms": self.conforms,
            "outcome": self.outcome,
            "worst_observed_over_allowed": json_number(self.worst),
            "levels": {
                level: {s: self.counts(level)[s] for s in ("passed", "failed", "skipped")}
                for level in self.levels
            },
            "checks": [verdict.to_dict() for verdict in self.verdicts],
            "strata": dict(sorted(strata.items())),
            "seconds": round(self.seconds, 1),
        }


def certify(
    backend: Backend,
    levels: Sequence[str] = (),
    names: Sequence[str] = (),
    max_examples: int = EXAMPLES,
    *,
    progress: Callable[[Check], None] | None = None,
    report: Callable[[Verdict], None] | None = None,
    **options,
) -> Certificate:
    """Run checks on a backend.

    Parameters
    ----------
    backend : Backend
    levels, names : sequence of str
        Which checks; all by default.
    max_examples : int
        Of each check.
    progress, report : callable, optional
        Called before and after each check.
    **options
        As for :func:`~griffin_conformance.runner.run_check`.
    """
    certificate, began = Certificate(backend), time.perf_counter()
    certificate.asked = {
        "seed": options.get("seed_number", 0),
        "max_examples": max_examples,
        "levels_asked": list(levels),
        "checks_asked": list(names),
    }
    for check in find_checks(levels, names):
        if progress:
            progress(check)
        verdict = run_check(check, backend, max_examples, **options)
        certificate.verdicts.append(verdict)
        if report:
            report(verdict)
    certificate.seconds = time.perf_counter() - began
    return certificate


def reproduce(name: str, backend: str, dtype: str, case) -> None:
    """Run one case of one check again and print its comparisons; errors are not caught."""
    (check,) = find_checks(names=[name])
    comparisons = check.holds(find_backend(backend, dtype), case)
    for comparison in comparisons:
        print(("  " if comparison.passed else "* ") + str(comparison))
    print("passed" if all(c.passed for c in comparisons) else "failed")
