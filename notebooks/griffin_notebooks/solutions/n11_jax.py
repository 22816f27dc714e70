"""Solutions of notebook 11, the model in JAX."""

import numpy as np
from hypothesis import strategies as st

from griffin_notebooks.exercise import exercise


@st.composite
def two_pieces(draw):
    """Two pieces of some channels, rows decay and input."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(0, 3))
    return tuple(np.array([rng.random(n), rng.standard_normal(n)]).round(2) for _ in range(2))


def _in_one(first, second, how):
    (a1, x1), (a2, x2) = first, second
    return np.array(how(a1, x1, a2, x2))


@exercise(
    "11.1",
    cases=two_pieces(),
    mistakes={
        "The decays are right, but here the input of the later piece is damped by the earlier one. "
        "Time runs the other way: what came first goes through what comes after.": (
            lambda f, s: _in_one(f, s, lambda a1, x1, a2, x2: [a1 * a2, a1 * x2 + x1])
        ),
        "This keeps only the second decay. Of a state before both pieces, both take their share: "
        "what is left of it after two steps is a product.": (
            lambda f, s: _in_one(f, s, lambda a1, x1, a2, x2: [a2, a2 * x1 + x2])
        ),
        "The inputs are added as they are. The first input is part of the state by the time the "
        "second piece comes, and so it decays with it.": (
            lambda f, s: _in_one(f, s, lambda a1, x1, a2, x2: [a1 * a2, x1 + x2])
        ),
        "This damps the second input, too. An input enters its own step whole; only what was there "
        "before decays.": (
            lambda f, s: _in_one(f, s, lambda a1, x1, a2, x2: [a1 * a2, a2 * (x1 + x2)])
        ),
    },
)
def combine(first, second):
    """Two pieces [a, x] of a text, each of which does h -> a h + x, as one piece."""
    (a1, x1), (a2, x2) = first, second
    return np.array([a2 * a1, a2 * x1 + x2])


@st.composite
def walks(draw):
    """Decays of some steps, and the gradients that reach their states from outside."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(0, 5)), draw(st.integers(1, 3))
    return rng.random(shape).round(3), rng.standard_normal(shape).round(3)


def _gathered(a, dh, steps, factor):
    g, carry = np.empty_like(dh), np.zeros(dh.shape[1])
    for t in steps(range(len(a))):
        g[t] = carry = dh[t] + factor(a, t) * carry
    return g


@exercise(
    "11.2",
    cases=walks(),
    mistakes={
        "This damps what arrives at step t by the decay of step t. It came through step t + 1, so "
        "that step's decay has damped it: the walk is shifted by one.": (
            lambda a, dh: _gathered(a, dh, reversed, lambda a, t: a[t])
        ),
        "This walks from the start to the end. A state acts on all later ones, so its gradient is "
        "gathered from them: begin with the last step.": (
            lambda a, dh: _gathered(a, dh, iter, lambda a, t: a[t])
        ),
        "This treats every step as if it were alone: the gradient from its own output, without "
        "what reaches it from the steps after it.": lambda a, dh: dh.copy(),
        "This adds up all later gradients as they are. On its way back through a step, a gradient "
        "is multiplied by what the state was multiplied by: the decay.": (
            lambda a, dh: _gathered(a, dh, reversed, lambda a, t: 1.0)
        ),
    },
)
def state_gradient(a, dh):
    """The gradient of every state, its own share dh and what comes from later steps."""
    g, carry = np.empty_like(dh), np.zeros(dh.shape[1])
    for t in reversed(range(len(a))):
        g[t] = dh[t] + carry
        carry = a[t] * g[t]
    return g


@st.composite
def roots(draw):
    """Arguments of a square root, some of them zero or next to it, and gradients."""
    value = st.sampled_from([0.0, 1e-12, 1e-8, 2e-7, 3e-7, 1e-6, 1e-4, 0.19, 0.5, 1.0])
    x = draw(st.lists(value, min_size=1, max_size=4))
    g = draw(st.lists(st.sampled_from([-3.0, -0.01, 0.5, 2.0]), min_size=len(x), max_size=len(x)))
    return np.array(x), np.array(g)


def _derivative(x):
    with np.errstate(divide="ignore"):
        return 0.5 / np.sqrt(x)


@exercise(
    "11.3",
    cases=roots(),
    mistakes={
        "This clips the product with g. What the report clips is the derivative of the square "
        "root; g, which comes from the layers above, passes through it unclipped.": (
            lambda x, g: np.clip(g * _derivative(x), -1000, 1000)
        ),
        "The derivative is clipped, but g is missing: the chain rule multiplies by what arrives "
        "from above.": lambda x, g: np.minimum(_derivative(x), 1000),
        "This lets x be no smaller than 1 / 1000^2, where the derivative is 500. Solve "
        "1 / (2 sqrt(x)) = 1000 for x: there is a 2 in it.": (
            lambda x, g: g * 0.5 / np.sqrt(np.maximum(x, 1e-6))
        ),
        "Adding a small number below the root bounds the derivative, too, but changes it "
        "everywhere. Clipping leaves alone what was below 1000.": (
            lambda x, g: g * 0.5 / np.sqrt(x + 1 / (4 * 1000**2))
        ),
    },
)
def sqrt_backward(x, g):
    """The gradient of x, if g is that of sqrt(x) and the derivative is at most 1000."""
    return g * 0.5 / np.sqrt(np.maximum(x, 1 / (4 * 1000**2)))


def _half_life(a_param, c=8.0, log=np.log):
    return log(2) / (c * np.logaddexp(0, a_param))


@exercise(
    "11.4",
    cases=st.tuples(
        st.integers(-80, 20).map(lambda n: n / 10),
        st.sampled_from([0.0, 1e-4, 0.01, 0.1]),
        st.integers(0, 60),
    ),
    mistakes={
        "This shrinks the half-life itself. Weight decay shrinks the number that is stored, and "
        "the half-life follows through softplus.": (
            lambda a_param, rate, steps: _half_life(a_param) * (1 - rate) ** steps
        ),
        "The sign is that of the paper's Lambda. Checkpoints hold a_param = -Lambda, whose "
        "softplus is -log a.": (
            lambda a_param, rate, steps: _half_life(-a_param * (1 - rate) ** steps)
        ),
        "The constant c = 8 is missing: log a is -8 softplus(a_param) where the recurrence gate "
        "is fully open.": (
            lambda a_param, rate, steps: _half_life(a_param * (1 - rate) ** steps, c=1)
        ),
        "This takes the rate off once for each step, as if a_param stayed what it was. Each step "
        "takes its share of what is left.": (
            lambda a_param, rate, steps: _half_life(a_param * (1 - rate * steps))
        ),
    },
)
def decayed_half_life(a_param, rate, steps):
    """Tokens until half is left, at r = 1, after steps of nothing but weight decay."""
    a_param = a_param * (1 - rate) ** steps
    return np.log(2) / (8 * np.log1p(np.exp(a_param)))
