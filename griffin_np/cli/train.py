"""Train a model on text, from scratch or from a checkpoint, and write a Hugging Face folder.

  griffin-np train --data stories.txt --out model --preset demo --steps 9000
  griffin-np train --model demo --data dialogues.jsonl --out tuned --steps 100 --lora 8

Files are text, documents separated by lines <|endoftext|>, or, if named .jsonl, JSON lines:
{"text": ...}, {"prompt": ..., "completion": ...} or {"messages": [{"role": ..., "content": ...}]}.
Of prompts and of the user's turns nothing is learnt.

A run that is killed goes on where its last checkpoint was when the same command is given again, to
the same bits.
"""

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from griffin_np.cli.common import add_mesh_options, mesh_options, say
from griffin_np.config import PRESETS
from griffin_np.errors import CheckpointError, ConfigError, MissingExtraError, TokenizerError

if TYPE_CHECKING:
    from griffin_kernels.xla.records import Example
    from griffin_np.base import GenerationDefaults
    from griffin_np.config import GriffinConfig
    from griffin_np.tokenizer import Tokenizer

SIZES = (
    "width",
    "depth",
    "num_heads",
    "num_kv_heads",
    "lru_width",
    "mlp_width",
    "window",
    "vocab_size",
)
TOKENIZER_FILES = ("tokenizer.json", "special_tokens_map.json", "added_tokens.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-m", "--model", metavar="FOLDER",
        help="checkpoint to fine-tune; demo: the embedded one (default: from scratch)")  # fmt: skip
    add("--data", nargs="+", required=True, metavar="FILE", help="text or .jsonl files")
    add("--out", required=True, metavar="FOLDER", help="where the model goes; must not exist yet")
    add("--eval-data", nargs="+", metavar="FILE", help="held-out files (default: part of --data)")
    add("--hold-out", type=float, default=0.05, metavar="SHARE",
        help="share of documents held out where there is no --eval-data (0.05)")  # fmt: skip
    add("--checkpoints", metavar="FOLDER", help="where the run is kept (default: OUT.training)")
    add("--dtype", metavar="D",
        help="of the stored weights: float32, float16, bfloat16 (default: the checkpoint's own; "
        "bfloat16 from scratch)")  # fmt: skip
    lora = parser.add_argument_group("LoRA: train small factors on frozen weights of --model")
    lora.add_argument("--lora", type=int, default=0, metavar="RANK", help="0 trains all weights")
    lora.add_argument("--lora-alpha", type=float, metavar="A",
                      help="factors count A / RANK (default: 2 RANK)")  # fmt: skip
    lora.add_argument("--lora-targets", metavar="NAMES",
                      help="matrices, separated by commas (default: all projections)")  # fmt: skip
    shape = parser.add_argument_group("from scratch: a preset, and changes to it")
    shape.add_argument("--preset", choices=PRESETS, help="(demo)")
    shape.add_argument("--tokenizer", metavar="FILE",
                       help="a tokenizer.model (default: train one on the data)")  # fmt: skip
    for name in SIZES:
        text = "also with --model: in place of the checkpoint's" if name == "window" else None
        shape.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)
    run_options = parser.add_argument_group("run")
    for name, kind, default, text in (
        ("--steps", int, 1000, "updates in all"),
        ("--batch-size", int, 4, "rows of a batch"),
        ("--accumulate", int, 1, "batches whose gradients make one update"),
        ("--length", int, 512, "tokens of a row"),
        ("--weight-decay", float, 0.1, "of matrices outside the RG-LRU, or of LoRA's factors"),
        ("--clip", float, 1.0, "largest norm of a gradient"),
        ("--seed", int, 0, "of weights and order"),
        ("--log-every", int, 20, "steps between progress lines"),
    ):
        run_options.add_argument(name, type=kind, default=default, help=f"{text} ({default:g})")
    run_options.add_argument("--lr", type=float, metavar="X",
        help="rate after warm-up (2.5e-3; 1e-4 with --model, 1e-3 with --lora)")  # fmt: skip
    run_options.add_argument("--warmup", type=int, metavar="N",
        help="steps of warm-up (200; a tenth of the steps with --model)")  # fmt: skip
    for what, text in (("checkpoint", "checkpoints"), ("eval", "held-out evaluations")):
        run_options.add_argument(f"--{what}-every", type=int, metavar="N",
            help=f"steps between {text} (500; 100 with --model)")  # fmt: skip
    run_options.add_argument("--remat", action="store_true",
        help="keep less in memory: compute blocks again for their gradients")  # fmt: skip
    run_options.add_argument("--scan", choices=("sequential", "associative", "pallas"),
        help="of the recurrence (default: the fastest on this platform)")  # fmt: skip
    add_mesh_options(parser)


