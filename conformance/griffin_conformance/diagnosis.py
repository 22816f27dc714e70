"""Which misunderstanding explains a failure, and which clauses a backend most likely violates."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from griffin_conformance import oracle, worlds
from griffin_conformance.backends import Backend, Unsupported
from griffin_conformance.envelope import the_spread_alone_counts
from griffin_conformance.readings import READINGS, RIGHT, Reading

if TYPE_CHECKING:
    from griffin_conformance.checks import Check, Verdict

__all__ = ["Cause", "explain", "in_order_of_suspicion", "read_as"]


@dataclass(frozen=True)
class Cause:
    """What a failing backend does, as far as its results tell.

    Attributes
    ----------
    says : str
    clauses : tuple of str
        Of the readings that explain the failure; more than one if its cases cannot tell them apart.
    """

    says: str
    clauses: tuple[str, ...]


@contextlib.contextmanager
def read_as(reading: Reading) -> Iterator[None]:
    """Put a reading in the oracle's place, for checks that hold a backend against the oracle."""
    # Not above: these register checks, which stand in the order of checks.MODULES.
    from griffin_conformance import blocks, recurrences

    start, history = oracle.Oracle.__init__, worlds._history
    cached = (worlds._truth, history, blocks._envelope, recurrences._scan_envelopes)
    caches = {cache: cache.cache_info().misses for cache in cached}

    def begin(self, flat, config, *rest, **options):
        if reading.config:
            config = SimpleNamespace(**vars(config), block_types=config.block_types)
            reading.config(config)
        start(self, flat, config, *rest, **options)
        if reading.parameters:
            self.p = reading.parameters(self.p)

    def other_history(world, profile, document, first):
        # What rounding may do is as before; only the truth is another.
        right = history(world, profile, document, first)
        given = worlds.truth_profile(profile)
        truth = worlds._truth.__wrapped__(world, given, document, first)
        return {
            name: replace(envelope, truth=truth[name].reshape(envelope.truth.shape))
            for name, envelope in right.items()
        }

    oracle.Oracle.__init__ = begin  # type: ignore[method-assign]
    worlds._history = other_history  # type: ignore[assignment]
    for name, function in reading.functions.items():
        setattr(oracle, name, function)
    try:
        with the_spread_alone_counts(), np.errstate(all="ignore"):
            yield
    finally:
        oracle.Oracle.__init__ = start  # type: ignore[method-assign]
        worlds._history = history
        for name in reading.functions:
            setattr(oracle, name, RIGHT[name])
        for cache, misses in caches.items():
            if cache.cache_info().misses != misses:
                cache.cache_clear()  # it may hold what the reading came to


IN_STATES = ("ROPE-4", "RGLRU-7")
"""Clauses whose misreading may show in states and at late positions only."""

NEARER = 1e-3
"""A reading explains a failure if it is wrong by less than this share of it, and by little."""

NEAR_ENOUGH = 10.0
"""What that is: rounding may do more to a reading than to the truth."""


def explain(
    check: "Check", backend: Backend, cases: Sequence[Any], suspects: list[Reading]
) -> Cause | None:
    """The readings under which every one of some failing cases passes.

    Parameters
    ----------
    check : Check
        One that holds the backend against the oracle.
    backend : Backend
    cases : sequence
        Failing cases.
    suspects : list of Reading
        What explained earlier failures: tried first, and others only if none of them explains
        this one too. Readings that are found to are added.
    """
    cases = sorted(cases, key=_size)
    # What operations, blocks and whole texts would have shown is not looked for again in states.
    others = [r for r in READINGS if check.level != "L3" or r.clause in IN_STATES]
    wrong = [_ratio(check, backend, case) for case in cases]
    # A case that passes when it is run again tells nothing: every reading might explain it.
    cases = [case for case, ratio in zip(cases, wrong, strict=True) if ratio > 1]
    wrong = [ratio for ratio in wrong if ratio > 1]
    if not cases:
        return None
    for candidates in (list(suspects), [r for r in others if r not in suspects]):
        found = candidates
        for case, ratio in zip(cases, wrong, strict=True):
            limit = max(1.0, min(NEAR_ENOUGH, NEARER * ratio))
            found = [r for r in found if _ratio(check, backend, case, r) <= limit]
        if found:
            suspects += [r for r in found if r not in suspects]
            return Cause(
                "; or it ".join(dict.fromkeys(reading.says for reading in found)),
                tuple(dict.fromkeys(reading.clause for reading in found)),
            )
    return None


def _size(case: Any) -> int:
    """How much there is to compute."""
    world = getattr(case, "world", None)
    return world.config.num_parameters() * max(world.lengths) if world else 0


def _ratio(check: "Check", backend: Backend, case: Any, reading: Reading | None = None) -> float:
    """Worst observed / allowed under a reading."""
    try:
        with read_as(reading) if reading else contextlib.nullcontext():
            comparisons = check.holds(backend, case)
    except Unsupported:
        return np.inf
    except (Exception, SystemExit):  # a reading may be impossible for a case, as a window of -1 is
        return np.inf
    return max((c.ratio for c in comparisons if c.compared), default=np.inf)


