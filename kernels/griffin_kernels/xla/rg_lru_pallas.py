"""RG-LRU as one Pallas kernel: gates' nonlinearities, decay, and the recurrence in a single pass.

On its own the scan reads ``a`` and ``x`` that other programs have just written. Here they are made
in VMEM, from what the gates' matrix products and the convolution yield, and no array of
intermediate results exists in memory: 3 arrays are read and 1 is written (Griffin, appendix D). The
backward pass recomputes them, and keeps nothing but the inputs and the output.

Shapes: B rows, T tokens, R lru_width.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from griffin_kernels.xla.blocks_pallas import (
    START,
    Blocks,
    Grid,
    Interpret,
    backward_pass,
    choose_blocks,
    forward_pass,
    step_decay,
)

__all__ = ["fused_rg_lru"]

RG_LRU_C = 8.0
MAX_SQRT_GRADIENT = 1000.0

NEAR = -0.35
"""Logarithm of a decay above which ``1 - a^2`` is computed from a series: a > 0.7, a^2 > 1/2."""


def fused_rg_lru(
    z_r: Array,
    z_i: Array,
    u: Array,
    a_param: Array,
    positions: Array,
    h0: Array,
    *,
    block: Blocks | None = None,
    interpret: Interpret = None,
) -> tuple[Array, Array]:
    """Equations (1) to (4) of Griffin after the gates' matrix products, differentiable.

    Parameters
    ----------
    z_r, z_i : Array of shape (B, T, R), float32 or bfloat16
        Pre-activations of the recurrence gate (1) and of the input gate (2).
    u : Array of shape (B, T, R), float32 or bfloat16
        Input of the RG-LRU.
    a_param : Array of shape (R,)
    positions : Array of shape (B, T), integers
        0 starts a document: the state is forgotten, and the multiplier is 1. -1 is padding,
        anywhere: nothing there is read, and the state stays. Both hold for values that are not
        finite as well.
    h0 : Array of shape (B, R), float32
        State before the first step.
    block, interpret
        As for :func:`griffin_kernels.xla.scan_pallas.linear_scan`.

    Returns
    -------
    y : Array of shape (B, T, R), dtype of ``u``
        The state after every token.
    last : Array of shape (B, R), float32
        The last state, not rounded to the dtype of ``u``.

    Notes
    -----
    The derivative of the square root in the multiplier is at most 1000 (RecurrentGemma report,
    section 2). Gradients of what stands at padding are 0. With ``u`` in bfloat16, gradients take
    the states from ``y``, where they are rounded.
    """
    T, R = u.shape[1:]
    if block is None:
        # The backward pass holds most: both z, u, y, dy; gradients of the first three.
        block = choose_blocks(T, R, [z_r.dtype, z_i.dtype, u.dtype] * 2 + [u.dtype] * 2)
    # One number for each channel: left to XLA, which differentiates it too.
    rate = -RG_LRU_C * jax.nn.softplus(a_param.astype(jnp.float32))
    kinds = positions.astype(jnp.int32)
    return _rg_lru(z_r, z_i, u, rate, h0.astype(jnp.float32), kinds, block, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _rg_lru(z_r, z_i, u, rate, h0, kinds, block, interpret):
    return _rg_lru_forward(z_r, z_i, u, rate, h0, kinds, block, interpret)[0]


def _rg_lru_forward(z_r, z_i, u, rate, h0, kinds, block, interpret):
    grid = Grid(u.shape, block)
    y, last = grid.call(
        _rg_lru_forward_kernel,
        [(kinds, grid.kinds), (z_r, grid.rows), (z_i, grid.rows), (u, grid.rows),
         (rate, grid.channels), (h0, grid.state)],
        [(u.dtype, grid.rows), (jnp.float32, grid.state)],
        interpret,
    )  # fmt: skip
    return (y, last), (z_r, z_i, u, rate, h0, kinds, y)


def _rg_lru_forward_kernel(
    kinds, z_r, z_i, u, rate, h0, y, last, column, decay, rows, carry, *, unroll
):
    def prepare(tile):
        kind = column[tile, :1]
        a, square = decay_of(rate[...] * sigmoid(z_r, tile))
        gated = sigmoid(z_i, tile) * u[tile, :].astype(jnp.float32)
        decay[tile, :] = step_decay(kind, a)
        inputs = jnp.where(kind == START, gated, jnp.sqrt(square) * gated)
        rows[tile, :] = jnp.where(kind < 0, 0.0, inputs)

    forward_pass(prepare, kinds, h0, y, last, column, decay, rows, carry, unroll)


def _rg_lru_backward(block, interpret, saved, cotangents):
    z_r, z_i, u, rate, h0, kinds, y = saved
    dy, dlast = cotangents
    grid = Grid(u.shape, block, reverse=True)
    dz_r, dz_i, du, drate, dh0 = grid.call(
        _rg_lru_backward_kernel,
        [(kinds, grid.kinds), (z_r, grid.rows), (z_i, grid.rows), (u, grid.rows),
         (rate, grid.channels), (y, grid.rows), (y, grid.rows_before), (h0, grid.state),
         (dy, grid.rows), (dlast, grid.state)],
        [(z_r.dtype, grid.rows), (z_i.dtype, grid.rows), (u.dtype, grid.rows),
         (jnp.float32, grid.state), (jnp.float32, grid.state)],
        interpret,
    )  # fmt: skip
    return dz_r, dz_i, du, jnp.sum(drate, axis=0), dh0, None


def _rg_lru_backward_kernel(
    kinds, z_r, z_i, u, rate, y, y_before, h0, dy, dlast,
    dz_r, dz_i, du, drate, dh0, column, decay, rows, carry, *, unroll,
):  # fmt: skip
    def prepare(tile):
        a, _ = decay_of(rate[...] * sigmoid(z_r, tile))
        decay[tile, :] = step_decay(column[tile, :1], a)

    def finish(tile, before):
        kind, g = column[tile, :1], rows[tile, :]
        r, i, wide = sigmoid(z_r, tile), sigmoid(z_i, tile), u[tile, :].astype(jnp.float32)
        a, square = decay_of(rate[...] * r)
        # h_t = a h_(t-1) + sqrt(s) i u with s = 1 - a^2, whose derivative by log a is -2 a^2.
        root = jnp.sqrt(jnp.maximum(square, 1 / (4 * MAX_SQRT_GRADIENT**2)))
        dlog_a = a * (g * before - a * (g * i * wide) / root)
        dgated = jnp.where(kind == START, g, g * jnp.sqrt(square))

        def put(ref, gradient, kinds):
            ref[tile, :] = jnp.where(kinds, gradient, 0.0).astype(ref.dtype)

        put(dz_r, dlog_a * rate[...] * r * (1 - r), kind > START)
        put(dz_i, dgated * wide * i * (1 - i), kind >= START)
        put(du, dgated * i, kind >= START)
        drate[...] += jnp.sum(jnp.where(kind > START, dlog_a * r, 0.0), axis=0, keepdims=True)

    @pl.when(pl.program_id(2) == 0)
    def _():
        drate[...] = jnp.zeros_like(drate)

    backward_pass(
        prepare, finish, kinds, y, y_before, h0, dy, dlast, dh0, column, decay, rows, carry, unroll
    )


_rg_lru.defvjp(_rg_lru_forward, _rg_lru_backward)


def sigmoid(z, tile) -> Array:
    """Rows of a gate, float32."""
    return jax.nn.sigmoid(z[tile, :].astype(jnp.float32))


def decay_of(log_a: Array) -> tuple[Array, Array]:
    """``a`` and ``1 - a^2`` from ``log a <= 0``, both to the last digits.

    ``1 - a^2`` is ``-expm1(2 log a)``, but Mosaic has no expm1, and what hardware calls exp or tanh
    promises an absolute error only. Where a is close to 1, the series of q = exp(log a) - 1 has all
    digits (its rest is below 1e-9 of it), and 1 - a^2 = -q (2 + q). Elsewhere nothing cancels.
    """
    q = jnp.full_like(log_a, 1 / math.factorial(8))
    for n in range(7, 0, -1):
        q = q * log_a + 1 / math.factorial(n)
    q = q * log_a
    near = log_a > NEAR
    a = jnp.where(near, 1 + q, jnp.exp(log_a))
    return a, jnp.where(near, -q * (2 + q), 1 - a * a)
