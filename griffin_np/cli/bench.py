"""Measure the speed of a model on this machine.

griffin-np bench                                            the embedded demo model
griffin-np bench --preset recurrentgemma-2b --dtype int4    random weights of that size: no download
griffin-np bench -n 64 -d 0 -d 4096 -b 1 -b 8               generation only: depths, batches

Tests are named as llama-bench names them: pp512 reads a prompt of 512 tokens, tg128 generates 128,
"tg128 @ d4096" does so after 4096 others, "tg128 b8" for eight texts at once. GB/s are the weights
that generation reads, and beside it their share of the read ceiling, which is how fast this machine
read memory right before and after.
"""

import argparse
import json
import os
import sys

from griffin_np.base import Model
from griffin_np.cli.common import add_model_options, human_bytes, load_model, say, thread_limit
from griffin_np.config import PRESETS, GriffinConfig
from griffin_np.errors import ConfigError

HEAD = ("model", "size", "params", "backend", "dtype", "test", "t/s", "GB/s", "of ceiling", "peak")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--preset", metavar="NAME", help=f"random weights of this size: {', '.join(PRESETS)}")
    add("-p", "--n-prompt", type=_numbers, action="extend", default=[], metavar="N",
        help="read a prompt of N tokens; repeatable (512 without -p and -n)")  # fmt: skip
    add("-n", "--n-gen", type=_numbers, action="extend", default=[], metavar="N",
        help="generate N tokens; repeatable (128 without -p and -n)")  # fmt: skip
    add("-d", "--n-depth", type=_numbers, action="extend", default=[], metavar="DEPTH",
        help="tokens before those that count; repeatable (0)")  # fmt: skip
    add("-b", "--batch", type=_numbers, action="extend", default=[], metavar="B",
        help="texts at the same time; repeatable (1)")  # fmt: skip
    add("-r", "--repetitions", type=int, default=5, metavar="R", help="of every test (5)")
    add("--json", action="store_true", help="print one JSON document")
    add_model_options(parser)


def _numbers(text: str) -> list[int]:
    """``512`` or, as llama-bench takes it, ``512,1024``."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None


def run(args: argparse.Namespace) -> int:
    check(args)
    with thread_limit(args.threads):
        from tqdm import tqdm

        from griffin_kernels.bench import Test, bench

        tests = [
            Test(kind, n, depth, batch)
            for batch in args.batch or [1]
            for depth in args.n_depth or [0]
            for kind, n in lengths(args)
        ]
        if args.preset:
            say(f"drawing random weights for {args.preset}", quiet=not sys.stderr.isatty())
        model = random_model(args) if args.preset else load_model(args)
        with tqdm(total=len(tests) * args.repetitions, disable=None, leave=False) as bar:

            def show(name: str) -> None:
                bar.set_description(name, refresh=False)
                bar.update()

            facts = bench(model, tests, args.repetitions, args.threads, show)
    name = args.preset or args.model or "demo"
    print(json.dumps(facts) if args.json else as_text(facts, name, model))
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured before anything takes time.

    Raises
    ------
    ConfigError
        Naming the option.
    """
    if args.preset:
        # A model named by the environment gives way to an option.
        if args.model and args.model != os.environ.get("GRIFFIN_NP_MODEL"):
            raise ConfigError("--model and --preset are both given: choose one")
        GriffinConfig.preset(args.preset)
    for option, values, low in (
        ("-p", args.n_prompt, 1),
        ("-n", args.n_gen, 1),
        ("-d", args.n_depth, 0),
        ("-b", args.batch, 1),
        ("-r", [args.repetitions], 1),
    ):
        for value in values:
            if value < low:
                raise ConfigError(f"{option} must be an integer of at least {low}, got {value}")


def lengths(args: argparse.Namespace) -> list[tuple[str, int]]:
    """Kinds of tests and their numbers of tokens, prompts first."""
    wanted = [("pp", n) for n in args.n_prompt] + [("tg", n) for n in args.n_gen]
    return wanted or [("pp", 512), ("tg", 128)]


def random_model(args: argparse.Namespace) -> Model:
    """A model of the preset's size with random weights."""
    from griffin_np import backends

    config = GriffinConfig.preset(args.preset)
    if args.window is not None:
        config = config.replace(window=args.window)
    return backends.random(config, args.backend, args.dtype)


def as_text(facts: dict, name: str, model: Model) -> str:
    """A Markdown table under a line about the machine."""
    machine, size = facts["machine"], facts["model"]
    same = [
        name,
        human_bytes(size["weight_bytes"]),
        f"{size['parameters'] / 1e9:.2f} B" if size["parameters"] >= 1e8
        else f"{size['parameters'] / 1e6:.2f} M",
        model.backend,
        model.dtype,
    ]  # fmt: skip
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, "
        f"read ceiling {machine['read_ceiling_gbps']:.1f} GB/s; "
        f"state {human_bytes(size['state_bytes'])} per text",
        "",
        _row(HEAD),
        _row(["---"] * 5 + ["---:"] * 5),
    ]
    lines += [_row([*same, *_cells(result)]) for result in facts["results"]]
    return "\n".join(lines)


def _cells(result: dict) -> list[str]:
    gbps, share, peak = (
        result[key] for key in ("weights_gbps", "fraction_of_ceiling", "peak_rss_bytes")
    )
    return [
        result["test"],
        f"{result['tokens_per_second']:.2f} ± {result['tokens_per_second_std']:.2f}",
        "" if gbps is None else f"{gbps:.1f}",
        "" if share is None else f"{share:.0%}",
        "" if peak is None else human_bytes(peak),
    ]


def _row(cells) -> str:
    return f"| {' | '.join(cells)} |"