FIRST, LATER = 1.0, 0.7
"""How much a failing check tells about the clause that it names first, and about the others."""

PART = 0.3
"""How much it tells about the clause of a part of the model that breaks a law by itself."""

UNSURE = 0.2
"""How much less a check tells that relies on what another failed check tests."""

CAUSAL = ("nothing-sees-the-future", "the-window-shows-w-past-tokens")
CUT = (*CAUSAL, "decoding-continues-a-prompt", "any-chunking")
PACKED = (*CAUSAL, "packed-documents")
LAID_OUT = (*CUT, *PACKED, "padding-on-the-left", "padding-anywhere")
TRUE = ("L0", "L1", "whole-texts")
RELIES: dict[str, tuple[str, ...]] = {
    "recurrent-blocks": ("L0",),
    "attention-blocks": ("L0",),
    "recurrences": ("gates", "decays", "scans"),
    "whole-texts": ("L0", "L1"),
    "the-window-shows-w-past-tokens": ("nothing-sees-the-future",),
    "decoding-continues-a-prompt": CAUSAL,
    "any-chunking": (*CAUSAL, "decoding-continues-a-prompt"),
    "packed-documents": CAUSAL,
    "decoding-continues-packed-documents": (*CUT, *PACKED),
    "padding-on-the-left": CAUSAL,
    "decoding-continues-padded-rows": (*CUT, "padding-on-the-left"),
    "padding-anywhere": (*CUT, *PACKED, "padding-on-the-left"),
    "rows-are-independent": LAID_OUT,
    "calls-are-pure": (*LAID_OUT, "nothing-stays-in-the-model"),
    "compiled-as-written": (*CUT, "nothing-stays-in-the-model"),
    "last-logits": (*LAID_OUT, "rows-are-independent"),
    "impossible-calls-are-refused": CUT,
    "refusals-name-the-place": ("impossible-calls-are-refused",),
    "state-values": (*TRUE, *LAID_OUT),
    "saved-states-continue": (*CUT, "nothing-stays-in-the-model"),
    "forks-are-independent": (*LAID_OUT, "nothing-stays-in-the-model"),
    "sessions-do-not-mix": CUT,
    "position-0-forgets": PACKED,
    "late-positions": (*TRUE, *CUT),
    "foreign-states-are-refused": (*CUT, "impossible-calls-are-refused"),
    "states-evolve": (*TRUE, *CUT, "state-values"),
    "best-tokens": TRUE,
    "greedy-text": (*TRUE, *LAID_OUT, "decoding-continues-padded-rows", "best-tokens"),
    "seeds-repeat": (*LAID_OUT, "rows-are-independent", "greedy-text"),
    "rows-stop-by-themselves": (*TRUE, *LAID_OUT, "best-tokens", "greedy-text"),
    "turns-end": (*TRUE, *LAID_OUT, "best-tokens", "greedy-text", "rows-stop-by-themselves"),
}
"""Checks, or levels, without which a check cannot pass, or would not mean what it says."""


def in_order_of_suspicion(verdicts: Sequence["Verdict"]) -> list[str]:
    """Clauses that failed, the most suspicious first.

    What a misreading names that explains failures comes first. The others are ranked as statements
    of a program are that fails some of its tests (Ochiai's coefficient; Abreu et al. 2007): a
    clause is suspicious if the checks that cite it fail, and few others do. A check that relies on
    what another failed check tests tells less.
    """
    failed: dict[str, float] = defaultdict(float)
    passed: dict[str, float] = defaultdict(float)
    named: dict[str, float] = defaultdict(float)
    order: dict[str, int] = {}
    judged = [v for v in verdicts if v.status != "skipped" and not v.inconclusive]
    broken = {v.check.name for v in judged if v.failed}
    broken_levels = {v.check.level for v in judged if v.failed}
    total = 0.0
    for verdict in judged:
        check = verdict.check
        relies = RELIES.get(check.name, TRUE if check.level in ("L4", "L5") else ())
        unsure = bool(broken_levels & set(relies) or broken & set(relies) - {check.name})
        # What a failure itself names needs nothing else to be right.
        direct = bool(verdict.violated) and not verdict.by_part
        share = UNSURE if unsure and not direct else 1.0
        total += share * verdict.failed
        suspects = verdict.suspects or check.clauses
        for place, clause in enumerate(suspects if verdict.failed else check.clauses):
            order.setdefault(clause, len(order))
            weight = LATER if place else FIRST
            if not verdict.failed:
                passed[clause] += weight
                continue
            if verdict.by_part:
                weight = PART
            failed[clause] += share * weight
            if verdict.cause:
                # Of two readings that explain the same failure each is half as likely.
                named[clause] += 1 / len(suspects)

    def suspicion(clause: str) -> float:
        return failed[clause] / (total * (failed[clause] + passed[clause])) ** 0.5

    return sorted(failed, key=lambda c: (-named[c], -suspicion(c), order[c]))
