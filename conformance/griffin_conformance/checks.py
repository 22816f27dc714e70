"""What a check is, how it is run over drawn examples, and the verdict that comes out."""

import difflib
import importlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from griffin_conformance.backends import Backend
from griffin_conformance.clauses import read_clauses
from griffin_conformance.envelope import Comparison, Ulps

__all__ = [
    "EFFORTS",
    "EXAMPLES",
    "LEVELS",
    "Check",
    "Scope",
    "Verdict",
    "Violation",
    "check",
    "find_checks",
]

EFFORTS = {"smoke": 6, "default": 60, "thorough": 400}
"""Examples of each check, by the name of a profile."""

EXAMPLES = EFFORTS["default"]
"""Examples of each check by default."""

LEVELS = {
    "L0": "operations",
    "L1": "blocks",
    "L2": "the model's laws",
    "L3": "state and generation",
    "L4": "checkpoints and tokenizer",
    "L5": "quantised models",
}


class Violation(Exception):
    """A law that is broken in a way that is no matter of size.

    Parameters
    ----------
    message : str
    clause : str
        The clause that is violated, where it is known better than from the check.
    """

    gone = False
    """Whether there is nobody left to ask for more: a process that ended, or does not answer."""

    def __init__(self, message: str, clause: str = ""):
        super().__init__(message)
        self.clause = clause


@dataclass(frozen=True)
class Scope:
    """What a check may draw for a backend.

    Attributes
    ----------
    fixed_shapes : bool
        Only worlds of a fixed pool, for a backend that compiles each shape.
    adapt : callable
        From any configuration to one that the backend can represent.
    only : World, optional
        The one world to draw from.
    caps : float
        0 where logits without a soft cap may be asked for, else a cap.
    """

    fixed_shapes: bool = False
    adapt: Callable[[Any], Any] = lambda config: config
    only: Any = None
    caps: float = 0.0


@dataclass(frozen=True)
class Check:
    """A law or comparison.

    Attributes
    ----------
    name, level : str
    says : str
        What a right backend does.
    must : bool
        Otherwise it should, and a backend that does not still conforms.
    cases : callable
        Strategy of the examples, for a :class:`Scope`.
    holds : callable
        ``holds(backend, case)`` returns comparisons, or raises :class:`Violation` or
        :class:`~griffin_conformance.backends.Unsupported`.
    strata : tuple of str
        What examples must have met, each at least once in every 20.
    weight : float
        Examples relative to the others.
    clauses : tuple of str
        Clauses of ``SPEC.md`` that it tests, the most likely culprit of a failure first.
    oracle : bool
        Its comparisons are with the oracle and with nothing of the backend's own.
    parts : dict of str to str
        The clause that is violated where only one part of a model breaks the law: ``attention``,
        ``recurrence`` or ``convolution``.
    """

    name: str
    level: str
    says: str
    must: bool
    cases: Callable[[Scope], st.SearchStrategy]
    holds: Callable[[Backend, Any], Sequence[Comparison]]
    strata: tuple[str, ...] = ()
    weight: float = 1.0
    clauses: tuple[str, ...] = ()
    oracle: bool = False
    parts: Mapping[str, str] = field(default_factory=dict)


MODULES = (
    "operations", "recurrences", "blocks", "laws", "calls", "states", "evolution", "generation",
    "stopping", "checkpoints", "damage", "nf4", "tokenizers",
    "quantised",
)  # fmt: skip
"""Where the checks are."""

CHECKS: dict[str, Check] = {}


def check(
    level: str,
    cases: Callable[[Scope], st.SearchStrategy],
    *,
    must: bool = True,
    strata: tuple[str, ...] = (),
    weight: float = 1.0,
    clauses: tuple[str, ...] = (),
    oracle: bool | None = None,
    parts: Mapping[str, str] | None = None,
):
    """Register the function below as a check; its docstring is what the check says.

    Operations and blocks are held against the oracle if nothing else is said.
    """
    against_oracle = level in ("L0", "L1") if oracle is None else oracle

    def register(function):
        name = function.__name__.replace("_", "-")
        says = " ".join((function.__doc__ or "").split())
        CHECKS[name] = Check(name, level, says, must, cases, function, strata, weight, clauses,
                             against_oracle, parts or {})  # fmt: skip
        return function

    return register


def find_checks(levels: Sequence[str] = (), names: Sequence[str] = ()) -> list[Check]:
    """Checks of some levels, or some by name; all by default, in order of level.

    Raises
    ------
    ValueError
        If there is no such level or check; the message names some that there are.
    """
    for module in MODULES:
        importlib.import_module(f"griffin_conformance.{module}")  # registers its checks

    for level in levels:
        if level not in LEVELS:
            raise ValueError(f"no level {level!r}; levels are {', '.join(LEVELS)}")
    for name in names:
        if name not in CHECKS:
            near = difflib.get_close_matches(name, CHECKS)
            perhaps = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(
                f"no check {name!r}; {perhaps}griffin-np conformance list shows all of them"
            )
    found = [c for c in CHECKS.values() if not levels or c.level in levels]
    found = [c for c in found if not names or c.name in names]
    return sorted(found, key=lambda c: c.level)


