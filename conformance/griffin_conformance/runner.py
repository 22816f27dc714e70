"""Run a check over drawn examples until one fails, and make that one small."""

import contextlib
import re
import time
import traceback
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky, Unsatisfiable

from griffin_conformance.backends import Backend, Unsupported
from griffin_conformance.checks import EXAMPLES, Check, Scope, Verdict, Violation
from griffin_conformance.diagnosis import explain
from griffin_conformance.envelope import Comparison, Ulps
from griffin_conformance.isolation import broken_parts
from griffin_conformance.readings import Reading
from griffin_conformance.strategies import POOL

__all__ = ["run_check"]

SHARE = 20
"""A stratum that a check must meet has to turn up in one of this many examples."""

COSTLY = frozenset({"more than 256 tokens", "more than 8 rows"})
"""Strata of which one example is enough."""

FURTHER = 2
"""Failing cases that a likely cause has to explain, besides the smallest."""

SHORT = re.compile(r'File "(?:[^"]*[/\\])?([^"/\\]+[/\\][^"/\\]+)"')

COMPILED_SHARE = 0.4
"""Of the examples of blocks, and of models' laws and states, beyond a quick look: for a backend to
which every shape is another program."""

MORE = 3
"""How often as many examples are drawn again where a stratum was met too seldom."""


def run_check(
    check: Check,
    backend: Backend,
    max_examples: int = EXAMPLES,
    *,
    seed_number: int = 0,
    shrink: bool = True,
    survey: bool = False,
    suspects: list[Reading] | None = None,
) -> Verdict:
    """Run one check over drawn examples.

    Parameters
    ----------
    check : Check
    backend : Backend
    max_examples : int
        Fewer of some checks for a backend that compiles every shape (:data:`COMPILED_SHARE`).
    seed_number : int
        The same number draws the same examples.
    shrink : bool
        Look for the smallest failing case.
    survey : bool
        Run all examples whatever they show, so that the verdict has the worst of them.
    suspects : list of Reading, optional
        Misunderstandings that explain what failed before; those that explain this are added.
    """
    verdict = Verdict(check)
    began = time.perf_counter()
    if check.level not in backend.levels:
        verdict.status = "skipped"
        verdict.reason = f"{backend.dtype} is judged at {', '.join(backend.levels)}"
        return verdict
    caps = 30.0 if "no soft cap" in backend.cannot else 0.0
    scope = Scope(backend.fixed_shapes, backend.adapt, caps=caps)
    number = zlib.crc32(check.name.encode()) ^ seed_number
    many = backend.fixed_shapes and check.level in ("L1", "L2", "L3") and max_examples >= EXAMPLES
    share = COMPILED_SHARE if many else 1.0
    examples = max(1, round(max_examples * check.weight * share))
    search = _Search(check, backend, verdict, survey)
    search.run(scope, examples, number, shrink and not survey)
    for again in range(1, MORE + 1):
        if survey or search.failure or search.lacks or not _too_few(check, backend, verdict):
            break
        search.run(scope, examples, number + again, shrink)
    if search.failure and shrink and not survey and not search.lost:
        _try_smaller_worlds(search, scope, examples, number)
    if search.failure:
        verdict.status = "failed"
        verdict.reason, verdict.case, worst = search.failure
        if not survey:
            verdict.worst = worst
        verdict.violated = search.violated
        if check.oracle and worst is not None and not survey:
            cases = [verdict.case, *_further_failures(check, backend, scope, number)]
            cause = explain(check, backend, cases, [] if suspects is None else suspects)
            if cause:
                verdict.cause, verdict.violated = cause.says, cause.clauses
        if not (survey or search.lost or verdict.violated or suspects):
            verdict.violated = _violated_parts(check, backend, scope, number)
            verdict.by_part = bool(verdict.violated)
            # What levels 4 and 5 draw is costly, and tells what is wrong by itself.
            if not verdict.violated and check.level in ("L2", "L3"):
                verdict.violated = _violated_feature(check, backend, scope, number)
        verdict.reproducer = (
            f"from griffin_conformance import *\n"
            f"reproduce({check.name!r}, {backend.spec!r}, {backend.dtype!r},\n"
            f"          {verdict.case!r})"
        )
    elif search.lacks:
        verdict.status, verdict.reason = "skipped", search.lacks
    elif not survey:
        few = _too_few(check, backend, verdict)
        if few:
            verdict.status, verdict.inconclusive = "failed", True
            verdict.reason = (
                f"the {verdict.examples} examples drawn met too few of: {', '.join(few)}; "
                f"draw more (--max-examples)"
            )
    verdict.seconds = time.perf_counter() - began
    return verdict


