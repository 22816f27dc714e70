"""The package as users meet it: what it imports, exports and ships."""

import doctest
import importlib.metadata
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import griffin_np

ROOT = Path(__file__).parent.parent


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_import_brings_in_nothing_heavy():
    code = "import sys, griffin_np; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(eval(run(code)))
    heavy = {"numba", "llvmlite", "jax", "jaxlib", "sentencepiece", "safetensors", "ml_dtypes",
             "tqdm", "threadpoolctl", "torch", "transformers", "hypothesis", "pytest"}  # fmt: skip
    assert "numpy" in loaded
    assert not loaded & heavy


def test_the_reference_imports_numpy_and_the_standard_library_only():
    """A forward pass with random weights needs nothing else."""
    code = (
        "import sys, griffin_np as gnp\n"
        "c = gnp.GriffinConfig(width=8, depth=3, num_heads=2, vocab_size=9, window=4)\n"
        "gnp.init(c, backend='numpy')([[1, 2, 3]])\n"
        "names = {m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(n for n in names if not n.startswith('_')))"
    )
    assert set(eval(run(code))) <= {
        "griffin_np", "numpy", "sitecustomize", "cython_runtime", "editables"
    }  # fmt: skip


def test_every_public_name_exists():
    assert len(set(griffin_np.__all__)) == len(griffin_np.__all__)
    for name in griffin_np.__all__:
        assert getattr(griffin_np, name) is not None
        assert name in dir(griffin_np)
    with pytest.raises(AttributeError, match="no attribute 'Mamba'"):
        _ = griffin_np.Mamba


def test_every_module_has_a_docstring_and_what_it_exports():
    for info in pkgutil.walk_packages(griffin_np.__path__, "griffin_np."):
        module = importlib.import_module(info.name)
        assert module.__doc__, info.name
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name), f"{info.name}.{name}"
            assert getattr(module, name).__doc__, f"{info.name}.{name}"


def test_the_example_in_the_package_docstring_runs():
    assert doctest.testmod(griffin_np).failed == 0


def test_version_is_the_distributions():
    assert griffin_np.__version__ == importlib.metadata.version("griffin-np")


def test_folders_that_are_no_packages_stay_none():
    """A package called ``kernels`` would break transformers, which looks for one of that name."""
    for folder in ("kernels", "conformance", "notebooks", "tests"):
        assert (ROOT / folder).is_dir()
        assert not (ROOT / folder / "__init__.py").exists()


def test_the_main_idea_fits_on_two_pages():
    assert len((ROOT / "griffin_np" / "rg_lru.py").read_text().splitlines()) <= 150


def test_repr_says_what_it_is():
    config = griffin_np.GriffinConfig(width=8, depth=3, num_heads=2, vocab_size=16)
    assert repr(griffin_np.init(config)) == (
        "<griffin_np.Model numba float32: 1,512 parameters, 3 blocks of width 8, vocabulary 16>"
    ).replace("1,512", f"{config.num_parameters():,}")
    assert np.dtype(griffin_np.init(config).state_dtype) == "float32"
