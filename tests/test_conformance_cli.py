"""The verb ``conformance``: every action, what it prints and writes, and wrong usage."""

import contextlib
import io
import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from griffin_conformance import certificate as certificates
from griffin_conformance import command, evolution, reports
from griffin_conformance.checks import EFFORTS, find_checks
from griffin_conformance.clauses import read_clauses
from griffin_conformance.mutants import hunting
from griffin_conformance.reports.loading import validator
from griffin_conformance.schemas import wrong_with
from griffin_conformance.strategies import POOL
from griffin_np.cli import conformance, main

ACTIONS = tuple(command.ACTIONS)


def run(*argv: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["conformance", *map(str, argv)])
    return code, out.getvalue(), err.getvalue()


def table(text: str) -> list[list[str]]:
    """Cells of the rows of a Markdown table, which must have as many as its heading."""
    rows = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {len(rows[0])}
    return [[cell.strip() for cell in row] for row in rows]


ENGINE = """
from griffin_conformance.backends.reference import NumPyBackend


class Wrong(NumPyBackend):
    def gelu(self, x):
        return super().gelu(x) * 1.001


class Bare(NumPyBackend):
    def model(self, config, flat):
        inner = super().model(config, flat)
        return lambda *args: (inner(*args)[0], None)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A user's folder with adapters, where the command is run."""
    (tmp_path / "my_backend.py").write_text(ENGINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- help


@pytest.mark.parametrize("action", [*ACTIONS, "vectors export", "vectors verify"])
def test_every_action_has_help_that_computes_nothing(action, monkeypatch):
    monkeypatch.setattr(conformance, "run", lambda args: pytest.fail("it ran"))
    with pytest.raises(SystemExit) as done:
        run(*action.split(), "--help")
    assert done.value.code == 0


def test_the_help_names_every_action_and_the_exit_codes():
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        main(["conformance", "--help"])
    for action in ACTIONS:
        assert re.search(rf"^    {action}\b", out.getvalue(), re.MULTILINE)
    assert "Exit code 0" in out.getvalue()
    told = re.search(
        r"smoke (\d+), default (\d+), thorough (\d+)", Path(conformance.__file__).read_text()
    )
    assert tuple(map(int, told.groups())) == tuple(EFFORTS.values())
    assert tuple(EFFORTS) == conformance.PROFILES


# -- run


def test_a_run_writes_every_format(folder):
    code, out, err = run("run", "--check", "gates", "--check", "scans", "--profile", "smoke",
                         "--json", "c.json", "--html", "c.html", "--junit", "c.xml",
                         "--badge", "c.svg")  # fmt: skip
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [
        ["L0", "gates", "ok"],
        ["L0", "scans", "ok"],
    ]
    count = len(find_checks(["L0"]))
    assert lines[-1].startswith(
        f"numpy in float32 conforms at L0 in part (2 of {count} checks); worst"
    )
    told = reports.load_certificate("c.json")
    assert (told["profile"], told["checks_asked"]) == ("smoke", ["gates", "scans"])
    assert ElementTree.parse("c.xml").getroot().tag == "testsuites"
    assert ElementTree.parse("c.svg").getroot().tag.endswith("svg")
    assert (folder / "c.html").read_text().lower().startswith("<!doctype html>")
    names = {"c.json", "c.html", "c.xml", "c.svg", "my_backend.py", "__pycache__", ".hypothesis"}
    assert {p.name for p in folder.iterdir()} <= names, "nothing half-written is left"


def test_a_badge_for_shields_is_json(folder):
    assert run("run", "--check", "gates", "--profile", "smoke", "--badge", "b.json")[0] == 0
    assert json.loads((folder / "b.json").read_text())["schemaVersion"] == 1


def test_json_on_the_standard_output_is_alone_there(folder):
    code, out, err = run("run", "--check", "gates", "--max-examples", "7", "--json", "-")
    assert code == 0
    told = json.loads(out)
    assert wrong_with(told, validator()) == ""
    assert (told["profile"], told["max_examples"]) == ("custom", 7)
    assert "numpy in float32 conforms" in err


def test_a_violation_is_told_with_clause_and_reproducer(folder):
    code, out, _ = run("run", "--backend", "my_backend:Wrong", "--check", "gelu-by-tanh")
    assert code == 1
    for line in ("FAILED", "MLP-1: GeLU is the tanh form, everywhere",
                 "violated, most suspicious first: MLP-1",
                 "my_backend:Wrong in float32 VIOLATES the specification"):  # fmt: skip
        assert line in out
    code = out[out.index("from griffin_conformance import *") :].split("\n\n")[0]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        (folder / "again.py").write_text(code)
        runpy.run_path("again.py")
    assert text.getvalue().endswith("failed\n")


def test_known_failures_do_not_fail_a_run_that_expects_them(folder):
    (folder / "known.txt").write_text("gelu-by-tanh  # a factor\n")
    argv = ("run", "--backend", "my_backend:Wrong", "--check", "gelu-by-tanh", "--no-shrink")
    code, out, _ = run(*argv, "--xfails", "known.txt")
    assert code == 0
    assert re.search(r"gelu-by-tanh +xfailed", out)
    assert "VIOLATES the specification, as is known of it" in out
    (folder / "known.txt").write_text("gelu-by-tanh  # a factor\ngates  # it is said\n")
    code, out, _ = run(*argv, "--check", "gates", "--xfails", "known.txt")
    assert code == 1
    assert "known to fail, but: gates passes" in out
    assert run(*argv, "--xfails")[0] == 1, "the suite has no list for it"


def test_without_xfails_known_failures_are_told_and_fail_the_run(folder, monkeypatch):
    monkeypatch.setattr(command, "known_failures", lambda name: {"gelu-by-tanh": "a factor"})
    argv = ("run", "--backend", "my_backend:Wrong", "--check", "gelu-by-tanh", "--no-shrink")
    code, out, _ = run(*argv)
    assert code == 1
    assert re.search(r"gelu-by-tanh +xfailed", out)
    assert run(*argv, "--xfails")[0] == 0


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--clause", "MLP-1"], {c.name for c in find_checks() if "MLP-1" in c.clauses}),
        (["--clause", "norm"], {"rms-norms"}),
        (["--clause", "ATTN", "--level", "l0"], {"attentions"}),
        (["--level", "L0", "--level", "L1"], {c.name for c in find_checks(["L0", "L1"])}),
        (["--check", "gates", "--level", "L0", "--clause", "GATE-1"], {"gates"}),
    ],
)
def test_checks_are_chosen_by_level_name_and_clause(argv, expected, monkeypatch):
    seen = []

    def certify(backend, levels, names, *rest, **options):
        chosen = find_checks(levels or (() if names else backend.levels), names)
        seen.append({check.name for check in chosen})
        raise command.ConfigError("enough")

    monkeypatch.setattr(command, "certify", certify)
    assert run("run", *argv)[0] == 2
    assert seen == [expected]


