"""How fast a model reads and writes on this machine, and how fast the machine reads memory.

The tests are named as llama-bench names them: ``pp512`` reads a prompt of 512 tokens, ``tg128``
generates 128 tokens one after the other, ``tg128 @ d4096`` does so after 4096 others, ``tg128 b8``
for eight texts at once. Generation is timed with all that it consists of in ``griffin-np
generate``: the loop, sampling and log-probabilities.

A generated token needs every weight once, so what limits it is how fast the machine reads memory.
That ceiling drifts on a machine that others use too: it is measured before and after every
repetition of a test, and the test is compared with the mean of these.
"""

import contextlib
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from griffin_kernels.cpu.ceiling import read_ceiling
from griffin_kernels.cpu.pool import pool, set_threads
from griffin_np.base import Model
from griffin_np.generate import PREFILL_STEP, Run
from griffin_np.sampling import Sampler
from griffin_np.state import State

__all__ = ["Test", "bench", "peak_rss", "state_at"]


@dataclass(frozen=True)
class Test:
    """What is measured.

    Parameters
    ----------
    kind : {"pp", "tg"}
        Reading a prompt, or generating.
    n : int
        Tokens that count, for each text.
    depth : int
        Tokens before them, which do not count.
    batch : int
        Texts at once.
    """

    kind: str
    n: int
    depth: int = 0
    batch: int = 1

    @property
    def name(self) -> str:
        depth = f" @ d{self.depth}" if self.depth else ""
        return f"{self.kind}{self.n}{depth}" + (f" b{self.batch}" if self.batch > 1 else "")


def bench(
    model: Model,
    tests: Sequence[Test],
    repetitions: int = 5,
    threads: int | None = None,
    progress: Callable[[str], object] = lambda name: None,
) -> dict:
    """Measure.

    Parameters
    ----------
    model : Model
    tests : sequence of Test
    repetitions : int
        Of each test, after a short one that does not count.
    threads : int, optional
        Of the CPU engine and of the ceiling; by default one for each physical core.
    progress : callable
        Called with the name of a test after each repetition.

    Returns
    -------
    dict
        "machine", "model" and "results" as JSON values. Speeds count the tokens of all texts.
        ``weights_gbps`` and ``fraction_of_ceiling`` are None for prompts: those are limited by
        arithmetic. ``peak_rss_bytes`` is the process's peak during the test on Linux, elsewhere its
        peak so far, and None where the system does not tell.
    """
    if threads is not None:
        set_threads(threads)
    rng = np.random.default_rng(0)
    states: dict[int, State] = {}
    ceilings: list[float] = []
    results = []
    for test in tests:
        if test.depth not in states:
            states[test.depth] = state_at(model, test.depth, rng)
        found = _measure(model, test, states[test.depth], repetitions, rng, progress)
        ceilings += found.ceilings
        results.append(_result(model, test, found))
    return {
        "machine": {
            "cpu": cpu_name(),
            "threads": pool().threads,
            "read_ceiling_gbps": statistics.median(ceilings),
        },
        "model": {
            "parameters": model.config.num_parameters(),
            "weight_bytes": model.weight_bytes,
            "state_bytes": model.init_state(1).nbytes,
        },
        "results": results,
    }


@dataclass(frozen=True)
class _Found:
    """Tokens per second of each repetition, the ceilings around them, and the peak memory."""

    speeds: list[float]
    ceilings: list[float]
    peak: int | None


def _measure(
    model: Model,
    test: Test,
    start: State,
    repetitions: int,
    rng: np.random.Generator,
    progress: Callable[[str], object],
) -> _Found:
    run = _read if test.kind == "pp" else _write
    few = min(test.n, PREFILL_STEP if test.kind == "pp" else 2)
    run(model, few, start.fork(test.batch), rng)
    speeds: list[float] = []
    ceilings, peaks = [read_ceiling()], []
    for _ in range(repetitions):
        state = start.fork(test.batch)  # a copy, for the run may change it
        _reset_peak()
        speeds.append(test.batch * test.n / run(model, test.n, state, rng))
        peaks.append(peak_rss())
        ceilings.append(read_ceiling())
        progress(test.name)
    known = [peak for peak in peaks if peak is not None]
    return _Found(speeds, ceilings, max(known, default=None))


