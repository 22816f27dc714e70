"""What the verb ``griffin-np conformance`` does."""

import json
import secrets
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from griffin_conformance import reports
from griffin_conformance.backends import Unsupported, available, find_backend
from griffin_conformance.certificate import Certificate, certify
from griffin_conformance.certifying import certify_all
from griffin_conformance.checks import EFFORTS, Violation, find_checks
from griffin_conformance.clauses import read_clauses
from griffin_conformance.evolution import evolve
from griffin_conformance.xfails import known_failures, read_xfails
from griffin_np.errors import ConfigError, GriffinError

__all__ = ["ACTIONS"]


def writable(option: str, name: str | None) -> None:
    """Complain about a file that cannot be written before anything is computed."""
    if name is None or (name, option) == ("-", "--json"):
        return
    if name == "-":
        raise ConfigError(f"{option} - is no file: only --json can be printed")
    path = Path(name)
    if path.is_dir():
        raise ConfigError(f"{option} {name} is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} {name}: there is no folder {path.parent}")


def wanted_clauses(names: list[str]) -> list[str]:
    """Ids of clauses that were named, or whose family was.

    Raises
    ------
    ConfigError
        If there is none of a name.
    """
    known = read_clauses()
    found: list[str] = []
    for name in (n.upper() for n in names):
        some = [c.id for c in known.values() if name in (c.id, c.family)]
        if not some:
            families = dict.fromkeys(c.family for c in known.values())
            raise ConfigError(
                f"no clause or family {name}; families are {', '.join(families)}, "
                f"clauses such as {next(iter(known))}"
            )
        found += some
    return found


def wanted_checks(args: Namespace) -> list[str]:
    """Names of the checks to run; none means all of the levels asked for."""
    try:
        names = [check.name for check in find_checks(args.level, args.check)]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if args.clause:
        clauses = set(wanted_clauses(args.clause))
        chosen = {c.name for c in find_checks() if clauses & set(c.clauses)}
        names = [name for name in names if name in chosen]
    if not names:
        raise ConfigError("no check is in all of --level, --check and --clause")
    return names if args.check or args.clause else []


def run(args: Namespace) -> int:
    """Run the suite on one backend."""
    examples = args.max_examples
    if examples is None:
        examples = EFFORTS[args.profile or "default"]
    if examples < 1:
        raise ConfigError(f"--max-examples must be at least 1, got {examples}")
    for option in ("json", "html", "junit", "badge"):
        writable(f"--{option}", getattr(args, option))
    args.level = [level.upper() for level in args.level]
    names = wanted_checks(args)
    try:
        backend = find_backend(args.backend, args.dtype)
        # Without --xfails known failures are told as such, and fail the run all the same.
        known = read_xfails(Path(args.xfails)) if args.xfails else known_failures(args.backend)
        find_checks(names=list(known))
    except GriffinError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    text = sys.stderr if args.json == "-" else sys.stdout
    if args.explore:
        args.seed = secrets.randbelow(2**31)
        print(f"exploring: --seed {args.seed} draws these examples again", file=text)

    certificate = certify(
        backend, args.level, names, examples, xfails=known, progress=show_progress,
        report=lambda verdict: print(reports.as_line(verdict), file=text, flush=True),
        seed_number=args.seed, shrink=not args.no_shrink,
    )  # fmt: skip
    print(reports.as_text(certificate), file=text)
    write_reports(certificate, args)
    good = certificate.as_expected if args.xfails is not None else certificate.conforms
    return 0 if good else 1


def show_progress(check) -> None:
    """Say on a terminal which check is running."""
    if sys.stderr.isatty():
        print(f"{check.level}  {check.name} ...", end="\r", file=sys.stderr, flush=True)


def write_reports(certificate: Certificate, args: Namespace) -> None:
    """Write what was asked for."""
    told = certificate.to_dict()
    if args.json == "-":
        print(json.dumps(told))
    elif args.json:
        reports.write_json(certificate, args.json)
    if args.html:
        reports.write_html([told], args.html)
    if args.junit:
        reports.write_junit(told, args.junit)
    if args.badge:
        write_badge(told, args.badge)


def write_badge(told: dict, name: str) -> None:
    """A badge as SVG or for shields.io, as the file's name says."""
    svg = Path(name).suffix.lower() == ".svg"
    content = reports.badge_svg(told) if svg else json.dumps(reports.badge(told), indent=1) + "\n"
    reports.write(name, content)


def list_checks(args: Namespace) -> int:
    """What is checked, and by which clauses."""
    for check in find_checks():
        print(f"{check.level}  {'MUST  ' if check.must else 'SHOULD'}  {check.name}  "
              f"[{' '.join(check.clauses)}]\n      {check.says}")  # fmt: skip
    return 0


def list_backends(args: Namespace) -> int:
    """Which backends there are."""
    for name, missing in available().items():
        print(f"{name:20}{missing or 'installed'}")
    return 0


def show_clauses(args: Namespace) -> int:
    """Titles of all clauses, or some in full."""
    known = read_clauses()
    if not args.id:
        for clause in known.values():
            print(f"{clause.id:9}{'MUST  ' if clause.must else 'SHOULD'}  {clause.title}")
        return 0
    tests: dict[str, list[str]] = {}
    for check in find_checks():
        for name in check.clauses:
            tests.setdefault(name, []).append(check.name)
    for name in wanted_clauses(args.id):
        clause = known[name]
        requirement = "MUST" if clause.must else "SHOULD"
        print(f"{name} · {requirement} · {clause.title}\n\n{clause.text}\n")
        print(f"Tested by: {', '.join(tests.get(name, []))}\n")
    return 0


