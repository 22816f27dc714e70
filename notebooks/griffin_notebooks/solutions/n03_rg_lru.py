"""Exercises of notebook 3: a gate, the decay, gates set by hand, the multiplier, starts."""

import numpy as np
from hypothesis import strategies as st

from griffin_notebooks.exercise import exercise


@st.composite
def layers(draw) -> tuple:
    """An input, blocks and biases of a gate: x (H G,), w (H, G, G), b (H, G)."""
    H, G = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return tuple(rng.integers(-3, 4, shape) / 2 for shape in ((H * G,), (H, G, G), (H, G)))


def _sigmoid(z):
    return 1 / (1 + np.exp(-np.ravel(z)))


@exercise(
    "3.1",
    cases=layers(),
    mistakes={
        "This transposes the blocks, w[h] @ x: they are stored (in, out), so x stands on the left. "
        "No shape gives that away.": lambda x, w, b: _sigmoid(
            np.einsum("hj,hkj->hk", x.reshape(b.shape), w) + b
        ),
        "This deals the channels out to the heads like cards. Head h has G neighbours, channels "
        "h G to h G + G - 1.": lambda x, w, b: _sigmoid(
            np.einsum("hj,hjk->hk", x.reshape(b.shape[::-1]).T, w) + b
        ),
        "This gives z: the gate is sigmoid(z), between 0 and 1.": lambda x, w, b: np.ravel(
            np.einsum("hj,hjk->hk", x.reshape(b.shape), w) + b
        ),
        "This leaves out the bias b: for an input of zeros the gate is sigmoid(b), not a half.": (
            lambda x, w, b: _sigmoid(np.einsum("hj,hjk->hk", x.reshape(b.shape), w))
        ),
        "This uses the block of the first head for all heads: each has its own.": (
            lambda x, w, b: _sigmoid(x.reshape(b.shape) @ w[0] + b)
        ),
    },
)
def gate(x, w, b):
    H, G, _ = w.shape
    z = np.empty((H, G))
    for h in range(H):
        z[h] = x[h * G : (h + 1) * G] @ w[h] + b[h]
    return 1 / (1 + np.exp(-z.reshape(H * G)))


def _naive(a_param, r):
    with np.errstate(all="ignore"):
        return -8 * r * np.log(1 + np.exp(np.float64(a_param)))


@exercise(
    "3.2",
    cases=st.tuples(
        st.sampled_from([-700.0, -40.0, -20.0, -7.0, -2.0, 0.0, 1.0, 5.0, 40.0, 800.0]),
        st.sampled_from([0.0, 1e-6, 0.25, 0.5, 1.0]),
    ),
    mistakes={
        "This is right in the middle, but exp(a_param) is lost beside 1 for a_param = -40 and "
        "infinite for 800. Take max(a_param, 0) out of the logarithm, and look at "
        "log1p.": _naive,
        "This takes a_param for Λ. Checkpoints store -Λ, so a large a_param means a short "
        "memory.": lambda a_param, r: -8 * r * np.logaddexp(0, -a_param),
        "This leaves out c = 8: every memory comes out eight times too long.": lambda a_param, r: (
            -r * np.logaddexp(0, a_param)
        ),
        "This is the decay a itself; its logarithm is asked for.": lambda a_param, r: np.exp(
            -8 * r * np.logaddexp(0, a_param)
        ),
        "This divides a by c^r. Equation (3) raises a to the power c r.": lambda a_param, r: (
            -np.logaddexp(0, a_param) - r * np.log(8)
        ),
        "This is log a times c, whatever the gate says: r stretches the memory.": (
            lambda a_param, r: -8 * np.logaddexp(0, a_param)
        ),
    },
)
def log_decay(a_param, r):
    softplus = max(a_param, 0) + np.log1p(np.exp(-abs(a_param)))
    return -8 * r * softplus


FLAGS = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=6)


