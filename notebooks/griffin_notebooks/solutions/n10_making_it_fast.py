"""Solutions of notebook 10, making it fast."""

import numpy as np
from hypothesis import strategies as st

from griffin_notebooks.exercise import exercise


@st.composite
def gates(draw):
    """Pre-activations of both gates, inputs, rates and a state."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    T, R = draw(st.integers(0, 5)), draw(st.integers(1, 3))
    z_r, z_i, u = (2 * rng.standard_normal((T, R)) for _ in range(3))
    return z_r.round(2), z_i.round(2), u.round(2), rng.uniform(0.01, 2, R), rng.standard_normal(R)


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


def _walk(a, x, h):
    y = np.empty_like(x)
    for t in range(len(x)):
        y[t] = h = a[t] * h + x[t]
    return y


def _root(log_a):
    return np.sqrt(-np.expm1(2 * log_a))


@exercise(
    "10.1",
    cases=gates(),
    mistakes={
        "The gates are exchanged: z_r decides how much is forgotten, z_i how much of the input "
        "is let in.": (
            lambda z_r, z_i, u, rate, h: _walk(
                np.exp(-rate * _sigmoid(z_i)),
                _root(-rate * _sigmoid(z_i)) * _sigmoid(z_r) * u,
                h,
            )
        ),
        "The multiplier is the root of 1 - a here. It is that of 1 - a^2, and so the logarithm is "
        "doubled before expm1.": (
            lambda z_r, z_i, u, rate, h: _walk(
                np.exp(-rate * _sigmoid(z_r)),
                np.sqrt(-np.expm1(-rate * _sigmoid(z_r))) * _sigmoid(z_i) * u,
                h,
            )
        ),
        "The multiplier sqrt(1 - a^2) is missing: without it a channel that forgets little would "
        "pile up its inputs.": (
            lambda z_r, z_i, u, rate, h: _walk(np.exp(-rate * _sigmoid(z_r)), _sigmoid(z_i) * u, h)
        ),
        "The decay is the gate itself here. The gate scales the logarithm of the decay: "
        "log a = -rate * r.": (
            lambda z_r, z_i, u, rate, h: _walk(
                _sigmoid(z_r), np.sqrt(1 - _sigmoid(z_r) ** 2) * _sigmoid(z_i) * u, h
            )
        ),
        "Every step begins from the state that was given. Carry on from the step before.": (
            lambda z_r, z_i, u, rate, h: (
                np.exp(-rate * _sigmoid(z_r)) * h + _root(-rate * _sigmoid(z_r)) * _sigmoid(z_i) * u
            )
        ),
    },
)
def fused(z_r, z_i, u, rate, h):
    """The RG-LRU in one walk over time: nothing is kept but a row at a time."""
    y = np.empty_like(u)
    for t in range(len(u)):
        r, i = 1 / (1 + np.exp(-z_r[t])), 1 / (1 + np.exp(-z_i[t]))
        log_a = -rate * r
        h = np.exp(log_a) * h + np.sqrt(-np.expm1(2 * log_a)) * (i * u[t])
        y[t] = h
    return y


@st.composite
def weights(draw):
    """A group of weights, and bits."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    w = (rng.standard_normal(draw(st.integers(1, 8))) * draw(st.sampled_from([0.03, 1.0]))).round(4)
    return w * draw(st.sampled_from([0.0, 1.0, 1.0, 1.0])), draw(st.sampled_from([2, 3, 4, 8]))


def _levels(w, bits, largest=None, whole=np.rint, size=None):
    largest = 2 ** (bits - 1) - 1 if largest is None else largest
    size = np.abs(w).max() if size is None else size
    scale = size / largest if size else 1.0
    return np.clip(whole(w / scale), -largest - 1, largest) * scale


