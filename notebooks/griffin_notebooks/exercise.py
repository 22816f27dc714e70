"""What an exercise is: a question, its solution, cases to try an answer on, and known mistakes.

An answer is graded as the conformance suite grades a backend: Hypothesis draws cases, the smallest
that fails is shown, and if an answer behaves on all cases as a known mistake does, that mistake is
named.
"""

import copy
import html
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

__all__ = ["EXAMPLES", "Exercise", "Outcome", "difference", "exercise"]

EXAMPLES = 60
"""Cases that an answer is tried on."""

HALF_THE_DIGITS = float(np.sqrt(np.finfo(np.float64).eps))
"""What an answer may be off, relative to the largest value: any right way to compute something in
float64 keeps half the digits, and no mistake worth a name is as small."""


@dataclass(frozen=True)
class Outcome:
    """What a check says of an answer; true if the answer is right."""

    number: str
    verdict: str
    """``right``, ``wrong`` or ``waiting``."""
    says: str

    def __bool__(self) -> bool:
        return self.verdict == "right"

    def __repr__(self) -> str:
        return f"Exercise {self.number}: {self.says}"

    def _repr_html_(self) -> str:
        colour = {"right": "#2a9d5c", "wrong": "#d1495b", "waiting": "#8a8f98"}[self.verdict]
        mark = {"right": "✓", "wrong": "✗", "waiting": "…"}[self.verdict]
        first, *more = self.says.split("\n")
        rest = f"<pre style='margin:.4em 0 0'>{html.escape(chr(10).join(more))}</pre>" * bool(more)
        return (
            f"<div style='border-left:4px solid {colour};padding:.3em .8em'>"
            f"<b style='color:{colour}'>{mark} Exercise {self.number}</b> "
            f"{html.escape(first)}{rest}</div>"
        )


def difference(found: Any, expected: Any, where: str = "the answer") -> str:
    """How something differs from what was expected, in words; empty if it does not.

    Numbers may differ by half the digits of float64, relative to the largest of their array; counts
    may not differ.
    """
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping) or set(found) != set(expected):
            return f"{where} is {_short(found)}, expected a dict with the keys {sorted(expected)}"
        pairs = [(found[key], expected[key], f"{where}[{key!r}]") for key in expected]
    elif isinstance(expected, tuple | list) and not _is_numeric(expected):
        if not isinstance(found, tuple | list) or len(found) != len(expected):
            return f"{where} is {_short(found)}, expected {len(expected)} values"
        pairs = [
            (f, e, f"{where}[{i}]") for i, (f, e) in enumerate(zip(found, expected, strict=True))
        ]
    else:
        return _differs(found, expected, where)
    return next((d for d in (difference(*pair) for pair in pairs) if d), "")


def _is_numeric(values: Sequence) -> bool:
    return bool(values) and all(isinstance(v, int | float | np.number) for v in values)


def _differs(found: Any, expected: Any, where: str) -> str:
    if isinstance(expected, str | bytes | bool | np.bool_) or expected is None:
        same = type(found) is type(expected) or isinstance(expected, bool | np.bool_)
        return "" if same and found == expected else f"{where} is {found!r}, expected {expected!r}"
    try:
        given, wanted = np.asarray(found), np.asarray(expected)
        if wanted.dtype == object and not isinstance(expected, int):
            return "" if found == expected else f"{where} is not what was expected"
        counts = wanted.dtype.kind in "iuO"  # however large, they are right or wrong
        if counts and given.shape == wanted.shape and np.all(given == wanted):
            return ""
        wanted, given = wanted.astype(float), given.astype(float)
    except (TypeError, ValueError):
        return f"{where} is {_short(found)}, expected {_short(expected)}"
    if given.shape != wanted.shape:
        return f"{where} has shape {given.shape}, expected {wanted.shape}"
    if wanted.size == 0:
        return ""
    if np.any(np.isnan(given) & ~np.isnan(wanted)):
        return f"{where} holds NaN (not a number)"
    finite = np.isfinite(wanted)
    size = np.max(np.abs(wanted[finite]), initial=0.0)
    same = (given == wanted) | (np.isnan(given) & np.isnan(wanted))
    off = np.full(wanted.shape, np.inf)
    np.subtract(given, wanted, out=off, where=finite & np.isfinite(given))
    off = np.where(same, 0.0, np.abs(off))
    allowed = HALF_THE_DIGITS * max(size, np.finfo(np.float64).tiny)
    if not counts and np.max(off) <= allowed:
        return ""
    worst = np.unravel_index(np.argmax(off), off.shape)
    place = f"[{', '.join(map(str, worst))}]" if worst else ""
    digits = 17 if off[worst] <= 1e-5 * size else 6  # as many as show the difference
    return f"{where}{place} is {given[worst]:.{digits}g}, expected {wanted[worst]:.{digits}g}"


