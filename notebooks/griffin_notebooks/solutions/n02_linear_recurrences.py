"""Exercises of notebook 2: the loop, half-lives, the matrix of a recurrence, doubling, overflow."""

import numpy as np
from hypothesis import strategies as st

from griffin_notebooks.exercise import exercise

DECAYS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.875, 1.0])
INPUTS = st.integers(-4, 4).map(float)


def signals(longest: int = 9) -> st.SearchStrategy:
    """A decay and an input for each of some steps, as a pair of arrays."""
    steps = st.lists(st.tuples(DECAYS, INPUTS), max_size=longest)
    return steps.map(lambda pairs: tuple(np.array(pairs, float).reshape(-1, 2).T.copy()))


def _run(a, x, h, state=lambda a, h, x: a * h + x, shown=lambda before, after: after):
    states = np.empty(len(x))
    for t in range(len(x)):
        before, h = h, state(a[t], h, x[t])
        states[t] = shown(before, h)
    return states


@exercise(
    "2.1",
    cases=st.tuples(signals(), INPUTS).map(lambda case: (*case[0], case[1])),
    mistakes={
        "This decays the new input together with the past, a (h + x): the input of this very "
        "step should enter whole.": lambda a, x, h: _run(a, x, h, lambda a, h, x: a * (h + x)),
        "This shows the state before each step: states[t] should already know x[t].": (
            lambda a, x, h: _run(a, x, h, shown=lambda before, after: before)
        ),
        "This begins from zero: h is what was remembered before the first step, and a[0] of it "
        "is left after it.": lambda a, x, h: _run(a, x, 0.0),
        "This uses a[0] at every step: each step has a decay of its own.": lambda a, x, h: _run(
            np.full_like(a, a[0]) if len(a) else a, x, h
        ),
        "This sums the inputs and lets nothing decay: at step t only a[t] of the past is kept.": (
            lambda a, x, h: h + np.cumsum(x)
        ),
    },
)
def loop(a, x, h):
    states = np.empty(len(x))
    for t in range(len(x)):
        h = a[t] * h + x[t]
        states[t] = h
    return states


@exercise(
    "2.2",
    cases=st.lists(st.floats(0.25, 1000), max_size=4).map(lambda n: (np.array(n),)),
    mistakes={
        "exp(-1 / n) is down to 1/e = 0.37 after n steps, not to a half: n is then a time "
        "constant. What number, raised to the n, is 1/2?": lambda n: np.exp(-1 / n),
        "0.5 ** n is what is left after n steps if a is one half. Here n is given and a is asked "
        "for: a ** n = 0.5.": lambda n: 0.5**n,
        "1 - 1 / n loses the same amount at every step; a recurrence loses the same "
        "fraction.": lambda n: 1 - 1 / n,
        "1 - 0.5 / n would halve a straight line after n steps. A recurrence loses a fraction of "
        "what is left, so its line is curved.": lambda n: 1 - 0.5 / n,
        "2 ** (1 / n) doubles after n steps: such a state grows. Turn it over.": lambda n: (
            2 ** (1 / n)
        ),
    },
)
def decay(half_life):
    return 0.5 ** (1 / half_life)


def _products(a, first: int, last: int):
    T = len(a)
    rows = [[np.prod(a[s + first : t + last]) * (s <= t) for s in range(T)] for t in range(T)]
    return np.array(rows, float).reshape(T, T)


def _ratios(a):
    with np.errstate(all="ignore"):
        c = np.cumprod(a)
        return np.where(np.tri(len(a)) > 0, c[:, None] / c[None, :], 0)


@exercise(
    "2.3",
    cases=signals(6).map(lambda case: (case[0],)),
    mistakes={
        "This divides cumulative products. Where some a[t] is 0 that is 0 / 0, and a decay of 0 "
        "is exactly what happens where a document starts.": _ratios,
        "This multiplies by a[s] as well: x[s] enters at step s undamped, so the diagonal is "
        "1.": lambda a: _products(a, 0, 1),
        "This uses the decays s to t - 1. What entered at step s first decays at step s + 1, and "
        "last at step t.": lambda a: _products(a, 0, 0),
        "This is the transpose: row t should say where h[t] comes from, so what stands above the "
        "diagonal, the future, is 0.": lambda a: _products(a, 1, 1).T,
        "This uses the decay of one step wherever s < t. What is s steps old has decayed at each "
        "of them.": lambda a: np.where(np.tri(len(a), k=-1) > 0, a[:, None], np.eye(len(a))),
    },
)
def matrix(a):
    rows = np.zeros((len(a), len(a)))
    for t in range(len(a)):
        if t > 0:
            rows[t] = a[t] * rows[t - 1]
        rows[t, t] = 1
    return rows


