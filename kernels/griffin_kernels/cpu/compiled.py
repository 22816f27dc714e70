"""Compiling kernels once: a cache on disk that knows all sources, and works where it can.

Numba's own cache looks at the file of a function alone; a kernel here is made of many. The stamp of
these cache files is a digest of the whole package, so that no old code outlives a change.
"""

import functools
import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from numba import config, njit
from numba.core import caching

__all__ = ["announced", "cache_folder", "kernel", "without_dispatch"]


@functools.cache
def digest() -> str:
    """Of all sources of the kernels."""
    text = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        text.update(path.relative_to(folder).as_posix().encode())
        text.update(path.read_bytes())
    return text.hexdigest()


@functools.cache
def cache_folder() -> str | None:
    """Where compiled kernels are kept; None where nothing can be written.

    ``NUMBA_CACHE_DIR`` if it is set, else the user's cache folder, else a temporary one.
    """
    home = Path.home()
    if config.CACHE_DIR:
        base = Path(config.CACHE_DIR)
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", home))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    for folder in (base, Path(tempfile.gettempdir()) / f"griffin-np-{user}"):
        path = folder / "griffin-np" / digest()[:16]
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Code is executed from here: nobody else may put it there.
            if hasattr(os, "getuid") and path.stat().st_uid != user:
                continue
            tempfile.TemporaryFile(dir=path).close()
        except OSError:
            continue
        return str(path)
    return None


class _Locator(caching._CacheLocator):
    """Tells Numba where a kernel's compiled code is, and of which sources it was made."""

    def __init__(self, py_func, py_file):
        self.line = py_func.__code__.co_firstlineno

    def get_cache_path(self):
        return cache_folder()

    def get_source_stamp(self):
        return digest()

    def get_disambiguator(self):
        return str(self.line)

    @classmethod
    def from_function(cls, py_func, py_file):
        return cls(py_func, py_file) if cache_folder() else None


class _Implementation(caching.CompileResultCacheImpl):
    _locator_classes = [_Locator]  # noqa: RUF012


class _Cache(caching.Cache):
    _impl_class = _Implementation


def kernel(function, **options):
    """Compile a function that runs without the interpreter lock, and keep the result on disk.

    Never ``cache=True``: Numba refuses that where neither sources nor home can be written, and
    takes old code for new when only a function that is called from another file has changed.
    """
    dispatcher = njit(nogil=True, error_model="numpy", **options)(function)
    dispatcher.direct = None
    if cache_folder() is not None:
        dispatcher._cache = _Cache(function)
    return dispatcher


def without_dispatch(dispatcher):
    """The machine code behind a kernel, if it has been compiled for one signature; else the kernel.

    Looking at the types of a hundred arguments costs 0.2 ms a call. Only for kernels whose
    arguments have the same types in every call: nothing checks them any more.
    """
    if dispatcher.direct is None:
        compiled = list(dispatcher.overloads.values())
        if len(compiled) != 1:
            return dispatcher
        dispatcher.direct = compiled[0].entry_point
    return dispatcher.direct


@contextmanager
def announced(dispatcher, about: str) -> Iterator[None]:
    """Say on stderr that something is compiled, if that takes more than a second, and how long.

    Code that is on disk is loaded well within that second, and nothing is said.
    """
    if dispatcher.direct is not None or dispatcher.signatures:
        yield
        return
    done = threading.Event()

    def tell() -> None:
        began = time.monotonic()
        line, end = f"compiling {about} for this processor, once", "\n"
        if sys.stderr.isatty():
            end = ""
        while not done.wait(1):
            seconds = time.monotonic() - began
            if end and seconds >= 2:
                continue
            clock = "" if end else f"\r{seconds:.0f} s "
            print(f"{clock}{line}", end=end, file=sys.stderr, flush=True)
        if not end and time.monotonic() - began > 1:
            print("\r" + " " * (len(line) + 8), end="\r", file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
