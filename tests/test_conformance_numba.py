"""The suite on the CPU engine: some examples of everything; ``griffin-np conformance`` runs all."""

import numpy as np
import pytest

pytest.importorskip("numba")

from griffin_conformance.backends import find_backend
from griffin_conformance.backends.cpu import NumbaBackend
from griffin_conformance.checks import EXAMPLES, find_checks
from griffin_conformance.runner import run_check
from griffin_conformance.strategies import POOL
from griffin_kernels.cpu.engine import NumbaModel
from griffin_np.params import nest

SOME = 6


LACKS = {"nf4-tensors", "compiled-as-written"}
"""It reads no nf4, and has no other way of running a model."""


def level_checks(*levels):
    return [check for check in find_checks(levels) if check.name not in LACKS]


CASES = [
    pytest.param(check, dtype, id=f"{check.name}-{dtype}")
    for dtype in ("float32", "bfloat16")  # int8 and int4: test_conformance_quantised.py
    for check in level_checks(*NumbaBackend(dtype).levels)
]


@pytest.mark.parametrize(("check", "dtype"), CASES)
def test_the_cpu_engine_conforms(check, dtype):
    """Strata are counted in full runs only, so this is a survey."""
    assert SOME < EXAMPLES
    verdict = run_check(check, find_backend("numba", dtype), SOME, survey=True)
    assert verdict.status == "passed", verdict.explain()
    assert verdict.ratio <= 0.5


@pytest.mark.parametrize("gate", ["w_a", "w_x"])
def test_gates_of_which_one_is_exact_in_bfloat16(gate):
    """Both gates are read in one way, so one of zeros is kept in float32 beside the other."""
    world = POOL[0]
    flat = world.parameters()
    for name in flat:
        if name.endswith(gate):
            flat[name] = np.zeros_like(flat[name])
    model = NumbaModel(world.config, nest(flat))
    name = "blocks.0.recurrent.rg_lru"
    kept = model.parameters["blocks"][0]["recurrent"]["rg_lru"]
    for leaf in ("w_a", "w_x"):
        np.testing.assert_array_equal(kept[leaf], flat[f"{name}.{leaf}"])