def load(name: str) -> dict:
    """A certificate from a file."""
    try:
        return reports.load_certificate(name)
    except reports.CertificateError as error:
        raise ConfigError(str(error)) from None


def report(args: Namespace) -> int:
    """Show several certificates together."""
    for option in ("html", "badge"):
        writable(f"--{option}", getattr(args, option))
    certificates = [load(name) for name in args.certificate]
    if args.html:
        reports.write_html(certificates, args.html)
    if args.badge:
        write_badge(certificates[0], args.badge)
    if not (args.html or args.badge):
        print(reports.as_markdown(certificates))
    return 0


def compare(args: Namespace) -> int:
    """What has changed from one certificate to another."""
    difference = reports.compare(load(args.before), load(args.after))
    print(json.dumps(difference.to_dict()) if args.json else difference.as_text())
    return 1 if difference.worse else 0


def certify_installed(args: Namespace) -> int:
    """Certify everything that is installed."""
    folder = Path(args.out)
    if folder.is_file():
        raise ConfigError(f"--out {args.out} is a file; give a folder")
    try:
        good = certify_all(
            folder, args.backend, args.profile or list(EFFORTS), resume=args.resume,
            say=lambda line: print(line, flush=True), progress=show_progress,
        )  # fmt: skip
    except GriffinError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return 0 if good else 1


def show_evolution(args: Namespace) -> int:
    """Two backends, step by step."""
    if args.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {args.seeds}")
    views = [(weights, at_once) for weights in ("ordinary", "") for at_once in (False, True)]
    found = []
    try:
        one, other = find_backend(args.backend, args.dtype), find_backend(args.against, args.dtype)
        for weights, at_once in views:
            told = evolve(one, other, range(args.seeds), weights=weights, at_once=at_once).to_dict()
            found.append({"weights": weights or "every style", "at_once": at_once, **told})
    except GriffinError:
        raise
    except (ValueError, Unsupported, Violation) as error:
        raise ConfigError(str(error)) from None
    if args.json:
        print(json.dumps(found))
        return 0
    print(f"{args.backend} against {args.against}, {args.dtype}: what each of {found[0]['steps']} "
          f"steps of {found[0]['worlds']} texts leaves, through four windows\n")  # fmt: skip
    print("| weights | read | array | values | same bits | ULP, 99.9 % | ULP, most "
          "| observed / allowed |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for view in found:
        read = "in one call" if view["at_once"] else "one by one"
        for kind in ("logits", "states"):
            told = view[kind]
            print(f"| {view['weights']} | {read} | {kind} | {told['values']:,} | "
                  f"{100 * told['equal_bits']:.1f} % | {float(told['99.9']):.3g} | "
                  f"{float(told['max']):.3g} | {float(told['observed_over_allowed']):.2f} |"
            )  # fmt: skip
    print_histogram(found)
    return 0


def print_histogram(found: list[dict]) -> None:
    """Shares of values by their error, for ordinary weights and for all."""
    columns = [(view, kind) for view in found if view["at_once"] for kind in ("logits", "states")]
    shares = [dict(view[kind]["histogram"]) for view, kind in columns]
    names = [f"{kind}, {view['weights']}" for view, kind in columns]
    print("\n| error in ULP, at most | " + " | ".join(names) + " |")
    print("|---|" + "---|" * len(columns))
    for edge in sorted({edge for share in shares for edge in share}, key=float):
        cells = [
            f"{100 * share.get(edge, 0) / view[kind]['values']:.3f} %"
            for share, (view, kind) in zip(shares, columns, strict=True)
        ]
        print(f"| {float(edge):g} | " + " | ".join(cells) + " |")


def show_mutants(args: Namespace) -> int:
    """Hunt wrong backends."""
    from griffin_conformance.mutants.hunting import EVERY, hunt_all

    chosen = [m for m in EVERY if not args.name or m.name in args.name]
    if unknown := sorted(set(args.name) - {m.name for m in EVERY}):
        raise ConfigError(f"no mutant {unknown[0]!r}; without names all are hunted")
    found = hunt_all(
        chosen, lambda line: print(line, flush=True), args.profile or ["smoke", "default"]
    )
    killed, named = sum(a.killed for a in found), sum(a.named for a in found)
    print(f"{len(found)} mutants, {killed} killed, {named} by their clause's name")
    return 0 if named == len(found) else 1


def validate(args: Namespace) -> int:
    """Try an engine's protocol."""
    from griffin_conformance.protocol.validate import validate as try_it

    return 0 if try_it(args.command) else 1


def vectors(args: Namespace) -> int:
    """Golden vectors."""
    from griffin_conformance import vectors as golden

    try:
        if args.what == "export":
            manifest = golden.export(args.folder, large=args.large)
            print(f"{len(manifest['vectors'])} vectors written to {args.folder}")
            return 0
        results = golden.verify(args.folder, find_backend(args.backend, args.dtype))
    except GriffinError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    for result in results:
        counts[result.status] += 1
        print(result)
    print(", ".join(f"{n} {status}" for status, n in counts.items()))
    return 1 if counts["failed"] or not counts["passed"] else 0


ACTIONS: dict[str, Callable[[Namespace], int]] = {
    "run": run,
    "list": list_checks,
    "backends": list_backends,
    "clauses": show_clauses,
    "report": report,
    "compare": compare,
    "certify": certify_installed,
    "evolve": show_evolution,
    "mutants": show_mutants,
    "validate": validate,
    "vectors": vectors,
}
