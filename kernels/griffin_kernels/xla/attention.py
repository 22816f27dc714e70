"""Local attention in JAX: rotary positions, attention in blocks of one window, and the ring.

Rows are texts whose tokens stand on the left; ``positions`` (B, T) count within documents, 0 starts
one, and the tail of a row is padding, -1.

Shapes: B rows, T tokens, H heads, Q key-value heads, d channels of a head, W window.
"""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from griffin_kernels.xla.layers import (
    Layer,
    Watch,
    last_positions,
    linear,
    no_watch,
    real_tokens,
)
from griffin_np.config import GriffinConfig
from griffin_np.inputs import POSITION_LIMIT

__all__ = [
    "apply_rope",
    "attention_block",
    "chronological",
    "local_attention",
    "ring_after",
    "rotation",
]

ROPE_DIGITS = (1, 2**11, 2**22)
"""Units of a position's digits; each digit is below 2^11."""


def rotation(
    positions: Array, base: float, rotary_dim: int, limit: int = POSITION_LIMIT
) -> tuple[Array, Array]:
    """Cosine and sine by which every token's channels are turned.

    Angles are exact to 1e-6 rad: a float32 product of position and frequency would be off by whole
    turns. Positions are split into digits of 11 bits, cosines and sines of each digit's angle come
    from tables made in float64, and the formulas for the sum of two angles join them.

    Parameters
    ----------
    positions : Array of shape (B, T), int32
    base : float
    rotary_dim : int
    limit : int
        No position reaches it; below 2^11 one table is enough.

    Returns
    -------
    cos, sin : Array of shape (B, T, rotary_dim / 2), float32
    """
    half = rotary_dim // 2
    frequency = float(base) ** -(np.arange(half) / max(half, 1))
    positions = jnp.maximum(positions, 0)

    def turn(unit):
        count = min(ROPE_DIGITS[1], -(-limit // unit))
        angle = (np.arange(count) * unit)[:, None] * frequency
        digit = positions // unit % ROPE_DIGITS[1]
        return tuple(jnp.asarray(f(angle), jnp.float32)[digit] for f in (np.cos, np.sin))

    def add(a, b):
        return a[0] * b[0] - a[1] * b[1], a[1] * b[0] + a[0] * b[1]

    units = [unit for unit in ROPE_DIGITS if unit < limit] or [1]
    return reduce(add, map(turn, units))


def apply_rope(x: Array, turn: tuple[Array, Array]) -> Array:
    """Rotate the leading channels of every head, first half against second half.

    Parameters
    ----------
    x : Array of shape (B, T, heads, d)
    turn : pair of Array of shape (B, T, rotary_dim / 2)
        From :func:`rotation`. The channels after the rotated ones pass through.
    """
    cos, sin = (part.astype(x.dtype)[:, :, None] for part in turn)
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def attention_block(
    p: dict,
    x: Array,
    positions: Array,
    turn: tuple[Array, Array],
    config: GriffinConfig,
    past: Layer | None = None,
    watch: Watch = no_watch,
) -> tuple[Array, Layer]:
    """Local multi-query attention (Griffin 2.3); ``past`` and what it returns: rings of W keys and
    values, where position p stands in slot ``p mod W``.
    """
    B, T, _ = x.shape
    q = linear(p["query"], x).reshape(B, T, config.num_heads, config.head_dim)
    k = linear(p["key"], x).reshape(B, T, config.num_kv_heads, config.head_dim)
    v = linear(p["value"], x).reshape(B, T, config.num_kv_heads, config.head_dim)
    q, k = apply_rope(q, turn), apply_rope(k, turn)
    new, earlier = {"keys": k, "values": v}, None
    if past is not None:
        old = {name: chronological(ring, positions[:, 0]) for name, ring in past.items()}
        earlier = (old["keys"], old["values"])
        new = {name: jnp.concatenate([old[name], z], axis=1) for name, z in new.items()}
    y = local_attention(q, k, v, positions, config.window, earlier, watch)
    after = {name: ring_after(z, positions, config.window) for name, z in new.items()}
    return linear(p["output"], y.reshape(B, T, -1)), after


def local_attention(
    q: Array,
    k: Array,
    v: Array,
    positions: Array,
    window: int,
    past: tuple[Array, Array] | None = None,
    watch: Watch = no_watch,
) -> Array:
    """Each token attends to itself and up to ``window`` tokens of its document before it.

    Queries are cut into blocks of one window, which see their own block and the one before: cost
    T * 2W instead of T * T. A text shorter than a window is a single block.

    Parameters
    ----------
    q : Array of shape (B, T, H, d)
    k, v : Array of shape (B, T, Q, d)
    positions : Array of shape (B, T)
    window : int
    past : pair of Array of shape (B, W, Q, d), optional
        Keys and values of the tokens before the first, oldest first; see :func:`chronological`.
        Without them every row begins with a document.

    Returns
    -------
    Array of shape (B, T, H, d)
    """
    B, T, H, d = q.shape
    Q = k.shape[2]
    size = min(window, T)
    blocks = -(-T // size)
    pad = blocks * size - T
    # Padding may hold anything, and no weight of 0 takes away an infinite value.
    v = jnp.where((positions >= 0)[..., None, None], v, 0)
    if past is None:
        past = (jnp.zeros((B, size, Q, d), k.dtype),) * 2
    before = past[0].shape[1]  # a window, or a block where there is only one

    def cut(z, fill=0):
        """(B, T, heads, ...) to (B, blocks, heads, size, ...)."""
        z = jnp.pad(z, ((0, 0), (0, pad), (0, 0), (0, 0)), constant_values=fill)
        return z.reshape(B, blocks, size, *z.shape[2:]).swapaxes(2, 3)

    def with_previous(z, first):
        own, previous = cut(z), first.swapaxes(1, 2)[:, None]
        if blocks > 1:
            previous = jnp.concatenate([previous, own[:, :-1]], axis=1)
        return jnp.concatenate([previous, own], axis=3).reshape(-1, before + size, d)

    # The query heads that share a key-value head are rows of one matrix product.
    queries = cut(q).reshape(-1, H // Q * size, d)
    keys, values = with_previous(k, past[0]), with_previous(v, past[1])
    scores = jnp.einsum("nqd,nkd->nqk", queries, keys) * d**-0.5

    # Tokens of a row are consecutive, so the column distance decides: not the future, not beyond
    # the window, not before the start of the document, which is `position` columns back. Padding
    # sees itself, so that no row is empty.
    distance = np.arange(size)[:, None] + before - np.arange(before + size)[None]
    reach = jnp.clip(cut(positions[:, :, None, None], -1), 0, window)
    visible = ((distance >= 0) & (distance <= reach))[:, :, :, None]
    scores = scores.reshape(B, blocks, Q, H // Q, size, before + size).astype(jnp.float32)
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1).astype(v.dtype)
    if watch is not no_watch:
        watch("weights", by_distance(weights, window)[:, :T])
    y = jnp.einsum("nqk,nkd->nqd", weights.reshape(-1, H // Q * size, before + size), values)
    return y.reshape(B, blocks, H, size, d).swapaxes(2, 3).reshape(B, -1, H, d)[:, :T]


def by_distance(weights: Array, window: int) -> Array:
    """Weights by key as weights by distance, (B, T, H, W + 1): entry j is j tokens back.

    ``weights`` is (B, blocks, Q, H / Q, size, before + size); what is further back than its keys
    has weight 0.
    """
    B, blocks, Q, r, size, keys = weights.shape
    missing = window - (keys - size)  # 0 where there is a whole window of keys before the block
    weights = jnp.pad(weights, ((0, 0),) * 5 + ((missing, 0),))
    column = window + np.arange(size)[:, None] - np.arange(window + 1)
    found = weights[..., np.arange(size)[:, None], column]
    found = found.reshape(B, blocks, Q * r, size, window + 1).swapaxes(2, 3)
    return found.reshape(B, blocks * size, Q * r, window + 1)


def chronological(ring: Array, start: Array) -> Array:
    """The W entries of a ring before position ``start``, oldest first.

    Parameters
    ----------
    ring : Array of shape (B, W, Q, d)
        Keys or values; position p stands in slot ``p mod W``.
    start : Array of shape (B,)
        Position of each row's next token.

    Returns
    -------
    Array of shape (B, W, Q, d)
        0 for what lies before the document, whatever the ring holds there.
    """
    B, W = ring.shape[:2]
    j, start = jnp.arange(W), start[:, None]
    entries = ring[jnp.arange(B)[:, None], (start % W + j) % W]  # start + j may not fit int32
    return jnp.where((j >= W - start)[..., None, None], entries, 0)


def ring_after(entries: Array, positions: Array, window: int) -> Array:
    """The ring after the last token of each row.

    Parameters
    ----------
    entries : Array of shape (B, P + T, Q, d)
        Keys or values of P earlier tokens, if there are any, and those of the row, padding last.
    positions : Array of shape (B, T)
    window : int

    Returns
    -------
    Array of shape (B, W, Q, d)
        Inverse of :func:`chronological`; slots outside the last token's document are 0.
    """
    count, last = real_tokens(positions), last_positions(positions)
    back = (last[:, None] - jnp.arange(window)) % window  # a slot's distance from the last token
    newest = entries.shape[1] - positions.shape[1] + count - 1
    index = jnp.maximum(newest[:, None] - back, 0)
    found = entries[jnp.arange(len(entries))[:, None], index]
    return jnp.where((back <= last[:, None])[..., None, None], found, 0)
