"""The notebooks as they are kept, their exercises, and that they leave out no equation."""

import ast
import importlib.util
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from griffin_notebooks import check
from griffin_notebooks.exercise import Exercise, difference

nbformat = pytest.importorskip("nbformat", reason="the notebooks extra is not installed")

ROOT = Path(__file__).parent.parent / "notebooks"
FOLDER = ROOT / "griffin_notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EXERCISES = check.every_exercise()

EQUATIONS = {
    "Griffin (1)": "recurrence_gate", "Griffin (2)": "input_gate", "Griffin (3)": "log_decay",
    "Griffin (4)": "scan", "GATE-1": "block_diagonal", "RGLRU-1": "log_decay",
    "RGLRU-3": "multiplier", "RGLRU-4": "scan", "RGLRU-5": "rg_lru", "RGLRU-6": "rg_lru",
    "NORM-1": "rms_norm", "NORM-2": "rms_norm", "LIN-1": "linear", "MLP-1": "gelu",
    "MLP-2": "mlp", "BLOCK-1": "residual_block", "BLOCK-2": "recurrent_block",
    "BLOCK-3": "block_types", "CONV-1": "causal_conv", "CONV-2": "causal_conv",
    "CONV-3": "causal_conv", "ROPE-1": "rope", "ROPE-2": "rope", "ROPE-3": "rope",
    "ATTN-1": "local_attention", "ATTN-4": "local_attention", "ATTN-5": "local_attention",
    "ATTN-7": "roll", "EMBED-1": "embed", "EMBED-3": "head", "HEAD-1": "head",
    "Report 2, no weight decay": "decay_mask", "Report 2, clipped derivative": "sqrt_clipped",
}  # fmt: skip
"""Where the paper, the report or the specification states the model, and what computes it."""


def cells(path: Path) -> list:
    return nbformat.read(path, as_version=4).cells


@pytest.fixture(scope="module")
def tidy():
    spec = importlib.util.spec_from_file_location("tidy", ROOT / "tidy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_twelve():
    assert [int(path.name[:2]) for path in NOTEBOOKS] == list(range(1, 13))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_tidy(path, tidy):
    """No outputs, folded solutions that are those that are tested, cells that are Python."""
    text = path.read_text(encoding="utf-8")
    assert tidy.tidied(text) == text, "run: python notebooks/tidy.py"
    for cell in cells(path):
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if not line.startswith("%")]
            ast.parse("\n".join(lines))
            assert max(map(len, lines), default=0) <= 100


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_keep_to_their_form(path):
    number = int(path.name[:2])
    found = cells(path)
    head = found[0].source
    assert re.match(rf"# {number} · \S", head)
    assert "You will learn" in head
    assert re.search(r"\d+ minutes", head)
    code = [cell.source for cell in found if cell.cell_type == "code"]
    text = [cell.source for cell in found if cell.cell_type == "markdown"]
    assert any("explore(" in source for source in code), "no interactive control"
    assert any("show(" in source or "show_svg(" in source for source in code), "no picture"
    assert code[-1].lstrip().startswith(("assert", "#")) and "assert " in code[-1]
    here = [n for n in EXERCISES if n.split(".")[0] == str(number)]
    assert 3 <= len(here) <= 5
    checked = re.findall(r"check\.ex_(\d+)_(\d+)\((\w+)\)", "\n".join(code))
    assert [f"{a}.{b}" for a, b, _ in checked] == here
    # A solution may be pasted over the stub.
    assert [name for *_, name in checked] == [EXERCISES[n].solution.__name__ for n in here]
    folded = re.findall(r"<summary>Solution of (\d+\.\d+)</summary>", "\n".join(text))
    assert folded == here


def test_each_notebook_leads_to_the_next():
    for path, following in itertools.pairwise(NOTEBOOKS):
        title = cells(following)[0].source.splitlines()[0].removeprefix("# ")
        last = [cell.source for cell in cells(path) if cell.cell_type == "markdown"][-1]
        assert f"\n\nNext: [{title}]({following.name})" in last, path.name


def test_every_equation_stands_beside_its_code():
    """In bold in the text, and within the next two cells of code the function's name."""
    found = {}
    for path in NOTEBOOKS:
        sequence = cells(path)
        for i, cell in enumerate(sequence):
            if cell.cell_type != "markdown":
                continue
            code = [c.source for c in sequence[i + 1 : i + 6] if c.cell_type == "code"][:2]
            for name, function in EQUATIONS.items():
                if f"**{name}**" in cell.source and any(
                    re.search(rf"\b{function}\b", source) for source in code
                ):
                    found[name] = path.name
    missing = {n: f for n, f in EQUATIONS.items() if n not in found}
    assert not missing, f"no notebook has the equation, and then the function: {missing}"


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)
def test_solutions_are_right_and_mistakes_are_explained(exercise: Exercise):
    answer = exercise.solution if exercise.cases is not None else exercise.solution()
    outcome = exercise(answer)
    assert outcome, outcome
    assert len(exercise.mistakes) >= 3
    for says, mistake in exercise.mistakes.items():
        outcome = exercise(mistake if exercise.cases is not None else mistake())
        assert outcome.verdict == "wrong"
        assert outcome.says.split("\n")[0] == says, f"another mistake is named for: {says}"
        assert len(says) > 30, f"this explains little: {says}"


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)
def test_what_is_no_answer_is_told_so(exercise: Exercise):
    assert exercise(...).verdict == "waiting"
    if exercise.cases is None:
        assert exercise(lambda: 1).verdict == "wrong"
        assert exercise("no idea").verdict == "wrong"
        return
    assert exercise(lambda *args: ...).verdict == "waiting"
    assert exercise(3).verdict == "wrong"
    for answer, told in (
        (lambda *args: np.zeros((3, 1, 4, 1, 5)), "expected"),
        (lambda *args: 1 / 0, "ZeroDivisionError"),
    ):
        outcome = exercise(answer)
        assert outcome.verdict == "wrong"
        assert told in outcome.says
        assert outcome.number in outcome._repr_html_()


@pytest.mark.parametrize(
    ("found", "expected", "told"),
    [
        (np.zeros(3), np.zeros(3), ""),
        (1.0 + 1e-12, 1.0, ""),
        (1.001, 1.0, "expected 1"),
        (np.zeros((2, 3)), np.zeros((3, 2)), "has shape (2, 3), expected (3, 2)"),
        (np.array([1.0, np.nan]), np.ones(2), "NaN"),
        (np.array([np.inf]), np.array([np.inf]), ""),
        (np.array([1.0]), np.array([np.inf]), "expected inf"),
        (("a", 1), ("a", 1), ""),
        (("b", 1), ("a", 1), "the answer[0] is 'b', expected 'a'"),
        ({"h": np.ones(2)}, {"h": np.ones(2)}, ""),
        ({"g": 1}, {"h": 1}, "keys"),
        ("cat", np.ones(2), "is 'cat'"),
        (True, True, ""),
        (False, True, "expected True"),
        ([], [], ""),
        ([1], [], "expected 0 values"),
        (10**30, 10**30, ""),
        ("cat", 10**30, "is 'cat'"),
        (2_682_862_081, 2_682_862_080, "is 2682862081, expected 2682862080"),
        (2_682_862_080.0, 2_682_862_080, ""),
        (10**31, 10**30, "expected 1e+30"),
        (len, len, ""),
        (len, max, "is not what was expected"),
    ],
)  # fmt: skip
def test_differences_are_told(found, expected, told):
    said = difference(found, expected)
    assert (told in said) if told else said == ""
