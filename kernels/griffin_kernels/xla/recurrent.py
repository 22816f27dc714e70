"""The recurrent block in JAX: convolution, gates, and the RG-LRU over a scan of ``scan_xla``.

Weights and activations may be bfloat16. Sums are taken in float32 and rounded once, and all of the
recurrence, from the gates to the state, is float32.

Rows are texts whose tokens stand on the left; ``positions`` (B, T) count within documents, 0 starts
one, and the tail of a row is padding, -1.

Shapes: B rows, T tokens, D width, R lru_width, H heads, G = R / H, K conv width.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

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
from griffin_kernels.xla.rg_lru_pallas import MAX_SQRT_GRADIENT, RG_LRU_C, fused_rg_lru
from griffin_kernels.xla.scan_xla import SCANS
from griffin_kernels.xla.sharding import (
    axis_size,
    by_hand,
    cut,
    from_owner,
    halo,
    mesh_shape,
    owner,
)

__all__ = ["causal_conv", "decay", "gate", "recurrent_block", "remember", "rg_lru", "sqrt_clipped"]


def recurrent_block(
    p: dict,
    x: Array,
    positions: Array,
    past: Layer | None = None,
    scan: str = "sequential",
    watch: Watch = no_watch,
) -> tuple[Array, Layer]:
    """Recurrent block (Griffin 2.3, figure 2c); ``past`` and what it returns: conv and rg_lru."""
    y = gelu(linear(p["linear_y"], x))
    z, after = remember(p, linear(p["linear_x"], x), positions, past, scan, watch)
    return linear(p["linear_out"], y * z), after


def remember(
    p: dict,
    x: Array,
    positions: Array,
    past: Layer | None,
    scan: str,
    watch: Watch = no_watch,
) -> tuple[Array, Layer]:
    """Convolution and RG-LRU over a text, on however many devices.

    Heads are cut along ``model``, tokens along ``sequence``. The recurrence is linear in the state
    that it starts from: each device runs its part of the text from 0, learns where the parts before
    it ended and how much of a state they leave, and runs its part again from the right state.
    What a device computes of its own part is not reported to ``watch``.

    Parameters
    ----------
    p : dict
        ``conv`` and ``rg_lru``.
    x : Array of shape (B, T, R)
    positions : Array of shape (B, T)
    past : dict, optional
        ``conv`` (B, K - 1, R) and ``rg_lru`` (B, R).

    Returns
    -------
    y : Array of shape (B, T, R)
    past : dict
    """
    B, T, R = x.shape
    p = {name: p[name] for name in ("conv", "rg_lru")}
    if not mesh_shape():
        return _remember(p, x, positions, past, scan, watch)

    H, parts = p["rg_lru"]["w_a"].shape[0], axis_size("sequence")
    rows, text, heads = cut("data", B), cut("sequence", T), cut("model", H)
    if past is None:
        back = p["conv"]["weight"].shape[0] - 1
        past = {"conv": jnp.zeros((B, back, R), x.dtype), "rg_lru": jnp.zeros((B, R), jnp.float32)}

    def part(p, x, positions, past):
        if not text:
            return _remember(p, x, positions, past, scan)
        conv = halo(x, past["conv"])
        alone = {"conv": conv, "rg_lru": jnp.zeros_like(past["rg_lru"])}
        _, end = _remember(p, x, positions, alone, scan)
        left = _share_left(p, x, positions, conv)
        ends, shares = (lax.all_gather(z, "sequence") for z in (end["rg_lru"], left))
        starts = [past["rg_lru"]]
        for i in range(parts - 1):
            # What is not finite is forgotten too.
            starts.append(jnp.where(shares[i] == 0, 0, shares[i] * starts[i]) + ends[i])
        h = jnp.stack(starts)[lax.axis_index("sequence")]
        y, after = _remember(p, x, positions, {"conv": conv, "rg_lru": h}, scan)
        return y, from_owner(after, owner(positions))

    weights = {
        "conv": {"weight": P(None, heads), "bias": P(heads)},
        "rg_lru": {name: P(heads) for name in p["rg_lru"]},
    }
    state = {"conv": P(rows, None, heads), "rg_lru": P(rows, heads)}
    inputs = P(rows, text, heads)
    run = by_hand(part, (weights, inputs, P(rows, text), state), (inputs, state))
    return run(p, x, positions, past)


def _remember(p, x, positions, past, scan, watch=no_watch):
    inputs, h = (past["conv"], past["rg_lru"]) if past is not None else (None, None)
    u, inputs = causal_conv(p["conv"], x, positions, inputs)
    watch("conv", u)
    y, h = rg_lru(p["rg_lru"], u, positions, h, scan, scoped(watch, "rg_lru"))
    return y, {"conv": inputs, "rg_lru": h}


def _share_left(p, x, positions, conv):
    """How much of the state before a text is left after it, (B, R): the product of all a."""
    u, _ = causal_conv(p["conv"], x, positions, conv)
    r = gate(u, p["rg_lru"]["w_a"], p["rg_lru"]["b_a"])
    log_a = -RG_LRU_C * r * jax.nn.softplus(p["rg_lru"]["a_param"].astype(jnp.float32))
    product = jnp.exp(jnp.sum(jnp.where((positions >= 0)[..., None], log_a, 0), axis=1))
    return jnp.where(jnp.any(positions == 0, axis=1)[:, None], 0, product)


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
    taps = p["weight"][::-1].astype(jnp.float32)
    back = taps.shape[0] - 1
    if past is None:
        past = jnp.zeros((B, back, R), x.dtype)
    inputs = jnp.concatenate([past, x], axis=1)
    y = x * taps[0] + p["bias"].astype(jnp.float32)
    for s in range(1, back + 1):
        shifted = inputs[:, back - s : back - s + T]
        y = y + jnp.where((positions >= s)[..., None], shifted, 0) * taps[s]

    kept = jnp.arange(back)  # the last of them is the row's last token
    index = real_tokens(positions)[:, None] + kept
    inside = back - 1 - kept <= last_positions(positions)[:, None]
    after = inputs[jnp.arange(B)[:, None], index]
    return y.astype(x.dtype), jnp.where(inside[..., None], after, 0)


def gate(x: Array, w: Array, b: Array) -> Array:
    """Equation (1) or (2), float32: x (..., R), one (G, G) block of w (H, G, G) for each head."""
    return jax.nn.sigmoid(preactivation(x, w, b))


def preactivation(x: Array, w: Array, b: Array) -> Array:
    """What the sigmoid of :func:`gate` is taken of, (..., R), float32."""
    # XLA has no batched product of bfloat16 with a float32 result on CPUs. Of numbers that were
    # bfloat16, a product of float32 loses nothing at the precision that costs least elsewhere.
    precision = lax.Precision.DEFAULT if x.dtype == jnp.bfloat16 else None
    x, w, b = (z.astype(jnp.float32) for z in (x, w, b))
    heads = x.reshape(*x.shape[:-1], *b.shape)
    z = jnp.einsum("...hi,hij->...hj", heads, w, precision=precision) + b
    return z.reshape(x.shape)


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
    scan : {"sequential", "associative", "pallas"}
        The last computes the gates' nonlinearities in the same kernel (``rg_lru_pallas``).

    Returns
    -------
    y : Array of shape (B, T, R)
        The state after every token, in the dtype of ``x``.
    h : Array of shape (B, R), float32
        The state after each row's last token.
    """
    if h is None:
        h = jnp.zeros((x.shape[0], x.shape[2]), jnp.float32)
    z_r, z_i = preactivation(x, p["w_a"], p["b_a"]), preactivation(x, p["w_x"], p["b_x"])
    if x.shape[1] == 1:
        scan = "sequential"  # one step has nothing to scan
    fused = scan == "pallas"
    starts, real = positions == 0, (positions >= 0)[..., None]
    if not fused or watch is not no_watch:
        r, i = jax.nn.sigmoid(z_r), jax.nn.sigmoid(z_i)
        a, multiplier = decay(r, p["a_param"])
        # A document's first token forgets the state and enters with multiplier 1; padding keeps it.
        a = jnp.where(starts[..., None], 0.0, jnp.where(real, a, 1.0))
    if fused:
        y, last = fused_rg_lru(z_r, z_i, x, p["a_param"], positions, h)
    else:
        multiplier = jnp.where(starts[..., None], 1.0, multiplier)
        y, last = SCANS[scan](a, jnp.where(real, multiplier * i * x, 0.0), h, starts)
    if watch is not no_watch:
        for name, array in (("r", r), ("i", i), ("a", a), ("h", y)):
            watch(name, array)
    return y.astype(x.dtype), last


@jax.custom_vjp
def sqrt_clipped(x: Array) -> Array:
    """Square root whose derivative is at most 1000 (RecurrentGemma report, section 2)."""
    return jnp.sqrt(x)


def _sqrt_forward(x):
    return jnp.sqrt(x), x


def _sqrt_backward(x, g):
    return (g * 0.5 / jnp.sqrt(jnp.maximum(x, 1 / (4 * MAX_SQRT_GRADIENT**2))),)


sqrt_clipped.defvjp(_sqrt_forward, _sqrt_backward)
