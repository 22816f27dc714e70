"""Single operations on NumPy arrays, through the kernels that the engine is made of.

Inside the engine no operation stands alone: they pass pieces of 64 channels on to each other. Here
each one is given whole arrays, laid out as the engine lays them out, so that it can be held against
the equations. Nothing here is fast, and nothing here computes but the kernels.
"""

from collections import namedtuple
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from griffin_kernels.cpu import elementary
from griffin_kernels.cpu.compiled import kernel
from griffin_kernels.cpu.engine import NumbaModel
from griffin_kernels.cpu.isa import amx
from griffin_kernels.cpu.isa.common import GROUP, PANEL
from griffin_kernels.cpu.matmul import (
    BLOCK_ROWS,
    BYTES_PER_INPUT,
    FLOAT32,
    TILE_LAYOUT,
    product,
    scratch_bytes,
)
from griffin_kernels.cpu.pack import pack
from griffin_kernels.cpu.recurrent import CHANNELS, convolve, line_at, recur
from griffin_kernels.cpu.rows import norm_row, prepare_row, rope_angles, rotate_head
from griffin_kernels.cpu.scan import softplus_8
from griffin_kernels.cpu.simd import LANES, broadcast, load, store
from griffin_kernels.cpu.step import embed_row
from griffin_kernels.cpu.weights import KINDS, gates_kind, places, up
from griffin_np.config import GriffinConfig
from griffin_np.params import nest

__all__ = ["block", "causal_conv", "embed", "gate", "gelu", "linear", "logits", "rg_lru",
           "rms_norm", "rope"]  # fmt: skip

Table = namedtuple("Table", "padded_width kind embedding_scale")
"""What :func:`griffin_kernels.cpu.step.embed_row` asks of a shape."""


def embed(rows: NDArray, scale: float, dtype: str) -> NDArray:
    """Rows (T, D) of a packed embedding, one after the other, scaled."""
    (T, D), kind = rows.shape, KINDS[dtype]
    wide = up(D, CHANNELS)
    data = packed(rows, kind)
    x = np.zeros((T, wide), np.float32)
    _embed(Table(wide, kind, float(scale)), data.ctypes.data, T, x.ravel())
    return x[:, :D]


def rms_norm(x: NDArray, scale: NDArray, eps: float) -> NDArray:
    """RMSNorm of x (T, D); what multiplies is ``1 + scale``."""
    D = x.shape[1]
    x, factor = widened(x), widened(1 + np.asarray(scale, np.float32))
    y = np.empty_like(x)
    _norm(x.ravel(), factor, len(x), D, x.shape[1], float(eps), y.ravel())
    return y[:, :D]


def linear(x: NDArray, weight: NDArray, bias: NDArray | None, dtype: str) -> NDArray:
    """``x @ weight + bias``, the weight (K, N) packed in this dtype."""
    y = multiplied(x, weight.T, KINDS[dtype], amx.permitted())
    if bias is not None:
        _add(y.ravel(), widened(bias), y.shape[1])
    return y[:, : weight.shape[1]]


def gelu(x: NDArray) -> NDArray:
    """GeLU of x (T, E)."""
    y = widened(x)
    _gelu(y.ravel())
    return y[:, : x.shape[1]]


def causal_conv(
    x: NDArray, weight: NDArray, bias: NDArray, positions: NDArray, past: NDArray
) -> tuple[NDArray, NDArray]:
    """Convolution of x (T, R) after inputs ``past`` (K - 1, R), and the inputs to carry on with."""
    (T, R), K = x.shape, len(weight)
    x, weight, bias, after = (widened(z) for z in (x, weight, bias, past))
    wide, y = x.shape[1], np.empty_like(x)
    lines = np.zeros(up(T, BLOCK_ROWS) * wide, np.float32)
    _convolve(
        x.ravel(), lines, weight.ravel(), bias, K, wide, after.ravel(),
        np.asarray(positions, np.int64), T, y.ravel(),
    )  # fmt: skip
    return y[:, :R], after[:, :R]


