"""Divergences of other libraries, shown by short programs, run as their maintainers would."""

import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest

from griffin_conformance.clauses import read_clauses

pytestmark = pytest.mark.peers

FOLDER = Path(str(files("griffin_conformance"))) / "reproducers"
REPRODUCERS = sorted(FOLDER.glob("*/*.py"))
NEEDS = {
    "transformers": ("torch", "transformers"),
    "mlx-lm": ("mlx", "mlx_lm"),
    # JAX and Flax are imported by both of DeepMind's packages.
    "deepmind": ("recurrentgemma", "jax", "flax"),
}
"""Modules that a library needs."""

NAMED = {
    "transformers": "window chunked sessions one_token padding lru_width cap",
    "mlx-lm": "window norm_epsilon embedding_scale state_dtype padding packed",
    "deepmind": "left_padding_jax left_padding_torch short_last_document chunked_prefill_jax "
    "chunked_prefill_torch changes_its_input_torch batches_never_end",
}
"""Divergences that have to be there."""

each = pytest.mark.parametrize(
    "path", REPRODUCERS, ids=[f"{path.parent.name}-{path.stem}" for path in REPRODUCERS]
)


@each
def test_a_reproducer_shows_its_divergence(path):
    """It ends with 1, having run: an error that is not caught would end with 1 too."""
    needed = (*NEEDS[path.parent.name], *(["torch"] if path.stem.endswith("_torch") else []))
    if missing := [name for name in needed if find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, f"{path.name} finds the library right:\n{done.stdout}"
    assert "Traceback" not in done.stderr
    assert done.stdout or done.stderr


@each
def test_a_reproducer_is_short_and_stands_alone(path):
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 20
    assert "griffin_" not in text
    clauses = lines[0].removeprefix("# ").partition(":")[0].split(", ")
    assert set(clauses) <= set(read_clauses()), "the first line names the clauses it is about"
    about = " ".join(line for line in lines if line.startswith("#"))
    assert ".py:" in about, "and where the library has it"


def test_the_named_divergences_have_a_reproducer():
    for library, parts in NAMED.items():
        stems = [path.stem for path in REPRODUCERS if path.parent.name == library]
        for part in parts.split():
            assert any(part in stem for stem in stems), (library, part)
