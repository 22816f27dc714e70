"""Options that several verbs share, and what they mean."""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Iterator

from griffin_np.base import Model
from griffin_np.errors import ConfigError, MissingExtraError, SamplingError

__all__ = [
    "add_mesh_options",
    "add_model_options",
    "add_sampling_options",
    "load_model",
    "mesh_options",
    "read_prompt",
    "sampling_options",
    "say",
    "thread_limit",
]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--backend``, ``--dtype``, ``--window``, ``--threads``, and those of meshes."""
    env = os.environ.get
    group = parser.add_argument_group(
        "model (defaults from GRIFFIN_NP_MODEL, _BACKEND, _DTYPE, _THREADS)"
    )
    group.add_argument("-m", "--model", metavar="FOLDER", default=env("GRIFFIN_NP_MODEL"),
                       help="checkpoint folder (default: the embedded demo model)")  # fmt: skip
    group.add_argument("--backend", default=env("GRIFFIN_NP_BACKEND"),
                       help="engine: numba (default), numpy or jax")  # fmt: skip
    group.add_argument("--dtype", default=env("GRIFFIN_NP_DTYPE"),
                       help="float32, bfloat16; numpy: float64; numba: int8, int4")  # fmt: skip
    group.add_argument("--window", type=int, metavar="W",
                       help="past positions that attention sees (default: as trained)")  # fmt: skip
    add_mesh_options(parser).add_argument(
        "--scan", help="of the recurrence: sequential, associative or pallas"
    )
    group.add_argument("-t", "--threads", type=int, metavar="N", default=env("GRIFFIN_NP_THREADS"),
                       help="threads (default: one for each physical core)")  # fmt: skip


def add_mesh_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """``--mesh`` and ``--distributed``."""
    group = parser.add_argument_group("many devices (with --backend jax, or training)")
    group.add_argument("--mesh", metavar="AXES",
                       help="data=N,sequence=N,model=N share rows, tokens, heads")  # fmt: skip
    group.add_argument("--distributed", metavar="HOST:PORT,COUNT,INDEX",
                       help="process INDEX of COUNT, which meet there; or auto")  # fmt: skip
    return group


def mesh_options(args: argparse.Namespace) -> dict:
    """``mesh`` and ``scan`` as the options say; joins the other processes if there are any.

    Only the first process, ``args.first_process``, goes on writing to standard output. A seed that
    was not given is the first process's.
    """
    args.first_process = True
    scan = getattr(args, "scan", None)
    options: dict = {} if scan is None else {"scan": scan}
    if args.mesh is None and args.distributed is None:
        return options
    try:
        from griffin_kernels.xla import distributed
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "jax", "jax") from None

    if args.distributed is not None:
        if args.mesh is None:
            raise ConfigError("--distributed needs --mesh: say what the devices share")
        args.first_process = distributed.join(args.distributed)
        if getattr(args, "seed", 0) is None:
            args.seed = distributed.common_seed()
        if not args.first_process:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    return options | {"mesh": distributed.parse_mesh(args.mesh)}


def add_sampling_options(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Length, randomness and penalties."""
    group = parser.add_argument_group(
        "sampling (greedy unless the checkpoint or an option says otherwise)"
    )
    add = group.add_argument
    add(
        "-n",
        "--max-tokens",
        type=int,
        default=max_tokens,
        metavar="N",
        help=f"tokens at most ({max_tokens})",
    )
    add("--temp", "--temperature", dest="temperature", type=float, metavar="T", help="0 is greedy")
    add("--top-k", type=int, metavar="K", help="keep the K most probable tokens")
    add(
        "--top-p", type=float, metavar="P", help="keep the most probable tokens that reach P in sum"
    )
    add(
        "--min-p",
        type=float,
        metavar="P",
        help="keep tokens at least P times as probable as the best",
    )
    add("--repetition-penalty", "--repeat-penalty", type=float, metavar="R", help="1 is none")
    add("--presence-penalty", type=float, metavar="X", help="0 is none")
    add("--frequency-penalty", type=float, metavar="X", help="0 is none")
    add("--repeat-last-n", "--repetition-context-size", type=int, metavar="N",
        help="tokens that penalties look back on (64; -1 all)")  # fmt: skip
    add(
        "--logit-bias", action="append", default=[], metavar="ID=X", help="add X to a token's logit"
    )
    add("--seed", type=int, metavar="S", help="the same seed gives the same text (default: random)")
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; repeatable",
    )
    add("--ignore-eos", action="store_true", help="do not end at end tokens")


SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "repeat_last_n",
)  # fmt: skip


def sampling_options(args: argparse.Namespace) -> dict:
    """Keyword arguments for ``generate`` from parsed options; what was not given is left out."""
    options = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    if args.logit_bias:
        options["logit_bias"] = dict(_bias(text) for text in args.logit_bias)
    if args.seed is not None:
        options["seed"] = args.seed
    return {
        **options,
        "max_tokens": args.max_tokens,
        "stop": args.stop,
        "ignore_eos": args.ignore_eos,
    }


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise SamplingError(f"--logit-bias takes ID=VALUE, got {text!r}") from None


def load_model(args: argparse.Namespace) -> Model:
    """The model that the options name."""
    import griffin_np as gnp

    options = mesh_options(args)
    return gnp.load(args.model, args.backend, args.dtype, window=args.window, **options)


@contextlib.contextmanager
def thread_limit(threads: int | str | None) -> Iterator[None]:
    """Bound the threads of NumPy's matrix products and of the CPU engine inside the block."""
    if threads is None:
        yield
        return
    try:
        count = int(threads)
    except ValueError:
        count = 0
    if count < 1:
        raise ConfigError(f"threads must be an integer of at least 1, got {threads!r}")
    from threadpoolctl import threadpool_limits

    before = os.environ.get("GRIFFIN_NP_THREADS")
    os.environ["GRIFFIN_NP_THREADS"] = str(count)  # read when the engine starts its threads
    try:
        with threadpool_limits(count):
            yield
    finally:
        del os.environ["GRIFFIN_NP_THREADS"]
        if before is not None:
            os.environ["GRIFFIN_NP_THREADS"] = before


def read_prompt(text: str | None) -> str:
    """The prompt; ``-``, or none at all when something is piped in, means standard input."""
    if text == "-" or (text is None and not sys.stdin.isatty()):
        try:
            return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise SamplingError(f"standard input is not UTF-8 text: {error}") from None
    return text or ""


def say(message: str, quiet: bool = False) -> None:
    """A line to stderr."""
    if not quiet:
        print(message, file=sys.stderr, flush=True)


def human_bytes(size: float) -> str:
    """``12.3 MB`` and the like, in powers of ten."""
    power = min(int(math.log(max(size, 1), 1000)), 4)
    digits = (0, 1, 1, 2, 2)[power]
    return f"{size / 1000**power:.{digits}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