def _too_few(check: Check, backend: Backend, verdict: Verdict) -> list[str]:
    """Strata that the examples met too seldom."""
    share = max(1, verdict.examples // SHARE)
    wanted = [stratum for stratum in check.strata if stratum not in backend.cannot]
    return [s for s in wanted if verdict.strata[s] < (1 if s in COSTLY else share)]


class _Lost(BaseException):
    """The backend is gone, and asking it for smaller cases would be asking nobody."""


class _Finding(NamedTuple):
    """What came of one example: why it fails, or nothing; the worst comparison; the clause that the
    failure names, if any; and whether the backend is gone.
    """

    reason: str = ""
    worst: Comparison | None = None
    clause: str = ""
    gone: bool = False


class _Search:
    """Runs a check over examples until one fails, or over all of them in a survey."""

    def __init__(self, check: Check, backend: Backend, verdict: Verdict, survey: bool):
        self.check, self.backend, self.verdict, self.survey = check, backend, verdict, survey
        self.failure: tuple[str, Any, Comparison | None] | None = None
        self.lacks = ""
        self.violated: tuple[str, ...] = ()
        self.lost = False

    def run(self, scope: Scope, examples: int, number: int, shrink: bool) -> bool:
        """Whether an example failed; :attr:`failure` is then the smallest."""
        counting, failed = self.failure is None, False
        phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]

        @seed(number)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=phases,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=self.check.cases(scope))
        def examine(case):
            nonlocal failed
            if self.lacks and counting and not failed:
                return  # one example tells that the backend lacks it
            if counting and not failed:
                self.count(case)
            try:
                counting_now = self.verdict if counting and not failed else None
                found = _judge(self.check, self.backend, case, counting_now)
            except Unsupported as missing:
                # While a failure is made small it means only that this way leads nowhere.
                self.lacks = str(missing)
                return
            before, worst = self.verdict.worst, found.worst
            if worst is not None and counting and (before is None or worst.ratio > before.ratio):
                self.verdict.worst = worst
            if found.reason:
                failed, self.failure = True, (found.reason, case, worst)
                # Laws of quantised models are one clause, whatever else they are for other models.
                named = found.clause if self.check.level != "L5" else ""
                self.violated = (named,) if named else ()
                if found.gone:
                    raise _Lost
                if not self.survey:
                    raise AssertionError(found.reason)

        try:
            examine()
        except _Lost:
            self.lost = True
        except AssertionError:
            if not failed:
                raise
        except Flaky:
            assert self.failure is not None
            reason, *rest = self.failure
            told = "It did not fail when it was run again: the backend is not deterministic."
            self.failure = (f"{reason}\n{told}", *rest)
        return failed

    def count(self, case: Any) -> None:
        """Note what was drawn."""
        self.verdict.examples += 1
        if hasattr(case, "strata"):
            self.verdict.strata.update(case.strata())


def _try_smaller_worlds(search: _Search, scope: Scope, examples: int, number: int) -> None:
    """Look for a failure in each smaller model, as a person would.

    Shrinking changes one number after the other and seldom finds its way to another model.
    """
    assert search.failure is not None
    case = search.failure[1]
    if not hasattr(case, "world"):
        return
    size = case.world.config.num_parameters()
    for world in POOL:
        if world.config.num_parameters() >= size:
            continue
        with contextlib.suppress(Unsatisfiable):
            if search.run(replace(scope, only=world), min(examples, 60), number, True):
                return


