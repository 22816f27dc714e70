"""Exercises of notebook 6, the whole model."""

import math

import numpy as np
from hypothesis import strategies as st

from griffin_notebooks.exercise import exercise
from griffin_np import GriffinConfig

numbers = st.builds(lambda m, e: math.ldexp(m, e), st.integers(1, 4095), st.integers(-12, 6))


def _rounded(value, bits, rounding):
    fraction, exponent = math.frexp(value)
    return math.ldexp(rounding(fraction * 2**bits), exponent - bits)


@exercise(
    "6.1",
    cases=st.tuples(numbers),
    mistakes={
        "This cuts the bits that do not fit off: the result is never larger than the number. Round "
        "to the nearest instead.": lambda value: _rounded(value, 8, math.floor),
        "Halfway between two neighbours this always goes up. bfloat16 goes to the one whose last "
        "bit is 0, so that errors cancel; Python's round does the same.": lambda value: _rounded(
            value, 8, lambda m: math.floor(m + 0.5)
        ),
        "This keeps 7 significant bits. The format stores 7, but the leading 1 is not stored, and "
        "counts.": lambda value: _rounded(value, 7, round),
        "This keeps 9 significant bits: 8 beside the leading 1. That one counts.": lambda value: (
            _rounded(value, 9, round)
        ),
    },
)
def bf16(value):
    fraction, exponent = math.frexp(value)  # value = fraction * 2**exponent
    return math.ldexp(round(fraction * 256), exponent - 8)


@st.composite
def models(draw):
    """Widths, heads and kinds of blocks as in a GriffinConfig."""
    H = draw(st.integers(1, 4))
    D, R = H * 4 * draw(st.integers(1, 3)), H * draw(st.integers(1, 7))
    E, Q = draw(st.integers(2, 20)), draw(st.sampled_from([1, H]))
    c = GriffinConfig(width=D, depth=draw(st.integers(1, 9)), num_heads=H, vocab_size=3)
    return D, R, E, H, Q, draw(st.integers(1, 5)), draw(st.integers(3, 50)), c.block_types


def _count(D, R, E, H, Q, K, V, kinds, *, gates=None, bias=1, norms=1, heads=1):
    gate, kv = R * R // (gates or H), Q * D // H
    recurrent = 3 * D * R + bias * (2 * R + D) + (K + 1) * R + 2 * (gate + R) + R
    attention = 2 * D * D + 2 * D * kv + bias * D
    mlp = 3 * D * E + bias * (2 * E + D)
    size = {"recurrent": recurrent, "attention": attention}
    return heads * V * D + sum(size[kind] + mlp + 2 * norms * D for kind in kinds) + norms * D