def _result(model: Model, test: Test, found: _Found) -> dict:
    speeds = found.speeds
    speed = statistics.mean(speeds)
    # Every step reads all weights once for the whole batch; the embedding is the head, too.
    gbps = model.weight_bytes * speed / test.batch / 1e9 if test.kind == "tg" else None
    return {
        "test": test.name,
        "kind": test.kind,
        "n": test.n,
        "depth": test.depth,
        "batch": test.batch,
        "tokens_per_second": speed,
        "tokens_per_second_std": statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        "weights_gbps": gbps,
        "fraction_of_ceiling": None if gbps is None else gbps / statistics.mean(found.ceilings),
        "peak_rss_bytes": found.peak,
    }


def _read(model: Model, n: int, state: State, rng: np.random.Generator) -> float:
    """Seconds to read n random tokens, in the steps in which a prompt is read."""
    tokens = rng.integers(model.config.vocab_size, size=(state.batch, n))
    began = time.perf_counter()
    _advance(model, tokens, state)
    return time.perf_counter() - began


def _advance(model: Model, tokens: NDArray, state: State) -> State:
    for start in range(0, tokens.shape[1], PREFILL_STEP):
        _, state = model.advance(tokens[:, start : start + PREFILL_STEP], None, state, "last")
    return state


def _write(model: Model, n: int, state: State, rng: np.random.Generator) -> float:
    """Seconds to generate n tokens, after one that is given: n steps of one token each."""
    first = rng.integers(model.config.vocab_size, size=(state.batch, 1)).tolist()
    seed = int(rng.integers(2**32))
    run = Run(model, first, max_tokens=n, seed=seed, ignore_eos=True, state=state, sampler=Varied())
    began = time.perf_counter()
    for _ in run.steps():
        pass
    return time.perf_counter() - began


class Varied(Sampler):
    """Does all that greedy sampling does, then takes a random token instead.

    Random weights soon repeat one token, whose embedding would then stay in the cache.
    """

    def sample(self, logits: ArrayLike, history: Sequence[int], rng: np.random.Generator) -> int:
        super().sample(logits, history, rng)
        return int(rng.integers(len(np.asarray(logits))))


def state_at(model: Model, depth: int, rng: np.random.Generator) -> State:
    """The state of one text after ``depth`` tokens, as far as time can tell.

    The last ``window + 64`` tokens are really read. Where there are more, they continue a state of
    random numbers at the position that it would have. No key or value of it is left in the window
    after them, nor an input of the convolution; what is left is a trace of it in the recurrence,
    which does the same arithmetic whatever the numbers are. So the work after this state is that
    after ``depth`` tokens read, and a depth of a million takes no longer to reach than one of a few
    thousand.
    """
    real = min(depth, model.config.window + 64)
    state = model.init_state(1)
    if depth > real:
        arrays = {
            name: (0.1 * rng.standard_normal(array.shape, np.float32)).astype(array.dtype)
            for name, array in state.arrays().items()
        }
        state = state.with_arrays(arrays, np.array([depth - real]))
    return _advance(model, rng.integers(model.config.vocab_size, size=(1, real)), state)


def _reset_peak() -> None:
    """Let the peak memory start anew from what is in use now, where Linux permits it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int | None:
    """Peak resident bytes of this process, since the last reset where there is one."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cpu_name() -> str:
    """The processor's name as its maker gives it."""
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1].strip()
    if platform.system() == "Darwin":
        done = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True
        )
        if done.stdout.strip():
            return done.stdout.strip()
    return platform.processor() or platform.machine() or f"{os.cpu_count()} processors"
