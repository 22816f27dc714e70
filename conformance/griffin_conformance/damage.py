"""Level 4, damaged checkpoint folders: each has to be refused, and should be by name."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from griffin_conformance import checkpoint_files as files
from griffin_conformance.alone import profile_of
from griffin_conformance.backends import Backend, Unsupported
from griffin_conformance.checkpoint_files import FolderCase, Form, new_folder, stored
from griffin_conformance.checkpoints import SHAPES, SQUARE, small_worlds
from griffin_conformance.checks import Scope, Violation, check
from griffin_conformance.envelope import Comparison
from griffin_conformance.worlds import World

__all__ = ["DAMAGES", "DamageCase"]

DAMAGES = {
    "missing tensor": "a tensor is missing",
    "misshapen tensor": "a tensor has one column more",
    "too small a vocabulary": "the embedding has fewer rows than the vocabulary",
    "unknown tensor": "there is a tensor that the format does not have",
    "one block more": "there is a tensor of a block beyond num_hidden_layers",
    "integers": "a tensor holds whole numbers",
    "cut file": "the file ends too early",
    "no safetensors": "the file holds something else",
    "missing shard": "a file that the index names is missing",
    "promised tensor": "a file lacks a tensor that the index promises",
    "cut config": "config.json ends too early",
}
"""What may be wrong with a folder, by name."""

WITH_INDEX = ("missing shard", "promised tensor")


@dataclass(frozen=True)
class DamageCase:
    """A small checkpoint, and the damages that it is given, one after the other.

    Attributes
    ----------
    world : World
    damages : tuple of str
        Of :data:`DAMAGES`.
    which : int
        Which tensor or file has them.
    shards : int
        Files of weights; 0 is one without an index.
    """

    world: World
    damages: tuple[str, ...]
    which: int = 0
    shards: int = 0

    def strata(self) -> set[str]:
        """The damages."""
        return set(self.damages)


@st.composite
def damaged(draw, scope: Scope) -> DamageCase:
    """Some damages to a small folder."""
    world = draw(small_worlds(scope, (*SQUARE[:1], *SHAPES[:2])))
    damages = st.lists(st.sampled_from(list(DAMAGES)), min_size=1, max_size=6, unique=True)
    chosen = draw(st.one_of(damages, damages, st.just(list(DAMAGES))))
    return DamageCase(world, tuple(chosen), draw(st.integers(0, 200)), draw(st.integers(0, 3)))


def write(folder: Path, case: DamageCase, damage: str, backend: Backend) -> tuple[str, ...]:
    """Write the damaged folder; what a refusal should name, one of these."""
    form = Form(shards=max(case.shards, 2) if damage in WITH_INDEX else case.shards)
    whole = FolderCase(case.world, form=form)
    tensors = files.tensors_of(stored(case.world, profile_of(backend), form.dtype))
    files.write_folder(folder, whole, stored(case.world, profile_of(backend), form.dtype))
    name = sorted(tensors)[case.which % len(tensors)]
    if damage == "cut config":
        path = folder / "config.json"
        path.write_text(path.read_text("utf-8")[:-20], "utf-8")
        return (path.name,)
    if damage in ("cut file", "no safetensors", "missing shard"):
        paths = sorted(folder.glob("*.safetensors"))
        path = paths[case.which % len(paths)]
        content = path.read_bytes()
        if damage == "missing shard":
            path.unlink()
        else:
            path.write_bytes(content[:-4] if damage == "cut file" else b"no weights here")
        return (path.name,)
    if damage == "missing tensor":
        del tensors[name]
    elif damage == "promised tensor":
        where = json.loads((folder / files.INDEX).read_text("utf-8"))["weight_map"]
        del tensors[name]
        files.write_weights(folder, tensors, form, {name: where[name]})
        return (name, where[name])
    elif damage == "misshapen tensor":
        more = np.zeros((*tensors[name].shape[:-1], 1), np.float32)
        tensors[name] = np.concatenate([tensors[name], more], axis=-1)
    elif damage == "too small a vocabulary":
        name = files.EMBEDDING
        tensors[name] = tensors[name][:-1]
    elif damage in ("unknown tensor", "one block more"):
        i = case.world.config.depth if damage == "one block more" else 0
        leaf = "temporal_pre_norm" if damage == "one block more" else "temporal_block.surprise"
        name = f"model.layers.{i}.{leaf}.weight"
        tensors[name] = np.ones(case.world.config.width, np.float32)
    elif damage == "integers":
        files.write_weights(folder, tensors, form, whole_numbers=(name,))
        return (name,)
    files.write_weights(folder, tensors, form)
    return (name,)


def refusal(
    backend: Backend, case: DamageCase, damage: str
) -> tuple[BaseException | None, tuple[str, ...]]:
    """What the backend says to the folder, and what it should name."""
    with new_folder() as folder:
        names = write(folder, case, damage, backend)
        try:
            backend.load(folder)
        except Unsupported:
            raise
        except (Exception, SystemExit) as error:  # that is the refusal
            return error, names
    return None, names


@check("L4", damaged, strata=tuple(DAMAGES), weight=0.5, clauses=("CKPT-12",))
def broken_checkpoints_are_refused(backend: Backend, case: DamageCase) -> Sequence[Comparison]:
    """A folder in which anything is missing, misshapen, unknown or cut off is no model."""
    for damage in case.damages:
        error, names = refusal(backend, case, damage)
        if error is None:
            raise Violation(
                f"{DAMAGES[damage]} ({names[0]}), and the folder is loaded all the same"
            )
    return []


@check("L4", damaged, must=False, strata=tuple(DAMAGES), weight=0.5, clauses=("CKPT-16",))
def refused_checkpoints_are_explained(backend: Backend, case: DamageCase) -> Sequence[Comparison]:
    """Who refuses a folder names the tensor or the file that is wrong."""
    for damage in case.damages:
        error, names = refusal(backend, case, damage)
        told = [name.removeprefix("model.") for name in names]
        if error is not None and not any(name in str(error) for name in told):
            raise Violation(
                f"{DAMAGES[damage]}: the refusal does not name {' or '.join(names)}, but says "
                f"{type(error).__name__}: {str(error)[:300]}"
            )
    return []
