"""The oracle's single operations against arithmetic of 60 digits, at the extremes.

Everything else is measured against the oracle, and the oracle against this.
"""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from support import assert_exact

from griffin_conformance import oracle
from griffin_conformance.worlds import LAMBDAS

GATES = [1e-7, 1e-6, 1e-3, 0.1, 0.5, 1.0]
POSITIONS = [0, 1, 255, 2000, 10**6, 2**24 + 1, 2**31 - 1]
BASE = 10000.0

# No result of an operation on these underflows.
numbers = st.one_of(*(st.floats(-most, most) for most in (40.0, 1e-3, 1e4))).filter(
    lambda z: z == 0 or abs(z) > 1e-300
)

# Roundings that a result goes through; an elementary function counts as two.
LOGISTIC = 2 + 1 + 1  # exp, sum, quotient
SOFTPLUS = 2 + 2 + 1  # exp, log1p, sum
LOG_DECAY = SOFTPLUS + 1  # 8 is a power of two
MULTIPLIER = 2 + 1  # expm1, square root
GELU = 3 + 1 + 3 + 2 + 1 + 1  # cube, sum, sqrt(2 / pi) and product, tanh, sum, product
SOFT_CAP = 1 + 2 + 1  # quotient, tanh, product
ROTATION = 1 + 1 + 1  # cosine, product, sum


@pytest.fixture(autouse=True)
def many_digits():
    with mpmath.workdps(60):
        yield


def exact_log_decay(a_param: float, r: float):
    return -8 * mpmath.mpf(r) * mpmath.log1p(mpmath.exp(mpmath.mpf(a_param)))


def exact_turn(position: int, j: int, half: int):
    """Another way to the angle than the oracle's."""
    angle = position * mpmath.exp(-mpmath.mpf(j) * mpmath.log(BASE) / half)
    return mpmath.cos(angle), mpmath.sin(angle)


@given(st.floats(-700, 700))
def test_logistic_and_softplus(z):
    assert_exact(
        oracle.logistic(z), 1 / (1 + mpmath.exp(-mpmath.mpf(z))), "float64", chain=LOGISTIC
    )
    exact = mpmath.log1p(mpmath.exp(mpmath.mpf(z)))
    assert_exact(oracle.softplus(z), exact, "float64", chain=SOFTPLUS)


@pytest.mark.parametrize("a_param", LAMBDAS)
@pytest.mark.parametrize("r", GATES)
def test_decay_and_multiplier(a_param, r):
    """Also where ``1 - exp(2 log a)`` would keep no digit."""
    log_a, exact = oracle.log_decay(a_param, r), exact_log_decay(a_param, r)
    assert_exact(log_a, exact, "float64", "log a", chain=LOG_DECAY)
    gain = mpmath.sqrt(-mpmath.expm1(2 * mpmath.mpf(log_a)))
    assert_exact(oracle.multiplier(log_a), gain, "float64", "multiplier", chain=MULTIPLIER)
    gain = mpmath.sqrt(-mpmath.expm1(2 * exact))
    chain = LOG_DECAY + MULTIPLIER
    assert_exact(oracle.multiplier(log_a), gain, "float64", "both in a row", chain=chain)


def test_the_multiplier_is_0_for_a_gate_that_is_closed():
    assert oracle.log_decay(5.0, 0.0) == 0
    assert oracle.multiplier(0.0) == 0


@given(numbers)
def test_gelu(z):
    """Relative to z: the tail on the left is a small difference."""
    x = mpmath.mpf(z)
    inner = mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)
    exact = x * (1 + mpmath.tanh(inner)) / 2
    assert_exact(oracle.gelu(z), exact, "float64", chain=GELU, scale=abs(x))


@given(numbers, st.sampled_from([30.0, 5.0]))
def test_soft_cap(z, cap):
    exact = cap * mpmath.tanh(mpmath.mpf(z) / cap)
    assert_exact(oracle.soft_cap(z, cap), exact, "float64", chain=SOFT_CAP)
    assert oracle.soft_cap(z, 0.0) == z


@pytest.mark.parametrize("position", POSITIONS)
def test_angles_at_any_position(position):
    """Cosine and sine are rounded once."""
    for j in range(16):
        for found, exact in zip(
            oracle.turn(position, j, 16, BASE), exact_turn(position, j, 16), strict=True
        ):
            assert_exact(found, exact, "float64", f"channel {j}", chain=1)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("rotary_dim", [0, 2, 6, 10])
def test_rotations_at_any_position(position, rotary_dim):
    """Channel j turns with channel ``j + rotary_dim / 2``; those behind stay as they are."""
    x, half = np.random.default_rng(position % 97).standard_normal(10), rotary_dim // 2
    y = oracle.rotate(x, position, BASE, rotary_dim)
    np.testing.assert_array_equal(y[rotary_dim:], x[rotary_dim:])
    for j in range(half):
        cos, sin = exact_turn(position, j, half)
        a, b = mpmath.mpf(x[j]), mpmath.mpf(x[j + half])
        length = mpmath.hypot(a, b)
        for found, exact in ((y[j], a * cos - b * sin), (y[j + half], b * cos + a * sin)):
            assert_exact(found, exact, "float64", f"channel {j}", chain=ROTATION, scale=length)


def test_the_embedding_scale_is_a_bfloat16():
    for width in range(1, 5001):
        assert oracle.embedding_scale(width) == float(bfloat16(math.sqrt(width))), width


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1.0])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_rms_norm(eps, size):
    x, scale = np.random.default_rng(3).standard_normal((2, 17)) * [[size], [1.0]]
    found = oracle.rms_norm(x, scale, eps)
    mean = mpmath.fsum(mpmath.mpf(v) ** 2 for v in x) / 17
    for v, s, y in zip(x, scale, found, strict=True):
        exact = mpmath.mpf(v) / mpmath.sqrt(mean + mpmath.mpf(eps)) * (1 + mpmath.mpf(s))
        # Square, sum, mean, epsilon, root, quotient, 1 + scale, product.
        assert_exact(y, exact, "float64", chain=8)
