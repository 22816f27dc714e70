"""The threads that compiled kernels run on.

Numba's own parallel loops go through a threading layer that may not be called from two Python
threads, or after a fork, depending on what is installed. Here threads are Python's, waiting for
work; kernels release the interpreter lock and meet in :mod:`griffin_kernels.cpu.sync`. Work of
several Python threads is done one after the other, for each of them would want all cores.
"""

import os
import platform
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from griffin_kernels.cpu.sync import SYNC_SIZE
from griffin_np.errors import ConfigError

__all__ = ["Pool", "physical_cores", "pool", "set_threads"]


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


class Pool:
    """A number of threads that run the same compiled function, each with its part.

    Parameters
    ----------
    threads : int
        At least 1; the calling thread is one of them.

    Attributes
    ----------
    busy : lock
        Held while work is done; who prepares buffers for it holds it, too.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self.sync = np.zeros(SYNC_SIZE, np.int64)
        self.busy = _busy
        self._starts = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._finished = threading.Semaphore(0)
        self._job: tuple[Callable, tuple] | None = None
        self._error: BaseException | None = None
        self._running = False

    def run(self, function: Callable, *arguments) -> None:
        """Call ``function(part, parts, sync, *arguments)`` for every part at the same time.

        The function must release the interpreter lock, and must have been compiled for these
        types, so that no thread waits in a barrier for one that still compiles.
        """
        with self.busy:
            if not self._running:
                self._start()
            self._job = function, arguments
            for start in self._starts:
                start.release()
            try:
                function(0, self.threads, self.sync, *arguments)
            finally:
                for _ in self._starts:
                    self._finished.acquire()
                self._job = None
            if self._error is not None:
                error, self._error = self._error, None
                raise error

    def _start(self) -> None:
        for part, start in enumerate(self._starts, 1):
            threading.Thread(
                target=self._work, args=(part, start), name=f"griffin-{part}", daemon=True
            ).start()
        self._running = True

    def _work(self, part: int, start: threading.Semaphore) -> None:
        while True:
            start.acquire()
            assert self._job is not None
            function, arguments = self._job
            try:
                function(part, self.threads, self.sync, *arguments)
            except BaseException as error:  # the caller's thread raises it
                self._error = error
            del function, arguments
            self._finished.release()


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
