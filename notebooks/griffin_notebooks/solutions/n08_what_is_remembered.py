"""Exercises of notebook 8: forking rows, KL divergence, the reach of windows, paired gains."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from griffin_notebooks.exercise import exercise

ROWS = arrays(
    np.float64,
    st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 2)),
    elements=st.integers(-9, 9).map(float),
    unique=True,
)


@exercise(
    "8.1",
    cases=st.tuples(ROWS, st.integers(1, 3)),
    mistakes={
        "This gives all rows, and then all rows again: the copies of a row should stand side by "
        "side, as 0, 0, 1, 1.": lambda rows, n: np.tile(rows, (n, 1, 1)),
        "This makes n copies beside the original, n + 1 in all.": lambda rows, n: np.repeat(
            rows, n + 1, axis=0
        ),
        "This repeats entries inside a row: rows are the first axis.": lambda rows, n: np.repeat(
            rows, n, axis=1
        ),
        "This flattens the rows: without an axis, np.repeat repeats single numbers.": (
            lambda rows, n: np.repeat(rows, n)
        ),
        "This puts the copies on an axis of their own: the result should have n * B rows, and "
        "otherwise the shape that there was.": lambda rows, n: np.stack([rows] * n, axis=1),
    },
)
def fork(rows, n):
    return np.repeat(rows, n, axis=0)


def _log_softmax(z):
    z = z - np.max(z)
    return z - np.log(np.sum(np.exp(z)))


def _overflowing(p, q):
    with np.errstate(all="ignore"):
        p, q = np.exp(p) / np.sum(np.exp(p)), np.exp(q) / np.sum(np.exp(q))
        return np.sum(p * np.log(p / q))


@st.composite
def _two_rows_of_logits(draw) -> tuple[np.ndarray, np.ndarray]:
    size, scale = draw(st.integers(1, 6)), draw(st.sampled_from([1.0, 3.0, 3.0, 900.0]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return tuple(scale * rng.standard_normal((2, size)))


@exercise(
    "8.2",
    cases=_two_rows_of_logits(),
    mistakes={
        "This is the divergence of the first from the second, D(q || p): the average should be "
        "over what p, the first, holds likely.": (
            lambda p, q: np.sum(np.exp(_log_softmax(q)) * (_log_softmax(q) - _log_softmax(p)))
        ),
        "This is in bits, because of the base-2 logarithm: nats are asked for.": (
            lambda p, q: (
                np.sum(np.exp(_log_softmax(p)) * (_log_softmax(p) - _log_softmax(q))) / np.log(2)
            )
        ),
        "This subtracts logits, and not log-probabilities: a constant added to all logits of one "
        "row changes it, though the distribution is the same.": (
            lambda p, q: np.sum(np.exp(_log_softmax(p)) * (p - q))
        ),
        "This is the cross-entropy: of two equal rows it is their entropy, and should be 0.": (
            lambda p, q: -np.sum(np.exp(_log_softmax(p)) * _log_softmax(q))
        ),
        "This overflows: exp of a logit of 1,000 is infinite, and infinity over infinity no "
        "number. What can be subtracted first?": _overflowing,
    },
)
def kl(p, q):
    def log_probabilities(z):
        z = z - np.max(z)
        return z - np.log(np.sum(np.exp(z)))

    log_p, log_q = log_probabilities(p), log_probabilities(q)
    return np.sum(np.exp(log_p) * (log_p - log_q))


@exercise(
    "8.3",
    cases=st.tuples(
        st.lists(st.sampled_from(["recurrent", "recurrent", "attention"]), max_size=9).map(tuple),
        st.integers(1, 40),
        st.integers(1, 5),
    ),
    mistakes={
        "This counts the keys that a token sees, W + 1: one of them is its own, and no step "
        "back.": lambda types, window, conv_width: sum(
            window + 1 if kind == "attention" else conv_width - 1 for kind in types
        ),
        "This counts the rows of the convolution, K: one of them meets the token itself, and is "
        "no step back.": lambda types, window, conv_width: sum(
            window if kind == "attention" else conv_width for kind in types
        ),
        "This is the farthest step of one layer: layers stand on each other, so what one brings "
        "near the next can fetch.": lambda types, window, conv_width: max(
            (window if kind == "attention" else conv_width - 1 for kind in types), default=0
        ),
        "This counts the windows alone: the convolutions look back as well.": (
            lambda types, window, conv_width: window * list(types).count("attention")
        ),
    },
)
def reach(types, window, conv_width):
    steps = {"attention": window, "recurrent": conv_width - 1}
    return sum(steps[kind] for kind in types)


@st.composite
def _pairs(draw) -> tuple[np.ndarray, np.ndarray]:
    n = draw(st.integers(3, 9))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    text = 3 * rng.standard_normal(n)
    return text + draw(st.sampled_from([0.0, 0.5])) + rng.standard_normal(n) / 4, text


def _mean_and(error):
    return lambda told, untold: (np.mean(told - untold), error(told, untold))


@exercise(
    "8.4",
    cases=_pairs(),
    mistakes={
        "This takes the two as independent samples and adds their variances: what a text has in "
        "common with itself stays in. Take the difference of each pair first.": _mean_and(
            lambda a, b: np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / len(a))
        ),
        "This is the spread of single texts: the mean of n of them is sqrt(n) times as "
        "certain.": _mean_and(lambda a, b: np.std(a - b, ddof=1)),
        "This divides the squares by n: the mean was fitted to the same n numbers, so n - 1 are "
        "left (ddof=1).": _mean_and(lambda a, b: np.std(a - b) / np.sqrt(len(a))),
        "This divides by n, and not by its square root: that is not how chance averages out.": (
            _mean_and(lambda a, b: np.std(a - b, ddof=1) / len(a))
        ),
        "This has the sign reversed: a gain is positive where telling helps.": (
            lambda told, untold: (
                np.mean(untold - told),
                np.std(told - untold, ddof=1) / np.sqrt(len(told)),
            )
        ),
    },
)
def paired_gain(told, untold):
    difference = told - untold
    return np.mean(difference), np.std(difference, ddof=1) / np.sqrt(len(difference))
