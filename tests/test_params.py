"""The parameter tree: shapes, validation, initialisation, fingerprint."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SMALL, random_parameters

from griffin_conformance.envelope import chain_bound
from griffin_conformance.strategies import configurations
from griffin_conformance.worlds import draw_parameters
from griffin_np.config import GriffinConfig
from griffin_np.errors import ConfigError, ParameterError
from griffin_np.model import NumPyModel
from griffin_np.params import (
    fingerprint,
    flatten,
    init_parameters,
    map_parameters,
    nest,
    parameter_shapes,
    validate,
)


@settings(max_examples=30)
@given(configurations())
def test_trees_are_nested_and_flattened_without_loss(config):
    flat = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(config).items()}
    tree = nest(flat)
    assert len(tree["blocks"]) == config.depth
    assert flatten(tree) == flat
    validate(tree, config)
    validate(flat, config)
    assert sum(math.prod(s) for s in parameter_shapes(config).values()) == config.num_parameters()


def test_everything_wrong_is_listed_at_once():
    flat = draw_parameters(SMALL, "ordinary", 0)
    del flat["final_norm"]
    flat["blocks.0.recurrent.linear_x.weight"] = np.zeros((36, 24), np.float32)
    flat["blocks.1.mlp.up.bias"] = np.zeros(40, np.float64)
    flat["blocks.2.attention.query.bias"] = np.zeros(24, np.float32)
    flat["blocks.3.mlp_norm"] = np.zeros(24, np.int32)
    flat["blocks.4.mlp_norm"] = [0.0] * 24
    with pytest.raises(ParameterError) as error:
        validate(flat, SMALL)
    message = str(error.value)
    for part in (
        "missing: final_norm (24,)",
        "misshapen: blocks.0.recurrent.linear_x.weight is (36, 24), expected (24, 36)",
        "mixed dtypes: float32 (embedding), float64 (blocks.1.mlp.up.bias)",
        "extra: blocks.2.attention.query.bias",
        "wrong dtype: blocks.3.mlp_norm is int32, expected a floating dtype",
        "blocks.4.mlp_norm.0",
    ):
        assert part in message
    with pytest.raises(ParameterError, match="expected float64"):
        validate(random_parameters(SMALL, 0), SMALL, np.float64)


def test_initial_weights_have_the_official_spread():
    """Variance per kind of weight, and the decay's radius uniform by area in [0.9, 0.999]."""
    config = GriffinConfig(
        width=128, depth=3, num_heads=4, vocab_size=500, lru_width=192, mlp_width=320
    )
    flat = flatten(init_parameters(config, 0))
    block = "blocks.0."
    expected = {
        "embedding": 1 / 128,
        block + "recurrent.linear_x.weight": 1 / 128,
        block + "recurrent.linear_y.weight": 1 / 128,
        block + "recurrent.linear_out.weight": 2 / 3 / 192,
        block + "recurrent.rg_lru.w_a": 1 / 192,
        block + "recurrent.rg_lru.w_x": 1 / 192,
        block + "recurrent.conv.weight": 0.01 / 4,
        "blocks.2.attention.query.weight": 1 / 128,
        "blocks.2.attention.output.weight": 2 / 3 / 128,
        block + "mlp.gate.weight": 1 / 256,
        block + "mlp.down.weight": 2 / 3 / 320,
    }
    for name, variance in expected.items():
        spread = 5 * math.sqrt(2 / flat[name].size)
        assert abs(flat[name].var() / variance - 1) < spread, name
    for name, array in flat.items():
        if name.endswith(("bias", "norm", "b_a", "b_x")):
            assert (array == 0).all(), name
    a_param = np.concatenate([flat[f"blocks.{i}.recurrent.rg_lru.a_param"] for i in (0, 1)])
    radius = np.exp(-np.log1p(np.exp(a_param.astype(np.float64))))
    # a_param is rounded to float32 once, from float64; its error, times it, is one of the radius.
    edge = 1 + chain_bound(1, "float32") * np.abs(a_param).max()
    assert radius.min() >= 0.9 / edge
    assert radius.max() <= 0.999 * edge
    area = (radius**2 - 0.9**2) / (0.999**2 - 0.9**2)
    assert abs(area.mean() - 0.5) < 5 * math.sqrt(1 / 12 / area.size)


@settings(max_examples=20)
@given(configurations(), st.integers(0, 2**32 - 1))
def test_a_seed_gives_the_same_weights_in_every_dtype(config, seed):
    single, double = (flatten(init_parameters(config, seed, d)) for d in ("float32", "float64"))
    for name in single:
        np.testing.assert_array_equal(single[name], double[name])
    assert fingerprint(single, config) == fingerprint(double, config)


def test_the_fingerprint_tells_weights_apart():
    config = SMALL
    flat = draw_parameters(config, "ordinary", 0)
    known = fingerprint(flat, config)
    assert known == fingerprint(nest(flat), config)
    for name in flat:
        changed = dict(flat)
        changed[name] = flat[name].copy()
        changed[name].flat[0] += 1
        assert fingerprint(changed, config) != known, name
    transposed = dict(flat)
    name = "blocks.2.attention.query.weight"
    transposed[name] = np.ascontiguousarray(flat[name].T)
    assert fingerprint(transposed, config) != known


def test_map_parameters_keeps_the_form():
    tree = map_parameters(lambda a: a.astype(np.float64), random_parameters(SMALL, 0))
    validate(tree, SMALL, np.float64)


def test_the_reference_computes_in_two_dtypes_only():
    half = map_parameters(lambda a: a.astype(np.float16), random_parameters(SMALL, 0))
    with pytest.raises(ConfigError, match="computes in float32 or float64, got float16"):
        NumPyModel(SMALL, half)