def gate(x: NDArray, w: NDArray, b: NDArray) -> NDArray:
    """Equation (1) or (2) for x (T, R), w (H, G, G), b (H, G)."""
    z, G = before_gate(x, w, gates_kind(single(w))), b.shape[1]
    _gate(z.ravel(), widened(b).ravel(), z[0].size)
    return z[:, :, :G].reshape(x.shape)


def rg_lru(x: NDArray, p: Mapping[str, NDArray], positions: NDArray, h: NDArray) -> NDArray:
    """Equations (1) to (4) for x (T, R) from the state h (R,), the parameters as in a model."""
    H, G = p["b_a"].shape
    kind = min(gates_kind(single(p["w_a"])), gates_kind(single(p["w_x"])))
    z_r, z_i = (before_gate(x, p[name], kind) for name in ("w_a", "w_x"))
    u = widened(x.reshape(-1, H, G))
    rate = widened(softplus_8(p["a_param"]).reshape(H, G))
    b_a, b_x, state = (widened(z.reshape(H, G)) for z in (p["b_a"], p["b_x"], h))
    T, _, wide = u.shape
    y = np.empty_like(u)
    for head in range(H):
        lines = laid_out(u[:, head], FLOAT32)[1]
        for c in range(0, wide, CHANNELS):
            piece = np.s_[:, head, c : c + CHANNELS]
            out = np.empty((T, CHANNELS), np.float32)
            _recur(
                lines, c, wide, z_r[piece].ravel(), z_i[piece].ravel(), b_a[head], b_x[head],
                rate[head], state[head], np.asarray(positions, np.int64), T, out.ravel(),
            )  # fmt: skip
            y[piece] = out
    return y[:, :, :G].reshape(x.shape)


def rope(x: NDArray, positions: NDArray, base: float, rotary_dim: int) -> NDArray:
    """Rotary embedding of x (T, H, d) on its first ``rotary_dim`` channels."""
    y = np.array(x, np.float32, order="C")
    half = rotary_dim // 2
    turn = np.zeros((2, max(half, 1)), np.float32)
    _rope(y.ravel(), np.asarray(positions, np.int64), *x.shape, half, float(base), *turn)
    return y


def logits(x: NDArray, embedding: NDArray, cap: float, dtype: str) -> NDArray:
    """Tied head and soft cap: x (T, D), the embedding (V, D) packed in this dtype."""
    z = multiplied(x, embedding, KINDS[dtype], amx.permitted())
    if cap:
        _cap(z.ravel(), float(cap))
    return z[:, : len(embedding)]


def block(
    config: GriffinConfig, flat: Mapping[str, NDArray], i: int, x: NDArray, dtype: str
) -> NDArray:
    """Residual block i of a model on one text x (T, D): that of a model which has no other."""
    one = config.replace(depth=1, block_pattern=(config.block_types[i],), scale_embeddings=False)
    names = {name: name.replace(f"blocks.{i}.", "blocks.0.", 1) for name in flat}
    others = {n for n in flat if n.startswith("blocks.") and not n.startswith(f"blocks.{i}.")}
    params = nest({names[n]: np.asarray(a, np.float32) for n, a in flat.items() if n not in others})
    seen: dict[str, NDArray] = {}
    NumbaModel(one, params, dtype=dtype)(
        inputs_embeds=np.asarray(x, np.float32)[None], logits="none", trace=seen.__setitem__
    )
    return seen["blocks.0.residual"][0]


# -- layouts


def single(x: NDArray) -> NDArray:
    """Float32."""
    return np.asarray(x, np.float32)


def widened(x: NDArray) -> NDArray:
    """A copy in float32, the last axis padded with zeros to a multiple of 64."""
    result = np.zeros((*np.shape(x)[:-1], up(np.shape(x)[-1], CHANNELS)), np.float32)
    result[..., : np.shape(x)[-1]] = x
    return result


def packed(weights: NDArray, kind: int) -> NDArray:
    """A matrix (N, K) packed, padded to multiples of 64."""
    at = (places(1, n, up(n, CHANNELS), up(n, CHANNELS)) for n in weights.shape)
    return pack(single(weights), kind, *at)


