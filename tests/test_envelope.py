"""The rounding envelope: right computations lie well inside, wrong ones far outside."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from support import SMALL, random_model, tokens_for

from griffin_conformance.envelope import FACTOR, Simulation, allowed, compare, norms
from griffin_conformance.oracle import Oracle
from griffin_conformance.rounding import BFLOAT16, FLOAT32, FLOAT64, round_to
from griffin_np.model import NumPyModel
from griffin_np.params import flatten

finite = st.floats(-1e30, 1e30).filter(lambda v: abs(v) > 1e-30)


@given(finite)
def test_rounding_to_nearest_is_the_dtypes_own(value):
    x = np.array([value])
    assert round_to(x, 24, 0)[0] == float(np.float32(value))
    assert round_to(x, 8, 0)[0] == float(bfloat16(value))


@given(finite, st.sampled_from([8, 24, 53]))
def test_up_and_down_enclose_the_value(value, bits):
    x = np.array([value])
    down, up = round_to(x, bits, -1)[0], round_to(x, bits, 1)[0]
    assert down <= value <= up
    assert up - down <= 2.0 ** (2 - bits) * abs(value) + 5e-324
    assert round_to(x, bits, 0)[0] in (down, up, value)


def case(seed: int, length: int = 24):
    model = random_model(SMALL, seed)
    flat = flatten(model.parameters)
    tokens = tokens_for(SMALL, (1, length), seed)
    positions = np.concatenate([np.arange(length - 2), np.arange(2)])
    truth = Oracle(flat, SMALL).read(tokens[0], positions)
    return flat, tokens, positions, truth


@pytest.fixture(scope="module")
def single():
    flat, tokens, positions, truth = case(0)
    samples = Simulation(flat, SMALL, FLOAT32, 8, 0).run(tokens[0], positions)["logits"]
    return flat, tokens, positions, truth, samples


def logits(config, flat, tokens, positions, dtype="float32"):
    params = {name: array.astype(dtype) for name, array in flat.items()}
    from griffin_np.params import nest

    return NumPyModel(config, nest(params))(tokens, positions[None])[0][0]


def test_the_reference_lies_inside(single):
    flat, tokens, positions, truth, samples = single
    found = compare("logits", logits(SMALL, flat, tokens, positions), truth, samples, FLOAT32)
    assert found.passed
    assert 0.01 < found.ratio <= 0.5
    assert found.ulps == tuple(sorted(found.ulps))


def test_float64_lies_inside_its_own_envelope():
    flat, tokens, positions, truth = case(1, 12)
    samples = Simulation(flat, SMALL, FLOAT64, 8, 0).run(tokens[0], positions)["logits"]
    found = compare(
        "logits", logits(SMALL, flat, tokens, positions, "float64"), truth, samples, FLOAT64
    )
    assert found.ratio <= 0.5


@pytest.mark.parametrize(
    "fault", [{"window": 7}, {"norm_eps": 1e-4}, {"logits_soft_cap": 0.0}, {"rope_fraction": 1.0}]
)
def test_faults_lie_far_outside(single, fault):
    flat, tokens, positions, truth, samples = single
    wrong = logits(SMALL.replace(**fault), flat, tokens, positions)
    assert compare("logits", wrong, truth, samples, FLOAT32).ratio > 10


def test_bfloat16_allows_more_than_float32(single):
    flat, tokens, positions, truth, samples = single
    wide = Simulation(flat, SMALL, BFLOAT16, 4, 0).run(tokens[0], positions)["logits"]
    ratio = allowed(wide, truth, BFLOAT16.unit) / allowed(samples, truth, FLOAT32.unit)
    assert 1e3 < np.median(ratio) < 1e6


def test_values_that_are_not_finite_never_pass(single):
    *_, truth, samples = single
    broken = truth.copy()
    broken[5, 3] = np.nan
    found = compare("logits", broken, truth, samples, FLOAT32)
    assert found.ratio == np.inf
    assert found.position == 5


def test_exact_results_pass_where_nothing_is_allowed():
    zero = np.zeros((3, 4))
    assert compare("x", zero, zero, np.zeros((2, 3, 4)), FLOAT32).ratio == 0
    assert FACTOR > 1
    assert norms(np.ones((2, 3, 4))).shape == (2, 3)