@exercise(
    "3.3",
    cases=FLAGS.map(lambda f: tuple(np.array(f, bool).reshape(-1, 2).T.copy())),
    mistakes={
        "This has r the wrong way round, as the gate of a GRU that says how much to keep. Here r "
        "= 0 keeps and r = 1 forgets.": lambda write, clear: np.array(
            [~(write | clear), write], float
        ),
        "This opens the input at clear as well: x is stored instead of 0.": lambda write, clear: (
            np.array([write | clear, write | clear], float)
        ),
        "This never clears: where r = 0 the past is kept, and the input gate has no say.": (
            lambda write, clear: np.array([write, write], float)
        ),
        "Where both are set this clears, but write wins.": lambda write, clear: np.array(
            [write | clear, write & ~clear], float
        ),
        "This forgets at clear alone. At write the old value must go too, or the new one is "
        "multiplied by sqrt(1 - a^2) = 0.": lambda write, clear: np.array([clear, write], float),
    },
)
def gates(write, clear):
    r = write | clear
    i = write
    return np.array([r, i], float)


@exercise(
    "3.4",
    cases=st.sampled_from(
        [0.0, -1e-14, -3e-11, -1e-8, -1e-5, -0.001, -0.25, -1.0, -3.0, -800.0]
    ).map(lambda log_a: (log_a,)),
    mistakes={
        "The formula is right, and its digits are lost: near a = 1 this subtracts two numbers that "
        "are almost equal. Which function computes exp(z) - 1 without that?": lambda log_a: np.sqrt(
            1 - np.exp(2 * log_a)
        ),
        "This is sqrt(1 - a). The square of a is exp(2 log a).": lambda log_a: np.sqrt(
            -np.expm1(log_a)
        ),
        "This is 1 - a^2; a root is missing.": lambda log_a: -np.expm1(2 * log_a),
        "This is 1 - a, which would keep the mean of a constant input. Noise adds up in squares.": (
            lambda log_a: -np.expm1(log_a)
        ),
    },
)
def multiplier(log_a):
    return np.sqrt(-np.expm1(2 * log_a))


@st.composite
def documents(draw) -> tuple:
    """Log decays, gated inputs and positions of some steps, and the state before them."""
    T, position = draw(st.integers(0, 6)), draw(st.integers(0, 2))
    log_a, gated, positions = [], [], []
    for _ in range(T):
        log_a.append(draw(st.sampled_from([-0.5, -0.01, -3.0, 0.0])))
        gated.append(float(draw(st.integers(-3, 3))))
        positions.append(position)
        position = 0 if draw(st.booleans()) else position + 1
    h = draw(st.sampled_from([0.0, 1.0, -2.0, np.inf]))
    return np.array(log_a), np.array(gated), np.array(positions, int), h


def _documents(log_a, gated, positions, h, starts=lambda t, p: p == 0, past=None, scale=None):
    states = np.empty(len(gated))
    with np.errstate(all="ignore"):
        for t in range(len(gated)):
            begins = starts(t, positions[t])
            left = np.exp(log_a[t]) * h
            if begins:
                left = past(log_a[t], h) if past else 0.0
            keep = np.sqrt(-np.expm1(2 * log_a[t]))
            new = 1.0 if begins and scale is None else keep
            states[t] = h = left + new * gated[t]
    return states


@exercise(
    "3.5",
    cases=documents(),
    mistakes={
        "At a start this multiplies the state by 0, and 0 times infinity is NaN. Dropping it means "
        "not to look at it.": lambda *case: _documents(*case, past=lambda log_a, h: 0 * h),
        "At a start this drops the state but still damps the input: the first token of a document "
        "enters whole.": lambda *case: _documents(*case, scale="damped"),
        "At a start this lets the input in whole but keeps the state: the document before leaks "
        "in.": lambda *case: _documents(*case, past=lambda log_a, h: np.exp(log_a) * h),
        "This only looks at the first step: a document may start anywhere in a row.": (
            lambda *case: _documents(*case, starts=lambda t, p: t == 0 and p == 0)
        ),
        "This resets at the first step whatever its position: a call may go on from a state.": (
            lambda *case: _documents(*case, starts=lambda t, p: t == 0 or p == 0)
        ),
        "This knows of no starts: where the position is 0 there is no past.": lambda *case: (
            _documents(*case, starts=lambda t, p: False)
        ),
    },
)
def states(log_a, gated, positions, h):
    after = np.empty(len(gated))
    for t in range(len(gated)):
        if positions[t] == 0:
            h = gated[t]
        else:
            h = np.exp(log_a[t]) * h + np.sqrt(-np.expm1(2 * log_a[t])) * gated[t]
        after[t] = h
    return after
