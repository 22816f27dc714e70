"""Train a model from scratch on text files and write a Hugging Face folder.

  griffin-np train --data stories.txt --out model --preset demo --steps 9000

Documents are separated by lines <|endoftext|>. A run that is killed goes on where its last
checkpoint was when the same command is given again, to the same bits.
"""

import argparse
import hashlib
import math
from pathlib import Path

from griffin_np.cli.common import say
from griffin_np.config import PRESETS

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="FILE", help="UTF-8 text files")
    add("--out", required=True, metavar="FOLDER", help="where the model goes; must not exist yet")
    add("--eval-data", nargs="+", metavar="FILE", help="held-out text (default: part of --data)")
    add("--hold-out", type=float, default=0.05, metavar="SHARE",
        help="share of documents held out where there is no --eval-data (0.05)")  # fmt: skip
    add("--tokenizer", metavar="FILE", help="a tokenizer.model (default: train one on the data)")
    add("--checkpoints", metavar="FOLDER", help="where the run is kept (default: OUT.training)")
    add("--dtype", default="bfloat16", help="of the stored weights: float32, float16, bfloat16")
    shape = parser.add_argument_group("shape: a preset, and changes to it")
    shape.add_argument("--preset", default="demo", choices=PRESETS)
    for name in SIZES:
        shape.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    run_options = parser.add_argument_group("run")
    for name, kind, default, text in (
        ("--steps", int, 1000, "updates in all"),
        ("--batch-size", int, 4, "rows of a batch"),
        ("--length", int, 512, "tokens of a row"),
        ("--lr", float, 2.5e-3, "learning rate after warm-up"),
        ("--warmup", int, 200, "steps of warm-up"),
        ("--weight-decay", float, 0.1, "of matrices outside the RG-LRU"),
        ("--clip", float, 1.0, "largest norm of a gradient"),
        ("--seed", int, 0, "of weights and order"),
        ("--checkpoint-every", int, 500, "steps between checkpoints"),
        ("--eval-every", int, 500, "steps between held-out evaluations"),
        ("--log-every", int, 20, "steps between progress lines"),
    ):
        run_options.add_argument(name, type=kind, default=default, help=f"{text} ({default:g})")
    run_options.add_argument("--scan", default="sequential", choices=("sequential", "associative"))


def run(args: argparse.Namespace) -> int:
    import griffin_np as gnp
    from griffin_np.errors import CheckpointError, ConfigError, MissingExtraError, TokenizerError
    from griffin_np.model import NumPyModel
    from griffin_np.tokenizer import Tokenizer

    try:
        from griffin_kernels.xla.data import read_documents, train_tokenizer
        from griffin_kernels.xla.train import Trainer, TrainOptions, encode_documents
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "jax", "jax") from None

    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists already: choose another --out, or remove it first")
    if args.dtype not in ("float32", "float16", "bfloat16"):
        raise ConfigError(f"--dtype must be float32, float16 or bfloat16, got {args.dtype!r}")
    if not 0 < args.hold_out < 1:
        raise ConfigError(f"--hold-out must lie between 0 and 1, got {args.hold_out}")
    changes = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    if "width" in changes:  # widths that follow from it, unless they are given too
        changes = {"lru_width": None, "mlp_width": None} | changes
    config = PRESETS[args.preset].replace(**changes)
    options = TrainOptions(
        steps=args.steps, batch_size=args.batch_size, length=args.length, learning_rate=args.lr,
        warmup=min(args.warmup, args.steps), weight_decay=args.weight_decay, clip=args.clip,
        seed=args.seed, scan=args.scan,
    )  # fmt: skip

    texts = read_documents(args.data)
    if args.eval_data:
        heldout = read_documents(args.eval_data)
    else:
        heldout = [text for text in texts if _share(text) < args.hold_out]
        texts = [text for text in texts if _share(text) >= args.hold_out]
    if not texts:
        raise TokenizerError("no document is left to train on: give more text or hold out less")
    folder = Path(args.checkpoints or f"{out}.training")
    folder.mkdir(parents=True, exist_ok=True)
    if args.tokenizer:
        tokenizer = Tokenizer(args.tokenizer)
        if tokenizer.vocab_size > config.vocab_size:
            raise ConfigError(
                f"{args.tokenizer} has {tokenizer.vocab_size} pieces: --vocab-size must be that"
            )
    elif (folder / "tokenizer.model").is_file():
        tokenizer = Tokenizer(folder / "tokenizer.model")
    else:
        say(f"training a vocabulary of {config.vocab_size} pieces")
        tokenizer = train_tokenizer(texts, config.vocab_size, folder / "tokenizer.model")
    documents = encode_documents(texts, tokenizer)
    say(
        f"{config.num_parameters():,} parameters; {len(documents):,} documents of "
        f"{sum(map(len, documents)):,} tokens to train on, {len(heldout):,} held out"
    )
    trainer = Trainer(config, options, documents, folder)
    if trainer.step:
        say(f"going on at step {trainer.step} of {options.steps}")
    bits = trainer.run(
        encode_documents(heldout, tokenizer),
        sum(len(text.encode()) for text in heldout),
        checkpoint_every=args.checkpoint_every,
        evaluate_every=args.eval_every,
        log_every=args.log_every,
    )
    model = NumPyModel(config, trainer.params)
    model.attach_tokenizer(tokenizer)
    gnp.save(model, out, args.dtype)
    held = "" if bits is None or not math.isfinite(bits) else f", held-out {bits:.4f} bits/byte"
    say(f"{out} written after {trainer.tokens_seen:,} tokens{held}")
    return 0


def _share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32
