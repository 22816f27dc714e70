"""Processes that make the same calls, each with devices of its own (``jax.distributed``)."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from griffin_kernels.xla.sharding import AXES, make_mesh
from griffin_np.errors import ConfigError

__all__ = [
    "common_seed",
    "first_process",
    "first_process_first",
    "first_process_says",
    "join",
    "parse_mesh",
]


def parse_mesh(text: str) -> Mesh:
    """``data=2,model=4`` as a mesh; axes that are not named have one device.

    Raises
    ------
    ConfigError
        If the text is something else, or there are too few devices.
    """
    axes = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or name in axes or not size.isdecimal():
            raise ConfigError(
                f"--mesh takes data=N,sequence=N,model=N with one or more of them, got {text!r}"
            )
        axes[name] = int(size)
    return make_mesh(axes.get("data", 1), axes.get("sequence", 1), axes.get("model", 1))


def join(text: str) -> bool:
    """Meet the other processes; True in the first one.

    Parameters
    ----------
    text : str
        ``HOST:PORT,COUNT,INDEX``: where process 0 listens, how many there are, and which one this
        is; or ``auto`` on machines where JAX finds that out by itself.

    Raises
    ------
    ConfigError
        If the text is something else, or the others do not come.
    """
    address: str | None = None
    count = index = None
    if text != "auto":
        address, *numbers = text.split(",")
        if ":" not in address or len(numbers) != 2 or not all(n.isdecimal() for n in numbers):
            raise ConfigError(f"--distributed takes HOST:PORT,COUNT,INDEX or auto, got {text!r}")
        count, index = map(int, numbers)
        if index >= count:
            raise ConfigError(
                f"--distributed: of {count} processes the last is {count - 1}, got {index}"
            )
    try:
        with _stdout_to_stderr():
            jax.distributed.initialize(address, count, index)
            multihost_utils.sync_global_devices("here")  # only now do they really meet
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the processes of --distributed {text} did not meet: {reason}") from None
    return first_process()


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Libraries below JAX report to standard output, which belongs to the text."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # what they wrote may still be in C's buffer
        os.dup2(kept, 1)
        os.close(kept)


def common_seed() -> int:
    """A random seed, the same in every process."""
    drawn = np.random.SeedSequence().generate_state(1)
    return int(multihost_utils.broadcast_one_to_all(drawn)[0])


def first_process() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


@contextmanager
def first_process_first() -> Iterator[None]:
    """The others wait until the first process has done what is inside, and then do it."""
    if not first_process():
        multihost_utils.sync_global_devices("the first process is done")
    try:
        yield
    finally:  # whatever went wrong goes wrong with the others too
        if first_process():
            multihost_utils.sync_global_devices("the first process is done")


def first_process_says(number: int) -> int:
    """The first process's number, in all of them."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int64(number)))
