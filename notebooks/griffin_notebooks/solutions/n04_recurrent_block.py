"""Solutions of notebook 4: the convolution, its state, documents in a row, and the two branches."""

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from griffin_notebooks.exercise import exercise

# Quarters: small, exact in binary, and easy to read in a case that fails.
QUARTERS = st.integers(-12, 12).map(lambda n: n / 4)


def numbers(*shape: int) -> st.SearchStrategy:
    return arrays(np.float64, shape, elements=QUARTERS, fill=st.nothing())


@st.composite
def filters(draw):
    """Weights, bias and the inputs of one document from its start."""
    K, R, T = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(0, 7))
    return draw(numbers(K, R)), draw(numbers(R)), draw(numbers(T, R))


def taps(w, b, u, row, past):
    """``b + sum over s of w[row(s)] * past(s)``."""
    return b + sum((w[row(s)] * past(s) for s in range(len(w))), np.zeros_like(u))


def back(u, s):
    """Inputs s tokens ago, zero before the first."""
    return np.concatenate([np.zeros_like(u[:s]), u[: max(len(u) - s, 0)]])[: len(u)]


def ahead(u, s):
    return back(u[::-1], s)[::-1]


@exercise(
    "4.1",
    cases=filters(),
    mistakes={
        "The first row of w meets the current token here, so time runs backwards in the filter: "
        "w[K - 1] is for now, w[K - 2] for one token ago.": lambda w, b, u: taps(
            w, b, u, lambda s: s, lambda s: back(u, s)
        ),
        "This reads tokens that come later: v[t] may use u[t], u[t - 1], ... only.": (
            lambda w, b, u: taps(w, b, u, lambda s: len(w) - 1 - s, lambda s: ahead(u, s))
        ),
        "The first tokens see the last ones: in NumPy u[-1] is the end of the array. Leave out the "
        "terms with t - s below 0.": lambda w, b, u: taps(
            w, b, u, lambda s: len(w) - 1 - s, lambda s: np.roll(u, s, axis=0)
        ),
        "The bias is missing: a token that meets only zeros should still give b.": lambda w, b, u: (
            taps(w, 0 * b, u, lambda s: len(w) - 1 - s, lambda s: back(u, s))
        ),
        "The bias is added once for each row of w: it stands before the sum, not in it.": (
            lambda w, b, u: taps(w, len(w) * b, u, lambda s: len(w) - 1 - s, lambda s: back(u, s))
        ),
    },
)
def convolve(w, b, u):
    K, v = len(w), np.zeros_like(u)
    for t in range(len(u)):
        v[t] = b
        for s in range(min(K - 1, t) + 1):
            v[t] += w[K - 1 - s] * u[t - s]
    return v


@st.composite
def calls(draw):
    """A state of K - 1 inputs and the inputs of a call of any length."""
    kept, R, T = draw(st.integers(0, 4)), draw(st.integers(1, 2)), draw(st.integers(0, 6))
    return draw(numbers(kept, R)), draw(numbers(T, R))


def overwritten(past, u):
    inputs = np.concatenate([np.zeros_like(past), u])
    return inputs[len(inputs) - len(past) :]


@exercise(
    "4.2",
    cases=calls(),
    mistakes={
        "A call that is shorter than the state wipes out what came before it: after a call of one "
        "token two of the three inputs are still the old ones.": overwritten,
        "These are inputs of this call alone, and too few after a short one: what was in the state "
        "before counts, too.": lambda past, u: u[-len(past) :],
        "This is right until there is nothing to keep: with K = 1, [-0:] is the whole array. "
        "Count from the front: inputs[len(u):].": lambda past, u: np.concatenate([past, u])[
            -len(past) :
        ],
        "The newest input stands first here: the state is kept oldest first.": lambda past, u: (
            np.concatenate([past, u])[len(u) :][::-1]
        ),
        "This grows when a call is longer than the state: only the last K - 1 inputs stay.": (
            lambda past, u: np.concatenate([past[len(u) :], u])
        ),
        "These are the oldest of the inputs; the next token needs the newest.": lambda past, u: (
            np.concatenate([past, u])[: len(past)]
        ),
    },
)
def next_state(past, u):
    return np.concatenate([past, u])[len(u) :]


@st.composite
def packed(draw):
    """Weights, bias, inputs and positions of several documents in a row."""
    w, b, _ = draw(filters())
    lengths = draw(st.lists(st.integers(1, 5), max_size=4))
    positions = np.concatenate([np.arange(n) for n in [0, *lengths]])
    return w, b, draw(numbers(len(positions), len(b))), positions


def masked(w, b, u, seen):
    """The convolution where ``seen(s)`` says which tokens may look s tokens back."""
    return taps(w, b, u, lambda s: len(w) - 1 - s, lambda s: back(u, s) * seen(s)[:, None])


@exercise(
    "4.3",
    cases=packed(),
    mistakes={
        "A document sees the end of the one before: use the positions.": lambda w, b, u, p: masked(
            w, b, u, lambda s: np.ones(len(p))
        ),
        "Only the token at position 0 is cut off from the document before. The one at position 1 "
        "may look back by one token, and no further.": lambda w, b, u, p: masked(
            w, b, u, lambda s: (p > 0) | (s == 0)
        ),
        "One term too few: the token at position p has p tokens before it, so s = p is allowed.": (
            lambda w, b, u, p: masked(w, b, u, lambda s: (p > s) | (s == 0))
        ),
        "Even the current token is cut off where a document starts: s = 0 is always allowed.": (
            lambda w, b, u, p: masked(w, b, u, lambda s: p > s)
        ),
    },
)
def convolve_packed(w, b, u, positions):
    K, v = len(w), np.zeros_like(u)
    for t, p in enumerate(positions):
        v[t] = b
        for s in range(min(K - 1, p) + 1):
            v[t] += w[K - 1 - s] * u[t - s]
    return v


@st.composite
def branches(draw):
    """The two branches of T tokens, and the projection back."""
    T, R, D = draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return draw(numbers(T, R)), draw(numbers(T, R)), draw(numbers(R, D)), draw(numbers(D))


def tanh_gelu(z):
    return 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def erf_gelu(z):
    return 0.5 * z * (1 + np.array([math.erf(n / math.sqrt(2)) for n in z.flat]).reshape(z.shape))


@exercise(
    "4.4",
    cases=branches(),
    mistakes={
        "GeLU is on the branch with the memory. It belongs on the other one, the gate: "
        "h * gelu(z).": lambda h, z, w, b: (tanh_gelu(h) * z) @ w + b,
        "This is GeLU by the error function. Close, but the released weights were trained with "
        "the tanh form, and 5e-4 is far above rounding.": lambda h, z, w, b: (
            (h * erf_gelu(z)) @ w + b
        ),
        "This is SiLU, z * sigmoid(z): other gated models have it, Griffin has GeLU.": (
            lambda h, z, w, b: (h * z / (1 + np.exp(-z))) @ w + b
        ),
        "The gate here is a sigmoid, between 0 and 1. This gate is GeLU, which can be "
        "large.": lambda h, z, w, b: (h / (1 + np.exp(-z))) @ w + b,
        "The branches are added. A gate multiplies: it can silence the memory, a sum cannot.": (
            lambda h, z, w, b: (h + tanh_gelu(z)) @ w + b
        ),
        "The bias of linear_out is missing. All three projections of the block have one.": (
            lambda h, z, w, b: (h * tanh_gelu(z)) @ w
        ),
    },
)
def finish(h, z, w, b):
    gate = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    return (h * gate) @ w + b
