"""The folder of vectors: what is in it, writing it, reading it, and whether it is whole."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.schemas import Draft202012Validator, wrong_with
from griffin_np.checkpoints.files import SafetensorsFile, replacing, write_safetensors
from griffin_np.errors import CheckpointError, GriffinError

__all__ = ["DATA", "MANIFEST", "SCHEMA", "Expectation", "Folder", "Vector", "VectorsError",
           "check_files"]  # fmt: skip

HERE = Path(__file__).parent
DATA = HERE / "data"
"""The vectors that the package ships."""

MANIFEST = "manifest.json"
SCHEMA = "griffin-vectors/1"
"""What the key ``schema`` of a manifest says."""

DTYPES = {"F64": np.float64, "F32": np.float32, "I64": np.int64}


class VectorsError(GriffinError, ValueError):
    """A folder of vectors that is missing, damaged or of another version."""


@dataclass(frozen=True)
class Expectation:
    """One array that must come out.

    Attributes
    ----------
    name : str
    truth : array
        float64; or int64, which must come out exactly.
    allowed : array, optional
        For each precision of the vector, the largest Euclidean norm of the difference, over those
        axes of the truth that are not here. Without it the truth must come out exactly.
    """

    name: str
    truth: NDArray
    allowed: NDArray | None = None


@dataclass(frozen=True)
class Vector:
    """One golden vector.

    Attributes
    ----------
    id, level, kind, says : str
        Kinds: operation, block, model, steps, greedy.
    clauses : tuple of str
    inputs : dict
        Arrays and numbers by name.
    expect : tuple of Expectation
    profiles : tuple of str
        Precisions that it is for.
    about : dict
        Further entries of the manifest: operation, world, block, cuts.
    """

    id: str
    level: str
    kind: str
    says: str
    clauses: tuple[str, ...]
    inputs: Mapping[str, Any]
    expect: tuple[Expectation, ...]
    profiles: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def entry(self, file: str) -> dict:
        """As the manifest tells it."""
        inputs = {
            name: {"tensor": f"{self.id}/{name}"} if isinstance(value, np.ndarray) else value
            for name, value in self.inputs.items()
        }
        expect = [
            {"name": e.name, "tensor": f"{self.id}/expect/{e.name}"}
            | ({} if e.allowed is None else {"allowed": f"{self.id}/allowed/{e.name}"})
            for e in self.expect
        ]
        return {
            "id": self.id, "level": self.level, "kind": self.kind, "says": self.says,
            "clauses": list(self.clauses), "precisions": list(self.profiles), "file": file,
            **self.about, "inputs": inputs, "expect": expect,
        }  # fmt: skip

    def tensors(self) -> dict[str, NDArray]:
        """All its arrays, by their names in the file."""
        found = {f"{self.id}/{n}": v for n, v in self.inputs.items() if isinstance(v, np.ndarray)}
        for e in self.expect:
            found[f"{self.id}/expect/{e.name}"] = e.truth
            if e.allowed is not None:
                found[f"{self.id}/allowed/{e.name}"] = e.allowed
        return found


def write_tensors(path: Path, tensors: Mapping[str, NDArray]) -> None:
    """Write a safetensors file, little-endian, the same bytes for the same arrays."""
    stored = {name: np.ascontiguousarray(array) for name, array in sorted(tensors.items())}
    write_safetensors(path, stored, {"format": SCHEMA})


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(folder: Path, manifest: dict) -> None:
    """Write the manifest; hashes and sizes of the files that it names are filled in."""
    for name, entry in manifest["files"].items():
        entry |= {"sha256": digest(folder / name), "bytes": (folder / name).stat().st_size}
    # A line for each vector: small, and a difference between two manifests can be read.
    vectors = ",\n".join(json.dumps(vector) for vector in manifest["vectors"])
    rest = json.dumps({**manifest, "vectors": []}, indent=1).removesuffix("[]\n}")
    with replacing(folder / MANIFEST) as partial:
        partial.write_text(f"{rest}[\n{vectors}\n]}}\n", encoding="utf-8")


def read_manifest(folder: str | os.PathLike) -> dict:
    """The manifest of a folder, held against its schema.

    Raises
    ------
    VectorsError
        If it is missing, unreadable, of another version, or breaks its schema.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VectorsError(
            f"no {MANIFEST} in {folder}: make vectors with griffin-np conformance vectors export"
        ) from None
    except (OSError, ValueError) as error:
        raise VectorsError(f"{path} is no readable JSON ({error}): export it again") from None
    found = manifest.get("schema") if isinstance(manifest, dict) else None
    if found != SCHEMA:
        raise VectorsError(f"{path} has schema {found!r}, expected {SCHEMA!r}: export it again")
    schema = json.loads((HERE / "manifest.schema.json").read_text(encoding="utf-8"))
    fault = wrong_with(manifest, Draft202012Validator(schema), "the manifest")
    if fault:
        raise VectorsError(f"{path} breaks its schema: {fault}")
    return manifest


