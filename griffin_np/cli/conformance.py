"""Tell whether an implementation of Griffin is right.

griffin-np conformance run --backend numpy                  the reference, in float32
griffin-np conformance run --backend jax --level L2         one level of another engine
griffin-np conformance run --backend package.module:Class   your own adapter
griffin-np conformance run --backend "cmd:./engine --stdio" an engine in any language
griffin-np conformance list                                 what is checked
griffin-np conformance clauses ATTN                         what the specification says
griffin-np conformance compare before.json after.json       what has changed

Exit code 0: the backend conforms, nothing got worse; 1: it violates what it must do, or something
got worse; 2: wrong usage.
"""

import argparse
import contextlib
import os
import sys
from importlib.util import find_spec

from griffin_np.errors import MissingExtraError

PROFILES = ("smoke", "default", "thorough")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    run = actions.add_parser("run", help="run the suite on a backend")
    add = run.add_argument
    add("--backend", default="numpy", metavar="NAME|MODULE:CLASS|CMD:COMMAND",
        help="an adapter by name (griffin-np conformance backends), your subclass of "
             "griffin_conformance.Backend, or the command of an engine that speaks the protocol"
    )  # fmt: skip
    add("--dtype", help="precision to compute in and to be held to (the backend's first)")
    add("--level", action="append", default=[], metavar="L0|...|L5",
        help="operations, blocks, laws, state, checkpoints, quantised; repeatable (all)"
    )  # fmt: skip
    add("--check", action="append", default=[], metavar="NAME", help="one check; repeatable (all)")
    add("--clause", action="append", default=[], metavar="ID",
        help="the checks that test a clause, or a family of clauses; repeatable (all)"
    )  # fmt: skip
    add("--profile", choices=PROFILES,
        help="examples of each check: smoke 6, default 60, thorough 400 (of blocks, laws "
             "and states 24 and 160 where every shape is compiled)")  # fmt: skip
    add("--max-examples", type=int, metavar="N", help="examples of each check, in place of that")
    add("--seed", type=int, default=0, metavar="S",
        help="the same seed draws the same examples (0)")  # fmt: skip
    add("--explore", action="store_true", help="draw new examples; the seed is printed")
    add("--no-shrink", action="store_true", help="do not look for the smallest failing case")
    add("--xfails", metavar="FILE", nargs="?", const="",
        help="known failures, which do not fail the run, while one that passes does "
             "(without FILE: the list that the suite has for the backend)"
    )  # fmt: skip
    add("--json", metavar="FILE", help="write the certificate here; - prints it")
    add("--html", metavar="FILE", help="write a page that shows everything")
    add("--junit", metavar="FILE", help="write JUnit XML")
    add("--badge", metavar="FILE", help="write a badge: .json for shields.io, or .svg")

    actions.add_parser("list", help="list the checks and what they say")
    actions.add_parser("backends", help="list the backends, and which are installed")
    clauses = actions.add_parser("clauses", help="show clauses of the specification")
    clauses.add_argument("id", nargs="*", help="clauses or families of clauses (titles of all)")

    report = actions.add_parser("report", help="one page, or Markdown, of several certificates")
    report.add_argument("certificate", nargs="+", help="certificates, as --json wrote them")
    report.add_argument("--html", metavar="FILE", help="write the page here")
    report.add_argument("--badge", metavar="FILE", help="write a badge of the first certificate")

    compare = actions.add_parser("compare", help="what differs between two certificates")
    compare.add_argument("before")
    compare.add_argument("after")
    compare.add_argument("--json", action="store_true", help="print one JSON document")

    certify = actions.add_parser("certify", help="run every installed backend, and report")
    certify.add_argument("--out", default="certificates", metavar="FOLDER",
                         help="certificates, page and badges (certificates)")  # fmt: skip
    certify.add_argument("--backend", action="append", default=[], metavar="NAME[:DTYPE]",
                         help="only these; repeatable (all that are installed)")  # fmt: skip
    certify.add_argument("--profile", action="append", choices=PROFILES, default=[],
                         help="only these; repeatable (all)")  # fmt: skip
    certify.add_argument("--resume", action="store_true",
                         help="skip what the folder has of these versions")  # fmt: skip

    evolve = actions.add_parser("evolve", help="two backends side by side, step by step")
    evolve.add_argument("--backend", default="jax-pallas", metavar="NAME")
    evolve.add_argument("--against", default="numpy", metavar="NAME")
    evolve.add_argument("--dtype", default="float32")
    evolve.add_argument("--seeds", type=int, default=3, metavar="N", help="texts of each model (3)")
    evolve.add_argument("--json", action="store_true", help="print one JSON document")

    mutants = actions.add_parser("mutants", help="is the suite able to tell? hunt wrong backends")
    mutants.add_argument("name", nargs="*", help="only these (all)")
    mutants.add_argument("--profile", action="append", choices=PROFILES, default=[],
                         help="tried in turn; repeatable (smoke, then default)")  # fmt: skip

    validate = actions.add_parser("validate", help="try an engine's protocol, message by message")
    validate.add_argument("command", metavar="CMD:COMMAND")

    vectors = actions.add_parser("vectors", help="golden vectors, for tests without Python")
    kinds = vectors.add_subparsers(dest="what", metavar="export|verify", required=True)
    export = kinds.add_parser("export", help="write them to a folder")
    export.add_argument("folder")
    export.add_argument("--large", action="store_true", help="larger models too")
    verify = kinds.add_parser("verify", help="hold a backend against them")
    verify.add_argument("folder", nargs="?", help="a folder of vectors (those of the package)")
    verify.add_argument("--backend", default="numpy", metavar="NAME|MODULE:CLASS|CMD:COMMAND")
    verify.add_argument("--dtype")


def run(args: argparse.Namespace) -> int:
    for package in ("hypothesis", "mpmath", "jsonschema"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "conformance")
    from griffin_conformance.command import ACTIONS

    here = os.getcwd()
    sys.path.insert(0, here)  # so that module:Class finds a module beside the user
    try:
        return ACTIONS[args.action](args)
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