# -- lists


def test_lists_name_everything():
    code, out, _ = run("list")
    assert code == 0
    for check in find_checks():
        must = "MUST  " if check.must else "SHOULD"
        assert f"{check.level}  {must}  {check.name}  [{' '.join(check.clauses)}]\n" in out
        assert check.says in out


def test_backends_are_listed_with_what_they_lack(monkeypatch):
    monkeypatch.setattr(command, "available", lambda: {"numpy": "", "mlx-lm": "run pip"})
    assert run("backends")[1] == "numpy               installed\nmlx-lm              run pip\n"


def test_clauses_are_listed_or_shown():
    known = read_clauses()
    code, out, _ = run("clauses")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(known)
    code, out, _ = run("clauses", "attn-1", "HEAD")
    assert code == 0
    for name in ("ATTN-1", "HEAD-1", "HEAD-2"):
        assert f"{name} · MUST · {known[name].title}\n\n{known[name].text}\n" in out
    assert "Tested by: attentions, the-window-shows-w-past-tokens\n" in out
    assert "ATTN-2 ·" not in out


# -- certificates


@pytest.fixture
def two(folder) -> Path:
    """Certificates of a right and of a wrong backend."""
    argv = (
        "--check",
        "gelu-by-tanh",
        "--check",
        "gates",
        "--profile",
        "smoke",
        "--no-shrink",
        "--json",
    )
    assert run("run", *argv, "right.json")[0] == 0
    assert run("run", "--backend", "my_backend:Wrong", *argv, "wrong.json")[0] == 1
    return folder


