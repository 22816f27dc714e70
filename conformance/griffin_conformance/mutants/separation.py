"""How far right and wrong are apart: ``python -m griffin_conformance.mutants.separation``.

Runs every mutant on all examples of the checks that point at its fault, and prints the table of
``conformance/MUTANTS.md``; with the certificates of right backends, how far apart they are.
"""

import argparse
from collections.abc import Iterable

from griffin_conformance.backends import Backend
from griffin_conformance.checks import EXAMPLES, find_checks
from griffin_conformance.mutants.hunting import EVERY, wrong_backend
from griffin_conformance.mutants.mutant import Mutant, mutate
from griffin_conformance.mutants.of_quantised import QuantisedMutant
from griffin_conformance.reports import load_certificate
from griffin_conformance.runner import run_check

__all__ = ["main", "strength"]

QUANTISED = "quantised"


def strength(mutant: Mutant, backend: Backend, examples: int) -> tuple[float, str]:
    """The largest observed / allowed that a mutant's checks see, and the check that sees it.

    Infinite where what is wrong is no matter of size.
    """
    found = []
    for check in find_checks(names=mutant.caught_by):
        verdict = run_check(check, backend, examples, survey=True)
        if verdict.status == "failed":
            found.append((verdict.ratio, check.name))
        elif verdict.worst:
            found.append((verdict.worst.ratio, f"({check.name})"))
    return max(found, default=(0.0, "none"))


def worst_of(certificates: Iterable[dict], dtypes: tuple[str, ...]) -> float:
    """Worst observed / allowed of the certificates in some dtypes."""
    ratios = [
        float(told["worst_observed_over_allowed"])
        for told in certificates
        if told["dtype"] in dtypes
    ]
    return max(ratios, default=float("nan"))


def main(argv: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-examples", type=int, default=EXAMPLES)
    parser.add_argument("--dtype", action="append", default=None, help="of mutants (float32)")
    parser.add_argument("certificate", nargs="*", help="of right backends")
    args = parser.parse_args(argv)
    dtypes = args.dtype or ["float32"]
    best = dict.fromkeys([*dtypes, QUANTISED], float("inf"))

    print(f"| fault | clause | trap | caught by | {' | '.join(dtypes)} |")
    print("|---|---|---|---|" + "---|" * len(dtypes))
    for mutant in EVERY:
        cells = []
        quantised = isinstance(mutant, QuantisedMutant)
        for dtype in dtypes[:1] if quantised else dtypes:
            backend = wrong_backend(mutant) if quantised else mutate(mutant, dtype)
            ratio, _ = strength(mutant, backend, args.max_examples)
            told = "law" if ratio == float("inf") else f"{ratio:.2g}"
            of_rounding = dtype in mutant.rounding or backend.dtype in mutant.rounding
            cells.append(f"({told})" if of_rounding else told)
            if not of_rounding:
                column = QUANTISED if quantised else dtype
                best[column] = min(best[column], ratio)
        where = ", ".join(f"`{name}`" for name in mutant.caught_by)
        told = " | ".join(cells)
        print(
            f"| {mutant.fault} | {mutant.clause} | {mutant.trap} | {where} | {told} |", flush=True
        )

    certificates = [load_certificate(name) for name in args.certificate]
    print("\n| precision | worst right | best wrong | separation |\n|---|---|---|---|")
    for column, wrong in best.items():
        right = worst_of(certificates, ("int8", "int4") if column == QUANTISED else (column,))
        print(f"| {column} | {right:.2f} | {wrong:.3g} | {wrong / right:.3g} |")


if __name__ == "__main__":
    main()
