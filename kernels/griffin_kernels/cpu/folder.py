"""Folders of packed weights: written once by ``griffin-np convert``, memory-mapped ever after."""

import json
import os
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from griffin_kernels.cpu.matmul import FLOAT32, WIDENED
from griffin_kernels.cpu.weights import KINDS, gate_bytes, packed_forms
from griffin_np.base import GenerationDefaults
from griffin_np.checkpoints.files import SafetensorsFile
from griffin_np.config import GriffinConfig
from griffin_np.errors import CheckpointError, ConfigError

__all__ = ["FILE", "PackedFolder", "write_folder"]

FILE = "packed.safetensors"
FORMAT, VERSION = "griffin-np packed", 2
ALIGNMENT = 64
HEADER = 1 << 20
"""Bytes kept free for the header, which is known last."""
DTYPES = {"uint8": "U8", "float32": "F32", "int32": "I32"}


class PackedFolder:
    """A folder of packed weights, opened and checked.

    Parameters
    ----------
    folder : path

    Attributes
    ----------
    config : GriffinConfig
    dtype : {"float32", "bfloat16", "int8", "int4"}
    fingerprint : str
        Of the weights that these were made from.
    generation : GenerationDefaults

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another version, or lacks arrays.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.file = SafetensorsFile(self.folder / FILE)
        header = self.file.metadata
        if header.get("format") != FORMAT:
            raise CheckpointError(f"{self.file.path} is no file of packed weights")
        if header.get("version") != str(VERSION):
            raise CheckpointError(
                f"{self.file.path} is packed in version {header.get('version')}; this griffin-np "
                f"reads version {VERSION}: convert the original checkpoint again"
            )
        try:
            self.config = GriffinConfig.from_dict(json.loads(header["config"]))
            self.dtype, self.fingerprint = header["dtype"], header["fingerprint"]
            values = json.loads(header["generation"])
            self.generation = GenerationDefaults(
                values["temperature"], values["top_k"], values["top_p"], tuple(values["eos_ids"])
            )
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.file.path} has a damaged header: {error}") from None
        if self.dtype not in KINDS:
            raise CheckpointError(f"{self.file.path} has the unknown dtype {self.dtype!r}")

    def arrays(self) -> Iterable[tuple[str, NDArray]]:
        """Packed arrays by name, views into the memory map."""
        for name, (kind, size) in packed_forms(self.config, self.dtype).items():
            if name not in self.file.names:
                raise CheckpointError(f"{self.file.path} lacks {name}: convert the model again")
            array = self.file.array(name)
            if size is None:
                size = self._gate_size(f"{name}.kind")
            if array.size != size or array.dtype != kind:
                raise CheckpointError(
                    f"{self.file.path}: {name} is {array.dtype} with {array.size} elements, "
                    f"expected {kind} with {size}: convert the model again"
                )
            yield name, array

    def _gate_size(self, name: str) -> int:
        """Bytes of a gate's matrices, which stand in one of two forms."""
        kinds = self.file.array(name) if name in self.file.names else np.empty(0)
        if kinds.size != 1 or int(kinds[0]) not in (FLOAT32, WIDENED):
            raise CheckpointError(f"{self.file.path}: {name} is damaged: convert the model again")
        return gate_bytes(self.config, int(kinds[0]))


def write_folder(
    folder: str | os.PathLike,
    config: GriffinConfig,
    dtype: str,
    fingerprint: str,
    generation: GenerationDefaults,
    arrays: Iterable[tuple[str, NDArray]],
    files: Mapping[str, bytes],
) -> None:
    """Write packed arrays as they come; the folder appears whole or not at all.

    Parameters
    ----------
    folder : path
        Must not exist, or be empty.
    arrays : iterable of (str, array)
        As :func:`griffin_kernels.cpu.weights.packed` makes them; one is held at a time.
    files : mapping of str to bytes
        Further files for the folder.

    Raises
    ------
    CheckpointError
        If the folder is not empty or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already: choose a new folder")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "dtype": dtype,
        "fingerprint": fingerprint,
        "config": json.dumps(config.to_dict()),
        "generation": json.dumps({
            "temperature": generation.temperature, "top_k": generation.top_k,
            "top_p": generation.top_p, "eos_ids": list(generation.eos_ids),
        }),
    }  # fmt: skip
    try:
        partial.mkdir(parents=True)
        _write_arrays(partial / FILE, arrays, metadata)
        for name, content in files.items():
            (partial / name).write_bytes(content)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_arrays(
    path: Path, arrays: Iterable[tuple[str, NDArray]], metadata: dict[str, str]
) -> None:
    """A safetensors file whose header is written last, into the room that was left for it.

    Arrays are put on cache lines, which the format allows: its header may end in spaces.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    at = 0
    with open(path, "wb") as stream:
        stream.seek(HEADER)
        for name, array in arrays:
            array = np.ascontiguousarray(array)
            end = at + array.nbytes
            header[name] = {
                "dtype": DTYPES[array.dtype.name],
                "shape": list(array.shape),
                "data_offsets": [at, end],
            }
            stream.write(array.reshape(-1).view(np.uint8).data)
            gap = -end % ALIGNMENT
            if gap:
                entry = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
                header[f"{name}.gap"] = entry
                stream.write(bytes(gap))
            at = end + gap
        text = json.dumps(header).encode()
        assert len(text) + 8 <= HEADER
        stream.seek(0)
        stream.write(struct.pack("<Q", HEADER - 8) + text.ljust(HEADER - 8))
