"""Checkpoint folders as other programs write them, stated here once more and from nothing of ours.

The names and layouts of tensors, and the ways in which ``config.json`` says one and the same thing,
are those of the released checkpoints and of what transformers 4 and 5 write. A loader is held
against this statement; it shares no code with :mod:`griffin_np.checkpoints`.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.layouts import Case, Layout
from griffin_conformance.rounding import FLOAT32, Profile
from griffin_conformance.worlds import World

__all__ = [
    "INDEX",
    "FolderCase",
    "Form",
    "Spelling",
    "StoredWorld",
    "new_folder",
    "settings_of",
    "stored",
    "tensors_of",
    "write_folder",
    "write_weights",
]

INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

ROLES = {
    "temporal_norm": ("temporal_pre_norm.weight", "as it is"),
    "mlp_norm": ("channel_pre_norm.weight", "as it is"),
    "recurrent.linear_x.weight": ("temporal_block.linear_x.weight", "out, in"),
    "recurrent.linear_x.bias": ("temporal_block.linear_x.bias", "as it is"),
    "recurrent.linear_y.weight": ("temporal_block.linear_y.weight", "out, in"),
    "recurrent.linear_y.bias": ("temporal_block.linear_y.bias", "as it is"),
    "recurrent.linear_out.weight": ("temporal_block.linear_out.weight", "out, in"),
    "recurrent.linear_out.bias": ("temporal_block.linear_out.bias", "as it is"),
    "recurrent.conv.weight": ("temporal_block.conv_1d.weight", "channels, 1, time"),
    "recurrent.conv.bias": ("temporal_block.conv_1d.bias", "as it is"),
    "recurrent.rg_lru.w_a": ("temporal_block.rg_lru.recurrent_gate_weight", "as it is"),
    "recurrent.rg_lru.b_a": ("temporal_block.rg_lru.recurrent_gate_bias", "as it is"),
    "recurrent.rg_lru.w_x": ("temporal_block.rg_lru.input_gate_weight", "as it is"),
    "recurrent.rg_lru.b_x": ("temporal_block.rg_lru.input_gate_bias", "as it is"),
    "recurrent.rg_lru.a_param": ("temporal_block.rg_lru.recurrent_param", "as it is"),
    "attention.query.weight": ("temporal_block.q_proj.weight", "out, in"),
    "attention.key.weight": ("temporal_block.k_proj.weight", "out, in"),
    "attention.value.weight": ("temporal_block.v_proj.weight", "out, in"),
    "attention.output.weight": ("temporal_block.o_proj.weight", "out, in"),
    "attention.output.bias": ("temporal_block.o_proj.bias", "as it is"),
    "mlp.gate.weight": ("mlp_block.gate_proj.weight", "out, in"),
    "mlp.gate.bias": ("mlp_block.gate_proj.bias", "as it is"),
    "mlp.up.weight": ("mlp_block.up_proj.weight", "out, in"),
    "mlp.up.bias": ("mlp_block.up_proj.bias", "as it is"),
    "mlp.down.weight": ("mlp_block.down_proj.weight", "out, in"),
    "mlp.down.bias": ("mlp_block.down_proj.bias", "as it is"),
}
"""Tensor and layout of each parameter of a block, by its flat name; the tree has (in, out)."""


def tensors_of(flat: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Tensors of a checkpoint by name, from flat parameters."""
    found = {EMBEDDING: flat["embedding"], "model.final_norm.weight": flat["final_norm"]}
    for name, array in flat.items():
        part = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if part:
            theirs, layout = ROLES[part[2]]
            if layout == "out, in":
                array = np.transpose(array)
            elif layout == "channels, 1, time":
                array = np.transpose(array)[:, np.newaxis, :]
            found[f"model.layers.{part[1]}.{theirs}"] = array
    return found