def run(args: argparse.Namespace) -> int:
    import griffin_np as gnp
    from griffin_np.model import NumPyModel

    try:
        from griffin_kernels.xla.distributed import first_process, first_process_first
        from griffin_kernels.xla.records import encode_examples, read_examples
        from griffin_kernels.xla.train import Trainer
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "jax", "jax") from None

    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists already: choose another --out, or remove it first")
    if args.dtype not in (None, "float32", "float16", "bfloat16"):
        raise ConfigError(f"--dtype must be float32, float16 or bfloat16, got {args.dtype!r}")
    if not 0 < args.hold_out < 1:
        raise ConfigError(f"--hold-out must lie between 0 and 1, got {args.hold_out}")
    if args.checkpoint_every is None:
        args.checkpoint_every = 100 if args.model else 500
    if args.eval_every is None:
        args.eval_every = 100 if args.model else 500
    for name in ("checkpoint_every", "eval_every", "log_every"):
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} must be at least 1, got {getattr(args, name)}")
    mesh = mesh_options(args).get("mesh")
    tell = say if first_process() else lambda message: None
    options = _options(args)
    start = _checkpoint(args) if args.model else _scratch(args)

    examples = read_examples(args.data)
    if args.eval_data:
        heldout = read_examples(args.eval_data)
    else:
        heldout = [example for example in examples if example.share < args.hold_out]
        examples = [example for example in examples if example.share >= args.hold_out]
    if not examples:
        raise TokenizerError("no document is left to train on: give more text or hold out less")
    folder = Path(args.checkpoints or f"{out}.training")
    folder.mkdir(parents=True, exist_ok=True)
    with first_process_first():
        tokenizer = start.tokenizer or _tokenizer(args, start.config, examples, folder)
    documents = encode_examples(examples, tokenizer)
    trainer = Trainer(start.config, options, documents, folder, base=start.params, mesh=mesh)
    trained = trainer.num_trained
    share = f", {trained:,} of them trained" * (options.lora is not None)
    size = start.config.num_parameters() + trained * (options.lora is not None)
    tell(
        f"{size:,} parameters{share}; {len(documents):,} documents of "
        f"{sum(map(len, documents)):,} tokens to train on, {len(heldout):,} held out"
    )
    cut = sum(len(document) > options.length for document in documents)
    if cut:
        tell(
            f"{cut:,} documents are longer than --length {options.length}: they are cut into "
            f"pieces that do not see each other"
        )
    if trainer.step:
        tell(f"going on at step {trainer.step} of {options.steps}")
    all_text = all(example.is_text for example in heldout)
    result = trainer.run(
        encode_examples(heldout, tokenizer),
        sum(example.size for example in heldout) if all_text else 0,
        checkpoint_every=args.checkpoint_every,
        evaluate_every=args.eval_every,
        log_every=args.log_every,
        log=None if first_process() else io.StringIO(),
    )
    params = trainer.params
    if not first_process():
        return 0
    model = NumPyModel(start.config, params)
    model.attach_tokenizer(tokenizer)
    model.generation = start.generation
    gnp.save(model, out, args.dtype or start.dtype, extra_files=start.files)
    held = f", held-out {result}" if result is not None else ""
    tell(f"{out} written after {trainer.tokens_seen:,} tokens{held}")
    return 0


class _Start:
    """What a run begins with; ``params`` and ``tokenizer`` are None where they are to be made."""

    def __init__(
        self,
        config: "GriffinConfig",
        dtype: str,
        generation: "GenerationDefaults",
        params: dict | None = None,
        tokenizer: "Tokenizer | None" = None,
        files: dict[str, bytes] | None = None,
    ):
        self.config, self.dtype, self.generation = config, dtype, generation
        self.params, self.tokenizer, self.files = params, tokenizer, files


