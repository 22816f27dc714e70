"""Safetensors files, memory-mapped, with bfloat16; and files that appear whole or not at all.

The safetensors library checks a file when it opens it. It copies what it reads and knows no
bfloat16 in NumPy, so the arrays themselves are views into a memory map here.
"""

import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from griffin_np.errors import CheckpointError

__all__ = ["SafetensorsFile", "replacing", "write_safetensors"]


def numpy_dtypes() -> dict[str, np.dtype]:
    """NumPy dtype by safetensors name, for all that we read."""
    from ml_dtypes import bfloat16

    names = {
        "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": bfloat16,
        "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
        "U16": np.uint16, "U32": np.uint32, "U64": np.uint64, "BOOL": np.bool_,
    }  # fmt: skip
    return {name: np.dtype(dtype) for name, dtype in names.items()}


class SafetensorsFile:
    """A safetensors file whose arrays are read-only views into a memory map.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    names : list of str
    metadata : dict of str to str

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, or not safetensors.
    """

    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"no file at {self.path}")
        try:
            with safe_open(self.path, framework="np") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path} is no complete safetensors file ({error}): fetch or copy it again"
            ) from None
        with open(self.path, "rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size))
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        header.pop("__metadata__", None)
        self._start = 8 + size
        self._header: dict[str, dict] = header
        self.names = list(header)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, without reading it."""
        return tuple(self._header[name]["shape"])

    def dtype(self, name: str) -> np.dtype:
        """Dtype of an array, without reading it."""
        known = numpy_dtypes()
        dtype = self._header[name]["dtype"]
        if dtype not in known:
            raise CheckpointError(
                f"{self.path}: {name} has the unsupported dtype {dtype}; "
                f"supported: {', '.join(known)}"
            )
        return known[dtype]

    def array(self, name: str) -> NDArray:
        """View of an array in the file."""
        begin, end = self._header[name]["data_offsets"]
        data = memoryview(self._map)[self._start + begin : self._start + end]
        return np.frombuffer(data, self.dtype(name)).reshape(self.shape(name))

    def release(self, name: str) -> None:
        """Let the system take back the memory that reading an array has filled."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        begin, end = (self._start + offset for offset in self._header[name]["data_offsets"])
        begin -= begin % mmap.PAGESIZE
        if end > begin:
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def write_safetensors(path: Path, arrays: Mapping[str, NDArray], metadata: dict[str, str]) -> None:
    """Write arrays to a file that appears whole or not at all."""
    from safetensors.numpy import save_file

    with replacing(path) as partial:
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(contiguous, partial, metadata=metadata)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place if the block ends without an error.

    Raises
    ------
    CheckpointError
        If the folder does not exist or cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no folder {path.parent}")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # safetensors would leave the file to its owner alone
        yield partial
        partial.chmod(mode)
        partial.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