def laid_out(x: NDArray, kind: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Rows (T, K), K a multiple of 64, as products take them."""
    size = up(len(x), BLOCK_ROWS) * x.shape[1]
    data = np.zeros(size * BYTES_PER_INPUT[kind], np.uint8)
    steps, corrections = np.zeros(size // GROUP, np.float32), np.zeros(size // GROUP, np.int32)
    result = data, data.view(np.float32), steps, corrections
    _prepare(kind, np.ascontiguousarray(x).ravel(), *x.shape, *result)
    return result


def multiplied(x: NDArray, weights: NDArray, kind: int, tiles: bool) -> NDArray:
    """``x @ weights.T`` for x (T, K) and weights (N, K), to (T, N padded)."""
    (T, _), x = x.shape, widened(x)
    N, K = up(len(weights), CHANNELS), x.shape[1]
    data, _, steps, corrections = laid_out(x, kind)
    out = np.zeros((up(T, BLOCK_ROWS), N), np.float32)
    _multiply(
        kind, tiles, packed(weights, kind), N, K, data, steps, corrections, T, out.ravel(),
        TILE_LAYOUT, np.zeros(scratch_bytes(K), np.uint8),
    )  # fmt: skip
    return out[:T]


def before_gate(x: NDArray, w: NDArray, kind: int) -> NDArray:
    """``W x`` of a gate for x (T, R) and w (H, G, G), to (T, H, G padded)."""
    heads = x.reshape(len(x), *w.shape[:2])
    z = [multiplied(heads[:, h], w[h].T, kind, False) for h in range(len(w))]
    return np.stack(z, axis=1)


# -- kernels


@kernel
def _embed(table, weights, rows, x):
    for token in range(rows):
        embed_row(table, weights, token, x, token * table.padded_width)


@kernel
def _norm(x, scale, rows, D, width, eps, y):
    for m in range(rows):
        norm_row(x, m * width, scale, D, width, eps, y, m * width)


@kernel
def _prepare(kind, x, rows, K, data, floats, steps, corrections):
    for m in range(rows):
        prepare_row(kind, x, m * K, m, K, data, floats, steps, corrections)


@kernel
def _multiply(kind, tiles, weights, N, K, data, steps, corrections, rows, out, layout, scratch):
    product(
        kind, tiles, weights, 0, N // PANEL, K, data, steps, corrections, rows, out, N, layout,
        scratch,
    )  # fmt: skip


@kernel
def _add(y, bias, N):
    for o in range(0, len(y), LANES):
        store(y, o, load(y, o) + load(bias, o % N))


@kernel
def _gelu(y):
    for o in range(0, len(y), LANES):
        store(y, o, elementary.gelu(load(y, o)))


@kernel
def _gate(z, bias, R):
    for o in range(0, len(z), LANES):
        store(z, o, elementary.sigmoid(load(z, o) + load(bias, o % R)))


@kernel
def _cap(z, cap):
    for o in range(0, len(z), LANES):
        v = elementary.tanh(load(z, o) * broadcast(np.float32(1 / cap)))
        store(z, o, broadcast(np.float32(cap)) * v)


@kernel
def _convolve(x, lines, weight, bias, K, R, past, positions, rows, y):
    for c in range(0, R, LANES):
        convolve(x, lines, 0, c, R, R, weight, bias, K, R, past, 0, positions, 0, rows)
        for t in range(rows):
            store(y, t * R + c, load(lines, line_at(t, c, R)))


@kernel
def _recur(lines, first, G, z_r, z_i, b_r, b_i, rate, h, positions, rows, y):
    for c in range(first, first + CHANNELS, LANES):
        recur(lines, 0, c, G, z_r, z_i, b_r, b_i, rate, h, 0, y, c % CHANNELS, CHANNELS,
              positions, 0, rows)  # fmt: skip


@kernel
def _rope(x, positions, rows, heads, d, half, base, cos, sin):
    for m in range(rows):
        rope_angles(positions[m], half, base, cos, sin, 0)
        for head in range(heads):
            rotate_head(x, (m * heads + head) * d, half, cos, sin, 0, d, np.float32(1))