@exercise(
    "10.2",
    cases=weights(),
    mistakes={
        "This cuts digits off in place of rounding to the nearest: errors are twice as large, and "
        "all weights shrink.": lambda w, bits: _levels(w, bits, whole=np.trunc),
        "The largest weight is put on 2^(bits - 1), which is one code too far: it has to be "
        "clipped. The largest code is 2^(bits - 1) - 1.": (
            lambda w, bits: (
                np.clip(
                    np.rint(w / ((np.abs(w).max() or 1) / 2 ** (bits - 1))),
                    -(2 ** (bits - 1)),
                    2 ** (bits - 1) - 1,
                )
                * ((np.abs(w).max() or 1) / 2 ** (bits - 1))
            )
        ),
        "These are the codes. Multiply them by the scale: what weights do they stand for?": (
            lambda w, bits: np.rint(w / ((np.abs(w).max() or 1) / (2 ** (bits - 1) - 1)))
        ),
        "The scale comes from the largest weight, with its sign. The one of largest magnitude may "
        "be negative, and is then clipped.": (lambda w, bits: _levels(w, bits, size=abs(w.max()))),
        "The scale divides by all 2^bits codes. Half of them are for negative weights.": (
            lambda w, bits: _levels(w, bits, largest=2**bits - 1)
        ),
    },
)
def rounded(w, bits):
    """The weights that integers of so many bits, with one scale, stand for."""
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(w).max() / largest
    return scale * np.rint(w / scale) if scale > 0 else np.zeros_like(w)


@st.composite
def searches(draw):
    """A group of weights, and scales to choose from."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    w = rng.standard_normal(draw(st.integers(4, 16))).round(3)
    extreme = w[np.abs(w).argmax()]
    targets = draw(
        st.lists(
            st.sampled_from([-4.5, -7, -7.5, -8, -9, -10.5]), min_size=2, max_size=4, unique=True
        )
    )
    return w, extreme / np.array(targets, float)


def _best(w, scales, low=-8, high=7, measure=lambda e: (e**2).sum(), pick=np.argmin):
    each = [scale * np.clip(np.rint(w / scale), low, high) for scale in scales]
    return each[pick([measure(z - w) for z in each])]


@exercise(
    "10.3",
    cases=searches(),
    mistakes={
        "Four bits hold the codes -8 to 7, and these are not kept within them: for the smaller "
        "scales, the largest weight's code does not fit.": (
            lambda w, scales: _best(w, scales, low=-np.inf, high=np.inf)
        ),
        "Codes are kept within -7 and 7. There is one more on the negative side, and that is why "
        "scales may be negative.": lambda w, scales: _best(w, scales, low=-7),
        "This takes the scale whose largest error is least. A few weights clipped may be worth it "
        "if all others become finer: add up squares.": (
            lambda w, scales: _best(w, scales, measure=lambda e: np.abs(e).max())
        ),
        "This takes the scale with the largest error.": (
            lambda w, scales: _best(w, scales, pick=np.argmax)
        ),
        "Errors of either sign cancel in a sum. Square them first.": (
            lambda w, scales: _best(w, scales, measure=lambda e: abs(e.sum()))
        ),
    },
)
def best(w, scales):
    """The weights in four bits, at the scale with the least squared error."""
    candidates = [scale * np.clip(np.rint(w / scale), -8, 7) for scale in scales]
    errors = [((candidate - w) ** 2).sum() for candidate in candidates]
    return candidates[np.argmin(errors)]


@exercise(
    "10.4",
    cases=st.tuples(
        st.sampled_from([4.5e6, 2.68e9, 8.58e9]),
        st.sampled_from([4, 8]),
        st.sampled_from([32, 64]),
        st.sampled_from([0.15e6, 18e6, 350e6]),
        st.sampled_from([11.0, 40.0, 819.0]),
    ),
    mistakes={
        "The scales are forgotten: each group has one, of 16 bits.": (
            lambda weights, bits, group, state, gbps: gbps * 1e9 / (weights * bits / 8 + state)
        ),
        "There are 8 bits in a byte, and bandwidth is in bytes.": (
            lambda weights, bits, group, state, gbps: (
                gbps * 1e9 / (weights * (bits + 16 / group) + state)
            )
        ),
        "The state is forgotten. A step reads it, too, small as it is.": (
            lambda weights, bits, group, state, gbps: (
                gbps * 1e9 / (weights * (bits + 16 / group) / 8)
            )
        ),
        "This is the time of a token. Tokens per second is one over it.": (
            lambda weights, bits, group, state, gbps: (
                (weights * (bits + 16 / group) / 8 + state) / (gbps * 1e9)
            )
        ),
        "A gigabyte of bandwidth is 10^9 bytes, not 2^30.": (
            lambda weights, bits, group, state, gbps: (
                gbps * 2**30 / (weights * (bits + 16 / group) / 8 + state)
            )
        ),
    },
)
def tokens_per_second(weights, bits, group, state, gbps):
    """What memory allows at most: a token needs every weight and the state once."""
    bits_each = bits + 16 / group
    bytes_a_token = weights * bits_each / 8 + state
    return gbps * 1e9 / bytes_a_token
