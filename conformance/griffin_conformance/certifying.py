"""Certify every installed backend, and write one report: ``griffin-np conformance certify``."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from griffin_conformance import reports
from griffin_conformance.backends import Backend, available, find_backend
from griffin_conformance.certificate import Certificate, certify
from griffin_conformance.checks import EFFORTS
from griffin_conformance.clauses import version
from griffin_conformance.xfails import known_failures

__all__ = ["certify_all", "installed"]


def installed(names: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Name and dtype of each backend that can be run here.

    Parameters
    ----------
    names : sequence of str
        Only these, as ``name`` or ``name:dtype``; one that is not installed is an error then.
    """
    if not names:
        names = [name for name, missing in available().items() if not missing]
    found = []
    for told in names:
        name, _, dtype = told.partition(":")
        dtypes = (dtype,) if dtype else type(find_backend(name)).dtypes
        found += [(name, find_backend(name, d).dtype) for d in dtypes]
    return found


def certify_all(
    folder: Path,
    names: Sequence[str] = (),
    profiles: Sequence[str] = tuple(EFFORTS),
    *,
    resume: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable | None = None,
) -> bool:
    """Run profiles from the quickest to the most thorough on backends, and report in a folder.

    Known failures are expected. A backend that fails otherwise, or does not fail as it is known
    to, goes no further. The folder holds the certificate of each backend's last profile,
    ``index.html``, and a badge of each. Certificates that are there of other backends stay, and
    are in the report.

    Parameters
    ----------
    folder : Path
        Made if need be.
    names : sequence of str
        ``name`` or ``name:dtype``; all that are installed by default.
    profiles : sequence of str
    resume : bool
        Skip what the folder has of the same versions and this profile, or a more thorough one,
        where that came out as expected.
    say, progress : callable
        Told a line for each certificate, and each check that begins.

    Returns
    -------
    bool
        Whether everything came out as expected.

    Raises
    ------
    CertificateError
        If the folder has a JSON file that is no certificate.
    """
    pairs = installed(names)
    folder.mkdir(parents=True, exist_ok=True)
    for path in _certificates(folder):
        reports.load_certificate(path)  # before hours of work end with the page that it breaks
    order = list(EFFORTS)
    surprised: set[tuple[str, str]] = set()
    for profile in sorted(profiles, key=order.index):
        for name, dtype in pairs:
            backend, path = find_backend(name, dtype), folder / f"{name}-{dtype}.json"
            if (name, dtype) in surprised or (resume and _has(path, backend, profile)):
                continue
            certificate = certify(
                backend, max_examples=EFFORTS[profile], xfails=known_failures(name),
                profile=profile, progress=progress,
            )  # fmt: skip
            reports.write_json(certificate, path)
            say(f"{profile:9}{name:22}{dtype:10}{_told(certificate)}")
            if not certificate.as_expected:
                surprised.add((name, dtype))
            write_summary(folder)
    return not surprised


def _has(path: Path, backend: Backend, profile: str) -> bool:
    """Whether there is already a certificate of everything that came out as expected."""
    if not path.is_file():
        return False
    told, order = reports.load_certificate(path), list(EFFORTS)
    if told["profile"] not in order or told["levels_asked"] or told["checks_asked"]:
        return False
    musts = [check for check in told["checks"] if check["requirement"] == "MUST"]
    shown = {check["level"] for check in musts if check["status"] in ("passed", "xfailed")}
    expected = not told["stale_xfails"] and shown == {check["level"] for check in musts}
    expected &= all(check["status"] != "failed" for check in musts)
    same = (told["spec"], told["versions"]) == (version(), backend.versions())
    return expected and same and order.index(told["profile"]) >= order.index(profile)


def _told(certificate: Certificate) -> str:
    wrong = certificate.violated
    clauses = f"; clauses {', '.join(wrong)}" if wrong else ""
    stale = f"; known failures that are none: {certificate.stale}" if certificate.stale else ""
    numbers = f"{certificate.worst:.3g}, {certificate.seconds:.0f} s"
    return f"{certificate.outcome}, {numbers}{clauses}{stale}"


def _certificates(folder: Path) -> list[Path]:
    """Where the certificates of a folder are."""
    return sorted(p for p in folder.glob("*.json") if not p.name.endswith(".badge.json"))


def write_summary(folder: Path) -> None:
    """Page and badges of all certificates of a folder."""
    certificates = []
    for path in _certificates(folder):
        told = reports.load_certificate(path)
        certificates.append(told)
        badge = json.dumps(reports.badge(told), indent=1) + "\n"
        reports.write(path.with_suffix(".badge.json"), badge)
    reports.write_html(certificates, folder / "index.html")
    reports.write(folder / "summary.md", reports.as_markdown(certificates) + "\n")