def _further_failures(check: Check, backend: Backend, scope: Scope, number: int) -> list[Any]:
    """A few more failing cases, so that what explains one by chance is found out."""
    failing: list[Any] = []

    @seed(number)
    @settings(
        max_examples=4 * FURTHER, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=check.cases(scope))
    def collect(case):
        if len(failing) < FURTHER:
            with contextlib.suppress(Unsupported):
                found = _judge(check, backend, case)
                if found.reason and found.worst is not None:
                    failing.append(case)

    collect()
    return failing


PROBING = 24
"""Examples that each part of a model is given to break a law."""


def _violated_parts(check: Check, backend: Backend, scope: Scope, number: int) -> tuple[str, ...]:
    """Clauses of the parts that break a law by themselves; none if all or none of them do."""
    if not check.parts:
        return ()

    def fails(probing: Scope) -> bool:
        return _Search(check, backend, Verdict(check), False).run(probing, PROBING, number, False)

    broken = broken_parts(scope, fails).intersection(check.parts)
    if len(broken) == len(check.parts):
        return ()
    return tuple(clause for part, clause in check.parts.items() if part in broken)


FEATURES = {
    "lru_width is not width": "BLOCK-4",
    "no soft cap": "HEAD-2",
    "several key-value heads": "ATTN-5",
    "more than 8 rows": "BATCH-2",
}
"""Clauses about what only some configurations and layouts have."""


def _violated_feature(check: Check, backend: Backend, scope: Scope, number: int) -> tuple[str, ...]:
    """The clause of a feature that all failing examples have, and no other."""
    failing: list[set[str]] = []
    passing: list[set[str]] = []

    @seed(number)
    @settings(
        max_examples=PROBING, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=check.cases(scope))
    def collect(case):
        if hasattr(case, "strata"):
            with contextlib.suppress(Unsupported):
                found = _judge(check, backend, case)
                (failing if found.reason else passing).append(case.strata())

    collect()
    if len(failing) < 2 or len(passing) < 2:
        return ()
    common = failing[0].intersection(*failing).difference(*passing)
    return tuple(clause for feature, clause in FEATURES.items() if feature in common)


def _judge(check: Check, backend: Backend, case: Any, verdict: Verdict | None = None) -> _Finding:
    """Hold the backend to the case; what was compared is noted in the verdict, if there is one."""
    try:
        # Numbers that are not finite are found by the comparisons.
        with np.errstate(all="ignore"):
            comparisons = check.holds(backend, case)
    except Unsupported:
        raise
    except Violation as violation:
        return _Finding(str(violation), None, violation.clause, violation.gone)
    except (Exception, SystemExit) as error:
        # Whatever a backend raises on a legal call is a violation.
        # Of each file its name and folder: reports are shown to others.
        where = "".join(traceback.format_exception(error)[-6:])
        return _Finding(SHORT.sub(r'File "\1"', f"{type(error).__name__}: {error}\n{where}"))
    if verdict is not None:
        _note(verdict, comparisons)
    comparisons = [c for c in comparisons if c.compared]
    worst = max(comparisons, key=lambda c: c.ratio, default=None)
    # The first thing that is wrong explains more than the worst: later ones follow from it.
    wrong = next((c for c in comparisons if not c.passed), None)
    return _Finding(str(wrong), worst, wrong.clause) if wrong else _Finding("", worst)


def _note(verdict: Verdict, comparisons: Sequence[Comparison]) -> None:
    """Keep what could not be compared, and how far off logits and states are from the oracle's."""
    verdict.not_compared.update(c.name for c in comparisons if not c.compared)
    if not verdict.check.oracle or verdict.check.level in ("L0", "L1"):
        return
    for comparison in comparisons:
        for kind, start in (("logits", "logits"), ("states", "layers.")):
            if comparison.name.startswith(start) and comparison.counts:
                verdict.ulps.setdefault(kind, Ulps()).add(comparison)
