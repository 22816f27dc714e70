"""``griffin-np convert``: weights packed for the CPU engine, in fewer bits."""

import argparse

from griffin_np.cli.common import human_bytes, say

DTYPES = ("int4", "int8", "bfloat16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="FOLDER",
                        help="checkpoint folder (default: the demo model)")  # fmt: skip
    parser.add_argument("-m", "--model", dest="model_option", metavar="FOLDER",
                        help="the same")  # fmt: skip
    parser.add_argument("--dtype", required=True, choices=DTYPES,
                        help="of the matrices; gates, norms and biases stay")  # fmt: skip
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER",
                        help="a new folder, for --model")  # fmt: skip
    parser.add_argument("--window", type=int, metavar="W",
                        help="past positions that attention sees")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from tqdm import tqdm

    from griffin_np.backends import convert

    source = args.model or args.model_option
    with tqdm(desc="packing", unit=" arrays", delay=1) as bar:
        convert(source, args.out, args.dtype, window=args.window, progress=lambda _: bar.update())
    size = sum(path.stat().st_size for path in Path(args.out).iterdir())
    say(f"{args.out}: {args.dtype}, {human_bytes(size)}")
    return 0