def test_reports_and_comparisons(two):
    code, out, _ = run("report", "right.json", "wrong.json")
    assert code == 0
    rows = table(out.partition("<details>")[0])
    assert [row[0] for row in rows[2:]] == ["numpy float32", "my\\_backend:Wrong float32"]
    code, out, _ = run("report", "right.json", "wrong.json", "--html", "p.html", "--badge", "p.svg")
    assert (code, out) == (0, "")
    assert "my_backend:Wrong" in (two / "p.html").read_text()
    assert "<svg" in (two / "p.svg").read_text()

    code, out, _ = run("compare", "right.json", "wrong.json")
    assert code == 1
    assert "gelu-by-tanh" in out
    assert run("compare", "wrong.json", "right.json")[0] == 0
    code, out, _ = run("compare", "right.json", "right.json", "--json")
    assert code == 0
    assert json.loads(out)


def test_certify_writes_a_folder_and_resumes(folder, monkeypatch):
    def some(levels=(), names=()):
        return [c for c in find_checks(levels, names) if c.name in ("gelu-by-tanh", "gates")]

    monkeypatch.setattr(certificates, "find_checks", some)
    argv = ("certify", "--backend", "numpy:float32", "--profile", "smoke", "--out", "new/certified")
    code, out, _ = run(*argv)
    assert code == 0
    assert re.fullmatch(r"smoke +numpy +float32 +conforms at L0, 0\.\d+, \d+ s\n", out)
    assert (folder / "new" / "certified" / "index.html").is_file()
    assert run(*argv, "--resume")[:2] == (0, "")
    assert run(*argv)[1].startswith("smoke"), "again, if it is not to resume"


def test_evolution_is_a_table_or_json(folder, monkeypatch):
    monkeypatch.setattr(evolution, "POOL", POOL[:3])
    argv = ("evolve", "--backend", "numpy", "--against", "numpy", "--seeds", "1")
    code, out, _ = run(*argv)
    assert code == 0
    steps = sum(4 * w.config.window + 5 for w in POOL[:3])
    assert f"{steps} steps of 3 texts" in out.splitlines()[0]
    first, second = (table(part) for part in out.split("\n\n")[1:])
    heading, _, *rows = first
    rows = [dict(zip(heading, row, strict=True)) for row in rows]
    assert {row["array"] for row in rows} == {"logits", "states"}
    for row in rows:
        told = [
            row[name] for name in ("same bits", "ULP, 99.9 %", "ULP, most", "observed / allowed")
        ]
        assert told == ["100.0 %", "0", "0", "0.00"]
    heading, _, *rows = second
    assert rows == [["0", *["100.000 %"] * (len(heading) - 1)]]
    code, out, _ = run(*argv, "--json")
    assert code == 0
    views = json.loads(out)
    for view in views:
        assert (view["logits"]["equal_bits"], view["states"]["equal_bits"]) == (1, 1)
    assert {view["at_once"] for view in views} == {False, True}


def test_one_mutant_is_hunted(monkeypatch):
    few = [c for c in find_checks() if c.name in ("attentions", "gates")]
    monkeypatch.setattr(certificates, "find_checks", lambda *args, **options: few)
    code, out, _ = run("mutants", "window of W keys", "--profile", "smoke")
    assert code == 0
    first, last = out.splitlines()
    assert re.fullmatch(r"killed  ATTN-1   window of W keys +smoke +ATTN-1.*", first)
    assert last == "1 mutants, 1 killed, 1 by their clause's name"
    monkeypatch.setattr(certificates, "find_checks", lambda *args, **options: few[:1])
    code, out, _ = run("mutants", "window of W keys", "--profile", "smoke")
    assert code == 1
    assert "LIVES" in out
    assert len(hunting.EVERY) >= 40


def test_protocol_and_vectors_are_passed_on(monkeypatch, folder):
    from griffin_conformance import vectors
    from griffin_conformance.protocol import validate

    monkeypatch.setattr(validate, "validate", lambda told: told == "cmd:./engine")
    assert run("validate", "cmd:./engine")[0] == 0
    assert run("validate", "cmd:./other")[0] == 1

    monkeypatch.setattr(vectors, "export", lambda where, large: {"vectors": [where, large]})
    assert run("vectors", "export", "here")[:2] == (0, "2 vectors written to here\n")

    def results(*statuses):
        return lambda where, backend: [SimpleNamespace(status=s) for s in statuses]

    monkeypatch.setattr(vectors, "verify", results("passed", "skipped"))
    code, out, _ = run("vectors", "verify", "here", "--backend", "numpy", "--dtype", "float64")
    assert code == 0
    assert out.splitlines()[-1] == "1 passed, 0 failed, 1 skipped"
    for others in (("passed", "failed"), ("skipped",), ()):
        monkeypatch.setattr(vectors, "verify", results(*others))
        assert run("vectors", "verify", "here")[0] == 1


