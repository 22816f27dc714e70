"""The command ``griffin-np VERB``: text to stdout, progress and statistics to stderr.

Every verb is a module with ``add_arguments(parser)`` and ``run(args)``; what a verb needs is
imported when it runs.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from griffin_np import __version__
from griffin_np.errors import GriffinError

__all__ = ["main"]

VERBS = {
    "generate": "continue a text",
    "chat": "talk with a model, turn by turn",
    "info": "show a model's configuration, sizes and blocks",
    "state": "inspect, convert and compare state files",
    "convert": "pack a checkpoint for the CPU engine, in int4, int8 or bfloat16",
    "perplexity": "how well a model predicts a text",
    "compare": "how far two models, or dtypes, are apart on a text",
    "bench": "measure the speed of a model on this machine",
    "train": "train a model, from scratch or from a checkpoint",
    "conformance": "tell whether an implementation is right",
    "notebooks": "copy the notebooks that teach Griffin into a folder",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code (0 done, 2 wrong usage, 130 interrupted)."""
    parser = argparse.ArgumentParser(
        prog="griffin-np", description="Griffin / RecurrentGemma in NumPy."
    )
    parser.add_argument("--version", action="version", version=f"griffin-np {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, summary in VERBS.items():
        module = importlib.import_module(f"griffin_np.cli.{verb}")
        child = verbs.add_parser(verb, help=summary, description=module.__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        module.add_arguments(child)
        child.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except GriffinError as error:
        return _complain(str(error))
    except (OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read our output has gone; Python must not try to flush it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        return _complain(str(error) or type(error).__name__)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def _complain(message: str) -> int:
    line = "; ".join(part.strip() for part in message.splitlines() if part.strip())
    print(f"griffin-np: error: {line}", file=sys.stderr)
    return 2
