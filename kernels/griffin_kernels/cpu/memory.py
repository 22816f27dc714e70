"""How much memory a model needs and how much there is, before it is loaded."""

import contextlib
import os
from pathlib import Path

from griffin_kernels.cpu.matmul import WIDENED
from griffin_kernels.cpu.weights import KINDS, gate_bytes, packed_forms
from griffin_np.config import GriffinConfig
from griffin_np.errors import ConfigError

__all__ = ["available", "needed", "require"]

BUFFERS = 300_000_000
"""Bytes for the interpreter, compiled code and the buffers of a slab, with room to spare."""


def needed(config: GriffinConfig, dtype: str) -> int:
    """Bytes of a model's packed weights, its state and everything that it works in."""
    total = 0
    for form, size in packed_forms(config, dtype).values():
        total += gate_bytes(config, WIDENED) if size is None else form.itemsize * size
    return total + config.state_bytes(1, 4) + BUFFERS


def available() -> int | None:
    """Bytes that can be had without swapping, or None where the system does not tell."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable:")]
    except (OSError, ValueError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        held = {name: int(value) for name, value in pairs}
        # Pages of files are given back when memory is asked for.
        files = held["active_file"] + held["inactive_file"]
        found.append(limit - int((group / "memory.current").read_text()) + files)
    except (OSError, ValueError, KeyError):
        pass
    if not found and hasattr(os, "sysconf"):
        with contextlib.suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found) if found else None


def require(config: GriffinConfig, dtype: str) -> None:
    """Refuse a model that memory cannot hold.

    Raises
    ------
    ConfigError
        Says how much is needed, how much there is, and which dtype would fit.
    """
    free, need = available(), needed(config, dtype)
    if free is None or need <= free:
        return
    smaller = [
        f"{name} ({needed(config, name) / 1e9:.1f} GB)"
        for name in sorted(KINDS, key=lambda name: needed(config, name))
        if needed(config, name) <= free
    ]
    hint = f"{smaller[-1]} would fit" if smaller else "no dtype would fit"
    raise ConfigError(
        f"{config.num_parameters():,} parameters in {dtype} need {need / 1e9:.1f} GB of memory, "
        f"{free / 1e9:.1f} GB are free: {hint}"
    )