def _doubling(a, x, more=lambda k, T: k < T, grow=lambda k: 2 * k, order="xa"):
    a, x, k = a.copy(), x.copy(), 1
    rounds = [x.copy()]
    while more(k, len(x)):
        for what in order:
            if what == "x":
                x[k:] = a[k:] * x[:-k] + x[k:]
            elif what == "r":
                x[k:] = a[:-k] * x[k:] + x[:-k]
            else:
                a[k:] = a[k:] * a[:-k]
        k = grow(k)
        rounds.append(x.copy())
    return np.array(rounds)


@exercise(
    "2.4",
    cases=signals(17),
    mistakes={
        "This changes a before x has used it: within a round, x needs the decays of the round "
        "before.": lambda a, x: _doubling(a, x, order="ax"),
        "This never changes a. After a round an element stands for twice as many steps, so its "
        "decay is the product of both.": lambda a, x: _doubling(a, x, order="x"),
        "This stops a round too early: 5 steps need k = 1, 2 and 4.": lambda a, x: _doubling(
            a, x, more=lambda k, T: 2 * k < T
        ),
        "This makes a round too many: once k steps are all there are, nothing stands k "
        "before.": lambda a, x: _doubling(a, x, more=lambda k, T: k < 2 * T),
        "This moves k on by one instead of doubling it, and so counts steps twice.": lambda a, x: (
            _doubling(a, x, grow=lambda k: k + 1)
        ),
        "This combines in the wrong order: it is the earlier element that decays, by the later "
        "element's a.": lambda a, x: _doubling(a, x, order="ra"),
        "The states are right, but all the rounds are asked for, the input first, each a row.": (
            lambda a, x: loop.solution(a, x, 0.0)
        ),
    },
)
def doubling(a, x):
    a, x = a.copy(), x.copy()
    rounds, k = [x.copy()], 1
    while k < len(x):
        x[k:] = a[k:] * x[:-k] + x[k:]
        a[k:] = a[k:] * a[:-k]
        rounds.append(x.copy())
        k = 2 * k
    return np.array(rounds)


LARGEST = float(np.finfo(np.float32).max)


def _counted_in_float32() -> int:
    h, count = np.float32(1), 0
    with np.errstate(over="ignore"):
        while np.isfinite(h):
            h, count = h * np.float32(1.001), count + 1
    return count


@exercise(
    "2.5",
    mistakes={
        "log(1.001) is not quite 0.001, and over so many steps that shows: divide by the "
        "logarithm itself.": lambda: int(np.ceil(np.log(LARGEST) / 0.001)),
        "That is for float64, whose largest number is 1.8e308.": lambda: int(
            np.ceil(np.log(np.finfo(np.float64).max) / np.log(1.001))
        ),
        "This takes log10 of one number and log of the other. Any base will do, but one "
        "base.": lambda: int(np.ceil(np.log10(LARGEST) / np.log(1.001))),
        "This mixes log2 and log: the exponent 128 is of base 2.": lambda: int(
            np.ceil(np.log2(LARGEST) / np.log(1.001))
        ),
        "After that many steps it still fits: the next one is the first that does not.": lambda: (
            int(np.log(LARGEST) / np.log(1.001))
        ),
        "This counts in float32, which rounds 1.001 a little up, and then every product. Exact "
        "arithmetic takes a few steps more: use logarithms.": _counted_in_float32,
        "This adds 0.001 at every step. The state grows by 0.1 % of itself: it "
        "multiplies.": lambda: (LARGEST - 1) / 0.001,
    },
)
def steps():
    largest = np.finfo(np.float32).max
    return int(np.ceil(np.log(largest) / np.log(1.001)))