@dataclass(frozen=True)
class Spelling:
    """How ``config.json`` says what it says; by default as the released 2B model's does.

    Attributes
    ----------
    pattern : {"_block_types", "block_types", "both", "left out"}
        Left out it means recurrent, recurrent, attention.
    rotary : {"top level", "rope_parameters", "both", "left out"}
        Where base and share of the rotary embedding stand; left out they are 10000 and one half.
    scale : {"told", "left out"}
        ``embeddings_scale_by_sqrt_dim``; left out it is true.
    lru_width : {"told", "null", "left out"}
        Where it is the width.
    head_dim : {"told", "left out"}
    kv_heads : {"told", "null"}
        Null is one for each query head.
    dtype_key : {"torch_dtype", "dtype", "left out"}
    decoys : bool
        Keys that mean nothing to the function, and null for some that are optional.
    """

    pattern: str = "_block_types"
    rotary: str = "top level"
    scale: str = "told"
    lru_width: str = "told"
    head_dim: str = "told"
    kv_heads: str = "told"
    dtype_key: str = "torch_dtype"
    decoys: bool = False


@dataclass(frozen=True)
class Form:
    """How the weights are stored.

    Attributes
    ----------
    dtype : {"float32", "float16", "bfloat16"}
    shards : int
        Files; 0 is one file without an index.
    head : bool
        Whether the tied head is stored beside the embedding.
    metadata : bool
        Whether files have a ``__metadata__`` entry.
    more_rows : int
        Rows of the embedding beyond the vocabulary.
    """

    dtype: str = "float32"
    shards: int = 0
    head: bool = False
    metadata: bool = True
    more_rows: int = 0


@dataclass(frozen=True)
class FolderCase:
    """A checkpoint folder of a world's model. The text that is read from it is document 0."""

    world: World
    spelling: Spelling = Spelling()
    form: Form = Form()

    def strata(self) -> set[str]:
        """What is special about this folder, by name."""
        found = Case(self.world, Layout((((0, self.world.lengths[0]),),))).strata()
        for part in (self.spelling, self.form):
            for field in fields(part):
                value = getattr(part, field.name)
                if value != field.default:
                    found.add(field.name if isinstance(value, bool) else f"{field.name}: {value}")
        return found

    def otherwise(self) -> Iterator[tuple[str, Any, "FolderCase"]]:
        """The same with one choice made otherwise: its name, its value, and the folder.

        As by default, or so that nothing is missing, whichever it is not already.
        """
        whole = {"pattern": "both", "rotary": "both", "head": True}
        for name in ("spelling", "form"):
            part = getattr(self, name)
            for field in fields(part):
                for value in {field.default, whole.get(field.name, field.default)}:
                    if value != getattr(part, field.name):
                        change: dict[str, Any] = {field.name: value}
                        yield field.name, value, replace(self, **{name: replace(part, **change)})


def settings_of(case: FolderCase) -> dict[str, Any]:
    """Content of ``config.json``."""
    c, told = case.world.config, case.spelling
    assert c.lru_width is not None and c.mlp_width is not None
    values: dict[str, Any] = {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "model_type": "recurrent_gemma",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attention_window_size": c.window,
        "bos_token_id": c.bos_id,
        "conv1d_width": c.conv_width,
        "eos_token_id": c.eos_id,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": c.width,
        "intermediate_size": 2 * c.mlp_width,
        "logits_soft_cap": c.logits_soft_cap,
        "num_attention_heads": c.num_heads,
        "num_hidden_layers": c.depth,
        "num_key_value_heads": c.num_kv_heads if told.kv_heads == "told" else None,
        "pad_token_id": c.pad_id,
        "rms_norm_eps": c.norm_eps,
        "use_cache": True,
        "vocab_size": c.vocab_size,
    }
    if told.lru_width != "left out":
        values["lru_width"] = c.lru_width if told.lru_width == "told" else None
    if told.head_dim == "told":
        values["head_dim"] = c.width // c.num_heads
    if told.scale == "told":
        values["embeddings_scale_by_sqrt_dim"] = c.scale_embeddings
    for key in ("_block_types", "block_types"):
        if told.pattern in (key, "both"):
            values[key] = list(c.block_pattern)
    rotary = {"rope_theta": c.rope_base, "partial_rotary_factor": c.rope_fraction}
    if told.rotary in ("top level", "both"):
        values |= rotary
    if told.rotary in ("rope_parameters", "both"):
        values["rope_parameters"] = {"rope_type": "default", **rotary}
    if told.dtype_key != "left out":
        values[told.dtype_key] = case.form.dtype
    if told.decoys:
        values |= {
            "_name_or_path": "somewhere/else", "transformers_version": "4.42.0.dev0",
            "rotary_emb_base": 50000.0, "rope_scaling": None, "w_init_variance_scale": 0.01,
            "final_w_init_variance_scale": 0.0769, "initializer_range": 0.5,
            "tie_word_embeddings": True, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        }  # fmt: skip
    return values


