"""Make a folder of vectors."""

import contextlib
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from griffin_conformance import clauses
from griffin_conformance.rounding import PROFILES
from griffin_conformance.vectors.files import (
    DATA,
    SCHEMA,
    VectorsError,
    read_manifest,
    write_manifest,
    write_tensors,
)
from griffin_conformance.vectors.models import LARGE, WORLDS, world_vectors
from griffin_conformance.vectors.operations import operation_vectors

__all__ = ["export"]

RULE = (
    "A result is right in a precision if its difference from the truth has, over the axes that "
    "the allowance does not have, a Euclidean norm of at most the allowance, at every position."
)


def export(
    folder: str | os.PathLike, worlds: Sequence[str] = tuple(WORLDS), large: bool = False
) -> dict:
    """Write operations, and the vectors of some worlds, to a folder.

    The same call gives the same bytes again on one machine. On another, whose elementary functions
    round otherwise, last bits may differ, of truths by less than float64 is allowed.

    Parameters
    ----------
    folder : path
        New, empty, or with vectors in it, which are replaced; its parent must exist.
    worlds : sequence of str
        Names of small worlds; all by default.
    large : bool
        The larger worlds too: five megabytes, and some minutes.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    VectorsError
        If a world does not exist, or the folder holds something else.
    """
    known = WORLDS | LARGE
    names = [*dict.fromkeys([*worlds, *(LARGE if large else ())])]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise VectorsError(f"no world {unknown[0]!r}; choose some of {', '.join(known)}")
    folder, before = Path(folder), _ready(Path(folder))
    manifest: dict = {
        "schema": SCHEMA,
        "spec": clauses.version(),
        "generator": {n: metadata.version(n) for n in ("griffin-np", "numpy", "mpmath")},
        "rule": RULE,
        "precisions": {
            p.name: {"activations": p.activations, "accumulators": p.accumulators,
                     "state": p.state} for p in PROFILES.values()
        },
        "files": {},
        "worlds": {},
        "vectors": [],
    }  # fmt: skip
    file = "operations.safetensors"
    vectors = operation_vectors()
    _write(folder, manifest, file, vectors, {})
    for name in names:
        world, file = known[name], f"{name}.safetensors"
        flat = world.parameters()
        manifest["worlds"][name] = {
            "says": world.says, "weights": world.weights, "seed": world.seed,
            "precisions": list(world.profiles), "file": file, "config": world.config.to_dict(),
            "parameters": list(flat),
        }  # fmt: skip
        weights = {f"weights/{n}": array for n, array in flat.items()}
        _write(folder, manifest, file, world_vectors(name, world), weights)
    if folder.resolve() != DATA.resolve():
        (folder / "README.md").write_bytes((DATA / "README.md").read_bytes())
    write_manifest(folder, manifest)
    for stale in set(before) - set(manifest["files"]):
        (folder / stale).unlink(missing_ok=True)
    return manifest


def _ready(folder: Path) -> list[str]:
    """Make the folder if need be; files of vectors that it holds already."""
    if not folder.parent.is_dir():
        raise VectorsError(f"cannot make {folder}: there is no folder {folder.parent}")
    if folder.exists() and not folder.is_dir():
        raise VectorsError(f"{folder} is a file: give the name of a folder")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise VectorsError(f"cannot make {folder}: {error.strerror or error}") from None
    before: list[str] = []
    with contextlib.suppress(VectorsError):
        before = list(read_manifest(folder)["files"])
    others = {p.name for p in folder.iterdir()} - {"README.md"}
    if others and not before and folder.resolve() != DATA.resolve():
        raise VectorsError(
            f"{folder} holds {sorted(others)[0]}, which is no vector: give a new or empty folder"
        )
    return before


def _write(folder: Path, manifest: dict, file: str, vectors, tensors: dict[str, np.ndarray]):
    """One file, and its vectors in the manifest."""
    tensors = dict(tensors)
    for vector in vectors:
        tensors |= vector.tensors()
        manifest["vectors"].append(vector.entry(file))
    write_tensors(folder / file, tensors)
    manifest["files"][file] = {}
