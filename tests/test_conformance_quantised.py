"""Level 5 on quantised models: a right one in NumPy, wrong ones, the CPU engine, and the oracle."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from griffin_conformance.backends import Backend, find_backend
from griffin_conformance.backends.quantised import QuantisedNumPy
from griffin_conformance.calibration import PROGRAMS, Nearest, distances
from griffin_conformance.certificate import certify
from griffin_conformance.checks import find_checks
from griffin_conformance.envelope import FACTOR, Envelope
from griffin_conformance.mutants.of_quantised import (
    QUANTISED_MUTANTS,
    mutate_quantised,
    right_model,
)
from griffin_conformance.oracle import linear
from griffin_conformance.quantisation import (
    ActivationRounding,
    Quantisation,
    QuantisedProfile,
    QuantisedSimulation,
    SymmetricWeights,
    oracle_of,
)
from griffin_conformance.quantised_weights import WORLDS, MatrixCase, is_quantised
from griffin_conformance.rounding import BFLOAT16, FLOAT32
from griffin_conformance.runner import run_check

CHECKS = find_checks(["L5"])
DTYPES = ("int8", "int4")
RIGHT = {dtype: right_model(dtype) for dtype in DTYPES}
"""One backend for all tests: what is true about its models is computed once."""
RIGHT_AT_MOST = 0.5
MARGIN = 10.0
SOME = 3
"""Examples of a check; full runs are for the command line."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.name)
def test_a_right_quantised_model_conforms(check, dtype):
    verdict = run_check(check, RIGHT[dtype], SOME, survey=True)
    assert verdict.status == "passed", verdict.explain()
    assert verdict.ratio <= RIGHT_AT_MOST


@pytest.mark.parametrize("mutant", QUANTISED_MUTANTS, ids=lambda m: m.name)
def test_wrong_quantised_models_are_caught(mutant):
    backend, seen = mutate_quantised(mutant, mutant.dtypes[-1]), []
    for check in find_checks(names=mutant.caught_by):
        seen.append(run_check(check, backend, 40, shrink=False))
        assert seen[-1].status == "failed", f"{mutant.fault}: {check.name} passed"
    assert max(verdict.ratio for verdict in seen) >= MARGIN
    assert any(mutant.clause in verdict.check.clauses for verdict in seen)


def test_every_check_is_failed_by_some_fault():
    caught = {name for mutant in QUANTISED_MUTANTS for name in mutant.caught_by}
    assert {check.name for check in CHECKS} == caught


class NearestQuantised(Nearest, QuantisedSimulation):
    """A right program: rounds to nearest, and takes the nearest code."""

    def either(self, z, nearest, largest):
        return np.zeros(z.shape, bool)


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_programs_stay_within_half_of_the_envelope(dtype):
    profile = RIGHT[dtype].profile
    for world in WORLDS:
        right = NearestQuantised(profile, world.config, PROGRAMS, 10**6, strict=True)
        for name, ratios in distances(right, world, profile):
            assert ratios.max() / FACTOR <= RIGHT_AT_MOST, (world, name)


@pytest.mark.parametrize("both_sides", [True, False])
def test_samples_that_go_to_both_sides_of_a_tie_are_needed(monkeypatch, both_sides):
    """A program whose 4.50001 comes out as 4.49999 is right, and far from every other sample."""
    if not both_sides:
        monkeypatch.setattr(QuantisedSimulation, "either", NearestQuantised.either)
    profile, config = RIGHT["int8"].profile, WORLDS[0].config
    simulation = QuantisedSimulation(profile, config, seed=1)
    x, weight = np.array([[127.0, 4.50001, -3.2, 8.1, 2.0]]), np.arange(1.0, 6.0)[:, None]
    name = "blocks.0.mlp.gate.weight"
    truth = linear(profile.meets(config)(name, x[0]), weight)[None]
    samples = simulation.affine(np.repeat(x[None], simulation.S, axis=0), weight, name=name)
    other_code = truth - weight[1]
    ratio = Envelope.of(truth, samples, profile).compare("product", other_code).ratio
    assert ratio <= RIGHT_AT_MOST if both_sides else ratio > 100


# -- the oracle's rounding