def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype of that name, or that of ``ml_dtypes`` for bfloat16."""
    if name == "bfloat16":
        from ml_dtypes import bfloat16

        return np.dtype(bfloat16)
    return np.dtype(name)


@dataclass(frozen=True)
class StoredWorld(World):
    """A world whose weights are held by files of some dtype without rounding, and by the model too.

    So no choice of rounding stands between a file and what a loader has to come to.

    Attributes
    ----------
    stored : {"float32", "float16", "bfloat16"}
    """

    stored: str = "float32"

    @classmethod
    def of(cls, world: World, dtype: str) -> "StoredWorld":
        """The world with its weights as they are stored."""
        return cls(world.config, world.weights, world.seed, world.lengths, dtype)

    def parameters(self, profile: Profile = FLOAT32) -> dict[str, NDArray]:
        """Weights by flat name, float32."""
        kind, flat = numpy_dtype(self.stored), super().parameters(profile)
        return {name: array.astype(kind).astype(np.float32) for name, array in flat.items()}


def stored(world: World, profile: Profile, dtype: str) -> dict[str, NDArray]:
    """Weights of a world by flat name, as files of a dtype and a model's precision hold them."""
    return StoredWorld.of(world, dtype).parameters(profile)


def write_weights(
    folder: Path,
    tensors: Mapping[str, NDArray],
    form: Form,
    promised: Mapping[str, str] | None = None,
    whole_numbers: Sequence[str] = (),
) -> None:
    """Write tensors as one file or as shards with their index.

    Parameters
    ----------
    folder : path
    tensors : mapping of str to array
    form : Form
    promised : mapping of str to str, optional
        Further entries of the index, whatever the files have.
    whole_numbers : sequence of str
        Tensors that are stored as integers.
    """
    from safetensors.numpy import save_file

    metadata = {"format": "pt", "written_by": "somebody"} if form.metadata else None
    kind = numpy_dtype(form.dtype)
    arrays = {
        name: np.ascontiguousarray(array, np.int32 if name in whole_numbers else kind)
        for name, array in tensors.items()
    }
    if not form.shards:
        save_file(arrays, folder / "model.safetensors", metadata)
        return
    where: dict[str, str] = {}
    for i in range(form.shards):
        names = list(arrays)[i :: form.shards]
        file = f"model-{i + 1:05d}-of-{form.shards:05d}.safetensors"
        save_file({name: arrays[name] for name in names}, folder / file, metadata)
        where |= dict.fromkeys(names, file)
    total = sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": where | dict(promised or {})}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def write_folder(folder: Path, case: FolderCase, flat: Mapping[str, NDArray]) -> None:
    """Write the case's folder with given parameters."""
    settings = json.dumps(settings_of(case), indent=2)
    (folder / "config.json").write_text(settings, encoding="utf-8")
    write_weights(folder, with_head(tensors_of(flat), case.form), case.form)


def with_head(tensors: dict[str, NDArray], form: Form) -> dict[str, NDArray]:
    """Tensors with the rows beyond the vocabulary and the tied head that the form asks for."""
    table = tensors[EMBEDDING]
    # Rows that would be chosen at once, if they took part.
    more = np.full((form.more_rows, table.shape[1]), 3.0, table.dtype)
    tensors = {**tensors, EMBEDDING: np.concatenate([table, more])}
    return {**tensors, HEAD: tensors[EMBEDDING]} if form.head else tensors


@contextmanager
def new_folder() -> Iterator[Path]:
    """A folder that goes when the block ends."""
    # What a loader has mapped into memory cannot be removed everywhere.
    with tempfile.TemporaryDirectory(prefix="griffin-", ignore_cleanup_errors=True) as name:
        yield Path(name)
