"""The linear recurrence ``h_t = a_t * h_(t-1) + x_t`` as one Pallas kernel for TPUs.

The recurrence does three operations for every number that it reads, so it is bound by memory
(Griffin, appendix D). The kernel reads the inputs once and writes the result once. Gradients are
the same walk from the end to the start. ``rg_lru_pallas`` puts the gates' nonlinearities into the
same pass, and ``blocks_pallas`` is what both are made of.

Shapes: B rows, T tokens, R lru_width.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

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

__all__ = ["linear_scan"]


def linear_scan(
    a: Array,
    x: Array,
    h0: Array,
    starts: Array | None = None,
    *,
    block: Blocks | None = None,
    interpret: Interpret = None,
) -> tuple[Array, Array]:
    """All states of the recurrence (Griffin, equation 4, after gating), differentiable.

    Parameters
    ----------
    a, x : Array of shape (B, T, R), float32 or bfloat16
        Decay and input.
    h0 : Array of shape (B, R), float32
        State before the first step.
    starts : Array of shape (B, T), bool, optional
        Where the state is forgotten before the step, whatever it and ``a`` are.
    block : (int, int), optional
        Time and width of a block, see :func:`.blocks_pallas.choose_blocks`.
    interpret : bool or pltpu.InterpretParams, optional
        As for ``pallas_call``; by default the kernel is compiled on TPUs and interpreted elsewhere.

    Returns
    -------
    h : Array of shape (B, T, R), dtype of ``x``
    last : Array of shape (B, R), float32
        The last state, not rounded to the dtype of ``x``.
    """
    T = x.shape[1]
    kinds = jnp.ones(x.shape[:2], jnp.int32) if starts is None else 1 - starts.astype(jnp.int32)
    if block is None:
        # The backward pass holds most: a, da; h, dh, dx.
        block = choose_blocks(T, x.shape[2], [a.dtype] * 2 + [x.dtype] * 3)
    return _linear_scan(a, x, h0.astype(jnp.float32), kinds, block, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _linear_scan(a, x, h0, kinds, block, interpret):
    return _linear_scan_forward(a, x, h0, kinds, block, interpret)[0]


def _linear_scan_forward(a, x, h0, kinds, block, interpret):
    grid = Grid(x.shape, block)
    h, last = grid.call(
        _forward_kernel,
        [(kinds, grid.kinds), (a, grid.rows), (x, grid.rows), (h0, grid.state)],
        [(x.dtype, grid.rows), (jnp.float32, grid.state)],
        interpret,
    )
    return (h, last), (a, h, h0, kinds)


def _forward_kernel(kinds, a, x, h0, h, last, column, decay, rows, carry, *, unroll):
    def prepare(tile):
        kind = column[tile, :1]
        decay[tile, :] = step_decay(kind, a[tile, :].astype(jnp.float32))
        rows[tile, :] = jnp.where(kind < 0, 0.0, x[tile, :].astype(jnp.float32))

    forward_pass(prepare, kinds, h0, h, last, column, decay, rows, carry, unroll)


def _linear_scan_backward(block, interpret, saved, cotangents):
    a, h, h0, kinds = saved
    dh, dlast = cotangents
    grid = Grid(h.shape, block, reverse=True)
    da, dx, dh0 = grid.call(
        _backward_kernel,
        [(kinds, grid.kinds), (a, grid.rows), (h, grid.rows), (h, grid.rows_before),
         (h0, grid.state), (dh, grid.rows), (dlast, grid.state)],
        [(a.dtype, grid.rows), (h.dtype, grid.rows), (jnp.float32, grid.state)],
        interpret,
    )  # fmt: skip
    return da, dx, dh0, None


def _backward_kernel(
    kinds, a, h, h_before, h0, dh, dlast, da, dx, dh0, column, decay, rows, carry, *, unroll
):
    def prepare(tile):
        kind = column[tile, :1]
        decay[tile, :] = step_decay(kind, a[tile, :].astype(jnp.float32))

    def finish(tile, before):
        g = rows[tile, :]
        da[tile, :] = jnp.where(column[tile, :1] > START, g * before, 0.0).astype(da.dtype)
        dx[tile, :] = g.astype(dx.dtype)

    backward_pass(
        prepare, finish, kinds, h, h_before, h0, dh, dlast, dh0, column, decay, rows, carry, unroll
    )


_linear_scan.defvjp(_linear_scan_forward, _linear_scan_backward)
