"""Timing beside a ceiling, for the ladders."""

import statistics
import time
from collections.abc import Callable

__all__ = ["in_turns"]


def in_turns(
    run: Callable[[], object], ceiling: Callable[[], object], repeat: int
) -> tuple[float, float]:
    """Median time of a call, and of the ceiling's time over it, each after one that does not count.

    They are called in turns, because the machine's speed drifts.
    """
    run(), ceiling()
    times, ratios = [], []
    for _ in range(repeat):
        began = time.perf_counter()
        ceiling()
        between = time.perf_counter()
        run()
        times.append(time.perf_counter() - between)
        ratios.append((between - began) / times[-1])
    return statistics.median(times), statistics.median(ratios)
