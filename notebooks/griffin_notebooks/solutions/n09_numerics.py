"""Exercises of notebook 9: rounding, cancellation, a stuck state, pairwise sums, the envelope."""

import numpy as np
from hypothesis import strategies as st

from griffin_notebooks.exercise import exercise


@st.composite
def _numbers_and_bits(draw) -> tuple[np.ndarray, int]:
    bits = draw(st.integers(2, 12))
    # One bit more than there is room for, so that many of them lie halfway.
    whole = draw(st.lists(st.integers(-(2 ** (bits + 1)), 2 ** (bits + 1)), min_size=1, max_size=4))
    x = np.ldexp(np.array(whole, float), draw(st.integers(-8, 3)))
    return np.append(x, 2.0 ** (bits + 3) + 3), bits  # and one that has many bits too many


def _rounded(rounding):
    def answer(x, bits):
        m, e = np.frexp(x)
        return np.ldexp(rounding(np.ldexp(m, bits)), e - bits)

    return answer


@exercise(
    "9.1",
    cases=_numbers_and_bits(),
    mistakes={
        "This cuts the bits off: to round, the nearest number with so many bits is taken, and "
        "that may be the larger one.": _rounded(np.trunc),
        "This rounds halves away from zero: of two that are equally near, the one whose last bit "
        "is 0 is taken. np.round does that.": _rounded(
            lambda m: np.copysign(np.floor(np.abs(m) + 0.5), m)
        ),
        "This keeps so many bits behind the point, whatever the size of the number: significant "
        "bits count from the first 1.": lambda x, bits: np.round(x * 2.0**bits) / 2.0**bits,
        "This keeps one bit too many: np.frexp gives m in [0.5, 1), so m * 2**bits has exactly "
        "that many bits before the point.": lambda x, bits: _rounded(np.round)(x, bits + 1),
        "This keeps one bit too few: the leading 1 is one of the significant bits.": (
            lambda x, bits: _rounded(np.round)(x, bits - 1)
        ),
    },
)
def round_to_bits(x, bits):
    m, e = np.frexp(x)  # x = m * 2**e, with m in [0.5, 1)
    return np.ldexp(np.round(np.ldexp(m, bits)), e - bits)


@st.composite
def _log_decays(draw) -> tuple[np.ndarray]:
    exponent = draw(st.sampled_from([1.0, 0.0, -1.0, -4.0, -9.0, -12.0, -13.0]))
    size = draw(st.lists(st.floats(0.5, 3), min_size=1, max_size=3))
    return (-np.array(size) * 10.0**exponent,)


@exercise(
    "9.2",
    cases=_log_decays(),
    mistakes={
        "This computes 1 - exp(2 log a) as it is written: where a is near 1, the first digits "
        "cancel and only rounding is left.": lambda log_a: np.sqrt(
            np.maximum(1 - np.exp(2 * log_a), 0)
        ),
        "This starts from a. But a was rounded, near 1 to one of few numbers, so its digits were "
        "lost before anything was subtracted. Go from log a.": lambda log_a: np.sqrt(
            (1 - np.exp(log_a)) * (1 + np.exp(log_a))
        ),
        "This is sqrt(1 - a): a squared has the logarithm 2 log a.": lambda log_a: np.sqrt(
            -np.expm1(log_a)
        ),
        "This is 1 - a^2, without its root.": lambda log_a: -np.expm1(2 * log_a),
    },
)
def input_scale(log_a):
    return np.sqrt(-np.expm1(2 * log_a))


def _first(bits_of_the_step: int) -> int:
    """The first whole half-life whose step 1 - a is at most 2 to the minus so many bits."""
    n = 1
    while 1 - 0.5 ** (1 / n) > 2.0**-bits_of_the_step:
        n += 1
    return n


@exercise(
    "9.3",
    mistakes={
        "From about there on, one step is less than the gap between bfloat16 numbers below 1. "
        "But a product that lies within half a gap of 1 is rounded to 1, and beyond half a gap "
        "it is not: this is too small.": lambda: _first(8),
        "This takes the gap above 1, which is twice the gap below it: 1 decays downwards.": (
            lambda: _first(7)
        ),
        "This asks for a step below a quarter of the gap. Half of it is enough, and a tie goes "
        "to the even neighbour, which is 1.": lambda: _first(10),
    },
)
def first_stuck():
    n = 1
    while 0.5 ** (1 / n) < 1 - 2.0**-9:  # halfway to the next number below 1
        n += 1
    return n


