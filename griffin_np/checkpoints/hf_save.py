"""Writing Hugging Face folders that transformers loads."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from griffin_np.base import GenerationDefaults
from griffin_np.checkpoints.files import write_safetensors
from griffin_np.checkpoints.hf_config import config_to_json, write_json
from griffin_np.checkpoints.hf_names import tensor_names
from griffin_np.checkpoints.huggingface import FINGERPRINT, INDEX
from griffin_np.config import GriffinConfig
from griffin_np.errors import CheckpointError
from griffin_np.params import parameter_shapes
from griffin_np.tokenizer import Tokenizer

__all__ = ["save_folder"]

SHARD_BYTES = 2 << 30


def save_folder(
    folder: str | os.PathLike,
    config: GriffinConfig,
    parameters: Mapping[str, NDArray],
    dtype: str,
    fingerprint: str,
    extra_files: Mapping[str, bytes],
    generation: GenerationDefaults,
) -> None:
    """Write a folder that :class:`.huggingface.HuggingFaceFolder` and transformers load.

    The folder appears whole or not at all.

    Parameters
    ----------
    folder : path
        Must not exist, or be empty.
    config : GriffinConfig
    parameters : mapping of str to array
        By flat name.
    dtype : {"float32", "float16", "bfloat16"}
        Of the stored weights.
    fingerprint : str
        Of the weights before they are rounded to ``dtype``.
    extra_files : mapping of str to bytes
        Further files by name, such as the tokenizer.
    generation : GenerationDefaults

    Raises
    ------
    CheckpointError
        If the folder exists and is not empty or cannot be written, or if weights are not finite
        in ``dtype``.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already: choose another place, or remove it first")
    if not folder.parent.is_dir():
        raise CheckpointError(f"cannot write {folder}: there is no folder {folder.parent}")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        _write_weights(partial, config, parameters, _stored_dtype(dtype), fingerprint)
        eos = list(generation.eos_ids) if len(generation.eos_ids) > 1 else config.eos_id
        sampled = {
            "temperature": generation.temperature,
            "top_k": generation.top_k,
            "top_p": generation.top_p,
        }
        settings = {k: v for k, v in sampled.items() if v is not None}
        write_json(partial / "config.json", config_to_json(config, dtype))
        write_json(
            partial / "generation_config.json",
            {
                "bos_token_id": config.bos_id,
                "eos_token_id": eos,
                "pad_token_id": config.pad_id,
                **({"do_sample": True, **settings} if settings else {}),
            },
        )
        for name, content in extra_files.items():
            (partial / name).write_bytes(content)
        partial.replace(folder)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _stored_dtype(dtype: str) -> np.dtype:
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16

        return np.dtype(bfloat16)
    if dtype in ("float32", "float16"):
        return np.dtype(dtype)
    raise CheckpointError(f"weights can be stored as float32, float16 or bfloat16, not {dtype!r}")


def _write_weights(folder: Path, config, parameters, dtype: np.dtype, fingerprint: str) -> None:
    layouts = tensor_names(config)
    shapes = parameter_shapes(config)
    sizes = {name: int(np.prod(shape)) * dtype.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    weight_map: dict[str, str] = {}
    metadata = {"format": "pt"} | ({FINGERPRINT: fingerprint} if fingerprint else {})
    for i, names in enumerate(shards):
        file = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        )
        with np.errstate(over="ignore"):  # what overflows is refused below, by name
            arrays = {
                layouts[name][0]: np.ascontiguousarray(
                    layouts[name][2](np.asarray(parameters[name])), dtype
                )
                for name in names
            }
        for name in names:
            if not np.isfinite(arrays[layouts[name][0]]).all():
                raise CheckpointError(
                    f"{name} holds values that are not finite in {dtype.name}; nothing was written"
                )
        write_safetensors(folder / file, arrays, metadata)
        weight_map |= dict.fromkeys(arrays, file)
    if len(shards) > 1:
        write_json(
            folder / INDEX,
            {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map},
        )


def tokenizer_files(tokenizer: Tokenizer, chat_template: str) -> dict[str, bytes]:
    """The files by which transformers finds a SentencePiece vocabulary and the dialogue format."""
    piece = tokenizer.id_to_piece
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": piece(tokenizer.bos_id),
        "eos_token": piece(tokenizer.eos_id),
        "pad_token": piece(tokenizer.pad_id),
        "unk_token": piece(tokenizer.unk_id),
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.end_of_turn_id is not None:
        settings["chat_template"] = chat_template
    return {
        "tokenizer.model": tokenizer.model_proto,
        "tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode(),
    }
