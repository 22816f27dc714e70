"""Run a check over drawn examples until one fails, and make that one small."""

import contextlib
import time
import traceback
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky, Unsatisfiable

from griffin_conformance.backends import Backend, Unsupported
from griffin_conformance.checks import EXAMPLES, Check, Scope, Verdict, Violation
from griffin_conformance.envelope import Comparison
from griffin_conformance.strategies import POOL

__all__ = ["run_check"]

SHARE = 20
"""A stratum that a check must meet has to turn up in one of this many examples."""

COSTLY = frozenset({"more than 256 tokens", "more than 8 rows"})
"""Strata of which one example is enough."""

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
) -> Verdict:
    """Run one check over drawn examples.

    Parameters
    ----------
    check : Check
    backend : Backend
    max_examples : int
    seed_number : int
        The same number draws the same examples.
    shrink : bool
        Look for the smallest failing case.
    survey : bool
        Run all examples whatever they show, so that the verdict has the worst of them.
    """
    verdict = Verdict(check)
    began = time.perf_counter()
    caps = 30.0 if "no soft cap" in backend.cannot else 0.0
    scope = Scope(backend.fixed_shapes, backend.adapt, caps=caps)
    number = zlib.crc32(check.name.encode()) ^ seed_number
    examples = max(1, round(max_examples * check.weight))
    search = _Search(check, backend, verdict, survey)
    search.run(scope, examples, number, shrink and not survey)
    for again in range(1, MORE + 1):
        if survey or search.failure or search.lacks or not _too_few(check, backend, verdict):
            break
        search.run(scope, examples, number + again, shrink)
    if search.failure and shrink and not survey:
        _try_smaller_worlds(search, scope, examples, number)
    if search.failure:
        verdict.status = "failed"
        verdict.reason, verdict.case, worst = search.failure
        if not survey:
            verdict.worst = worst
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


class _Search:
    """Runs a check over examples until one fails, or over all of them in a survey."""

    def __init__(self, check: Check, backend: Backend, verdict: Verdict, survey: bool):
        self.check, self.backend, self.verdict, self.survey = check, backend, verdict, survey
        self.failure: tuple[str, Any, Comparison | None] | None = None
        self.lacks = ""

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
            if self.lacks and not failed:
                return  # one example tells that the backend lacks it
            if counting and not failed:
                self.count(case)
            try:
                reason, worst = _judge(self.check, self.backend, case, self.verdict.not_compared)
            except Unsupported as missing:
                # While a failure is made small it means only that this way leads nowhere.
                self.lacks = str(missing)
                return
            before = self.verdict.worst
            if worst is not None and counting and (before is None or worst.ratio > before.ratio):
                self.verdict.worst = worst
            if reason:
                failed, self.failure = True, (reason, case, worst)
                if not self.survey:
                    raise AssertionError(reason)

        try:
            examine()
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


def _judge(
    check: Check, backend: Backend, case: Any, not_compared: set[str]
) -> tuple[str, Comparison | None]:
    """Why the case fails, or nothing; and its worst comparison."""
    try:
        # Numbers that are not finite are found by the comparisons.
        with np.errstate(all="ignore"):
            comparisons = check.holds(backend, case)
    except Unsupported:
        raise
    except Violation as violation:
        return str(violation), None
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever a backend raises on a legal call is a violation
        where = traceback.format_exception(error)[-6:]
        return f"{type(error).__name__}: {error}\n{''.join(where)}", None
    not_compared.update(c.name for c in comparisons if not c.compared)
    comparisons = [c for c in comparisons if c.compared]
    worst = max(comparisons, key=lambda c: c.ratio, default=None)
    # The first thing that is wrong explains more than the worst: later ones follow from it.
    wrong = next((c for c in comparisons if not c.passed), None)
    return (str(wrong) if wrong else ""), worst
