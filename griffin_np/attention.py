"""Local multi-query attention with rotary positions: Griffin (De et al. 2024), section 2.3.

A token attends to itself and to the W tokens before it in its document, W + 1 keys in all, as in
the code that trained the released weights. Heads share one key-value head (or a few). One row at a
time: shapes have no batch.
"""

import math

import numpy as np

from griffin_np.config import GriffinConfig
from griffin_np.layers import linear
from griffin_np.notation import Floats, Heads, KeyValues, Positions, Ring, Stream, Trace, no_trace

__all__ = ["attention_block", "local_attention", "rope", "softmax"]

# Queries that attend in one go. It bounds memory, and nothing else: scores take
# H * QUERY_BLOCK * (W + QUERY_BLOCK) numbers however long the text is.
QUERY_BLOCK = 256


def rope(x: Heads, positions: Positions, base: float, rotary_dim: int) -> Heads:
    """Rotary position embedding on the first ``rotary_dim`` channels of each head.

    Channel j of the first half and channel j of the second are one pair, turned by
    ``p * base^(-2j / rotary_dim)`` radians. The angle is a float64, exact to 1e-6 rad for any
    position below 2^31.
    """
    half = rotary_dim // 2
    frequency = float(base) ** (-np.arange(half) / max(half, 1))  # (rotary_dim / 2,)
    angle = positions[:, None, None] * frequency  # (T, 1, rotary_dim / 2)
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    first, second, rest = np.split(x, [half, 2 * half], axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def softmax(z: Floats) -> Floats:
    """Softmax over the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def local_attention(
    q: Heads,
    k: Floats,
    v: Floats,
    positions: Positions,
    window: int,
    trace: Trace = no_trace,
) -> Heads:
    """Attention of each token over itself and up to ``window`` tokens before it.

    The tokens of a row follow each other without gaps, so distance in the row is distance in the
    text: token t sees a token j steps back if ``0 <= j <= min(window, positions[t])``. The second
    bound is the start of its document.

    Parameters
    ----------
    q : array of shape (T, H, d)
    k, v : array of shape (past + T, Q, d)
        Those of earlier tokens first, as many as are kept.
    positions : array of shape (T,)
    window : int

    Returns
    -------
    array of shape (T, H, d)
    """
    T, H, d = q.shape
    past, Q = len(k) - T, k.shape[1]
    y = np.empty_like(q)
    for start in range(0, T, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, T)
        first = max(past + start - window, 0)
        keys, values = k[first : past + stop], v[first : past + stop]
        # H query heads in Q groups of r; each group shares one key-value head.
        queries = q[start:stop].reshape(stop - start, Q, H // Q, d).transpose(1, 2, 0, 3)
        scores = queries @ keys.transpose(1, 2, 0)[:, None] / math.sqrt(d)  # (Q, r, t, s)
        query_at = np.arange(past + start, past + stop)[:, None]
        back = query_at - np.arange(first, past + stop)  # (t, s): how many tokens back a key is
        visible = (back >= 0) & (back <= np.minimum(window, positions[start:stop])[:, None])
        weights = softmax(np.where(visible, scores, -np.inf))
        if trace is not no_trace:
            trace("weights", by_distance(weights.reshape(H, *back.shape), back, window))
        mixed = weights @ values.swapaxes(0, 1)[:, None]  # (Q, r, t, d)
        y[start:stop] = mixed.transpose(2, 0, 1, 3).reshape(stop - start, H, d)
    return y


def by_distance(weights: Floats, back: Floats, window: int) -> Floats:
    """Weights by key (H, T, S) as weights by distance (T, H, W + 1): entry j is j tokens back."""
    result = np.zeros((weights.shape[1], weights.shape[0], window + 1), weights.dtype)
    t, s = np.nonzero((back >= 0) & (back <= window))
    result[t, :, back[t, s]] = weights[:, t, s].T
    return result


def attention_block(
    p: dict,
    x: Stream,
    positions: Positions,
    keys: Ring,
    values: Ring,
    seen: int,
    config: GriffinConfig,
    trace: Trace = no_trace,
) -> tuple[Stream, Ring, Ring]:
    """Local attention block (Griffin 2.3).

    Parameters
    ----------
    p : dict
        ``query``, ``key``, ``value`` (no bias) and ``output``.
    x : array of shape (T, D)
    positions : array of shape (T,)
    keys, values : array of shape (W, Q, d)
        Rings of the last W positions, keys after rotation; position p stands in slot ``p mod W``.
    seen : int
        Tokens of the current document before the first of ``x``.
    config : GriffinConfig

    Returns
    -------
    y : array of shape (T, D)
    keys, values : array of shape (W, Q, d)
        The rings after the last token; slots outside its document are zero.
    """
    T, d = len(x), config.head_dim
    q = linear(p["query"], x).reshape(T, config.num_heads, d)
    k = linear(p["key"], x).reshape(T, config.num_kv_heads, d)
    v = linear(p["value"], x).reshape(T, config.num_kv_heads, d)
    q = rope(q, positions, config.rope_base, config.rotary_dim)
    k = rope(k, positions, config.rope_base, config.rotary_dim)

    all_keys = np.concatenate([unroll(keys, seen), k])
    all_values = np.concatenate([unroll(values, seen), v])
    y = local_attention(q, all_keys, all_values, positions, config.window, trace)
    seen = int(positions[-1]) + 1 if T else seen
    output = linear(p["output"], y.reshape(T, -1))
    return output, roll(all_keys, seen, config.window), roll(all_values, seen, config.window)


def unroll(ring: Ring, seen: int) -> KeyValues:
    """The last ``min(seen, W)`` entries of a ring, oldest first."""
    W = len(ring)
    return ring[np.arange(max(seen - W, 0), seen) % W]


def roll(entries: KeyValues, seen: int, window: int) -> Ring:
    """Inverse of :func:`unroll`: a ring with the last ``min(seen, W)`` of ``entries``."""
    ring = np.zeros((window, *entries.shape[1:]), entries.dtype)
    kept = np.arange(max(seen - window, 0), seen)
    ring[kept % window] = entries[len(entries) - len(kept) :]
    return ring