# -- wrong usage


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("run --clause XX", "no clause or family XX; families are EMBED, NORM"),
        ("run --check gate", "no check 'gate'; did you mean gates?"),
        ("run --check gates --level L1", "no check is in all of --level, --check and --clause"),
        ("run --check gates --clause ATTN", "no check is in all of --level, --check and --clause"),
        ("run --level L9", "no level 'L9'; levels are L0, L1, L2, L3, L4, L5"),
        ("run --max-examples 0", "--max-examples must be at least 1, got 0"),
        ("run --max-examples -5", "--max-examples must be at least 1, got -5"),
        ("run --backend nope", "no backend 'nope'; choose one of numpy"),
        ("run --backend cmd:./nope", "backend cmd:./nope cannot be used: cannot start './nope'"),
        ("run --dtype int3", "backend numpy has no dtype 'int3'"),
        ("run --json .", "--json . is a folder; give the name of a file"),
        ("run --html -", "--html - is no file: only --json can be printed"),
        ("run --junit no/such/c.xml", "--junit no/such/c.xml: there is no folder no/such"),
        ("run --badge no/b.svg", "--badge no/b.svg: there is no folder no"),
        ("run --xfails no.txt", "no.txt cannot be read: No such file or directory"),
        ("run --xfails .", ". cannot be read: Is a directory"),
        ("run --xfails binary", "binary is no list of known failures: it is not text in UTF-8"),
        ("run --xfails bad", "bad, line 1: expected 'check-name  # reason', got 'gates'"),
        ("run --xfails odd", "no check 'gaits'; did you mean gates?"),
        ("clauses XX", "no clause or family XX"),
        ("report missing.json", "there is no file missing.json"),
        ("report bad", "bad is no certificate: not JSON at line 1, column 1"),
        ("report .", ". cannot be read: Is a directory"),
        ("report bad --html .", "--html . is a folder"),
        ("compare missing.json bad", "there is no file missing.json"),
        ("certify --out bad", "--out bad is a file; give a folder"),
        ("certify --backend nope", "no backend 'nope'"),
        ("certify --backend numpy:int3", "backend numpy has no dtype 'int3'"),
        ("certify --backend numpy --out full", "other.json is JSON but no certificate"),
        ("evolve --backend nope", "no backend 'nope'"),
        ("evolve --seeds 0", "--seeds must be at least 1, got 0"),
        ("evolve --backend numpy --dtype int3", "backend numpy has no dtype 'int3'"),
        ("evolve --backend my_backend:Bare", "its state has no arrays"),
        ("mutants nope", "no mutant 'nope'; without names all are hunted"),
        ("vectors verify missing", "no manifest.json in missing"),
        ("vectors verify --backend nope", "no backend 'nope'"),
        ("vectors export bad", "bad is a file"),
    ],
)
def test_wrong_usage_is_one_line_and_computes_nothing(folder, monkeypatch, argv, message):
    for name in ("certify", "certify_all") if "full" not in argv and "certify" not in argv else ():
        monkeypatch.setattr(command, name, lambda *a, **k: pytest.fail("it ran"))
    (folder / "binary").write_bytes(b"\xff\xfe")
    (folder / "bad").write_text("gates\n")
    (folder / "odd").write_text("gaits  # a slip\n")
    (folder / "full").mkdir()
    (folder / "full" / "other.json").write_text("{}")
    before = sorted(p for p in folder.rglob("*") if "__pycache__" not in p.parts)
    code, out, err = run(*argv.split())
    assert code == 2, (out, err)
    assert out == ""
    assert err.startswith("griffin-np: error: ") and err.count("\n") == 1
    assert message in err
    kept = [p for p in folder.rglob("*") if not {"__pycache__", ".hypothesis"} & set(p.parts)]
    assert sorted(kept) == before


@pytest.mark.parametrize(
    "argv", ["", "nope", "run --profile fast", "vectors", "report", "compare a"]
)
def test_what_cannot_be_parsed_is_told_by_the_parser(argv, capsys):
    with pytest.raises(SystemExit) as done:
        main(["conformance", *argv.split()])
    assert done.value.code == 2
    assert "usage: griffin-np conformance" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("griffin_np.cli.conformance.find_spec", lambda name: None)
    code, _, err = run("clauses")
    assert code == 2
    assert 'pip install "griffin-np[conformance]"' in err
