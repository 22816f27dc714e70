"""Quantised weights: what rounding may cost, and the same bits whatever the threads and strides."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from griffin_kernels.cpu import quantise as module
from griffin_kernels.cpu.pool import set_threads
from griffin_kernels.cpu.quantise import dequantise, quantise
from griffin_np.errors import ParameterError

cases = {
    "seed": st.integers(0, 999),
    "N": st.integers(1, 9),
    "K": st.integers(1, 300),
    "bits": st.sampled_from([8, 4]),
    "group": st.sampled_from([16, 32, 64, 128]),
    "tails": st.sampled_from([2, 5, 1000]),
    "exponent": st.integers(-60, 120),
}
property_test = settings(max_examples=60, deadline=None)


def draw(seed: int, N: int, K: int, tails: float, exponent: int = 0) -> np.ndarray:
    """Weights of any size, with heavy tails where ``tails`` is small; no two alike but zeros."""
    rng = np.random.default_rng(seed)
    weights = np.clip(rng.standard_t(tails, (N, K)), -100, 100) * 2.0**exponent
    return np.where(rng.random((N, K)) < 0.05, 0, weights).astype(np.float32)


def in_groups(weights: np.ndarray, group: int) -> np.ndarray:
    """(N, K) to (N, groups, group) in float64, filled up with zeros."""
    N, K = weights.shape
    padded = np.pad(weights.astype(np.float64), ((0, 0), (0, -K % group)))
    return padded.reshape(N, -1, group)


def absmax(weights: np.ndarray, bits: int, group: int) -> np.ndarray:
    """What plain rounding makes of weights, with the same bfloat16 scales; (N, groups, group)."""
    parts = in_groups(weights, group)
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(parts).max(-1, keepdims=True).astype(np.float32) / np.float32(largest)
    scale = scale.astype(ml_dtypes.bfloat16).astype(np.float64)
    q = np.divide(parts, scale, out=np.zeros_like(parts), where=scale > 0)
    return np.clip(np.rint(q), -largest, largest) * scale


@property_test
@given(**cases)
def test_no_group_is_worse_than_plain_rounding(seed, N, K, bits, group, tails, exponent):
    weights = draw(seed, N, K, tails, exponent)
    codes, scales = quantise(weights, bits, group)
    assert codes.dtype == np.uint8 and scales.dtype == ml_dtypes.bfloat16
    assert codes.shape == (N, K) and scales.shape == (N, -(-K // group))
    low = 1 if bits == 8 else 0
    assert codes.min() >= low and codes.max() < 2**bits
    truth = in_groups(weights, group)
    error = in_groups(dequantise(codes, scales, bits, group), group) - truth
    plain = absmax(weights, bits, group) - truth
    assert np.all((error**2).sum(-1) <= (plain**2).sum(-1) * (1 + 1e-5))


@property_test
@given(**cases)
def test_codes_are_the_nearest_at_the_scale_that_is_stored(
    seed, N, K, bits, group, tails, exponent
):
    weights = draw(seed, N, K, tails, exponent)
    codes, scales = quantise(weights, bits, group)
    scale = np.repeat(scales.astype(np.float64), group, axis=1)[:, :K]
    offset = 2 ** (bits - 1)
    q = np.divide(weights, scale, out=np.zeros_like(scale), where=scale != 0)
    q = np.clip(q, -127 if bits == 8 else -8, offset - 1)
    # A tie may go either way: the kernel multiplies by the inverse.
    assert np.abs(codes.astype(np.float64) - offset - q).max() <= 0.5 + 1e-4


@property_test
@given(**cases)
def test_quantising_twice_changes_nothing(seed, N, K, bits, group, tails, exponent):
    once = dequantise(*quantise(draw(seed, N, K, tails, exponent), bits, group), bits, group)
    twice = dequantise(*quantise(once, bits, group), bits, group)
    np.testing.assert_array_equal(twice, once)


@property_test
@given(seed=cases["seed"], N=cases["N"], K=cases["K"], bits=cases["bits"], data=st.data())
def test_layout_and_dtype_change_no_bit(seed, N, K, bits, data):
    weights = draw(seed, N, K, 5).astype(ml_dtypes.bfloat16)
    expected = quantise(weights.astype(np.float32), bits)
    spread = np.zeros((2 * N, 3 * K), weights.dtype)
    spread[::2, ::3] = weights
    frozen = weights.copy()
    frozen.flags.writeable = False
    layouts = {
        "bfloat16": weights,
        "columns first": np.asfortranarray(weights),
        "columns first, float32": np.asfortranarray(weights.astype(np.float32)),
        "spread": spread[::2, ::3],
        "backwards": np.ascontiguousarray(weights[::-1, ::-1])[::-1, ::-1],
        "read-only": frozen,
    }
    for name, same in layouts.items():
        for found, wanted in zip(quantise(same, bits), expected, strict=True):
            np.testing.assert_array_equal(found, wanted, err_msg=name)
    row = data.draw(st.integers(0, N - 1))
    for found, wanted in zip(quantise(weights[row : row + 1], bits), expected, strict=True):
        np.testing.assert_array_equal(found[0], wanted[row])


@pytest.mark.parametrize("bits", [8, 4])
def test_threads_and_slabs_change_no_bit(bits, monkeypatch):
    weights = draw(3, 301, 333, 5)
    results = []
    try:
        for threads, slab in ((1, module.SLAB), (2, module.SLAB), (2, 1000), (1, 1)):
            set_threads(threads)
            monkeypatch.setattr(module, "SLAB", slab)
            results.append(quantise(weights, bits))
    finally:
        set_threads(None)
    for codes, scales in results[1:]:
        np.testing.assert_array_equal(codes, results[0][0])
        np.testing.assert_array_equal(scales, results[0][1])


@pytest.mark.parametrize("bits", [8, 4])
def test_groups_of_zeros_and_next_to_zeros(bits):
    weights = np.zeros((2, 150), np.float32)
    weights[0, 64:128] = 1e-38
    weights[0, 128:] = 2.0**-101
    weights[0, 70] = -0.0
    weights[1, 140] = -3
    codes, scales = quantise(weights, bits)
    assert not scales[0].astype(np.float32).any() and not scales[1, :2].astype(np.float32).any()
    found = dequantise(codes, scales, bits)
    assert not found[0].any() and not found[1, :140].any() and not found[1, 141:].any()
    assert found[1, 140] == pytest.approx(-3, rel=2**-8)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_short_last_group_is_quantised_like_a_padded_one(bits):
    weights = draw(1, 5, 64 + 37, 5)
    codes, scales = quantise(weights, bits)
    padded = np.pad(weights, ((0, 0), (0, 27)))
    whole, same = quantise(padded, bits)
    np.testing.assert_array_equal(codes, whole[:, : 64 + 37])
    np.testing.assert_array_equal(scales, same)
    assert (whole[:, 64 + 37 :] == 2 ** (bits - 1)).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("largest", [3.3e38, -3.3e38, 1e-30])
def test_weights_at_the_ends_of_float32(bits, largest):
    weights = np.linspace(0.1, 1, 64, dtype=np.float32)[None] * np.float32(largest)
    codes, scales = quantise(weights, bits)
    error = dequantise(codes, scales, bits).astype(np.float64) - weights
    assert np.abs(error).max() <= abs(largest) / (250 if bits == 8 else 13)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (6, 69)])
def test_what_is_not_finite_is_refused(dtype, wrong, at):
    weights = np.ones((7, 70), dtype)
    weights[at] = wrong
    for bits in (8, 4):
        with pytest.raises(ParameterError, match="not finite"):
            quantise(weights, bits)


def test_what_is_no_matrix_of_weights_is_refused():
    for weights in (np.ones(64, np.float32), np.ones((2, 64)), np.ones((2, 64), np.float16)):
        with pytest.raises(ParameterError, match="float32 or bfloat16"):
            quantise(weights, 4)
    for bits, group in ((5, 64), (4, 0), (4, 24)):
        with pytest.raises(ValueError, match="must be"):
            quantise(np.ones((2, 64), np.float32), bits, group)


@pytest.mark.parametrize("shape", [(0, 64), (3, 0)])
def test_nothing_stays_nothing(shape):
    codes, scales = quantise(np.zeros(shape, np.float32), 4)
    assert codes.shape == shape and dequantise(codes, scales, 4).shape == shape


def test_the_search_is_worth_its_time():
    """Normal weights: a sixth less error than plain rounding at 4 bits."""
    weights = np.random.default_rng(0).standard_normal((64, 640)).astype(np.float32)
    error = dequantise(*quantise(weights, 4), 4) - weights
    plain = absmax(weights, 4, 64).reshape(64, 640) - weights
    assert np.sqrt((error**2).sum() / (plain**2).sum()) < 0.85