def _short(value: Any, limit: int = 300) -> str:
    with np.printoptions(precision=4, threshold=40, edgeitems=3, suppress=True):
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class _Missed(Exception):
    """A case on which an answer is wrong."""


class Exercise:
    """A question whose answers can be checked. Called with an answer, it gives an Outcome.

    Made by :func:`exercise`.

    Attributes
    ----------
    number : str
        ``"3.1"``.
    solution : callable
        Or, without cases, a callable that takes nothing and gives the value asked for.
    cases : strategy of tuples, or None
        Arguments to try an answer on.
    mistakes : dict of str to callable
        What somebody may do instead, and how that is explained.
    """

    def __init__(self, number: str, solution: Callable, cases, mistakes: dict[str, Callable]):
        self.number, self.solution, self.cases, self.mistakes = number, solution, cases, mistakes
        self.__doc__, self.__name__ = solution.__doc__, f"ex_{number.replace('.', '_')}"

    @property
    def source(self) -> str:
        """The solution, as a learner would write it."""
        code = textwrap.dedent(inspect.getsource(self.solution))
        return code[re.search(r"^def ", code, re.MULTILINE).start() :].rstrip()

    def __call__(self, answer: Any) -> Outcome:
        """Check an answer: a function of the case's arguments, or the value that is asked for."""
        if answer is ...:
            return self._outcome("waiting", "still to be answered.")
        if self.cases is None:
            return self._check_value(answer)
        if not callable(answer):
            return self._outcome("wrong", f"a function is asked for, not {_short(answer)}.")
        return self._check_function(answer)

    def _check_value(self, answer: Any) -> Outcome:
        if callable(answer):
            return self._outcome("wrong", "a value is asked for, not a function: call it.")
        told = difference(answer, self.solution())
        if not told:
            return self._outcome("right", "that is right.")
        for says, mistake in self.mistakes.items():
            if not difference(answer, mistake()):
                return self._outcome("wrong", says)
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            # The value itself is for the learner to find.
            low = answer < self.solution()
            return self._outcome("wrong", f"{_short(answer)} is too {'small' if low else 'large'}.")
        return self._outcome("wrong", f"{_short(answer)} is not right.")

    def _check_function(self, answer: Callable) -> Outcome:
        seen: list[tuple[tuple, Any]] = []
        last: dict[str, Any] = {}

        @settings(
            max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
            phases=(Phase.generate, Phase.shrink), report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(self.cases)
        def matches(case: tuple) -> None:
            arguments = copy.deepcopy(case)
            try:
                found = answer(*arguments)
            except Exception as error:
                last.update(case=case, told=f"it raises {type(error).__name__}: {error}")
                raise _Missed from None
            if found is None or found is ...:
                last.update(case=case, told="waiting")
                raise _Missed
            seen.append((case, found))
            told = difference(found, self.solution(*copy.deepcopy(case)))
            if not told and difference(arguments, case):
                told = "it changes what it was given: work on a copy"
            if told:
                last.update(case=case, told=told)
                raise _Missed

        try:
            matches()
        except _Missed:
            pass
        else:
            return self._outcome("right", f"right on all of {EXAMPLES} drawn cases.")
        if last["told"] == "waiting":
            return self._outcome("waiting", "still to be answered: the function returns nothing.")
        names = list(inspect.signature(self.solution).parameters)
        case = "\n".join(f"  {n} = {_short(v)}" for n, v in zip(names, last["case"], strict=False))
        why = self._explained(seen)
        shown = f"{why}\nSmallest case found:\n{case}\n{last['told']}"
        return self._outcome("wrong", shown)

    def _explained(self, seen: list[tuple[tuple, Any]]) -> str:
        """The first mistake that gives, on all cases, what the answer gave."""
        for says, mistake in self.mistakes.items():
            if seen and all(_agrees(mistake, case, found) for case, found in seen):
                return says
        return "not yet."

    def _outcome(self, verdict: str, says: str) -> Outcome:
        return Outcome(self.number, verdict, says)


def _agrees(mistake: Callable, case: tuple, found: Any) -> bool:
    try:
        return not difference(found, mistake(*copy.deepcopy(case)))
    except Exception:
        return False


def exercise(
    number: str, *, cases: st.SearchStrategy | None = None, mistakes: dict[str, Callable]
) -> Callable[[Callable], Exercise]:
    """Make a function the solution of an exercise.

    Parameters
    ----------
    number : str
        Notebook and place in it, ``"3.1"``.
    cases : strategy, optional
        Tuples of arguments. Without it the solution takes nothing, and its value is asked for.
    mistakes : dict of str to callable
        At least three plausible wrong answers, each by a sentence that tells the learner what such
        an answer does, and what to think of.
    """
    return lambda solution: Exercise(number, solution, cases, mistakes)
