"""The threads that compiled kernels run on.

Numba's own parallel loops go through a threading layer that may not be called from two Python
threads, or after a fork, depending on what is installed. Here threads are Python's, waiting for
work; kernels release the interpreter lock and meet in :mod:`griffin_kernels.cpu.sync`. Work of
several Python threads is done one after the other, for each of them would want all cores.
"""

import functools
import os
import platform
import queue
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from griffin_kernels.cpu.sync import SYNC_SIZE
from griffin_np.errors import ConfigError

__all__ = ["Pool", "physical_cores", "pool", "set_threads"]


@functools.cache
def physical_cores() -> int:
    """Physical cores that this process may use; fast ones only, where the system tells them apart.

    Two threads of one core share its vector units, and slow cores would let the fast ones wait.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        cores = set()
        for cpu in allowed:
            path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            try:
                cores.add(path.read_text().strip())
            except OSError:
                cores.add(str(cpu))
        return max(1, len(cores))
    if platform.system() == "Darwin":
        for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
            done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True)
            if done.returncode == 0 and done.stdout.strip().isdigit():
                return max(1, int(done.stdout))
    return max(1, (os.cpu_count() or 2) // 2)


_busy = threading.RLock()
"""One for all pools: models keep their buffers when the number of threads changes."""


class _Job:
    """One run of a function on all threads."""

    def __init__(self, function: Callable, arguments: tuple):
        self.function, self.arguments = function, arguments
        self.claim = threading.Lock()  # taken once, by who runs the job
        self.done = threading.Semaphore(0)
        self.finished = False
        self.error: BaseException | None = None


class Pool:
    """A number of threads that run the same compiled function, each with its part.

    The calling thread only waits. Were it to compute too, Ctrl-C could stop it after the others
    have started, and they would wait for it at a barrier for ever.

    Parameters
    ----------
    threads : int
        At least 1.

    Attributes
    ----------
    busy : lock
        Held while work is done; who prepares buffers for it holds it, too.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self.sync = np.zeros(SYNC_SIZE, np.int64)
        self.busy = _busy
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._running = False

    def run(self, function: Callable, *arguments) -> None:
        """Call ``function(part, parts, sync, *arguments)`` for every part at the same time.

        The function must release the interpreter lock. An interrupt is raised when it has ended:
        kernels write to memory that the caller keeps alive.
        """
        with self.busy:
            if not self._running:
                threading.Thread(target=self._lead, name="griffin-0", daemon=True).start()
                self._running = True
            job = _Job(function, arguments)
            interrupt: BaseException | None = None
            while not job.finished:
                try:
                    self._jobs.put(job)  # once more after an interrupt: it may have come before
                    job.done.acquire()
                except KeyboardInterrupt as error:
                    interrupt = error
            if job.error is not None:
                raise job.error
            if interrupt is not None:
                raise interrupt

    def _lead(self) -> None:
        """Run jobs, with part 0 here and a thread for each other part."""
        current: list[_Job] = []
        starts = [threading.Semaphore(0) for _ in range(self.threads - 1)]
        ends = threading.Semaphore(0)

        def follow(part: int, start: threading.Semaphore) -> None:
            while True:
                start.acquire()
                self._call(current[0], part)
                ends.release()

        for part, start in enumerate(starts, 1):
            threading.Thread(
                target=follow, args=(part, start), name=f"griffin-{part}", daemon=True
            ).start()
        while True:
            job = self._jobs.get()
            if not job.claim.acquire(blocking=False):
                continue
            current[:] = [job]
            for start in starts:
                start.release()
            self._call(job, 0)
            for _ in starts:
                ends.acquire()
            current.clear()
            job.finished = True
            job.done.release()
            del job

    def _call(self, job: _Job, part: int) -> None:
        try:
            job.function(part, self.threads, self.sync, *job.arguments)
        except BaseException as error:  # the caller's thread raises it
            job.error = error


_pools: dict[int, Pool] = {}
_wanted: int | None = None
_lock = threading.Lock()


def pool() -> Pool:
    """The threads of this process, as many as :func:`set_threads` or ``GRIFFIN_NP_THREADS`` says.

    By default there is one for each physical core.
    """
    asked = os.environ.get("GRIFFIN_NP_THREADS") or "0"
    if not asked.isdigit():
        raise ConfigError(f"GRIFFIN_NP_THREADS must be a number of threads, got {asked!r}")
    wanted = _wanted or int(asked) or physical_cores()
    with _lock:
        if wanted not in _pools:
            _pools[wanted] = Pool(wanted)
        return _pools[wanted]


def set_threads(threads: int | None) -> None:
    """Use this many threads from the next call on; None leaves it to :func:`pool`.

    Raises
    ------
    ConfigError
        If the number is less than 1.
    """
    global _wanted
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    _wanted = threads


def _after_fork() -> None:
    """A child process has none of its parent's threads."""
    global _busy, _lock
    _busy, _lock = threading.RLock(), threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