def _whole_rounds(D, R, E, H, Q, K, V, kinds):
    return _count(D, R, E, H, Q, K, V, kinds[: len(kinds) // 3 * 3])


@exercise(
    "6.2",
    cases=models(),
    mistakes={
        "This counts the embedding twice. The head is tied: it is the same matrix.": lambda *c: (
            _count(*c, heads=2)
        ),
        "This counts full R x R matrices in the gates. They are block-diagonal: H blocks of "
        "R/H x R/H.": lambda *c: _count(*c, gates=1),
        "This counts whole rounds of the pattern only. The last round is cut short, not left out: "
        "go through kinds.": _whole_rounds,
        "This leaves out the biases of the linear layers. All have one, except query, key and "
        "value.": lambda *c: _count(*c, bias=0),
        "This gives every query head keys and values of its own. There are only Q of "
        "them.": lambda D, R, E, H, Q, K, V, kinds: _count(D, R, E, H, H, K, V, kinds),
        "This leaves out the norms: two scales of width D in each block, and one at the "
        "end.": lambda *c: _count(*c, norms=0),
        "This takes the recurrence to be as wide as the stream. It has R channels, which need "
        "not be D.": lambda D, R, E, H, Q, K, V, kinds: _count(D, D, E, H, Q, K, V, kinds),
    },
)
def count_parameters(D, R, E, H, Q, K, V, kinds):
    conv = K * R + R
    rg_lru = 2 * (H * (R // H) ** 2 + R) + R  # two gates with their biases, and Lambda
    recurrent = 2 * (D * R + R) + conv + rg_lru + R * D + D
    attention = D * D + 2 * D * (Q * D // H) + D * D + D
    mlp = 2 * (D * E + E) + E * D + D
    size = {"recurrent": recurrent, "attention": attention}
    blocks = sum(size[kind] + mlp + 2 * D for kind in kinds)
    return V * D + blocks + D  # the head is the embedding


def _speed(p, fixed, per_key, window, batch, length, bandwidth, *, size=2, states=None, gain=None):
    state = fixed + per_key * min(length, window)
    read = size * p + (batch if states is None else states) * state
    return (batch if gain is None else gain) * bandwidth / read


@exercise(
    "6.3",
    cases=st.tuples(
        st.integers(1000, 5000), st.integers(1, 500), st.integers(1, 100), st.integers(1, 12),
        st.integers(1, 64), st.integers(1, 24), st.sampled_from([1e9, 3.5e10, 2e12]),
    ),
    mistakes={
        "This reads the weights again for every text. A batch reads them once a step: that is why "
        "there are batches.": lambda *case: _speed(*case, states=1, gain=1),
        "This is the speed of one text. A step gives every text of the batch a "
        "token.": lambda *case: _speed(*case, gain=1),
        "This reads one state a step. Every text has its own.": lambda *case: (
            _speed(*case, states=1)
        ),
        "This reads full rings. While a text is shorter than the window, there are only as many "
        "keys as it has tokens.": lambda p, f, k, window, batch, length, b: (
            _speed(p, f, k, window, batch, window, b)
        ),
        "This lets the ring grow with the text. It holds at most window keys: there the state "
        "stops growing.": lambda p, f, k, window, batch, length, b: (
            _speed(p, f, k, length, batch, length, b)
        ),
        "This counts one byte for each weight. bfloat16 has two.": lambda *case: (
            _speed(*case, size=1)
        ),
    },
)  # fmt: skip
def tokens_per_second(parameters, fixed, per_key, window, batch, length, bandwidth):
    state = fixed + per_key * min(length, window)
    bytes_read = 2 * parameters + batch * state
    return batch * bandwidth / bytes_read


def _parts(seed, n, width, eps):
    rng = np.random.default_rng(seed)
    scale = rng.normal(0, 0.5, width)
    return (rng.normal(0, 2, (n, width)), scale, eps, *rng.normal(0, 1, (2, width)))


def _root(x, eps):
    return np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


@exercise(
    "6.4",
    cases=st.builds(
        _parts,
        st.integers(0, 99),
        st.integers(1, 9),
        st.integers(1, 12),
        st.sampled_from([1e-6, 0.5]),
    ),
    mistakes={
        "This norms each part by itself. The root is that of the sum: one number, by which every "
        "part is divided. The shares must add up.": lambda parts, scale, eps, better, worse: (
            parts / _root(parts, eps) * (1 + scale) @ (better - worse)
        ),
        "This multiplies by the scale alone. What is stored is the deviation from 1 "
        "(NORM-2).": lambda parts, scale, eps, better, worse: (
            parts / _root(parts.sum(axis=0), eps) * scale @ (better - worse)
        ),
        "This leaves out eps. It belongs inside the root (NORM-1).": lambda p, scale, eps, b, w: (
            p / _root(p.sum(axis=0), 0.0) * (1 + scale) @ (b - w)
        ),
        "This forgets the final norm: the head sees the stream behind it.": lambda p, s, e, b, w: (
            p @ (b - w)
        ),
        "These are the shares of the worse token over the better one: the sign is turned "
        "round.": lambda parts, scale, eps, better, worse: (
            parts / _root(parts.sum(axis=0), eps) * (1 + scale) @ (worse - better)
        ),
        "This is the better token's z alone. Without the other one it says little: a part may "
        "raise both.": lambda parts, scale, eps, better, worse: (
            parts / _root(parts.sum(axis=0), eps) * (1 + scale) @ better
        ),
    },
)
def credit(parts, scale, eps, better, worse):
    total = parts.sum(axis=0)
    root = np.sqrt(np.mean(total * total) + eps)
    return (parts / root * (1 + scale)) @ (better - worse)
