"""Ask everything of a backend: the suite as one call."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from griffin_conformance.backends import Backend, find_backend
from griffin_conformance.checks import (
    EFFORTS,
    EXAMPLES,
    LEVELS,
    Check,
    Verdict,
    find_checks,
    json_number,
)
from griffin_conformance.clauses import read_clauses, version
from griffin_conformance.diagnosis import in_order_of_suspicion
from griffin_conformance.envelope import Ulps
from griffin_conformance.readings import Reading
from griffin_conformance.runner import run_check

__all__ = ["SCHEMA", "Certificate", "certify", "reproduce"]

SCHEMA = "griffin-conformance-certificate/1"
EFFORTS_BY_NUMBER = {number: name for name, number in EFFORTS.items()}


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
    stale : dict of str to str
        Known failures that did not fail, and what came of them.
    """

    backend: Backend
    verdicts: list[Verdict] = field(default_factory=list)
    asked: dict = field(default_factory=dict)
    seconds: float = 0.0
    stale: dict[str, str] = field(default_factory=dict)

    @property
    def as_expected(self) -> bool:
        """Whether nothing fails but what is known to fail, and all of that does.

        A backend of which nothing is known to fail has to conform, which takes more than showing
        nothing.
        """
        surprises = any(v.violates and v.status != "xfailed" for v in self.verdicts)
        known = any(v.status == "xfailed" for v in self.verdicts)
        return not surprises and not self.stale and (known or not self.unseen)

    @property
    def clauses(self) -> dict[str, dict]:
        """Status of every clause that the checks asked for speak of, in the specification's order.

        A clause fails if a failure speaks against it. It is skipped if none of its checks passed:
        if all were skipped, or failed for what other clauses say, nothing shows that it holds.
        """
        found: dict[str, dict] = {}
        for clause in read_clauses().values():
            tests = [v for v in self.verdicts if clause.id in {*v.check.clauses, *v.suspects}]
            if not tests:
                continue
            against = [v for v in tests if clause.id in v.suspects]
            passed = [v for v in tests if v.status == "passed"]
            status = "passed" if passed else "skipped"
            if against:
                known = all(v.status == "xfailed" for v in against)
                status = "xfailed" if known else "failed"
            elif any(v.inconclusive and v.failed for v in tests):
                status = "failed"
            found[clause.id] = {
                "status": status,
                "requirement": "MUST" if clause.must else "SHOULD",
                "title": clause.title,
                "observed_over_allowed": json_number(
                    max((v.ratio for v in against or passed), default=0.0)
                ),
                "checks": [v.check.name for v in tests],
            }
        return found

    @property
    def violated(self) -> list[str]:
        """Clauses that failures speak against, the most suspicious first."""
        return in_order_of_suspicion(self.verdicts)

    @property
    def cause(self) -> str:
        """The likely cause of the failures, if known misunderstandings explain any."""
        said = Counter(v.cause for v in self.verdicts if v.cause)
        return "; ".join(cause for cause, _ in said.most_common(3))

    @property
    def ulps(self) -> dict[str, Ulps]:
        """How far logits and states were from the oracle's, over all checks."""
        total: dict[str, Ulps] = {}
        for verdict in self.verdicts:
            for kind, found in verdict.ulps.items():
                total.setdefault(kind, Ulps()).add(found)
        return total

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
            return f"conforms at {', '.join(map(self._extent, self.levels))}"
        if not any(v.violates for v in self.verdicts):
            return f"is not certified: it shows nothing at {', '.join(self.unseen)}"
        if all(v.inconclusive for v in self.verdicts if v.violates):
            return "is not certified: too few examples were drawn"
        if self.as_expected:
            return "VIOLATES the specification, as is known of it"
        return "VIOLATES the specification"

    def _extent(self, level: str) -> str:
        """A level, and how much of it was asked for if that was not all."""
        there, asked = len(find_checks([level])), self.counts(level).total()
        return level if asked >= there else f"{level} in part ({asked} of {there} checks)"

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
            "schema": SCHEMA,
            "spec": version(),
            "backend": self.backend.name,
            "dtype": self.backend.dtype,
            "versions": self.backend.versions(),
            **self.asked,
            "conforms": self.conforms,
            "outcome": self.outcome,
            "worst_observed_over_allowed": json_number(self.worst),
            "levels": {
                level: {
                    s: self.counts(level)[s] for s in ("passed", "failed", "skipped", "xfailed")
                }
                for level in self.levels
            },
            "clauses": self.clauses,
            "violated": self.violated,
            "cause": self.cause,
            "ulp": {kind: found.to_dict() for kind, found in self.ulps.items()},
            "stale_xfails": self.stale,
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
    xfails: Mapping[str, str] | None = None,
    profile: str = "",
    progress: Callable[[Check], None] | None = None,
    report: Callable[[Verdict], None] | None = None,
    **options,
) -> Certificate:
    """Run checks on a backend.

    Parameters
    ----------
    backend : Backend
    levels, names : sequence of str
        Which checks; by default all of the levels at which the backend's dtype is judged.
    max_examples : int
        Of each check.
    xfails : mapping of str to str, optional
        Checks that are known to fail, and why. One that does not fail, by the default number of
        examples or more, or that is skipped or is none, is stale.
    profile : str
        What the number of examples is called.
    progress, report : callable, optional
        Called before and after each check.
    **options
        As for :func:`~griffin_conformance.runner.run_check`.
    """
    certificate, began = Certificate(backend), time.perf_counter()
    certificate.asked = {
        "profile": profile or EFFORTS_BY_NUMBER.get(max_examples, "custom"),
        "seed": options.get("seed_number", 0),
        "max_examples": max_examples,
        "levels_asked": list(levels),
        "checks_asked": list(names),
    }
    suspects: list[Reading] = []
    for check in find_checks(levels or (() if names else backend.levels), names):
        if progress:
            progress(check)
        verdict = run_check(check, backend, max_examples, suspects=suspects, **options)
        if xfails and check.name in xfails:
            if verdict.status == "failed":
                verdict.status, verdict.expected = "xfailed", xfails[check.name]
            elif verdict.status == "skipped" or max_examples >= EXAMPLES:
                # A few examples may pass where the failure is rare; they say nothing.
                certificate.stale[check.name] = verdict.status
        certificate.verdicts.append(verdict)
        if report:
            report(verdict)
    unknown = set(xfails or ()) - {check.name for check in find_checks()}
    certificate.stale |= dict.fromkeys(sorted(unknown), "no such check")
    certificate.seconds = time.perf_counter() - began
    return certificate


def reproduce(name: str, backend: str, dtype: str, case) -> None:
    """Run one case of one check again and print its comparisons; errors are not caught."""
    (check,) = find_checks(names=[name])
    comparisons = check.holds(find_backend(backend, dtype), case)
    for comparison in comparisons:
        print(("  " if comparison.passed else "* ") + str(comparison))
    print("passed" if all(c.passed for c in comparisons) else "failed")
