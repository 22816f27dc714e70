"""How far right and wrong are apart: ``python -m griffin_conformance.separation``.

Runs the whole suite on right backends and every mutant on the checks that catch it, in each
precision, and prints the tables of ``conformance/README.md``.
"""

import argparse
import sys

from griffin_conformance.backends import find_backend
from griffin_conformance.certificate import certify
from griffin_conformance.checks import EXAMPLES, find_checks
from griffin_conformance.mutants import MUTANTS, Mutant, mutate
from griffin_conformance.rounding import PROFILES
from griffin_conformance.runner import run_check

__all__ = ["main", "strength"]


def strength(mutant: Mutant, dtype: str, examples: int) -> tuple[float, str]:
    """The largest observed / allowed that a mutant's checks see, and the check that sees it.

    Infinite where what is wrong is no matter of size.
    """
    found = []
    for check in find_checks(names=mutant.caught_by):
        verdict = run_check(check, mutate(mutant, dtype), examples, survey=True)
        if verdict.status == "failed":
            found.append((verdict.ratio, check.name))
        elif verdict.worst:
            found.append((verdict.worst.ratio, f"({check.name})"))
    return max(found, default=(0.0, "none"))


def main(argv: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-examples", type=int, default=EXAMPLES)
    parser.add_argument(
        "--right",
        action="append",
        default=None,
        metavar="BACKEND:DTYPE",
        help="further right backends, besides the reference",
    )
    args = parser.parse_args(argv)
    worst_right = dict.fromkeys(PROFILES, 0.0)
    print("| right | precision | worst observed / allowed |\n|---|---|---|")
    for told in ["numpy:float32", "numpy:float64", "bfloat16", *(args.right or [])]:
        name, _, dtype = told.rpartition(":")
        backend = find_backend(name, dtype) if name else mutate(dtype=dtype)
        certificate = certify(backend, max_examples=args.max_examples, survey=True)
        if not certificate.conforms:
            sys.exit(f"{told} does not conform")
        worst_right[dtype] = max(worst_right[dtype], certificate.worst)
        label = f"`{name}`" if name else "the reference, rounded to bfloat16"
        print(f"| {label} | {dtype} | {certificate.worst:.2f} |", flush=True)

    columns = list(PROFILES)
    print("\n| fault | caught by | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    best_wrong = dict.fromkeys(columns, float("inf"))
    for mutant in MUTANTS:
        cells, seen = [], []
        for dtype in columns:
            ratio, name = strength(mutant, dtype, args.max_examples)
            seen.append(name)
            told = "law" if ratio == float("inf") else f"{ratio:.2g}"
            cells.append(f"({told})" if dtype in mutant.rounding else told)
            if dtype not in mutant.rounding:
                best_wrong[dtype] = min(best_wrong[dtype], ratio)
        where = ", ".join(f"`{name}`" for name in mutant.caught_by)
        print(
            f"| {mutant.fault} | {where} | " + " | ".join(cells) + " |",
            flush=True,
        )
    print("\n| precision | worst right | best wrong | separation |\n|---|---|---|---|")
    for dtype in columns:
        right, wrong = worst_right[dtype], best_wrong[dtype]
        print(f"| {dtype} | {right:.2f} | {wrong:.3g} | {wrong / right:.3g} |")


if __name__ == "__main__":
    main()
