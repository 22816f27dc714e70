"""The engine's process: one line in, one line out, in limited time, and never left behind.

Every engine runs in a process group of its own, which is killed when the engine is ended, when it
does not answer in time, at any exception in between, and when the interpreter exits. Where this
process dies without a chance to do that (SIGKILL, SIGTERM), :data:`WATCH` does it: a shell that
reads from a pipe, sees its end, and kills the groups that are left; it removes the files too. A
child's
``prctl(PR_SET_PDEATHSIG)`` would do less: it must be called between fork and exec, where Python
code may deadlock, it reaches the engine alone and not what the engine has started, and it fires
when the thread that started the engine ends.
"""

import atexit
import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import IO

from griffin_conformance.checks import Violation
from griffin_conformance.schemas import shortened

__all__ = ["LONGEST_LINE", "WATCH", "EngineFailure", "Process", "new_folder"]

LONGEST_LINE = 1 << 28
"""Bytes of a reply, at most."""

KEPT = 4096
"""Bytes of the standard error that are kept for messages."""

GRACE = 1.0
"""Seconds that a process which has closed its standard output has to exit."""

WATCH = """
alive=
while read -r what group; do
    case $what in
    watch) alive="$alive $group" ;;
    forget)
        rest=
        for g in $alive; do [ "$g" = "$group" ] || rest="$rest $g"; done
        alive=$rest ;;
    esac
done
for g in $alive; do kill -s KILL -- "-$g"; done
rm -rf -- "$1"
"""
"""When its standard input ends: kill the process groups it was told of, and remove a folder."""


class EngineFailure(Violation):
    """The engine did not answer, or not as it must; says so in one line."""

    gone = True


class _Watcher:
    """The shell that runs :data:`WATCH`; one for this process."""

    def __init__(self):
        self._shell: subprocess.Popen | None = None
        self._owner = 0
        self._folder = ""
        self._lock = threading.Lock()

    def tell(self, what: str, group: int) -> None:
        """``watch`` a process group, or ``forget`` it."""
        # At the end of the interpreter the shell may have been the first to go.
        with self._lock, contextlib.suppress(BrokenPipeError, ValueError):
            if what == "forget" and self._owner != os.getpid():
                return
            self._begin()
            assert self._shell is not None and self._shell.stdin is not None
            self._shell.stdin.write(f"{what} {group}\n".encode())
            self._shell.stdin.flush()

    def folder(self) -> Path:
        """A new folder, which is removed at the latest when this process ends."""
        with self._lock:
            self._begin()
            return Path(tempfile.mkdtemp(dir=self._folder))

    def _begin(self) -> None:
        if self._shell is not None and self._owner == os.getpid():
            return
        self._folder = tempfile.mkdtemp(prefix="griffin-engines-")
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", WATCH, "watch", self._folder], stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
        )  # fmt: skip
        self._owner = os.getpid()
        atexit.register(self._end, self._shell, self._owner)

    @staticmethod
    def _end(shell: subprocess.Popen, owner: int) -> None:
        if os.getpid() == owner and shell.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                shell.stdin.close()
            shell.wait()


_watcher = _Watcher()


def new_folder() -> Path:
    """A folder for files between an engine and us, which does not outlive this process.

    Raises
    ------
    EngineFailure
        Where engines cannot be run at all.
    """
    if os.name != "posix":
        raise EngineFailure("engines by command need a POSIX system: pipes and process groups")
    return _watcher.folder()


