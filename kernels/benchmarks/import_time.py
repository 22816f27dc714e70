#!/usr/bin/env python3
"""What ``import griffin_np`` costs above ``import numpy``: whole processes, in turn.

    python kernels/benchmarks/import_time.py [RUNS]

Prints medians in milliseconds and exits with 1 if the difference is above the 30 ms that the
project allows itself.
"""

import statistics
import subprocess
import sys
import time

ALLOWED_MS = 30


def once(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (time.perf_counter() - started) * 1e3


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    codes = ("import numpy", "import griffin_np")
    times = {code: [] for code in codes}
    for i in range(runs + 1):
        for code in codes:
            elapsed = once(code)
            if i:  # the first round only fills the caches
                times[code].append(elapsed)
    for code in codes:
        print(f"{code:<18} {statistics.median(times[code]):6.1f} ms")
    above = statistics.median(b - a for a, b in zip(*times.values(), strict=True))
    print(f"{'difference':<18} {above:6.1f} ms (median of pairs; allowed {ALLOWED_MS})")
    return int(above > ALLOWED_MS)


if __name__ == "__main__":
    sys.exit(main())