def _options(args: argparse.Namespace):
    import jax

    from griffin_kernels.xla.lora import TARGETS, LoraOptions
    from griffin_kernels.xla.scan_xla import fastest_scan
    from griffin_kernels.xla.train import TrainOptions

    lora = None
    if args.lora:
        if not args.model:
            raise ConfigError("--lora adapts a trained model: name one with --model")
        alpha = 2.0 * args.lora if args.lora_alpha is None else args.lora_alpha
        names = args.lora_targets
        targets = TARGETS if names is None else tuple(n.strip() for n in names.split(","))
        lora = LoraOptions(args.lora, alpha, targets)
    elif args.lora_alpha is not None or args.lora_targets is not None:
        raise ConfigError("--lora-alpha and --lora-targets need --lora RANK")
    scan = args.scan or fastest_scan(jax.devices()[0].platform)
    rate = 2.5e-3 if not args.model else 1e-4 if lora is None else 1e-3
    warmup = args.steps // 10 if args.model else 200
    return TrainOptions(
        steps=args.steps, batch_size=args.batch_size, length=args.length,
        learning_rate=rate if args.lr is None else args.lr,
        warmup=min(warmup if args.warmup is None else args.warmup, max(args.steps, 0)),
        weight_decay=args.weight_decay, clip=args.clip, seed=args.seed, scan=scan,
        accumulate=args.accumulate, remat=args.remat, lora=lora,
    )  # fmt: skip


def _scratch(args: argparse.Namespace) -> _Start:
    from griffin_np.base import GenerationDefaults

    changes = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    if "width" in changes:  # widths that follow from it, unless they are given too
        changes = {"lru_width": None, "mlp_width": None} | changes
    config = PRESETS[args.preset or "demo"].replace(**changes)
    return _Start(config, "bfloat16", GenerationDefaults())


def _checkpoint(args: argparse.Namespace) -> _Start:
    """The weights in float32, and all that the export takes over from the folder."""
    from griffin_np.backends import DEMO, PACKED
    from griffin_np.checkpoints.huggingface import HuggingFaceFolder
    from griffin_np.params import nest
    from griffin_np.tokenizer import Tokenizer

    fixed = [name for name in (*SIZES, "preset", "tokenizer") if name != "window"]
    given = [f"--{name.replace('_', '-')}" for name in fixed if getattr(args, name) is not None]
    if given:
        raise ConfigError(
            f"{', '.join(given)} cannot be given with --model: the checkpoint has its own shape "
            f"and vocabulary"
        )
    folder = DEMO if args.model == "demo" else Path(args.model)
    if (folder / PACKED).is_file():
        raise CheckpointError(
            f"{folder} holds weights packed for the CPU engine: train the original checkpoint"
        )
    source = HuggingFaceFolder(folder)
    vocabulary = folder / "tokenizer.model"
    if not vocabulary.is_file():
        raise TokenizerError(f"{folder} has no tokenizer.model: it is needed to read text")
    tokenizer = Tokenizer(vocabulary)
    config = source.config if args.window is None else source.config.replace(window=args.window)
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenizerError(
            f"{vocabulary} has {tokenizer.vocab_size} pieces, the model's vocabulary is "
            f"{config.vocab_size}: it belongs to another model"
        )
    return _Start(
        config,
        "float32" if source.dtype == "float64" else source.dtype,
        source.generation,
        nest(dict(source.parameters("float32"))),
        tokenizer,
        {n: (folder / n).read_bytes() for n in TOKENIZER_FILES if (folder / n).is_file()},
    )


def _tokenizer(
    args: argparse.Namespace, config: "GriffinConfig", examples: "list[Example]", folder: Path
) -> "Tokenizer":
    """The vocabulary of a model from scratch: given, of this run before, or trained now."""
    from griffin_kernels.xla.data import train_tokenizer
    from griffin_np.tokenizer import Tokenizer

    if args.tokenizer:
        tokenizer = Tokenizer(args.tokenizer)
        if tokenizer.vocab_size > config.vocab_size:
            raise ConfigError(
                f"{args.tokenizer} has {tokenizer.vocab_size} pieces: --vocab-size must be that"
            )
        return tokenizer
    if (folder / "tokenizer.model").is_file():
        return Tokenizer(folder / "tokenizer.model")
    say(f"training a vocabulary of {config.vocab_size} pieces")
    texts = [text for example in examples for _, text in example.parts]
    return train_tokenizer(texts, config.vocab_size, folder / "tokenizer.model")
