"""Local attention in JAX: in blocks of one window over a text, against the ring in a step.

Rows are texts whose tokens stand on the left; ``positions`` (B, T) count within documents, 0 starts
one, and the tail of a row is padding, -1.

Shapes: B rows, T tokens, H heads, Q key-value heads, d channels of a head, W window.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P

from griffin_kernels.xla.layers import (
    Layer,
    Watch,
    last_positions,
    linear,
    no_watch,
    real_tokens,
)
from griffin_kernels.xla.rope import apply_rope
from griffin_kernels.xla.sharding import by_hand, cut, from_owner, halo, mesh_shape, owner
from griffin_np.config import GriffinConfig

__all__ = [
    "attend",
    "attention_block",
    "attention_step",
    "chronological",
    "local_attention",
    "ring_after",
]


def attention_block(
    p: dict,
    x: Array,
    positions: Array,
    turn: tuple[Array, Array],
    config: GriffinConfig,
    past: Layer | None = None,
    watch: Watch = no_watch,
    step: bool = False,
) -> tuple[Array, Layer]:
    """Local multi-query attention (Griffin 2.3); ``past`` and what it returns: rings of W keys and
    values, where position p stands in slot ``p mod W``. ``step``: see :func:`attention_step`.
    """
    B, T, _ = x.shape
    q = linear(p["query"], x).reshape(B, T, config.num_heads, config.head_dim)
    k = linear(p["key"], x).reshape(B, T, config.num_kv_heads, config.head_dim)
    v = linear(p["value"], x).reshape(B, T, config.num_kv_heads, config.head_dim)
    q, k = apply_rope(q, turn), apply_rope(k, turn)
    if step:
        assert past is not None
        y, after = attention_step(q, k, v, positions, past, watch)
    else:
        y, after = attend(q, k, v, positions, past, config.window, watch)
    return linear(p["output"], y.reshape(B, T, -1)), after


def attend(
    q: Array,
    k: Array,
    v: Array,
    positions: Array,
    past: Layer | None,
    window: int,
    watch: Watch = no_watch,
) -> tuple[Array, Layer]:
    """Attention over a text of any length, on however many devices.

    Heads are cut along ``model``, tokens along ``sequence``: there, each device fetches the window
    before its part. A device's own share of that is not reported to ``watch``.

    Parameters
    ----------
    q : Array of shape (B, T, H, d)
    k, v : Array of shape (B, T, Q, d)
    positions : Array of shape (B, T)
    past : dict, optional
        Rings (B, W, Q, d) before the text.
    window : int

    Returns
    -------
    y : Array of shape (B, T, H, d)
    past : dict
        Rings after the text.
    """
    B, T, H, _ = q.shape
    Q = k.shape[2]
    earlier = None
    if past is not None:
        earlier = {name: chronological(z, positions[:, 0]) for name, z in past.items()}
    if not mesh_shape():
        return _attend(q, k, v, positions, earlier, window, watch)

    rows, text = cut("data", B), cut("sequence", T)
    shared = Q == 1 or cut("model", Q)
    heads = cut("model", H) if shared else None
    if text and earlier is None:
        empty = jnp.zeros((B, window, *k.shape[2:]), k.dtype)
        earlier = {"keys": empty, "values": empty}

    def part(q, k, v, positions, earlier):
        if not text:
            return _attend(q, k, v, positions, earlier, window)
        before = {"keys": halo(k, earlier["keys"]), "values": halo(v, earlier["values"])}
        y, after = _attend(q, k, v, positions, before, window)
        return y, from_owner(after, owner(positions))

    queries, keys = P(rows, text, heads), P(rows, text, heads if Q > 1 else None)
    ring = P(rows, None, heads if Q > 1 else None)
    run = by_hand(part, (queries, keys, keys, P(rows, text), ring), (queries, ring))
    return run(q, k, v, positions, earlier)


def _attend(q, k, v, positions, earlier, window, watch=no_watch):
    """With the W keys and values before the text, oldest first, if there are any."""
    new, before = {"keys": k, "values": v}, None
    if earlier is not None:
        before = (earlier["keys"], earlier["values"])
        new = {name: jnp.concatenate([earlier[name], z], axis=1) for name, z in new.items()}
    y = local_attention(q, k, v, positions, window, before, watch)
    return y, {name: ring_after(z, positions, window) for name, z in new.items()}


def attention_step(
    q: Array, k: Array, v: Array, positions: Array, ring: Layer, watch: Watch = no_watch
) -> tuple[Array, Layer]:
    """One token of each row against the ring as it stands, which gains one entry.

    Nothing is put into order and a donated ring is changed in place: a step reads what it attends
    to and writes one slot. Padding (position -1) changes nothing. No row may start a document:
    its ring would have to be cleared, and a program that can do that copies all rings.

    Parameters
    ----------
    q : Array of shape (B, 1, H, d)
    k, v : Array of shape (B, 1, Q, d)
    positions : Array of shape (B, 1)
    ring : dict
        ``keys`` and ``values`` (B, W, Q, d).

    Returns
    -------
    y : Array of shape (B, 1, H, d)
    ring : dict
    """
    B, _, H, d = q.shape
    W, Q = ring["keys"].shape[1:3]
    rows, position = jnp.arange(B), positions[:, 0]
    distance = (position[:, None] - 1 - jnp.arange(W)) % W + 1  # of what stands in a slot, 1 to W
    visible = (distance <= position[:, None])[:, None, None]
    queries = q.reshape(B, Q, H // Q, d)
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    before = jnp.where(visible, dot("bqrd,bwqd->bqrw", queries, ring["keys"]), -jnp.inf)
    own = dot("bqrd,bqd->bqr", queries, k[:, 0])[..., None]
    scores = jnp.concatenate([before, own], axis=-1) * d**-0.5
    weights, total = exponentials(scores, v.dtype)
    if watch is not no_watch:
        shown = weights.astype(jnp.float32) / total
        back = jnp.arange(1, W + 1)
        slots = jnp.broadcast_to(((position[:, None] - back) % W)[:, None, None], before.shape)
        found = jnp.take_along_axis(shown, slots, axis=-1)
        found = jnp.concatenate([shown[..., W:], found], axis=-1)
        watch("weights", found.reshape(B, 1, H, W + 1))
    # What is outside the document has weight 0, but may be anything in a state from elsewhere.
    old = jnp.where(visible[:, 0, 0, :, None, None], ring["values"], 0)
    y = dot("bqrw,bwqd->bqrd", weights[..., :W], old)
    y = y + weights[..., W:].astype(jnp.float32) * v[:, 0, :, None].astype(jnp.float32)
    y = y / total

    slot = jnp.where(position >= 0, position % W, W)  # W is no slot: nothing is written

    def write(z, new):
        return z.at[rows, slot].set(new[:, 0], mode="drop")

    after = {"keys": write(ring["keys"], k), "values": write(ring["values"], v)}
    return y.astype(q.dtype).reshape(B, 1, H, d), after


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

    def in_blocks(z, fill=0):
        """(B, T, heads, ...) to (B, blocks, heads, size, ...)."""
        z = jnp.pad(z, ((0, 0), (0, pad), (0, 0), (0, 0)), constant_values=fill)
        return z.reshape(B, blocks, size, *z.shape[2:]).swapaxes(2, 3)

    def with_previous(z, first):
        own, previous = in_blocks(z), first.swapaxes(1, 2)[:, None]
        if blocks > 1:
            previous = jnp.concatenate([previous, own[:, :-1]], axis=1)
        return jnp.concatenate([previous, own], axis=3).reshape(-1, before + size, d)

    # The query heads that share a key-value head are rows of one matrix product.
    queries = in_blocks(q).reshape(-1, H // Q * size, d)
    keys, values = with_previous(k, past[0]), with_previous(v, past[1])
    scores = jnp.einsum("nqd,nkd->nqk", queries, keys, preferred_element_type=jnp.float32)

    # Tokens of a row are consecutive, so the column distance decides: not the future, not beyond
    # the window, not before the start of the document, which is `position` columns back. Padding
    # sees itself, so that no row is empty.
    distance = np.arange(size)[:, None] + before - np.arange(before + size)[None]
    reach = jnp.clip(in_blocks(positions[:, :, None, None], -1), 0, window)
    visible = ((distance >= 0) & (distance <= reach))[:, :, :, None]
    scores = scores.reshape(B, blocks, Q, H // Q, size, before + size) * d**-0.5
    weights, total = exponentials(jnp.where(visible, scores, -jnp.inf), v.dtype)
    if watch is not no_watch:
        watch("weights", by_distance(weights.astype(jnp.float32) / total, window)[:, :T])
    weights = weights.reshape(-1, H // Q * size, before + size)
    y = jnp.einsum("nqk,nkd->nqd", weights, values, preferred_element_type=jnp.float32)
    y = (y / total.reshape(-1, H // Q * size, 1)).astype(q.dtype)
    return y.reshape(B, blocks, H, size, d).swapaxes(2, 3).reshape(B, -1, H, d)[:, :T]


def exponentials(scores: Array, dtype) -> tuple[Array, Array]:
    """Weights before they are divided by their sum, and that sum, float32.

    Weights that are rounded and then divided by the sum of what they have become still sum to 1.
    So the rounding of bfloat16 weights takes nothing from a value that all keys share.
    """
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - top).astype(dtype)
    return weights, jnp.sum(weights.astype(jnp.float32), axis=-1, keepdims=True)


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
