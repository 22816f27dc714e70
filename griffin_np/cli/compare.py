"""How far two models are apart on a text: what a dtype, an engine or a change of weights costs.

griffin-np compare demo:float64 demo:float32 --data held-out.txt
griffin-np compare path/to/model path/to/model:int8 --data held-out.txt
griffin-np compare demo demo@jax:float32 --data held-out.txt

A model is MODEL[@BACKEND][:DTYPE]: a checkpoint folder, or "demo" for the embedded model (./demo
for a folder of that name), then if wanted its engine and its dtype, in either order; without them
the default engine and the checkpoint's dtype. A folder with such an ending in its name comes first.

Both models read the same tokens side by side; they must have the same vocabulary. A is the one to
measure against: the divergence is KL(A || B), in nats per token, and the ratio of perplexities is
that of B over that of A. Documents, ends and standard errors are those of griffin-np perplexity.
"""

import argparse
import json
import os
import re
from pathlib import Path

from griffin_np.cli.common import thread_limit
from griffin_np.cli.perplexity import add_text_options, amount, progress_bar, with_error

DEMO = "demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    form = "MODEL[@BACKEND][:DTYPE]"
    parser.add_argument("a", metavar="A", help=f"the model to measure against: {form}")
    parser.add_argument("b", metavar="B", help=f"the model to measure: {form}")
    add_text_options(parser)
    parser.add_argument("-t", "--threads", type=int, metavar="N",
                        default=os.environ.get("GRIFFIN_NP_THREADS"),
                        help="threads of the matrix products")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    import griffin_np as gnp
    from griffin_np.evaluate import check_text, compare

    check_text(args.data)
    with thread_limit(args.threads):
        a, b = (gnp.load(*parse_model(text)) for text in (args.a, args.b))
        with progress_bar() as progress:
            result = compare(a, b, args.data, limit=args.limit, batch=args.batch, progress=progress)
    facts = {
        side: {
            "model": text,
            "backend": model.backend,
            "dtype": model.dtype,
            "perplexity": read.perplexity,
            "perplexity_standard_error": read.perplexity_standard_error,
        }
        for side, text, model, read in (("a", args.a, a, result.a), ("b", args.b, b, result.b))
    } | {
        "documents": result.a.documents,
        "tokens": result.a.tokens,
        "bytes": result.a.bytes,
        "kl": result.kl,
        "kl_standard_error": result.kl_standard_error,
        "kl_quantile_99": result.kl_quantile,
        "kl_max": result.kl_max,
        "agreement": result.agreement,
        "agreement_standard_error": result.agreement_standard_error,
        "perplexity_ratio": result.perplexity_ratio,
        "perplexity_ratio_standard_error": result.perplexity_ratio_standard_error,
        "logit_difference": result.logit_difference,
        "tokens_per_second": result.a.tokens_per_second,
    }
    print(json.dumps(facts) if args.json else as_text(facts))
    return 0


def parse_model(text: str) -> tuple[str | None, str | None, str | None]:
    r"""Folder (None: the demo model), backend and dtype of ``MODEL[@BACKEND][:DTYPE]``.

    Endings are taken off until what is left is a folder. What has a separator of folders in it is
    no ending, and neither is what follows a drive's letter: ``C:\models`` and ``C:models`` are
    paths.
    """
    name = text
    found: dict[str, str] = {}
    while name != DEMO and not Path(name).is_dir():
        match = re.fullmatch(r"(.+)([@:])(\w+)", name, re.DOTALL)
        if not match or match[2] in found:
            break
        head, mark, word = match.groups()
        if mark == ":" and re.fullmatch("[A-Za-z]", head) and not Path(head).is_dir():
            break
        name, found[mark] = head, word
    return None if name == DEMO else name, found.get("@"), found.get(":")


def as_text(facts: dict) -> str:
    a, b = facts["a"], facts["b"]
    pairs = {
        "KL(A || B)": ("kl", "nats per token"),
        "same top token": ("agreement", "of all tokens"),
        "perplexity B / A": ("perplexity_ratio", ""),
    }
    lines = [
        f"{side} {model['model']} ({model['backend']} {model['dtype']}): perplexity "
        f"{with_error(model['perplexity'], model['perplexity_standard_error'])}"
        for side, model in (("A", a), ("B", b))
    ]
    for label, (key, unit) in pairs.items():
        value = with_error(facts[key], facts[f"{key}_standard_error"])
        lines.append(f"{label:<18} {value} {unit}".rstrip())
    lines[3:3] = [
        f"{'  99 % quantile':<18} {facts['kl_quantile_99']:.4g}",
        f"{'  largest':<18} {facts['kl_max']:.4g}",
    ]
    lines += [
        f"{'largest difference':<18} {facts['logit_difference']:.4g} of a logit",
        f"{'read':<18} {amount(facts)}",
    ]
    return "\n".join(lines)
