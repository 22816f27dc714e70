"""AMX: sixteen by sixteen products at a time, in tiles, on Xeons since Sapphire Rapids.

A process must ask the system for the tiles' memory once: see :func:`permitted`.
"""

import ctypes
import functools
import platform
import sys

from llvmlite import ir
from numba.core import cgutils

from griffin_kernels.cpu.isa import FEATURES
from griffin_kernels.cpu.isa.common import I8

__all__ = ["COMPILED", "emit", "permitted"]

COMPILED = {"amx-tile", "amx-int8", "amx-bf16"} <= FEATURES and sys.platform == "linux"
"""Whether kernels for tiles are compiled at all."""

ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 0x1023, 18
SYS_ARCH_PRCTL = 158


@functools.cache
def permitted() -> bool:
    """Ask Linux for the use of tiles; False where there are none or it says no."""
    if not COMPILED or platform.machine() != "x86_64":
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).syscall
        return call(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0
    except (OSError, AttributeError):
        return False


def emit(builder, name: str, *arguments) -> None:
    """Emit a tile instruction; whole numbers of Python are names of tiles."""
    values = [ir.Constant(I8, a) if isinstance(a, int) else a for a in arguments]
    signature = ir.FunctionType(ir.VoidType(), [v.type for v in values])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.x86.{name}")
    builder.call(function, values)
