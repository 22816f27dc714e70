"""The suite as a pytest plugin: ``pytest --pyargs griffin_conformance --griffin-backend=NAME``.

One test for each check. What a backend lacks is skipped, known failures are xfails (strict ones in
the default profile and above), and a list of known failures that names no check is a usage error.
Nothing heavy is imported before something is asked for, because pytest loads every plugin that is
installed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

__all__: list[str] = []

EFFORTS = {"smoke": 6, "default": 60, "thorough": 400}
"""As in :mod:`griffin_conformance.checks`, which is not for every run of pytest to import."""
BACKEND = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("griffin", "conformance of Griffin / RecurrentGemma backends")
    add = group.addoption
    add("--griffin-backend", metavar="NAME|MODULE:CLASS|CMD:COMMAND",
        default=os.environ.get("GRIFFIN_NP_BACKEND", ""),
        help="the implementation to test (GRIFFIN_NP_BACKEND)")  # fmt: skip
    add("--griffin-dtype", metavar="DTYPE", help="precision (the backend's first)")
    add("--griffin-level", action="append", default=[], metavar="L0|...|L5",
        help="only checks of this level; repeatable")  # fmt: skip
    add("--griffin-profile", choices=tuple(EFFORTS), default="default", help="how many examples")
    add("--griffin-max-examples", type=int, metavar="N", help="examples of each check")
    add("--griffin-seed", type=int, default=0, metavar="S", help="draws other examples")
    add("--griffin-xfails", metavar="FILE",
        help="known failures (the suite's own list for the backend)")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "griffin(check): a check of the conformance suite")
    examples = config.getoption("--griffin-max-examples")
    if examples is not None and examples < 1:
        raise pytest.UsageError(f"--griffin-max-examples must be at least 1, got {examples}")
    if config.getoption("--griffin-level"):
        checks_of(config)
    if config.getoption("--griffin-xfails"):
        known_to_fail(config)


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("--griffin-backend"):
        backend_of(session.config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    worker = hasattr(config, "workerinput")  # of xdist, which takes a usage error for a crash
    if not worker and any(item.get_closest_marker("griffin") for item in items):
        backend_of(config)  # without one all of them would be errors


def pytest_unconfigure(config: pytest.Config) -> None:
    close = getattr(config.stash.get(BACKEND, None), "close", None)
    if close is not None:
        close()


def backend_of(config: pytest.Config) -> Any:
    """The backend that was asked for, made once.

    Raises
    ------
    pytest.UsageError
        If none was, or it cannot be had.
    """
    if BACKEND in config.stash:
        return config.stash[BACKEND]
    from griffin_conformance.backends import find_backend

    name = config.getoption("--griffin-backend")
    if not name:
        raise pytest.UsageError(
            "no backend to test: give --griffin-backend=NAME, or set GRIFFIN_NP_BACKEND"
        )
    try:
        config.stash[BACKEND] = find_backend(name, config.getoption("--griffin-dtype"))
    except (ValueError, ImportError) as error:
        raise pytest.UsageError(str(error)) from None
    return config.stash[BACKEND]


def examples_of(config: pytest.Config) -> int:
    """How many examples of each check were asked for."""
    examples = config.getoption("--griffin-max-examples")
    return EFFORTS[config.getoption("--griffin-profile")] if examples is None else examples


def checks_of(config: pytest.Config) -> list[Any]:
    """The checks that were asked for.

    Raises
    ------
    pytest.UsageError
        If there is no such level.
    """
    from griffin_conformance.checks import find_checks

    try:
        return find_checks([level.upper() for level in config.getoption("--griffin-level")])
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def known_to_fail(config: pytest.Config) -> dict[str, str]:
    """Checks that are known to fail, and why.

    Raises
    ------
    pytest.UsageError
        If the list cannot be read, or names a check that there is not.
    """
    from griffin_conformance.checks import find_checks
    from griffin_conformance.xfails import known_failures, read_xfails

    path = config.getoption("--griffin-xfails")
    try:
        known = (
            read_xfails(Path(path))
            if path
            else known_failures(config.getoption("--griffin-backend"))
        )
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if unknown := sorted(set(known) - {check.name for check in find_checks()}):
        raise pytest.UsageError(f"known failures name checks that there are not: {unknown}")
    return known


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "griffin_check" not in metafunc.fixturenames:
        return
    known = known_to_fail(metafunc.config)
    # A few examples may pass where the failure is rare.
    strict = examples_of(metafunc.config) >= EFFORTS["default"]
    cases = []
    for check in checks_of(metafunc.config):
        marks: list[Any] = [pytest.mark.griffin(check=check.name)]
        if check.name in known:
            marks.append(pytest.mark.xfail(reason=known[check.name], strict=strict))
        cases.append(pytest.param(check, id=f"{check.level}-{check.name}", marks=marks))
    metafunc.parametrize("griffin_check", cases)


@pytest.fixture(scope="session")
def griffin_backend(request: pytest.FixtureRequest) -> Any:
    """The backend under test."""
    return backend_of(request.config)


@pytest.fixture
def griffin_verdict(
    request: pytest.FixtureRequest, griffin_check: Any, griffin_backend: Any
) -> Any:
    """What comes out of one check."""
    from griffin_conformance.runner import run_check

    seed = request.config.getoption("--griffin-seed")
    examples = examples_of(request.config)
    return run_check(griffin_check, griffin_backend, examples, seed_number=seed)


def pytest_report_header(config: pytest.Config) -> list[str]:
    name = config.getoption("--griffin-backend")
    if not name:
        return []
    backend = backend_of(config)
    told = ", ".join(f"{package} {version}" for package, version in backend.versions().items())
    return [f"griffin: {name} in {backend.dtype} ({told})"]
