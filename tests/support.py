"""What tests share: the table of tolerances, small random models, and Hypothesis strategies."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from griffin_np import GriffinConfig
from griffin_np.model import NumPyModel
from griffin_np.params import nest, parameter_shapes

# Allowed difference over the largest magnitude at hand, for two computations of the same model in
# the same dtype: unit roundoff times the few thousand roundings that a small model puts in a row.
TOLERANCE = {"float32": 2.0**-24 * 2**10, "float64": 2.0**-53 * 2**10}


def assert_close(actual, expected, dtype: str, what: str = "result") -> None:
    """Fail if two arrays differ by more than rounding of ``dtype`` explains; say where."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (
        f"{what}: shape {actual.shape}, expected {expected.shape}"
    )
    if not actual.size:
        return
    assert np.isfinite(actual).all(), f"{what} is not finite"
    error = np.abs(actual - expected)
    allowed = TOLERANCE[dtype] * max(1.0, float(np.abs(expected).max()))
    worst = np.unravel_index(int(error.argmax()), error.shape)
    assert error[worst] <= allowed, (
        f"{what}: {actual[worst]!r} at {tuple(map(int, worst))}, expected {expected[worst]!r} "
        f"(error {error[worst]:.3g}, allowed {allowed:.3g})"
    )


def assert_states_close(actual, expected, dtype: str) -> None:
    """Compare two states array by array, and their positions exactly."""
    np.testing.assert_array_equal(actual.position, expected.position)
    theirs = expected.arrays()
    for name, array in actual.arrays().items():
        assert array.dtype == theirs[name].dtype, name
        assert_close(array, theirs[name], dtype, name)


def random_parameters(config: GriffinConfig, seed: int, dtype="float32") -> dict:
    """Weights that leave no part idle: biases, norm scales and the convolution are all non-zero.

    No two arrays agree, and none is symmetric, so that swapped or transposed weights show.
    """
    rng = np.random.default_rng(seed)
    flat = {}
    for name, shape in parameter_shapes(config).items():
        value = rng.standard_normal(shape)
        if name.endswith("a_param"):
            value = rng.uniform(-7, -1, shape)
        elif "conv.weight" in name:
            value *= 0.5
        elif name == "embedding" or ".weight" in name or ".w_" in name:
            value /= np.sqrt(shape[-1] if name == "embedding" else shape[-2])
        else:
            value *= 0.1
        flat[name] = value.astype(np.float32).astype(dtype)
    return nest(flat)


def random_model(config: GriffinConfig, seed: int = 0, dtype="float32") -> NumPyModel:
    """The reference with :func:`random_parameters`."""
    return NumPyModel(config, random_parameters(config, seed, dtype))


SMALL = GriffinConfig(
    width=24, depth=5, num_heads=3, vocab_size=61, window=8, lru_width=36, mlp_width=40
)
"""Every kind of block, widths that differ, and a window that short texts cross."""


@st.composite
def configs(draw) -> GriffinConfig:
    """Small configurations of all kinds: odd widths, no attention, attention only, no cap."""
    heads = draw(st.integers(1, 4))
    pattern = draw(st.sampled_from(["RRA", "R", "A", "RA", "ARR", "AAR"]))
    kinds = {"R": "recurrent", "A": "attention"}
    return GriffinConfig(
        width=heads * draw(st.sampled_from([4, 8, 12])),
        depth=draw(st.integers(1, 4)),
        num_heads=heads,
        num_kv_heads=draw(st.sampled_from([n for n in (1, 2, 3, 4) if heads % n == 0])),
        vocab_size=draw(st.integers(5, 40)),
        lru_width=heads * draw(st.integers(1, 9)),
        mlp_width=draw(st.integers(1, 30)),
        window=draw(st.integers(1, 12)),
        block_pattern=tuple(kinds[k] for k in pattern),
        conv_width=draw(st.integers(1, 5)),
        logits_soft_cap=draw(st.sampled_from([0.0, 5.0, 30.0])),
        scale_embeddings=draw(st.booleans()),
        rope_fraction=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )


def tokens_for(config: GriffinConfig, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape)
