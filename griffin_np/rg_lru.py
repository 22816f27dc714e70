"""The Real-Gated Linear Recurrent Unit: Griffin (De et al. 2024), section 2.4, in full.

    r_t = sigmoid(W_a x_t + b_a)                                    (1)  recurrence gate
    i_t = sigmoid(W_x x_t + b_x)                                    (2)  input gate
    a_t = a^(c r_t),  a = sigmoid(Lambda),  c = 8                   (3)  decay
    h_t = a_t * h_(t-1) + sqrt(1 - a_t^2) * (i_t * x_t)             (4)  state and output

Every channel is on its own: the recurrence is diagonal. Neither gate sees h, so (4) is linear in h
and the state can be carried from any chunk of the sequence to the next. Since 0 <= a_t <= 1 it is
stable, and ``sqrt(1 - a_t^2)`` keeps the state's variance at that of the gated input.

Where a document starts (position 0) there is no past: h_(t-1) counts as zero and the input enters
undamped, h_0 = i_0 * x_0.
"""

import numpy as np

from griffin_np.notation import Channels, Floats, Hidden, Positions, Trace, no_trace

__all__ = [
    "C",
    "input_gate",
    "log_decay",
    "multiplier",
    "recurrence_gate",
    "rg_lru",
    "scan",
    "step",
]

C = 8.0


def recurrence_gate(p: dict, x: Channels) -> Channels:
    """Equation (1): how much of this step's forgetting to do. 0 keeps the past untouched."""
    return sigmoid(block_diagonal(x, p["w_a"], p["b_a"]))


def input_gate(p: dict, x: Channels) -> Channels:
    """Equation (2): how much of the input to let in."""
    return sigmoid(block_diagonal(x, p["w_x"], p["b_x"]))


def log_decay(p: dict, r: Channels) -> Channels:
    """Equation (3) through its logarithm (appendix A): ``log a_t = c r_t log a``.

    Checkpoints store ``a_param = -Lambda``: ``log a = log sigmoid(Lambda) = -softplus(a_param)``.
    """
    return -C * r * softplus(p["a_param"])


def multiplier(log_a: Channels) -> Channels:
    """``sqrt(1 - a^2)`` of equation (4).

    ``1 - exp(2 log a)`` would lose all digits where a is close to 1, which is where long memory
    lives; ``-expm1(2 log a)`` loses none. DeepMind's code computes the former.
    """
    return np.sqrt(-np.expm1(2 * log_a))


def scan(a: Channels, x: Channels, h: Hidden) -> Channels:
    """Equation (4), the definition: ``h_t = a_t * h_(t-1) + x_t``, one step after the other.

    Parameters
    ----------
    a : array of shape (T, R)
        Decay, in [0, 1].
    x : array of shape (T, R)
        Input, gated and scaled.
    h : array of shape (R,)
        State before the first step.

    Returns
    -------
    array of shape (T, R)
        State after every step.
    """
    states = np.empty_like(x)
    for t in range(len(x)):
        h = a[t] * h + x[t]
        states[t] = h
    return states


def rg_lru(
    p: dict, x: Channels, positions: Positions, h: Hidden, trace: Trace = no_trace
) -> tuple[Channels, Hidden]:
    """Equations (1) to (4) over a sequence.

    Parameters
    ----------
    p : dict
        ``w_a``, ``w_x`` (H, G, G), ``b_a``, ``b_x`` (H, G), ``a_param`` (R,).
    x : array of shape (T, R)
        Output of the convolution.
    positions : array of shape (T,)
        Position of each token in its document.
    h : array of shape (R,)
        State before the first token; a token at position 0 forgets it.

    Returns
    -------
    y : array of shape (T, R)
        The state after every token, which is the output.
    h : array of shape (R,)
        The state after the last token.
    """
    r = recurrence_gate(p, x)  # (1)
    i = input_gate(p, x)  # (2)
    log_a = log_decay(p, r)  # (3)
    starts = (positions == 0)[:, None]
    if starts[:1].any():
        h = np.zeros_like(h)  # forgotten even if it was not finite
    a = np.where(starts, 0, np.exp(log_a))
    gated = np.where(starts, 1, multiplier(log_a)) * (i * x)
    y = scan(a, gated, h)  # (4)
    for name, array in (("r", r), ("i", i), ("a", a), ("h", y)):
        trace(name, array)
    return y, y[-1] if len(y) else h


def step(p: dict, x: Hidden, position: int, h: Hidden) -> Hidden:
    """Equations (1) to (4) for a single token: all that decoding needs.

    x and h are of shape (R,), and so is the result, which is both the output and the next state.
    """
    x = x[None]  # a sequence of one
    gated = input_gate(p, x) * x
    if position == 0:
        return gated[0]
    log_a = log_decay(p, recurrence_gate(p, x))
    return (np.exp(log_a) * h + multiplier(log_a) * gated)[0]


def block_diagonal(x: Channels, w: Floats, b: Floats) -> Channels:
    """``W x + b`` with W block-diagonal: one (G, G) block for each of the H heads."""
    H, G, _ = w.shape
    blocks = x.reshape(-1, H, G).swapaxes(0, 1)  # (H, T, G)
    return ((blocks @ w).swapaxes(0, 1) + b).reshape(x.shape)


def sigmoid(z: Floats) -> Floats:
    """``1 / (1 + exp(-z))``, with full relative accuracy in both tails."""
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, e) / (1 + e)


def softplus(z: Floats) -> Floats:
    """``log(1 + exp(z))`` without overflow."""
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))
