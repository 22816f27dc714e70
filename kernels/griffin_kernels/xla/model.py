"""Griffin in JAX: the forward pass over packed documents, written for ``jit`` and ``grad``.

It takes the parameter tree of ``griffin_np.params`` (as JAX arrays) and computes whole sequences
with batched matrix products, one scan per recurrent block and attention in blocks of one window.
Nothing here calls the NumPy reference: the two are compared, not connected.

Shapes: B sequences, T tokens, D width, R lru_width, H heads, G = R / H, K conv width, W window.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from griffin_kernels.xla.scan_xla import SCANS
from griffin_np.config import RECURRENT, GriffinConfig

__all__ = [
    "apply_rope",
    "forward",
    "hidden",
    "local_attention",
    "rg_lru",
    "rope_tables",
    "sqrt_clipped",
]

RG_LRU_C = 8.0
MAX_SQRT_GRADIENT = 1000.0


def forward(
    params: dict,
    tokens: Array,
    positions: Array,
    config: GriffinConfig,
    *,
    scan: str = "sequential",
    remat: bool = False,
) -> Array:
    """Logits for every token of packed sequences.

    Parameters
    ----------
    params : dict
        Parameter tree; its dtype is the dtype of the computation, the recurrence is float32.
    tokens : Array of shape (B, T)
    positions : Array of shape (B, T)
        Position in the document; 0 starts one, and a row's tail of padding is -1.
    config : GriffinConfig
    scan : {"sequential", "associative"}
    remat : bool
        Recompute each block in the backward pass instead of keeping its intermediates.

    Returns
    -------
    Array of shape (B, T, V), float32
    """
    x = hidden(params, tokens, positions, config, scan=scan, remat=remat)
    logits = jnp.einsum("btd,vd->btv", x, params["embedding"]).astype(jnp.float32)
    cap = config.logits_soft_cap
    return cap * jnp.tanh(logits / cap) if cap else logits


def hidden(params, tokens, positions, config, *, scan="sequential", remat=False) -> Array:
    """Normalised output of the last block, (B, T, D); see :func:`forward`."""
    x = params["embedding"][tokens] * config.embedding_scale
    tables = rope_tables(config, tokens.shape[1])

    def block(x, p, kind):
        u = rms_norm(x, p["temporal_norm"], config.norm_eps)
        if kind == RECURRENT:
            x = x + recurrent_block(p["recurrent"], u, positions, scan)
        else:
            x = x + attention_block(p["attention"], u, positions, tables, config)
        return x + mlp(p["mlp"], rms_norm(x, p["mlp_norm"], config.norm_eps))

    for kind, p in zip(config.block_types, params["blocks"], strict=True):
        apply = partial(block, kind=kind)
        x = (jax.checkpoint(apply) if remat else apply)(x, p)
    return rms_norm(x, params["final_norm"], config.norm_eps)


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Root-mean-square normalisation times ``1 + scale``, statistics in float32."""
    mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(mean_square + eps)).astype(x.dtype) * (1 + scale)


def linear(p: dict, x: Array) -> Array:
    """``x @ weight + bias``, as one matrix product over all tokens (a batched one is slower)."""
    y = (x.reshape(-1, x.shape[-1]) @ p["weight"]).reshape(*x.shape[:-1], -1)
    return y + p["bias"] if "bias" in p else y


def mlp(p: dict, x: Array) -> Array:
    """Gated MLP (Griffin 2.2): GeLU on one of two branches."""
    return linear(
        p["down"], jax.nn.gelu(linear(p["gate"], x), approximate=True) * linear(p["up"], x)
    )


def recurrent_block(p: dict, x: Array, positions: Array, scan: str) -> Array:
    """Recurrent block (Griffin 2.3, figure 2c)."""
    y = jax.nn.gelu(linear(p["linear_y"], x), approximate=True)
    h = rg_lru(
        p["rg_lru"], causal_conv(p["conv"], linear(p["linear_x"], x), positions), positions, scan
    )
    return linear(p["linear_out"], y * h)


def causal_conv(p: dict, x: Array, positions: Array) -> Array:
    """Depthwise convolution over the current and the K - 1 previous tokens of the document."""
    taps = p["weight"][::-1]
    y = x * taps[0] + p["bias"]
    for s in range(1, taps.shape[0]):
        shifted = jnp.pad(x, ((0, 0), (s, 0), (0, 0)))[:, : x.shape[1]]
        y = y + jnp.where((positions >= s)[..., None], shifted, 0) * taps[s]
    return y


