"""Solutions of notebook 5: heads that share keys, rotation, the window, and the ring."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from griffin_notebooks.exercise import exercise

# Quarters: small, exact in binary, and easy to read in a case that fails.
QUARTERS = st.integers(-12, 12).map(lambda n: n / 4)


def numbers(*shape: int) -> st.SearchStrategy:
    return arrays(np.float64, shape, elements=QUARTERS, fill=st.nothing())


@st.composite
def one_token(draw):
    """Queries of one token, and the keys and values that it sees; some scores are huge."""
    Q, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    S, d = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    q = draw(numbers(Q * group, d)) * draw(st.sampled_from([1.0, 1000.0]))
    return q, draw(numbers(S, Q, d)), draw(numbers(S, Q, d))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def with_overflow(z):
    with np.errstate(over="ignore", invalid="ignore"):
        return np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)


def shared(q, k, v, *, expand=np.repeat, scale=np.sqrt, weigh=softmax):
    """Attention of one token, with parts that may be wrong."""
    group = len(q) // k.shape[1]
    keys, values = (a.swapaxes(0, 1) for a in (k, v))  # (Q, S, d)
    if expand is np.repeat:
        keys, values = (np.repeat(a, group, axis=0) for a in (keys, values))
    else:
        keys, values = (np.tile(a, (group, 1, 1)) for a in (keys, values))
    weights = weigh((keys @ q[:, :, None])[:, :, 0] / scale(q.shape[1]))  # (H, S)
    return (weights[:, None] @ values)[:, 0]


@exercise(
    "5.1",
    cases=one_token(),
    mistakes={
        "Head h takes key-value head h mod Q here. Neighbours share: head h takes h // (H / Q), "
        "as np.repeat gives it, not np.tile.": lambda q, k, v: shared(q, k, v, expand=np.tile),
        "The scores are not divided by sqrt(d).": lambda q, k, v: shared(
            q, k, v, scale=lambda d: 1.0
        ),
        "The scores are divided by d, not by its square root.": lambda q, k, v: shared(
            q, k, v, scale=float
        ),
        "The square root is of the width, H * d. It is of the channels of one head, "
        "d.": lambda q, k, v: shared(q, k, v, scale=lambda d: np.sqrt(q.size)),
        "exp overflows for large scores, and inf / inf is NaN. Take the largest score out first: "
        "softmax(z) is softmax(z - max(z)).": lambda q, k, v: shared(q, k, v, weigh=with_overflow),
        "The weights sum to 1 over the heads. They should over the keys, for each head alone.": (
            lambda q, k, v: shared(q, k, v, weigh=lambda z: softmax(z.T).T)
        ),
    },
)
def attend(q, k, v):
    (H, d), Q = q.shape, k.shape[1]
    y = np.empty_like(q)
    for h in range(H):
        keys, values = k[:, h * Q // H], v[:, h * Q // H]  # (S, d)
        z = keys @ q[h] / np.sqrt(d)
        e = np.exp(z - z.max())
        y[h] = e / e.sum() @ values
    return y


@st.composite
def one_head(draw):
    """A head's channels, a position, the base, and how many channels turn."""
    half, rest = draw(st.integers(0, 3)), draw(st.sampled_from([0, 2, 4]))
    position, base = draw(st.integers(0, 40)), draw(st.sampled_from([100.0, 10000.0]))
    return draw(numbers(2 * half + rest)), position, base, 2 * half


def turned(x, angle, first, second):
    """A copy with channels ``first`` and ``second`` turned as pairs."""
    y = x.copy()
    y[first] = x[first] * np.cos(angle) - x[second] * np.sin(angle)
    y[second] = x[second] * np.cos(angle) + x[first] * np.sin(angle)
    return y


def halves(x, p, base, rotary_dim, *, sign=1, exponent=None, start=0):
    half = rotary_dim // 2
    j = np.arange(half)
    angle = sign * p * base ** (-2 * j / max(exponent or rotary_dim, 1))
    return turned(x, angle, start + j, start + half + j)


