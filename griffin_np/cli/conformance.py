"""Tell whether an implementation of Griffin is right.

griffin-np conformance run --backend numpy                  the reference, in float32
griffin-np conformance run --backend jax --level L2         one level of another engine
griffin-np conformance run --backend package.module:Class   your own adapter
griffin-np conformance list                                 what is checked

Exit code 0: the backend conforms; 1: it violates what it must do; 2: wrong usage.
"""

import argparse
import contextlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from griffin_np.errors import ConfigError, GriffinError, MissingExtraError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser("run", help="run the suite on a backend")
    add = run.add_argument
    add("--backend", default="numpy", metavar="NAME|MODULE:CLASS",
        help="numpy, numba, jax (also jax-associative, jax-pallas), transformers, or your "
             "subclass of griffin_conformance.Backend"
    )  # fmt: skip
    add("--dtype", help="precision to compute in and to be held to (the backend's first)")
    add("--level", action="append", default=[], metavar="L0|L1|L2|L3",
        help="operations, blocks, the model's laws, state; repeatable (all)")  # fmt: skip
    add("--check", action="append", default=[], metavar="NAME", help="one check; repeatable (all)")
    add("--max-examples", type=int, metavar="N", help="examples of each check (60)")
    add("--seed", type=int, default=0, metavar="S",
        help="the same seed draws the same examples (0)")  # fmt: skip
    add("--explore", action="store_true", help="draw new examples; the seed is printed")
    add("--no-shrink", action="store_true", help="do not look for the smallest failing case")
    add("--json", metavar="FILE", help="write the certificate here; - prints it")
    actions.add_parser("list", help="list the checks and what they say")


def run(args: argparse.Namespace) -> int:
    for package in ("hypothesis", "mpmath"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "conformance")
    from griffin_conformance.checks import find_checks

    if args.action == "list":
        for check in find_checks():
            print(f"{check.level}  {'MUST  ' if check.must else 'SHOULD'}  {check.name}\n"
                  f"      {check.says}")  # fmt: skip
        return 0
    here = os.getcwd()
    sys.path.insert(0, here)  # so that module:Class finds a module beside the user
    try:
        return _certify(args)
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _certify(args: argparse.Namespace) -> int:
    import json
    import secrets

    from griffin_conformance.backends import find_backend
    from griffin_conformance.certificate import certify
    from griffin_conformance.checks import EXAMPLES, find_checks
    from griffin_conformance.report import as_line, as_text, write_json

    examples = EXAMPLES if args.max_examples is None else args.max_examples
    if examples < 1:
        raise ConfigError(f"--max-examples must be at least 1, got {examples}")
    if args.json not in (None, "-") and not Path(args.json).absolute().parent.is_dir():
        raise ConfigError(f"--json {args.json}: there is no folder {Path(args.json).parent}")
    if args.json not in (None, "-") and Path(args.json).is_dir():
        raise ConfigError(f"--json {args.json} is a folder; give the name of a file")
    try:
        backend = find_backend(args.backend, args.dtype)
        args.level = [level.upper() for level in args.level]
        if not find_checks(args.level, args.check):
            raise ValueError("no check is both in --level and in --check")
    except GriffinError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    text = sys.stderr if args.json == "-" else sys.stdout
    if args.explore:
        args.seed = secrets.randbelow(2**31)
        print(f"exploring: --seed {args.seed} draws these examples again", file=text)
    terminal = sys.stderr.isatty()

    def progress(check):
        if terminal:
            print(f"{check.level}  {check.name} ...", end="\r", file=sys.stderr, flush=True)

    certificate = certify(
        backend, args.level, args.check, examples, progress=progress,
        report=lambda verdict: print(as_line(verdict), file=text, flush=True),
        seed_number=args.seed, shrink=not args.no_shrink,
    )  # fmt: skip
    print(as_text(certificate), file=text)
    if args.json == "-":
        print(json.dumps(certificate.to_dict()))
    elif args.json:
        write_json(certificate, args.json)
    return 0 if certificate.conforms else 1
