"""``config.json`` of Hugging Face checkpoints, in the dialects of transformers 4.x and 5.x."""

import json
from collections.abc import Mapping
from pathlib import Path

from griffin_np.config import ATTENTION, RECURRENT, GriffinConfig
from griffin_np.errors import CheckpointError, ConfigError

__all__ = ["config_from_json", "config_to_json", "read_json", "write_json"]

TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")


def config_from_json(values: Mapping, source: str = "config.json") -> GriffinConfig:
    """A configuration from the content of a ``config.json`` of transformers 4.x or 5.x.

    Raises
    ------
    CheckpointError
        If it is another architecture, lacks a size, contradicts itself, or asks for something that
        no Griffin engine computes; the message names key and value.
    """

    def refuse(message: str) -> CheckpointError:
        return CheckpointError(f"{source}: {message}")

    for key, kinds in (
        ("architectures", list), ("quantization_config", dict), ("rope_parameters", dict),
        ("rope_scaling", dict), ("block_types", list), ("_block_types", list),
    ):  # fmt: skip
        if values.get(key) is not None and not isinstance(values[key], kinds):
            raise refuse(f"{key} must be a JSON {kinds.__name__}, got {values[key]!r}")
    architectures = values.get("architectures") or []
    kind = values.get("model_type") or ", ".join(architectures) or "no model_type"
    if kind != "recurrent_gemma" and not any("RecurrentGemma" in str(a) for a in architectures):
        raise refuse(f"this is {kind!r}, not 'recurrent_gemma'")
    if values.get("quantization_config"):
        method = values["quantization_config"].get("quant_method", "unknown")
        raise refuse(
            f"quantization_config: weights quantised by {method!r} cannot be read; "
            f"use the original checkpoint in float32, float16 or bfloat16"
        )
    sizes = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "intermediate_size",
    )
    missing = [key for key in sizes if values.get(key) is None]
    if missing:
        raise refuse(f"keys {missing} are missing")
    for key in sizes:
        if isinstance(values[key], bool) or not isinstance(values[key], int):
            raise refuse(f"{key} must be an integer, got {values[key]!r}")

    def one_of(keys: tuple[str, ...], default):
        """The value under any of several names; refuse two that differ."""
        given = {key: values[key] for key in keys if values.get(key) is not None}
        first = next(iter(given.values()), default)
        if any(value != first for value in given.values()):
            raise refuse(f"keys that mean the same differ: {given}")
        return first

    activation = values.get("hidden_activation") or TANH_GELU[0]
    if activation not in TANH_GELU:
        raise refuse(f"hidden_activation {activation!r} is not supported, only {TANH_GELU}")
    if values.get("attention_bias"):
        raise refuse("attention_bias true is not supported: Griffin's q, k and v have no bias")
    if values["intermediate_size"] % 2:
        raise refuse(
            f"intermediate_size must be even (it is twice the MLP's width), "
            f"got {values['intermediate_size']}"
        )
    heads, width = values["num_attention_heads"], values["hidden_size"]
    if heads < 1 or (values.get("head_dim") or width // heads) != width // heads:
        raise refuse(
            f"head_dim {values.get('head_dim')} is not hidden_size / num_attention_heads = "
            f"{width} / {heads}"
        )
    rope = values.get("rope_parameters") or {}
    scaling = values.get("rope_scaling") or {}
    rope_type = (
        rope.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
    )
    if rope_type != "default":
        raise refuse(f"rope type {rope_type!r} is not supported, only 'default'")
    values = {
        **values,
        "rope_theta (rope_parameters)": rope.get("rope_theta"),
        "partial_rotary_factor (rope_parameters)": rope.get("partial_rotary_factor"),
    }
    eos = values.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    scale = values.get("embeddings_scale_by_sqrt_dim")
    try:
        return GriffinConfig(
            width=width,
            depth=values["num_hidden_layers"],
            num_heads=heads,
            vocab_size=values["vocab_size"],
            lru_width=values.get("lru_width"),
            mlp_width=values["intermediate_size"] // 2,
            num_kv_heads=_or(values.get("num_key_value_heads"), heads),
            window=one_of(("attention_window_size", "sliding_window"), 2048),
            block_pattern=tuple(
                one_of(("block_types", "_block_types"), (RECURRENT, RECURRENT, ATTENTION))
            ),
            conv_width=_or(values.get("conv1d_width"), 4),
            logits_soft_cap=_or(
                values.get("logits_soft_cap"), 0.0 if "logits_soft_cap" in values else 30.0
            ),
            scale_embeddings=_or(scale, True),
            rope_base=one_of(("rope_theta", "rope_theta (rope_parameters)"), 10000.0),
            rope_fraction=one_of(
                ("partial_rotary_factor", "partial_rotary_factor (rope_parameters)"), 0.5
            ),
            norm_eps=_or(values.get("rms_norm_eps"), 1e-6),
            pad_id=_or(values.get("pad_token_id"), 0),
            eos_id=_or(eos, 1),
            bos_id=_or(values.get("bos_token_id"), 2),
        )
    except (ConfigError, TypeError) as error:
        raise refuse(str(error)) from None


def _or(value, default):
    return default if value is None else value


def config_to_json(config: GriffinConfig, dtype: str) -> dict:
    """Content of a ``config.json`` that every transformers version with RecurrentGemma reads.

    Keys of both dialects are written, so that readers of either find theirs.
    """
    pattern = list(config.block_pattern)
    return {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "model_type": "recurrent_gemma",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "lru_width": config.lru_width,
        "intermediate_size": 2 * (config.mlp_width or 0),
        "attention_window_size": config.window,
        "block_types": pattern,
        "_block_types": pattern,
        "conv1d_width": config.conv_width,
        "logits_soft_cap": config.logits_soft_cap,
        "embeddings_scale_by_sqrt_dim": config.scale_embeddings,
        "rope_theta": config.rope_base,
        "partial_rotary_factor": config.rope_fraction,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_base,
            "partial_rotary_factor": config.rope_fraction,
        },
        "rms_norm_eps": config.norm_eps,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        "pad_token_id": config.pad_id,
        "eos_token_id": config.eos_id,
        "bos_token_id": config.bos_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def read_json(path: Path) -> dict:
    """Content of a JSON file that holds an object.

    Raises
    ------
    CheckpointError
        If it is missing, unreadable, or something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"no file at {path}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no readable JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def write_json(path: Path, values: dict) -> None:
    """Write an object as indented JSON."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