class Process:
    """A running engine.

    Parameters
    ----------
    command : str
        As a shell takes it, without the shell's own expansions.

    Raises
    ------
    EngineFailure
        If it cannot be started.
    """

    def __init__(self, command: str):
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise EngineFailure(f"the command {command!r} cannot be read: {error}") from None
        if not words:
            raise EngineFailure('the command is empty; give one as in "cmd:./engine --stdio"')
        try:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                bufsize=0, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            what = error.strerror or error
            raise EngineFailure(f"cannot start {words[0]!r}: {what}") from None
        self.group = self._process.pid
        self._kill = weakref.finalize(self, _end, self._process, os.getpid())
        _watcher.tell("watch", self.group)
        self._pending = bytearray()
        self._said = b""
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)

    @property
    def _pipes(self) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None and stdout is not None and stderr is not None
        return stdin, stdout, stderr

    def exchange(self, line: bytes, seconds: float, what: str) -> bytes:
        """Send a line and return the next line of the engine, without its end.

        ``what`` is the request's name in errors.

        Raises
        ------
        EngineFailure
            If there is none in time, the engine ends, or the line is too long.
        """
        stdin, stdout, stderr = self._pipes
        deadline, outgoing = time.monotonic() + seconds, memoryview(line)
        searched = 0
        with selectors.DefaultSelector() as ready:
            ready.register(stdout, selectors.EVENT_READ)
            ready.register(stderr, selectors.EVENT_READ)
            ready.register(stdin, selectors.EVENT_WRITE)
            while True:
                end = self._pending.find(b"\n", searched)
                if end >= 0 and not outgoing:
                    found = bytes(self._pending[:end])
                    del self._pending[: end + 1]
                    return found
                searched = len(self._pending) if end < 0 else searched
                if searched > LONGEST_LINE:
                    start = shortened(self._pending[:200].decode("utf-8", "replace"), 60)
                    raise EngineFailure(
                        f"the reply to {what!r} has more than {LONGEST_LINE} bytes in one line: "
                        f"{start}"
                    )
                left = deadline - time.monotonic()
                if left <= 0:
                    raise EngineFailure(
                        f"the engine did not answer {what!r} within {seconds:.3g} s"
                        f"{self.last_words()}"
                    )
                for key, _ in ready.select(left):
                    if key.fileobj is stdin:
                        outgoing = self._send(outgoing, what)
                        if not outgoing:
                            ready.unregister(stdin)
                    elif key.fileobj is stderr:
                        if not self._hear():  # closed
                            ready.unregister(stderr)
                    else:
                        chunk = os.read(stdout.fileno(), 1 << 20)
                        if not chunk:
                            raise EngineFailure(self._epitaph(what))
                        self._pending += chunk

    def _send(self, outgoing: memoryview, what: str) -> memoryview:
        try:
            return outgoing[os.write(self._pipes[0].fileno(), outgoing[: 1 << 16]) :]
        except BlockingIOError:
            return outgoing
        except BrokenPipeError:
            raise EngineFailure(self._epitaph(what)) from None

    def _hear(self) -> int:
        """Keep the end of what the engine says on its standard error.

        Returns the bytes read: 0 at its end, -1 if there is nothing now.
        """
        try:
            chunk = os.read(self._pipes[2].fileno(), 1 << 16)
        except BlockingIOError:
            return -1
        self._said = (self._said + chunk)[-KEPT:]
        return len(chunk)

    def _epitaph(self, what: str) -> str:
        """How the engine ended."""
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            closed = "closed its standard input or output and goes on running"
            return f"at {what!r} the engine {closed}{self.last_words()}"
        if code >= 0:
            how = f"exited with code {code}"
        elif -code in set(signal.Signals):
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"was killed by signal {-code}"
        rubbish = bytes(self._pending).decode("utf-8", "replace").strip()
        printed = f"; it had printed {shortened(rubbish)!r}" if rubbish else ""
        return f"the engine {how} at {what!r}{printed}{self.last_words()}"

    def last_words(self) -> str:
        """The last lines of the standard error, for the end of a message; or nothing."""
        for _ in range(64):  # an engine that prints without end is not listened to without end
            if self._hear() <= 0:
                break
        lines = [w for w in self._said.decode("utf-8", "replace").splitlines() if w.strip()]
        if not lines:
            return ""
        return f"; last on its standard error: {shortened(' | '.join(lines[-3:]), 300)}"

    def finish(self, seconds: float) -> int | None:
        """Close the engine's standard input and wait for it; its exit code, or None if it stays."""
        self._pipes[0].close()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.end()

    def end(self) -> None:
        """Kill the engine and whatever it has started."""
        self._kill()


def _end(process: subprocess.Popen, owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the process that the engine belongs to
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    _watcher.tell("forget", process.pid)