def neighbours(x, p, base, rotary_dim):
    j = np.arange(rotary_dim // 2)
    return turned(x, p * base ** (-2 * j / max(rotary_dim, 1)), 2 * j, 2 * j + 1)


@exercise(
    "5.2",
    cases=one_head(),
    mistakes={
        "Channels 2j and 2j + 1 are turned together. That is another model's pairing: here it is "
        "j and j + rotary_dim / 2.": neighbours,
        "The whole head is turned. Channels from rotary_dim on stay as they are.": (
            lambda x, p, base, rotary_dim: halves(x, p, base, len(x))
        ),
        "The last rotary_dim channels are turned; it should be the first.": (
            lambda x, p, base, rotary_dim: halves(x, p, base, rotary_dim, start=len(x) - rotary_dim)
        ),
        "The frequencies fall too slowly: the exponent is divided by the head's size, and should "
        "be by rotary_dim.": lambda x, p, base, rotary_dim: halves(
            x, p, base, rotary_dim, exponent=len(x)
        ),
        "This turns the other way round, by -p: mind which of the two terms has the minus "
        "sign.": lambda x, p, base, rotary_dim: halves(x, p, base, rotary_dim, sign=-1),
    },
)
def rotate(x, p, base, rotary_dim):
    half = rotary_dim // 2
    angle = p * base ** (-2 * np.arange(half) / max(rotary_dim, 1))
    first, second = x[:half], x[half:rotary_dim]
    return np.concatenate([
        first * np.cos(angle) - second * np.sin(angle),
        second * np.cos(angle) + first * np.sin(angle),
        x[rotary_dim:],
    ])  # fmt: skip


@st.composite
def packed(draw):
    """Positions of several documents in a row, and a window."""
    lengths = draw(st.lists(st.integers(1, 6), max_size=3))
    positions = np.concatenate([np.arange(n) for n in [0, *lengths]])
    return positions, draw(st.integers(1, 4))


def steps_back(p):
    return np.arange(len(p))[:, None] - np.arange(len(p))


def limit(p, window):
    return np.minimum(window, p)[:, None]


@exercise(
    "5.3",
    cases=packed(),
    mistakes={
        "A window of W is itself and W tokens before it: W + 1 keys. This gives W keys.": (
            lambda p, window: (steps_back(p) >= 0) & (steps_back(p) <= limit(p, window - 1))
        ),
        "A token sees all of its document, however far back: there is no window.": (
            lambda p, window: (steps_back(p) >= 0) & (steps_back(p) <= p[:, None])
        ),
        "A token sees the document before its own.": lambda p, window: (
            (steps_back(p) >= 0) & (steps_back(p) <= window)
        ),
        "The difference of positions alone does not tell documents apart: position 3 of one "
        "document and position 2 of another are one apart, too.": lambda p, window: (
            (p[:, None] >= p) & (p[:, None] - p <= window)
        ),
        "A token does not see itself here; it should, always.": lambda p, window: (
            (steps_back(p) > 0) & (steps_back(p) <= limit(p, window))
        ),
        "A token sees the future: keys after it.": lambda p, window: (
            steps_back(p) <= limit(p, window)
        ),
    },
)
def visible(positions, window):
    t = np.arange(len(positions))
    back = t[:, None] - t
    return (back >= 0) & (back <= np.minimum(window, positions)[:, None])


@exercise(
    "5.4",
    mistakes={
        "That is how far one block sees. The next block sees what this one has gathered.": (
            lambda: 2048
        ),
        "Each block adds W, not W + 1: the extra key is the token itself, and that is no step "
        "back.": lambda: 8 * 2049,
        "Not all 26 blocks are attention: the pattern is recurrent, recurrent, attention.": (
            lambda: 26 * 2048
        ),
        "26 is not a multiple of 3: the last round of the pattern is cut after two recurrent "
        "blocks.": lambda: 9 * 2048,
    },
)
def reach():
    return 26 // 3 * 2048


@st.composite
def rings(draw):
    """A ring after some number of tokens; slots that were never written hold zeros."""
    window, seen = draw(st.integers(1, 5)), draw(st.integers(0, 12))
    ring = draw(numbers(window, 1))
    ring[seen:] = 0
    return ring, seen


@exercise(
    "5.5",
    cases=rings(),
    mistakes={
        "These are the slots in their order. Once the ring has wrapped, the oldest entry is not in "
        "slot 0: it is in slot seen mod W.": lambda ring, seen: ring[:seen],
        "Empty slots come along: before W tokens were read there are only `seen` entries.": (
            lambda ring, seen: np.roll(ring, -seen, axis=0)
        ),
        "The ring is turned the wrong way.": lambda ring, seen: (
            np.roll(ring, seen, axis=0) if seen >= len(ring) else ring[:seen]
        ),
        "One entry is missing as soon as the ring is full: it holds W of them, not W - 1.": (
            lambda ring, seen: ring[np.arange(max(seen - len(ring) + 1, 0), seen) % len(ring)]
        ),
        "The newest entry comes first here; the oldest should.": lambda ring, seen: ring[
            np.arange(max(seen - len(ring), 0), seen) % len(ring)
        ][::-1],
    },
)
def oldest_first(ring, seen):
    W = len(ring)
    positions = np.arange(max(seen - W, 0), seen)
    return ring[positions % W]
