"""Show a model's configuration, sizes and blocks.

griffin-np info                               the embedded demo model
griffin-np info path/to/recurrentgemma-2b-it  a checkpoint folder
griffin-np info recurrentgemma-9b             a preset, without any weights
"""

import argparse
import json
from itertools import groupby
from pathlib import Path

from griffin_np.cli.common import human_bytes
from griffin_np.config import ATTENTION, PRESETS, RECURRENT, GriffinConfig

FLOATS = {"float32": 4, "bfloat16": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="FOLDER|PRESET",
                        help=f"a checkpoint folder or one of {', '.join(PRESETS)}")  # fmt: skip
    parser.add_argument("-m", "--model", dest="model_option", metavar="FOLDER", help="the same")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    from griffin_np.backends import DEMO, PACKED
    from griffin_np.checkpoints.huggingface import HuggingFaceFolder

    wanted = args.model or args.model_option
    name = wanted or "embedded demo model"
    stored = None
    if wanted in PRESETS and not Path(wanted).is_dir():
        config = PRESETS[wanted]
    elif wanted and (Path(wanted) / PACKED).is_file():
        from griffin_kernels.cpu.folder import PackedFolder

        packed = PackedFolder(wanted)
        config, stored = packed.config, f"{packed.dtype}, packed"
    else:
        folder = HuggingFaceFolder(wanted or DEMO)
        config, stored = folder.config, folder.dtype
    facts = describe(config, name, stored)
    print(json.dumps(facts) if args.json else as_text(config, facts))
    return 0


def describe(config: GriffinConfig, name: str, stored: str | None) -> dict:
    """Everything that the command shows, as JSON values."""
    parameters = config.num_parameters()
    embedding = config.vocab_size * config.width
    return {
        "name": name,
        "stored_dtype": stored,
        "config": config.to_dict(),
        "block_types": list(config.block_types),
        "parameters": parameters,
        "embedding_parameters": embedding,
        "weight_bytes": {dtype: parameters * size for dtype, size in FLOATS.items()},
        "state_bytes": {dtype: config.state_bytes(1, size) for dtype, size in FLOATS.items()},
    }


def as_text(config: GriffinConfig, facts: dict) -> str:
    kinds = config.block_types
    counts = f"{kinds.count(RECURRENT)} recurrent, {kinds.count(ATTENTION)} local attention"
    stored = f", stored as {facts['stored_dtype']}" if facts["stored_dtype"] else ""
    weights = "  ".join(f"{d} {human_bytes(n)}" for d, n in facts["weight_bytes"].items())
    state = "  ".join(f"{d} {human_bytes(n)}" for d, n in facts["state_bytes"].items())
    scale = f"x {config.embedding_scale:g}" if config.scale_embeddings else "not scaled"
    cap = f"soft cap {config.logits_soft_cap:g}" if config.logits_soft_cap else "no soft cap"
    c = config
    total, embedding = facts["parameters"], facts["embedding_parameters"]
    rows = [
        ("model", f"{facts['name']}{stored}"),
        ("parameters", f"{total:,}, of which {embedding:,} embedding"),
        ("weights", weights),
        ("state", f"{state}  per text, of any length"),
        ("vocabulary", f"{c.vocab_size:,}, embeddings {scale}, logits with {cap}"),
        ("width", f"{c.width}, recurrence {c.lru_width}, MLP {c.mlp_width}"),
        ("heads", f"{c.num_heads} of {c.head_dim}, {c.num_kv_heads} for keys, values"),
        ("rotation", f"{c.rotary_dim} of {c.head_dim} channels, base {c.rope_base:g}"),
        ("window", f"{c.window} past positions and the token itself"),
        ("convolution", f"width {c.conv_width}"),
        ("blocks", f"{c.depth}: {counts}"),
    ]  # fmt: skip
    lines = [f"{label:<12}{text}" for label, text in rows]
    return "\n".join([*lines, "", *drawing(config)])


def drawing(config: GriffinConfig) -> list[str]:
    """The stack of blocks as a picture: R recurrent, A attention, equal rounds counted."""
    size = len(config.block_pattern)
    letters = "".join("R" if kind == RECURRENT else "A" for kind in config.block_types)
    rounds = [letters[start : start + size] for start in range(0, len(letters), size)]
    stack = "  ".join(
        f"[{'─'.join(text)}]" + (f" x{n}" if n > 1 else "")
        for text, n in ((text, len(list(group))) for text, group in groupby(rounds))
    )
    return [
        f"tokens ─ embedding ─ {stack} ─ norm ─ logits",
        "",
        "R   x ─┬─ norm ─┬─ linear ─ conv ─ RG-LRU ─┬─ * ─ linear ─ + ─┬─ norm ─ MLP ─ + ─ x",
        "       │        └─ linear ─ GeLU ──────────┘                │  │              │",
        "       └────────────────────────────────────────────────────┘  └──────────────┘",
        "A   the same with local attention in place of the two branches",
    ]