class Folder:
    """A folder of vectors, opened and checked.

    Attributes
    ----------
    manifest : dict
    """

    def __init__(self, folder: str | os.PathLike):
        self.path = Path(folder)
        self.manifest = read_manifest(folder)
        self._files: dict[str, SafetensorsFile] = {}
        for name, entry in self.manifest["files"].items():
            path = self.path / name
            if not path.is_file():
                raise VectorsError(f"{path} is missing: export the vectors again")
            found = digest(path)
            if found != entry["sha256"]:
                raise VectorsError(
                    f"{path} has SHA-256 {found}, the manifest says {entry['sha256']}: it was "
                    f"changed or damaged, export it again"
                )
            try:
                self._files[name] = SafetensorsFile(path)
            except CheckpointError as error:
                raise VectorsError(str(error)) from None

    def tensor(self, file: str, name: str) -> NDArray:
        """An array of a file, by name.

        Raises
        ------
        VectorsError
            If the file does not have it, or it is of a dtype that vectors do not use.
        """
        if file not in self._files or name not in self._files[file].names:
            raise VectorsError(f"{self.path / file} has no tensor {name}: export it again")
        if self._files[file].dtype(name) not in DTYPES.values():
            raise VectorsError(f"{name} in {self.path / file} is none of {', '.join(DTYPES)}")
        return self._files[file].array(name)

    def inputs(self, entry: dict) -> dict[str, Any]:
        """Arrays and numbers that a vector is about, float64 and int64."""
        found: dict[str, Any] = {}
        for name, value in entry["inputs"].items():
            if isinstance(value, dict):
                array = self.tensor(entry["file"], value["tensor"])
                value = array.astype(np.float64) if array.dtype.kind == "f" else array
            found[name] = value
        return found

    def expectations(self, entry: dict) -> list[Expectation]:
        """What a vector expects."""
        file = entry["file"]
        return [
            Expectation(
                e["name"],
                self.tensor(file, e["tensor"]),
                self.tensor(file, e["allowed"]) if "allowed" in e else None,
            )
            for e in entry["expect"]
        ]

    def weights(self, world: str) -> dict[str, NDArray]:
        """Parameters of a world by flat name, float32."""
        entry = self.manifest["worlds"][world]
        names = {n: f"weights/{n}" for n in entry["parameters"]}
        return {name: self.tensor(entry["file"], stored) for name, stored in names.items()}


def check_files(folder: str | os.PathLike = DATA) -> dict:
    """Whether a folder of vectors is whole: hashes, the manifest's schema, every tensor it names.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    VectorsError
        Naming the file or tensor, and what is wrong with it.
    """
    opened = Folder(folder)
    for world in opened.manifest["worlds"]:
        opened.weights(world)
    known = {entry["id"] for entry in opened.manifest["vectors"]}
    if len(known) < len(opened.manifest["vectors"]):
        raise VectorsError(f"{opened.path / MANIFEST} has two vectors of one id: export it again")
    for entry in opened.manifest["vectors"]:
        if entry.get("world", None) not in {None, *opened.manifest["worlds"]}:
            raise VectorsError(f"vector {entry['id']} is of no world of the manifest")
        opened.inputs(entry)
        for e in opened.expectations(entry):
            allowed = np.empty(0) if e.allowed is None else e.allowed
            expected = (len(entry["precisions"]), *e.truth.shape[: allowed.ndim - 1])
            if e.allowed is not None and allowed.shape != expected:
                raise VectorsError(
                    f"{entry['id']}: what is allowed for {e.name} has shape {allowed.shape}, its "
                    f"truth {e.truth.shape}; expected {expected}"
                )
    return opened.manifest