@dataclass
class Verdict:
    """What came out of one check on one backend.

    Attributes
    ----------
    check : Check
    status : {"passed", "failed", "skipped", "xfailed"}
        The last is a failure that is known and was expected.
    examples : int
    worst : Comparison or None
        The comparison nearest to, or farthest beyond, what is allowed.
    reason : str
        Why it failed or was skipped.
    case : object
        The smallest failing case.
    reproducer : str
        Python that runs that case again.
    strata : Counter
        In how many examples each stratum was met.
    seconds : float
    inconclusive : bool
        It failed only because the examples drawn did not meet what they must.
    not_compared : set of str
        What the backend does not show, and the check therefore did not look at.
    violated : tuple of str
        Clauses that are violated, where that is known better than from the check.
    by_part : bool
        They are those of parts of a model that break a law by themselves.
    cause : str
        What the backend does instead, if a known misunderstanding explains the failure.
    expected : str
        Why this failure is known, if it is.
    ulps : dict of str to Ulps
        How far logits and states were from the oracle's.
    """

    check: Check
    status: str = "passed"
    examples: int = 0
    worst: Comparison | None = None
    reason: str = ""
    case: Any = None
    reproducer: str = ""
    strata: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    inconclusive: bool = False
    not_compared: set[str] = field(default_factory=set)
    violated: tuple[str, ...] = ()
    by_part: bool = False
    cause: str = ""
    expected: str = ""
    ulps: dict[str, Ulps] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether it failed, expected or not."""
        return self.status in ("failed", "xfailed")

    @property
    def violates(self) -> bool:
        """Whether the backend does not conform because of this."""
        return self.failed and self.check.must

    @property
    def suspects(self) -> tuple[str, ...]:
        """Clauses that this failure speaks against."""
        if not self.failed or self.inconclusive:
            return ()
        return self.violated or self.check.clauses

    @property
    def ratio(self) -> float:
        """Worst observed / allowed; infinite where something else than a size was wrong."""
        judged = self.failed and not self.inconclusive
        if judged and (self.worst is None or self.worst.passed):
            return float("inf")
        return self.worst.ratio if self.worst else 0.0

    def explain(self) -> str:
        """Everything about a failure, for a person."""
        if not self.failed:
            return f"{self.check.name}: {self.status} {self.reason}".strip()
        lines = [f"{self.check.level} {self.check.name}: {self.check.says}", ""]
        known = read_clauses()
        lines += [f"{n}: {known[n].title}" if n in known else n for n in self.suspects]
        if self.cause:
            lines += ["", f"likely cause: it {self.cause}"]
        lines += ["", self.reason]
        if self.case is not None:
            lines += ["", "smallest failing case found, to paste:", "", self.reproducer]
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """As JSON values."""
        worst = self.worst
        return {
            "check": self.check.name,
            "level": self.check.level,
            "requirement": "MUST" if self.check.must else "SHOULD",
            "says": self.check.says,
            "clauses": list(self.check.clauses),
            "violated": list(self.suspects),
            "cause": self.cause,
            "status": self.status,
            "examples": self.examples,
            "observed_over_allowed": json_number(self.ratio),
            "worst": worst
            and {
                "what": worst.name,
                "entry": worst.position,
                "observed": json_number(worst.observed),
                "allowed": json_number(worst.allowed),
                "ulp_percentiles": {
                    p: json_number(v)
                    for p, v in zip(("50", "99", "99.9", "100"), worst.ulps, strict=True)
                },
            },
            "reason": self.reason,
            "inconclusive": self.inconclusive,
            "not_compared": sorted(self.not_compared),
            "reproducer": self.reproducer,
            "xfail": self.expected,
            "series": self._series(),
            "strata": dict(sorted(self.strata.items())),
            "seconds": round(self.seconds, 3),
        }

    def _series(self) -> dict | None:
        """How the worst array came to be wrong, at the times around that and at most 400."""
        series = self.worst.series if self.worst and self.failed else None
        if series is None or len(series.truth) < 2:
            return None
        assert self.worst is not None
        first = max(0, min(self.worst.position - 300, len(series.truth) - 400))
        part = slice(first, first + 400)
        arrays = {"truth": series.truth, "found": series.found, "allowed": series.allowed}
        return {"name": series.name, "first": first} | {
            name: [json_number(float(value)) for value in array[part]]
            for name, array in arrays.items()
        }


def json_number(value: float) -> float | str:
    """A number as JSON can hold it: what is not finite becomes a string."""
    return value if abs(value) < float("inf") else str(value)