def rg_lru(p: dict, x: Array, positions: Array, scan: str = "sequential") -> Array:
    """RG-LRU, equations (1) to (4), from a zero state; (B, T, R) to (B, T, R)."""
    blocks = x.reshape(*x.shape[:-1], *p["b_a"].shape)

    def gate(w, b):
        z = jnp.einsum("bthi,hij->bthj", blocks, w) + b
        return jax.nn.sigmoid(z.astype(jnp.float32)).reshape(x.shape)

    r, i = gate(p["w_a"], p["b_a"]), gate(p["w_x"], p["b_x"])
    log_a = -RG_LRU_C * r * jax.nn.softplus(p["a_param"].astype(jnp.float32))
    starts = (positions == 0)[..., None]
    real = (positions >= 0)[..., None]
    # A document's first token forgets the state and enters with multiplier 1; padding keeps it.
    a = jnp.where(starts, 0.0, jnp.where(real, jnp.exp(log_a), 1.0))
    multiplier = jnp.where(starts, 1.0, sqrt_clipped(-jnp.expm1(2 * log_a)))
    gated = jnp.where(real, multiplier * i * x, 0.0)
    h0 = jnp.zeros((x.shape[0], x.shape[2]), jnp.float32)
    return SCANS[scan](a, gated, h0).astype(x.dtype)


@jax.custom_vjp
def sqrt_clipped(x: Array) -> Array:
    """Square root whose derivative is at most 1000 (RecurrentGemma report, section 2)."""
    return jnp.sqrt(x)


def _sqrt_forward(x):
    return jnp.sqrt(x), x


def _sqrt_backward(x, g):
    return (g * 0.5 / jnp.sqrt(jnp.maximum(x, 1 / (4 * MAX_SQRT_GRADIENT**2))),)


sqrt_clipped.defvjp(_sqrt_forward, _sqrt_backward)


def rope_tables(config: GriffinConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of positions below ``length``, (length, rotary_dim / 2), from float64."""
    half = config.rotary_dim // 2
    frequency = config.rope_base ** -(np.arange(half) / max(half, 1))
    angle = np.arange(length)[:, None] * frequency
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def apply_rope(x: Array, positions: Array, tables: tuple[np.ndarray, np.ndarray]) -> Array:
    """Rotate the leading channels of every head, first half against second half.

    x is (B, T, heads, head_dim); the channels after the rotated ones pass through.
    """
    cos, sin = (jnp.asarray(t, x.dtype)[jnp.maximum(positions, 0)][:, :, None] for t in tables)
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def attention_block(p: dict, x: Array, positions: Array, tables, config: GriffinConfig) -> Array:
    """Local multi-query attention (Griffin 2.3)."""
    B, T, _ = x.shape
    q = linear(p["query"], x).reshape(B, T, config.num_heads, config.head_dim)
    k = linear(p["key"], x).reshape(B, T, config.num_kv_heads, config.head_dim)
    v = linear(p["value"], x).reshape(B, T, config.num_kv_heads, config.head_dim)
    q, k = apply_rope(q, positions, tables), apply_rope(k, positions, tables)
    y = local_attention(q, k, v, positions, config.window)
    return linear(p["output"], y.reshape(B, T, -1))


def local_attention(q: Array, k: Array, v: Array, positions: Array, window: int) -> Array:
    """Each token attends to itself and up to ``window`` tokens of its document before it.

    Queries are cut into blocks of one window (or one sequence, where that is shorter), which see
    their own block and the one before: cost T * 2W instead of T * T.

    Parameters
    ----------
    q : Array of shape (B, T, H, head_dim)
    k, v : Array of shape (B, T, kv_heads, head_dim)
    positions : Array of shape (B, T)
    window : int

    Returns
    -------
    Array of shape (B, T, H, head_dim)
    """
    B, T, H, d = q.shape
    kv = k.shape[2]
    size = min(window, T)
    blocks = -(-T // size)
    pad = blocks * size - T

    def cut(z, fill=0):
        """(B, T, heads, ...) to (B, blocks, heads, size, ...)."""
        z = jnp.pad(z, ((0, 0), (0, pad), (0, 0), (0, 0)), constant_values=fill)
        return z.reshape(B, blocks, size, *z.shape[2:]).swapaxes(2, 3)

    def with_previous(z):
        previous = jnp.pad(z, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))[:, :-1]
        return jnp.concatenate([previous, z], axis=3).reshape(-1, 2 * size, d)

    # The query heads that share a key-value head are rows of one matrix product.
    queries = cut(q).reshape(-1, H // kv * size, d)
    keys, values = with_previous(cut(k)), with_previous(cut(v))
    scores = jnp.einsum("nqd,nkd->nqk", queries, keys) * d**-0.5

    # Tokens of a row are consecutive, so the column distance decides: not the future, not beyond
    # the window, not before the start of the document, which is `position` columns back. Padding
    # sees itself, so that no row is empty.
    distance = np.arange(size)[:, None] + size - np.arange(2 * size)[None]
    reach = jnp.clip(cut(positions[:, :, None, None], -1), 0, window)
    visible = jnp.where((distance >= 0) & (distance <= reach), 0.0, -jnp.inf)
    scores = scores.reshape(B, blocks, kv, H // kv, size, 2 * size).astype(jnp.float32)
    weights = jax.nn.softmax(scores + visible[:, :, :, None], axis=-1).astype(v.dtype)
    y = jnp.einsum("nqk,nkd->nqd", weights.reshape(-1, H // kv * size, 2 * size), values)
    return y.reshape(B, blocks, H, size, d).swapaxes(2, 3).reshape(B, -1, H, d)[:, :T]
