"""Checkpoints of a training run: written whole or not at all, found again, and told apart."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from griffin_kernels.xla.data import Document
from griffin_np.errors import CheckpointError
from griffin_np.params import flatten

__all__ = ["digest", "read_run", "text_digest", "write_run"]

KEPT = 2


def write_run(
    folder: Path, step: int, arrays: Iterable[np.ndarray], meta: dict, *, write: bool = True
) -> Path:
    """Write a checkpoint (to a temporary name, then renamed) and drop all but the last two.

    Without ``write``, only say where somebody else writes it.
    """
    target = folder / f"step-{step:08d}.safetensors"
    if not write:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    named = {str(i): np.asarray(array) for i, array in enumerate(arrays)}
    save_file(named, partial, metadata={"run": json.dumps(meta)})
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())  # the name must not reach the disk before the content does
    partial.replace(target)
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()
    return target


def read_run(folder: Path, identity: dict) -> tuple[dict, list[np.ndarray]] | None:
    """The latest whole checkpoint, what was written with it and its arrays; None if there is none.

    Raises
    ------
    CheckpointError
        If it is of a run with another identity; names the differences.
    """
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            with safe_open(path, framework="np") as file:
                meta = json.loads(file.metadata()["run"])
                arrays = [file.get_tensor(str(i)) for i in range(len(file.keys()))]
        except (SafetensorError, KeyError, TypeError, ValueError):
            continue  # cut short by a crash of the machine: an older one remains
        if meta["identity"] != identity:
            changed = _differences(meta["identity"], identity)
            raise CheckpointError(
                f"{folder} holds a run with other settings ({changed}): "
                f"repeat them to resume it, or choose another folder"
            )
        return meta, arrays
    return None


def _differences(old: dict, new: dict) -> str:
    old, new = flatten(old), flatten(new)
    return ", ".join(
        f"{k}: {old.get(k)} then, {new.get(k)} now"
        for k in sorted(old | new)
        if old.get(k) != new.get(k)
    )


def text_digest(documents: Sequence[Document]) -> str:
    """Identity of documents: their tokens, where they end, and what is learnt of them."""
    hashed = hashlib.sha256()
    for document in documents:
        hashed.update(np.asarray(document.ids, "<i4").tobytes())
        if not document.learn.all():
            hashed.update(np.packbits(document.learn).tobytes())
    return hashed.hexdigest()[:16]


def digest(params: dict) -> str:
    """Identity of every bit of a parameter tree.

    The fingerprint that states carry samples the weights and survives their conversion to another
    dtype; a run that shall go on to the same bits needs the same bits to begin with.
    """
    hashed = hashlib.sha256()
    for name, array in flatten(params).items():
        hashed.update(f"{name}{array.shape}{array.dtype}".encode())
        hashed.update(np.ascontiguousarray(array).view(np.uint8).data)
    return hashed.hexdigest()[:32]
