"""How well a model predicts a text: perplexity and bits per byte.

griffin-np perplexity --data held-out.txt
griffin-np perplexity --data held-out.txt -m path/to/recurrentgemma-2b --limit 100000

Documents are separated by lines that are exactly <|endoftext|>; what follows the last one is a
document too, and a file without such lines is one document. Every document is read with a
beginning-of-sequence token in front, from which its first token is predicted, and if the tokenizer
has an end-of-sequence token, the document's end is predicted too and counts as a token. A file of
any size is read in constant memory, if it has lines.

The standard error takes documents, not tokens, as what was drawn at random, because the tokens of a
document are not independent. A single document has none.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator

from griffin_np.cli.common import add_model_options, load_model, thread_limit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_text_options(parser)
    add_model_options(parser)


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """``--data``, ``--limit``, ``--batch``, ``--json``."""
    add = parser.add_argument
    add("--data", required=True, metavar="FILE", help="UTF-8 text")
    add("--limit", type=int, metavar="TOKENS", help="stop after so many tokens; the document that "
        "this cuts has no end (default: read all)")  # fmt: skip
    add("--batch", type=int, default=1, metavar="B",
        help="documents read at the same time (1); results do not depend on it")  # fmt: skip
    add("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    from griffin_np.evaluate import check_text, perplexity

    check_text(args.data)
    with thread_limit(args.threads):
        model = load_model(args)
        with progress_bar() as progress:
            result = perplexity(
                model, args.data, limit=args.limit, batch=args.batch, progress=progress
            )
    facts = {
        "model": args.model or "demo",
        "backend": model.backend,
        "dtype": model.dtype,
        "documents": result.documents,
        "tokens": result.tokens,
        "bytes": result.bytes,
        "nll": result.nll,
        "perplexity": result.perplexity,
        "perplexity_standard_error": result.perplexity_standard_error,
        "bits_per_byte": result.bits_per_byte,
        "tokens_per_second": result.tokens_per_second,
    }
    print(json.dumps(facts) if args.json else as_text(facts))
    return 0


def as_text(facts: dict) -> str:
    error = facts["perplexity_standard_error"]
    return "\n".join([
        f"perplexity     {with_error(facts['perplexity'], error)}",
        f"nll            {facts['nll']:.5f} nats per token",
        f"bits per byte  {facts['bits_per_byte']:.5f}",
        f"read           {amount(facts)}",
        f"model          {facts['model']}, {facts['backend']} {facts['dtype']}",
    ])  # fmt: skip


def amount(facts: dict) -> str:
    """How much was read, and how fast."""
    return (
        f"{facts['tokens']:,} tokens in {facts['documents']:,} document(s) of "
        f"{facts['bytes']:,} bytes, {facts['tokens_per_second']:.1f} tokens/s"
    )


def with_error(value: float, error: float | None) -> str:
    """``12.345 ± 0.067``: the error to two digits, the value to the same place."""
    from math import floor, isfinite, log10

    if not error or not isfinite(error):
        return f"{value:.5g}"
    if value < 1e-3:
        return f"{value:.3g} ± {error:.2g}"
    places = max(1 - floor(log10(error)), 0)
    return f"{value:.{places}f} ± {error:.{places}f}"


@contextlib.contextmanager
def progress_bar() -> Iterator:
    """A bar on stderr, if that is a terminal, for the functions of :mod:`griffin_np.evaluate`."""
    from tqdm import tqdm

    with tqdm(unit=" tokens", unit_scale=True, disable=None) as bar:

        def show(done: int, expected: int, nll: float) -> None:
            bar.total = max(expected, done)
            bar.set_postfix(nll=f"{nll:.4f}", refresh=False)
            bar.update(done - bar.n)

        yield show
