"""How long to wait for an engine, and when to stop asking one that fails again and again.

A suite asks thousands of times, and a failure is made small by asking for variants of it: without
this, an engine that hangs would cost a minute for each.
"""

from collections import defaultdict

__all__ = ["Patience"]

STARTS = 3
"""So many starts, or methods, in a row without one good reply, and the engine is given up."""

LOST = 30.0
"""Seconds that failures of one method may cost after its first, restarts included."""

SHORTEST = 2.0
"""Least time for one answer of a method that has hung before, and the time for ``shutdown``."""


class Patience:
    """What an engine has failed at so far.

    Parameters
    ----------
    seconds : float
        For one answer.

    Attributes
    ----------
    given_up : str
        Why the engine is not asked for anything any more, if so.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.given_up = ""
        self._failed_starts = 0
        self._fruitless: set[str] = set()
        self._failures: dict[str, int] = defaultdict(int)
        self._lost: dict[str, float] = defaultdict(float)
        self._hung: set[str] = set()
        self._last: dict[str, str] = {}
        self._slowest = 0.0

    def limit(self, method: str) -> float:
        """Seconds for one answer: fewer for a method that has hung before."""
        if method == "shutdown":
            return min(self.seconds, SHORTEST)
        if method in self._hung:
            return min(self.seconds, max(SHORTEST, 10 * self._slowest))
        return self.seconds

    def refusal(self, method: str) -> str:
        """Why a method is not asked for any more, or nothing."""
        if self.given_up:
            return self.given_up
        if self._lost[method] <= LOST:
            return ""
        return (
            f"the engine failed at {method!r} {self._failures[method]} times and is not asked for "
            f"it again; the last time {self._last[method]}"
        )

    def replied(self, method: str, seconds: float) -> None:
        """There was a reply, after so many seconds."""
        self._slowest = max(self._slowest, seconds)
        if method not in ("hello", "free"):
            self._fruitless.clear()

    def started(self, failure: str = "") -> None:
        """A start succeeded, or failed."""
        self._failed_starts = self._failed_starts + 1 if failure else 0
        if self._failed_starts >= STARTS:
            self.given_up = (
                f"the engine failed at {STARTS} starts in a row and is not started again; the "
                f"last time {failure}"
            )

    def hung(self, method: str) -> None:
        """There was no answer in time."""
        self._hung.add(method)

    def failed(self, method: str, failure: str, seconds: float, ended: bool) -> None:
        """An answer was missing or wrong; ``ended`` says whether that ended the engine."""
        if self._failures[method]:
            self._lost[method] += seconds
        self._failures[method] += 1
        self._last[method] = failure
        if ended:
            self._fruitless.add(method)
        if len(self._fruitless) >= STARTS and not self.given_up:
            self.given_up = (
                f"the engine failed at {', '.join(sorted(self._fruitless))} without one good reply "
                f"in between and is not asked again; the last time {failure}"
            )