def _added(values):
    total = np.float32(0)
    for value in values:
        total = np.float32(total + value)
    return total


def _halved(x, middle=lambda n: n // 2):
    if len(x) < 2:
        return x[0] if len(x) else np.float32(0)
    k = middle(len(x))
    return np.float32(_halved(x[:k], middle) + _halved(x[k:], middle))


def _neighbours(x):
    while len(x) > 1:
        pairs = [np.float32(a + b) for a, b in zip(x[0::2], x[1::2], strict=False)]
        x = [*pairs, x[-1]] if len(x) % 2 else pairs
    return x[0] if len(x) else np.float32(0)


@st.composite
def _single(draw) -> tuple[np.ndarray]:
    n, seed = draw(st.integers(0, 17)), draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    return ((rng.standard_normal(n) * 10.0 ** rng.integers(-2, 3, n)).astype(np.float32),)


@exercise(
    "9.4",
    cases=_single(),
    mistakes={
        "This adds one after the other: the sum grows, and each new term is rounded to the "
        "sum's size.": lambda x: _added(x),
        "This adds neighbours first. It is as accurate, but another order, and so other bits: "
        "the halves x[:n // 2] and x[n // 2:] are asked for.": lambda x: _neighbours(list(x)),
        "This splits the other way where the number is odd: the first half should be the "
        "smaller one, x[:n // 2].": lambda x: _halved(x, lambda n: (n + 1) // 2),
        "This adds in float64: more accurate, and not what a float32 machine does.": (
            lambda x: np.float32(np.sum(x.astype(np.float64)))
        ),
    },
)
def pairwise(x):
    def total(part):
        n = len(part)
        if n < 2:
            return part[0] if n else np.float32(0)
        return total(part[: n // 2]) + total(part[n // 2 :])

    return total(x)


FACTOR = 4.0


def _judged(spread=None, floor=True, norm=None, centre=None, together=False):
    spread = spread or (lambda d: d.max(axis=0))
    norm = norm or (lambda v: np.sqrt(np.sum(v * v, axis=-1)))
    centre = centre or (lambda truth, samples: truth)

    def answer(found, truth, samples, unit):
        far = spread(norm(samples - centre(truth, samples)))
        if floor:
            far = np.maximum(far, unit * norm(truth))
        if together:
            far = np.full_like(far, far.max())
        with np.errstate(all="ignore"):
            return norm(found - truth) / (FACTOR * far)

    return answer


@st.composite
def _computations(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    S, T, N = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    truth = rng.uniform(1, 2, (T, N))
    sizes = rng.choice([0.0, 1e-3, 1e-1], (T, 1))  # at some positions all samples are exact
    samples = truth + sizes * rng.standard_normal((S, T, N))
    return truth + 0.05 * rng.standard_normal((T, N)), truth, samples, 2.0**-8


@exercise(
    "9.5",
    cases=_computations(),
    mistakes={
        "This takes the average sample. A right program may be as unlucky as the unluckiest "
        "sample: take the largest distance.": _judged(spread=lambda d: d.mean(axis=0)),
        "Where all samples are exact this divides by zero: nobody is held to less than one "
        "rounding of the result, unit * |truth|.": _judged(floor=False),
        "This takes the largest difference of a channel: distances are Euclidean norms over the "
        "last axis.": _judged(norm=lambda v: np.abs(v).max(axis=-1)),
        "This measures samples from their own mean: what all of them have in common, as a bias "
        "of rounding, would not count. Measure from the truth.": _judged(
            centre=lambda truth, samples: samples.mean(axis=0)
        ),
        "This allows at every position what the worst one allows: an error at an easy position "
        "hides behind a hard one.": _judged(together=True),
    },
)
def over_allowed(found, truth, samples, unit):
    def norm(v):
        return np.sqrt(np.sum(v * v, axis=-1))

    spread = norm(samples - truth).max(axis=0)  # (T,)
    allowed = 4 * np.maximum(spread, unit * norm(truth))
    return norm(found - truth) / allowed
