"""The recurrent block in JAX: convolution, gates, and the RG-LRU over a scan of ``scan_xla``.

Rows are texts whose tokens stand on the left; ``positions`` (B, T) count within documents, 0 starts
one, and the tail of a row is padding, -1.

Shapes: B rows, T tokens, D width, R lru_width, H heads, G = R / H, K conv width.
"""

import jax
import jax.numpy as jnp
from jax import Array

from griffin_kernels.xla.layers import (
    Layer,
    Watch,
    gelu,
    last_positions,
    linear,
    no_watch,
    real_tokens,
    scoped,
)
from griffin_kernels.xla.scan_xla import SCANS

__all__ = ["causal_conv", "decay", "gate", "recurrent_block", "rg_lru", "sqrt_clipped"]

RG_LRU_C = 8.0
MAX_SQRT_GRADIENT = 1000.0


def recurrent_block(
    p: dict,
    x: Array,
    positions: Array,
    past: Layer | None = None,
    scan: str = "sequential",
    watch: Watch = no_watch,
) -> tuple[Array, Layer]:
    """Recurrent block (Griffin 2.3, figure 2c); ``past`` and what it returns: conv and rg_lru."""
    inputs, h = (past["conv"], past["rg_lru"]) if past is not None else (None, None)
    y = gelu(linear(p["linear_y"], x))
    u, inputs = causal_conv(p["conv"], linear(p["linear_x"], x), positions, inputs)
    watch("conv", u)
    z, h = rg_lru(p["rg_lru"], u, positions, h, scan, scoped(watch, "rg_lru"))
    return linear(p["linear_out"], y * z), {"conv": inputs, "rg_lru": h}


def causal_conv(
    p: dict, x: Array, positions: Array, past: Array | None = None
) -> tuple[Array, Array]:
    """Depthwise convolution over the current and the K - 1 previous tokens of the document.

    Parameters
    ----------
    p : dict
        ``weight`` (K, R), whose last row meets the current token, and ``bias`` (R,).
    x : Array of shape (B, T, R)
    positions : Array of shape (B, T)
    past : Array of shape (B, K - 1, R), optional
        The inputs before the first of ``x``, oldest first.

    Returns
    -------
    y : Array of shape (B, T, R)
    past : Array of shape (B, K - 1, R)
        The inputs before the token after each row's last; 0 before its document's start.
    """
    B, T, R = x.shape
    taps = p["weight"][::-1]
    back = taps.shape[0] - 1
    if past is None:
        past = jnp.zeros((B, back, R), x.dtype)
    inputs = jnp.concatenate([past, x], axis=1)
    y = x * taps[0] + p["bias"]
    for s in range(1, back + 1):
        shifted = inputs[:, back - s : back - s + T]
        y = y + jnp.where((positions >= s)[..., None], shifted, 0) * taps[s]

    kept = jnp.arange(back)  # the last of them is the row's last token
    index = real_tokens(positions)[:, None] + kept
    inside = back - 1 - kept <= last_positions(positions)[:, None]
    after = inputs[jnp.arange(B)[:, None], index]
    return y, jnp.where(inside[..., None], after, 0)


def gate(x: Array, w: Array, b: Array) -> Array:
    """Equation (1) or (2), float32: x (..., R), one (G, G) block of w (H, G, G) for each head."""
    z = jnp.einsum("...hi,hij->...hj", x.reshape(*x.shape[:-1], *b.shape), w) + b
    return jax.nn.sigmoid(z.astype(jnp.float32)).reshape(x.shape)


def decay(r: Array, a_param: Array) -> tuple[Array, Array]:
    """Equation (3) and the multiplier of (4): ``a`` and ``sqrt(1 - a^2)``, float32, (..., R).

    ``-expm1(2 log a)`` keeps the digits that ``1 - a^2`` loses where a is close to 1.
    """
    log_a = -RG_LRU_C * r * jax.nn.softplus(a_param.astype(jnp.float32))
    return jnp.exp(log_a), sqrt_clipped(-jnp.expm1(2 * log_a))


def rg_lru(
    p: dict,
    x: Array,
    positions: Array,
    h: Array | None = None,
    scan: str = "sequential",
    watch: Watch = no_watch,
) -> tuple[Array, Array]:
    """RG-LRU, equations (1) to (4).

    Parameters
    ----------
    p : dict
        ``w_a``, ``w_x`` (H, G, G), ``b_a``, ``b_x`` (H, G), ``a_param`` (R,).
    x : Array of shape (B, T, R)
    positions : Array of shape (B, T)
    h : Array of shape (B, R), float32, optional
        State before the first token.
    scan : {"sequential", "associative"}

    Returns
    -------
    y : Array of shape (B, T, R)
        The state after every token, in the dtype of ``x``.
    h : Array of shape (B, R), float32
        The state after each row's last token.
    """
    r, i = gate(x, p["w_a"], p["b_a"]), gate(x, p["w_x"], p["b_x"])
    a, multiplier = decay(r, p["a_param"])
    starts = (positions == 0)[..., None]
    real = (positions >= 0)[..., None]
    # A document's first token forgets the state and enters with multiplier 1; padding keeps it.
    a = jnp.where(starts, 0.0, jnp.where(real, a, 1.0))
    gated = jnp.where(real, jnp.where(starts, 1.0, multiplier) * i * x, 0.0)
    if h is None:
        h = jnp.zeros((x.shape[0], x.shape[2]), jnp.float32)
    else:
        h = jnp.where(starts[:, 0], 0.0, h)  # 0 * h would not forget what is not finite
    states = SCANS[scan](a, gated, h)
    for name, array in (("r", r), ("i", i), ("a", a), ("h", states)):
        watch(name, array)
    return states.astype(x.dtype), states[:, -1]


@jax.custom_vjp
def sqrt_clipped(x: Array) -> Array:
    """Square root whose derivative is at most 1000 (RecurrentGemma report, section 2)."""
    return jnp.sqrt(x)


def _sqrt_forward(x):
    return jnp.sqrt(x), x


def _sqrt_backward(x, g):
    return (g * 0.5 / jnp.sqrt(jnp.maximum(x, 1 / (4 * MAX_SQRT_GRADIENT**2))),)


sqrt_clipped.defvjp(_sqrt_forward, _sqrt_backward)