def test_activations_are_rounded_by_groups():
    x = np.array([127.0, 3.4, -2.5, 0.2, 12.7, 0.04, 0.0])
    groups = np.array([0, 0, 0, 1, 1, 1, 2])
    rounded = ActivationRounding(8)(x, groups)
    np.testing.assert_allclose(rounded, [127, 3, -2, 0.2, 12.7, 0, 0], rtol=1e-15)
    coarse = ActivationRounding(4)(np.array([7.0, 3.4, -0.6]), np.zeros(3, int))
    np.testing.assert_allclose(coarse, [7, 3, -1], rtol=1e-15)


def test_the_oracle_computes_with_held_weights_and_rounded_inputs():
    backend, world = RIGHT["int4"], WORLDS[1]
    flat = world.parameters(FLOAT32)
    oracle = oracle_of(backend.profile, world.config, flat)
    x = np.random.default_rng(0).standard_normal(world.config.width)
    found = oracle.affine("blocks.0.mlp.gate", x)
    codes, steps = backend.round_inputs(x[None].astype(np.float32))
    rounded = codes[0] * steps[0][backend.groups(len(x))]
    held = backend.dequantised(world.config, flat)["blocks.0.mlp.gate.weight"]
    expected = rounded @ held + flat["blocks.0.mlp.gate.bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.abs(found - (x @ held + flat["blocks.0.mlp.gate.bias"])).max() > 1e-3
    # Gates meet what they meet.
    np.testing.assert_array_equal(oracle.meets("blocks.0.recurrent.rg_lru.w_a", x), x)


def test_samples_go_to_both_sides_only_near_a_tie():
    profile = RIGHT["int8"].profile
    simulation = QuantisedSimulation(profile, WORLDS[0].config, seed=1)
    x = np.array([127.0, 3.3, -2.5, 4.5 + 1e-6, 8.0])
    codes, step = simulation.codes(np.tile(x, (simulation.S, 1, 1)), 127)
    found = [set(codes[:, 0, k].tolist()) for k in range(5)]
    assert found == [{127.0}, {3.0}, {-3.0, -2.0}, {4.0, 5.0}, {8.0}]
    np.testing.assert_allclose(step, 1, rtol=1e-6)


# -- the judgement of weights


def rounded(w, largest, smallest=None, step=None):
    step = np.abs(w).max(axis=0) / largest if step is None else step
    return np.clip(np.rint(w / step), -largest if smallest is None else smallest, largest) * step


def test_nearest_codes_of_one_step_are_right():
    w = np.random.default_rng(1).standard_normal((16, 200))
    int8, int4 = SymmetricWeights(-127, 127), SymmetricWeights(-8, 7)
    assert is_quantised(w, rounded(w, 127), int8).all()
    assert is_quantised(w, rounded(w, 7), int4).all()
    # A step that is negative, so that the largest weight is on -8.
    extreme = np.take_along_axis(w, np.abs(w).argmax(axis=0)[None], 0)[0]
    assert is_quantised(w, rounded(w, 7, -8, extreme / -8), int4).mean() > 0.9
    assert not is_quantised(w, rounded(w, 7), SymmetricWeights(-4, 3)).any()
    assert not is_quantised(w, w, int8).any()
    assert not is_quantised(w, rounded(w, 127, step=np.abs(w).max() / 127), int8).all()
    assert not is_quantised(w, np.zeros_like(w), int8).any()
    assert is_quantised(w * 0, w * 0, int8).all()
    # A step so small that weights are cut off.
    assert not is_quantised(w, rounded(w, 7, step=np.abs(w).max(axis=0) / 30), int4).any()


# -- what backends say of themselves


def test_a_backend_is_judged_at_the_levels_of_its_dtype():
    backend = RIGHT["int8"]
    assert isinstance(backend.profile, QuantisedProfile)
    assert backend.profile == backend.profile
    assert backend.levels == ("L5",)
    certificate = certify(backend, ["L0"], max_examples=1)
    assert not certificate.conforms
    assert {v.status for v in certificate.verdicts} == {"skipped"}
    assert all("int8 is judged at L5" in v.reason for v in certificate.verdicts)
    assert "L5" not in find_backend("numpy").levels


def test_a_quantised_dtype_must_be_described():
    class Silent(Backend):
        dtypes = ("int8",)

    with pytest.raises(ValueError, match=r"\['int8'\].*`quantised`"):
        Silent()


def test_a_backend_that_shows_no_weights_is_not_certified():
    class Hidden(QuantisedNumPy):
        def dequantised(self, config, flat):
            return Backend.dequantised(self, config, flat)

    certificate = certify(Hidden("int8"), names=["quantised-products", "quantised-weights"],
                          max_examples=2)  # fmt: skip
    assert not certificate.conforms
    assert {v.status for v in certificate.verdicts} == {"skipped"}


def test_descriptions_cover_matrices_alone():
    q = Quantisation()
    assert all(map(q.covers, ("embedding", "blocks.3.mlp.gate.weight")))
    for name in ("blocks.0.recurrent.conv.weight", "blocks.0.recurrent.rg_lru.w_a", "final_norm",
                 "blocks.0.recurrent.rg_lru.a_param", "blocks.0.mlp.gate.bias"):  # fmt: skip
        assert not q.covers(name)
    assert not Quantisation(matrices=("gate",)).covers("embedding")


class FloatActivations(QuantisedNumPy):
    """Int4 weights that meet float32 activations."""

    quantised: Mapping[str, Quantisation] = {
        "int4": Quantisation(SymmetricWeights(-7, 7), None, 16)
    }
    dtypes = ("int4",)

    def multiply(self, x, matrix):
        return x @ self.dequantise(matrix).astype(np.float32)


class MultipliedFirst(QuantisedNumPy):
    """Rounded activations that are multiplied with weights as float32."""

    quantised: Mapping[str, Quantisation] = {
        "int8": Quantisation(SymmetricWeights(-127, 127), ActivationRounding(8, False), 16)
    }
    dtypes = ("int8",)

    def multiply(self, x, matrix):
        codes, steps = self.round_inputs(x)
        rounded = codes.astype(np.float32) * steps[:, self.groups(x.shape[1])]
        return rounded @ self.dequantise(matrix).astype(np.float32)


@pytest.mark.parametrize("kind", [FloatActivations, MultipliedFirst])
@pytest.mark.parametrize("name", ["quantised-products", "quantised-whole-texts"])
def test_other_ways_of_quantising(kind, name):
    (check,) = find_checks(names=[name])
    verdict = run_check(check, kind(), 10, survey=True)
    assert verdict.status == "passed", verdict.explain()
    assert verdict.ratio <= RIGHT_AT_MOST


def test_a_wrong_description_is_found_out():
    """A model whose activations are rounded does not pass for one whose are not."""

    class Wrong(FloatActivations):
        multiply = QuantisedNumPy.multiply

    (check,) = find_checks(names=["quantised-products"])
    assert run_check(check, Wrong(), 10, shrink=False).ratio >= MARGIN


def test_the_precision_of_the_rest_is_told():
    class Halves(QuantisedNumPy):
        quantised: Mapping[str, Quantisation] = {"int8": Quantisation(None, None, 16, BFLOAT16)}
        dtypes = ("int8",)

    profile = Halves("int8").profile
    assert (profile.name, profile.activations) == ("int8", 8)


def test_cases_are_told_by_what_makes_them_again():
    import griffin_conformance

    case = MatrixCase(WORLDS[0], "few", "empty", 3, 4)
    names = {n: getattr(griffin_conformance, n) for n in ("MatrixCase", "World", "GriffinConfig")}
    assert eval(repr(case), names) == case


# -- the CPU engine


@pytest.fixture(scope="module")
def engines():
    pytest.importorskip("numba")
    return {dtype: find_backend("numba", dtype) for dtype in DTYPES}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.name)
def test_the_cpu_engine_conforms(check, dtype, engines):
    verdict = run_check(check, engines[dtype], SOME, survey=True)
    assert verdict.status == "passed", verdict.explain()
    assert verdict.ratio <= RIGHT_AT_MOST


def test_groups_of_the_cpu_engine_are_cut_where_heads_are_padded(engines):
    config = WORLDS[5].config  # two heads of 69 channels, each padded to 128
    groups = engines["int8"].input_groups(config, "blocks.0.recurrent.linear_out.weight", 138)
    assert np.unique(groups, return_counts=True)[1].tolist() == [64, 5, 64, 5]


def test_weights_of_the_cpu_engine_are_those_that_it_computes_with(engines):
    """Another code in what it computes with shows in what it says that it holds."""
    backend, world = engines["int4"], WORLDS[1]
    config = backend.adapt(world.config)
    flat = replace(world, config=config).parameters()
    before = backend.dequantised(config, flat)
    model = backend.model(config, flat)
    name = "blocks.0.mlp.gate.weight"
    model.arrays[name][0] ^= 0x0F
    after = model.parameters["blocks"][0]["mlp"]["gate"]["weight"]
    assert (np.asarray(before[name]) != after).sum() == 1
