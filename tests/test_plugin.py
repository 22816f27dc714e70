"""The suite as a pytest plugin, in processes of its own as a user runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from griffin_conformance import plugin
from griffin_conformance.checks import EFFORTS, find_checks

ENGINE = '''
from griffin_conformance import Unsupported
from griffin_conformance.backends.reference import NumPyBackend


class Wrong(NumPyBackend):
    """Wrong in GeLU and in what it only should do, without norms."""

    def gelu(self, x):
        return super().gelu(x) * 1.001

    def decay(self, r, a_param):
        a, gain = super().decay(r, a_param)
        return a, (1 - a * a) ** 0.5

    def rms_norm(self, x, scale, eps):
        raise Unsupported("no norms here")


class Ends(NumPyBackend):
    """Says when it is closed."""

    def close(self):
        open("closed", "a").write("x")
'''


def run(folder: Path, *argv: str, **environment: str) -> tuple[int, str]:
    """What pytest says on the installed suite, in a folder."""
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "GRIFFIN_NP_BACKEND"))
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist",
               "--pyargs", "griffin_conformance", "--color=no", "-rsxX", *argv]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder with an adapter in it."""
    path = tmp_path_factory.mktemp("user")
    (path / "mine.py").write_text(ENGINE)
    return path


L0 = ("--griffin-level=l0", "--griffin-max-examples=6")


def test_a_right_backend_passes(folder):
    code, out = run(folder, "--griffin-backend=numpy", "--griffin-dtype=float64", *L0)
    assert code == 0, out
    assert f"{len(find_checks(['L0']))} passed" in out
    assert re.search(r"griffin: numpy in float64 \(python 3\.\S+, griffin-np \S+, numpy \S+\)", out)
    assert sorted(p.name for p in folder.iterdir() if p.suffix) == ["mine.py"]


@pytest.fixture(scope="module")
def wrong(folder) -> tuple[int, str]:
    return run(
        folder, "--griffin-backend=mine:Wrong", "-k", "gelu or multipliers or norms or gates", *L0
    )


def test_a_wrong_backend_fails_with_an_explanation(wrong):
    code, out = wrong
    assert code == 1, out
    assert "1 failed, 1 passed, 2 skipped" in out
    assert "test_conforms[L0-gelu-by-tanh]" in out
    for line in ("MLP-1: GeLU is the tanh form, everywhere", "x the allowed difference at entry 0",
                 "from griffin_conformance import *",
                 "reproduce('gelu-by-tanh', 'mine:Wrong', 'float32',"):  # fmt: skip
        assert line in out
    assert "Verdict(" not in out, "what is said is for people"


def test_what_is_lacking_or_only_should_be_is_skipped_with_the_reason(wrong):
    _, out = wrong
    assert re.search(r"SKIPPED \[1\] .*: no norms here", out)
    assert re.search(r"SKIPPED \[1\] .*: SHOULD, and is not: sqrt", out)


def test_known_failures(folder):
    """Those that fail are expected, of a SHOULD too; one that passes is an error, unless few
    examples were drawn.
    """
    (folder / "known.txt").write_text(
        "gelu-by-tanh  # a factor\nmultipliers-keep-their-digits # as written\ngates # it is said\n"
    )
    argv = ("--griffin-backend=mine:Wrong", "--griffin-xfails=known.txt", "-k",
            "gelu or multipliers or gates", "--griffin-level=L0")  # fmt: skip
    code, out = run(folder, *argv, "--griffin-max-examples=6")
    assert code == 0, out
    assert "2 xfailed, 1 xpassed" in out
    assert re.search(r"XFAIL .*gelu-by-tanh\] - a factor", out)
    code, out = run(folder, *argv, "--griffin-profile=default", "-k", "gates")
    assert code == 1, out
    assert "[XPASS(strict)] it is said" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no backend to test: give --griffin-backend=NAME, or set GRIFFIN_NP_BACKEND"),
        (["--griffin-backend=nope", "-q"], "no backend 'nope'; choose one of numpy"),
        (["--griffin-backend=numpy", "--griffin-xfails=odd.txt"], "that there are not: ['nope']"),
    ],
    ids=["no backend", "unknown backend", "odd list"],
)
def test_wrong_usage_is_one_error(folder, argv, message):
    (folder / "odd.txt").write_text("nope  # is no check\n")
    code, out = run(folder, *argv)
    assert code == pytest.ExitCode.USAGE_ERROR, out
    assert out.count("ERROR: ") == 1
    assert message in out
    assert "Traceback" not in out


class Asked:
    """What of pytest's configuration the plugin looks at."""

    def __init__(self, **options):
        self.options, self.stash = options, pytest.Stash()

    def getoption(self, name: str):
        defaults = {"level": [], "profile": "default", "backend": ""}
        name = name.removeprefix("--griffin-").replace("-", "_")
        return self.options.get(name, defaults.get(name))

    def addinivalue_line(self, name: str, line: str) -> None:
        assert (name, line.partition("(")[0]) == ("markers", "griffin")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_examples": 0}, "--griffin-max-examples must be at least 1, got 0"),
        ({"level": ["L9"]}, "no level 'L9'; levels are L0, L1"),
        ({"xfails": "no.txt"}, "no.txt cannot be read: No such file or directory"),
        ({"xfails": "."}, ". cannot be read: Is a directory"),
    ],
)
def test_wrong_options_are_told_before_anything_is_collected(options, message):
    with pytest.raises(pytest.UsageError) as caught:
        plugin.pytest_configure(Asked(**options))
    assert message in str(caught.value)


def test_options_of_the_backend_are_checked_and_it_is_made_once():
    with pytest.raises(pytest.UsageError, match="has no dtype 'int3'"):
        plugin.backend_of(Asked(backend="numpy", dtype="int3"))
    with pytest.raises(pytest.UsageError, match="cannot be loaded"):
        plugin.backend_of(Asked(backend="no.such:Thing"))
    asked = Asked(backend="numpy")
    assert plugin.backend_of(asked) is plugin.backend_of(asked)
    plugin.pytest_configure(asked)
    assert plugin.examples_of(asked) == EFFORTS["default"]


def test_the_backend_may_be_named_by_the_environment_and_is_made_and_closed_once(folder):
    (folder / "closed").unlink(missing_ok=True)
    code, out = run(folder, "-k", "gelu", *L0, GRIFFIN_NP_BACKEND="mine:Ends")
    assert code == 0, out
    assert (folder / "closed").read_text() == "x"


def test_a_level_at_which_a_dtype_is_not_judged_is_skipped(folder):
    code, out = run(folder, "--griffin-backend=numpy", "--griffin-level=L5")
    assert code == 0
    assert "float32 is judged at L0, L1, L2, L3, L4" in out
    assert "passed" not in out


def test_loading_the_plugin_imports_nothing_heavy():
    code = (
        "import sys, griffin_conformance.plugin; "
        "print(sorted(m for m in sys.modules if m.startswith(('numpy', 'hypothesis', 'mpmath', "
        "'griffin_np', 'griffin_conformance'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['griffin_conformance', 'griffin_conformance.plugin']"


def test_profiles_are_those_of_the_command():
    assert plugin.EFFORTS == EFFORTS
