"""Configurations: presets, derived sizes, refusals."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from support import SMALL

from griffin_conformance.strategies import configurations
from griffin_np import PRESETS, GriffinConfig
from griffin_np.config import round_to_bfloat16
from griffin_np.errors import ConfigError


def test_presets_have_the_published_sizes():
    assert PRESETS["recurrentgemma-2b"].num_parameters() == 2_682_862_080
    assert PRESETS["recurrentgemma-9b"].num_parameters() == 8_579_977_216
    assert set(PRESETS) == {
        "recurrentgemma-2b", "recurrentgemma-9b", "griffin-7b", "hawk-7b", "demo"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "R", "A"),
    [
        ("recurrentgemma-2b", 18, 8),
        ("recurrentgemma-9b", 26, 12),
        ("griffin-7b", 22, 10),
        ("hawk-7b", 32, 0),
    ],
)
def test_the_pattern_is_repeated_and_cut(name, R, A):
    """Trap T27: the depth is no multiple of the pattern."""
    kinds = PRESETS[name].block_types
    assert (kinds.count("recurrent"), kinds.count("attention")) == (R, A)
    assert len(kinds) == PRESETS[name].depth
    assert kinds[-2:] == ("recurrent", "recurrent")


def test_derived_sizes_of_the_released_models():
    two, nine = PRESETS["recurrentgemma-2b"], PRESETS["recurrentgemma-9b"]
    assert (two.head_dim, two.rotary_dim, two.gate_width, two.mlp_width) == (256, 128, 256, 7680)
    assert (nine.head_dim, nine.mlp_width, nine.lru_width) == (256, 12288, 4096)
    assert PRESETS["griffin-7b"].gate_width == 176
    assert two.embedding_scale == 50.5
    assert nine.embedding_scale == 64
    assert PRESETS["hawk-7b"].embedding_scale == 1


def test_the_demo_scale_is_not_exact_in_bfloat16():
    """Trap T14 shows in the demo model only if rounding changes sqrt(width)."""
    demo = PRESETS["demo"]
    assert demo.embedding_scale != math.sqrt(demo.width)
    assert demo.depth % 3 == 2


@given(st.floats(1e-3, 1e6))
def test_bfloat16_rounding_is_ml_dtypes_rounding(value):
    assert round_to_bfloat16(value) == float(bfloat16(value))


@given(configurations())
def test_configurations_survive_a_dictionary(config):
    assert GriffinConfig.from_dict(config.to_dict()) == config
    assert hash(config) == hash(config.replace())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 25, "num_heads": 4}, "width 25 is not divisible by num_heads 4"),
        ({"lru_width": 37}, "lru_width 37 is not divisible by num_heads 3"),
        ({"num_kv_heads": 2}, "num_heads 3 is not divisible by num_kv_heads 2"),
        ({"rope_fraction": 0.4}, "rotates 3 channels"),
        ({"rope_fraction": 1.5}, r"rope_fraction must be a number in \[0, 1\], got 1.5"),
        ({"window": 0}, "window must be an integer of at least 1, got 0"),
        ({"depth": 2.0}, "depth must be an integer of at least 1, got 2.0"),
        ({"num_heads": True}, "num_heads must be an integer of at least 1, got True"),
        ({"vocab_size": -3}, "vocab_size must be an integer of at least 1, got -3"),
        ({"eos_id": 61}, r"eos_id must be a token id in \[0, vocab_size=61\), got 61"),
        ({"logits_soft_cap": -1.0}, "logits_soft_cap must be a number in"),
        ({"logits_soft_cap": math.nan}, "logits_soft_cap must be a number in"),
        ({"norm_eps": "1e-6"}, "norm_eps must be a number in"),
        ({"rope_base": 0.5}, "rope_base must be a number in"),
        ({"block_pattern": ()}, "block_pattern must be a non-empty tuple"),
        ({"block_pattern": ("recurrent", "mamba")}, "got .*mamba"),
        ({"scale_embeddings": 1}, "scale_embeddings must be True or False, got 1"),
    ],
)
def test_impossible_configurations_are_refused_with_numbers(change, message):
    with pytest.raises(ConfigError, match=message):
        SMALL.replace(**change)


def test_what_a_model_without_attention_does_not_need_is_not_asked_of_it():
    hawk = GriffinConfig(width=25, depth=2, num_heads=3, vocab_size=9, lru_width=36,
                         block_pattern=("recurrent",), num_kv_heads=2)  # fmt: skip
    assert hawk.num_parameters() > 0


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ConfigError, match=r"unknown configuration fields \['heads'\]"):
        GriffinConfig.from_dict({**SMALL.to_dict(), "heads": 3})
    with pytest.raises(ConfigError, match=r"\['depth', 'vocab_size'\] are missing"):
        GriffinConfig.from_dict({"width": 8, "num_heads": 1})
    with pytest.raises(ConfigError, match="no preset 'gemma'; choose one of recurrentgemma-2b"):
        GriffinConfig.preset("gemma")
