"""The model as one compiled function: a slab of tokens through all blocks, on all threads.

Every thread runs :func:`run` with its own ``part``. Phases of the computation are parted by
barriers; within a phase threads share out rows, or pieces of 64 outputs, and never meet. A piece of
outputs goes through the matrix product and everything that follows channel by channel (bias, GeLU,
convolution, recurrence, rounding for the next product) while it is in the cache.

Widths are padded with zeros to multiples of 64, heads to multiples of 16 (attention) or 64
(recurrence), so no kernel has a tail.
"""

from collections import namedtuple

import numpy as np
from numba import njit, types

from griffin_kernels.cpu.attention import attend, store_ring
from griffin_kernels.cpu.compiled import kernel
from griffin_kernels.cpu.elementary import gelu, tanh
from griffin_kernels.cpu.isa.common import GROUP, PANEL
from griffin_kernels.cpu.matmul import BFLOAT16, FLOAT32, INT8, product
from griffin_kernels.cpu.recurrent import CHANNELS, convolve, recur
from griffin_kernels.cpu.rows import norm_row, prepare_group, prepare_row, rope_angles, rotate_head
from griffin_kernels.cpu.simd import (
    LANES,
    array_at,
    broadcast,
    float_from_bits,
    load,
    store,
    store_first,
)
from griffin_kernels.cpu.sync import barrier

__all__ = ["SLOTS", "Activations", "Call", "Shape", "Work", "run"]

Shape = namedtuple(
    "Shape",
    "width padded_width lru_width mlp_width attention_width key_width heads kv_heads head_dim "
    "rotary gate_width window conv vocab eps cap embedding_scale rope_base score_scale kind tiles",
)
"""Numbers of a model. ``width``, ``rotary``, ``window``, ``conv`` and ``vocab`` are the model's
own; the other widths are padded ones, and ``head_dim`` and ``gate_width`` too."""

Activations = namedtuple("Activations", "bytes floats steps corrections")
"""Rows in the form that products take; ``floats`` is ``bytes`` seen as float32."""

Work = namedtuple(
    "Work",
    "x first second branch raw mixed queries keys values attended cos sin outputs bytes row "
    "attention layout",
)
"""Arrays that a step works in. ``first`` and ``second`` are activations, by turns input and output;
``outputs``, ``bytes``, ``row`` and ``attention`` have a row for each thread."""

Call = namedtuple("Call", "tokens embeddings positions segments wanted goes_to logits state")
"""Arguments of a call: ``segments`` (n, 3) holds first, last and batch row of every run of tokens
of one text, ``wanted`` the tokens whose logits are asked for, ``goes_to`` their rows in ``logits``
or -1, ``state`` (blocks, 2) the addresses of every block's arrays."""

SLOTS = (
    "recurrent", "temporal_norm", "mlp_norm",
    "gate", "gate_scale", "gate_bias", "up", "up_scale", "up_bias", "down", "down_scale",
    "down_bias", "out", "out_scale", "out_bias",
    "y", "y_scale", "y_bias", "x", "x_scale", "x_bias", "conv", "conv_bias", "w_a", "b_a", "w_x",
    "b_x", "gates_kind", "rate",
    "query", "query_scale", "key", "key_scale", "value", "value_scale",
)  # fmt: skip
"""Columns of the table of weights: addresses, but for ``recurrent`` (0 or 1) and ``gates_kind``.
``out`` leads back to the residual stream, from either kind of block."""
(
    IS_RECURRENT, TEMPORAL_NORM, MLP_NORM,
    GATE, GATE_S, GATE_B, UP, UP_S, UP_B, DOWN, DOWN_S, DOWN_B, OUT, OUT_S, OUT_B,
    Y, Y_S, Y_B, X, X_S, X_B, CONV, CONV_B, W_A, B_A, W_X, B_X, GATES_KIND, RATE,
    QUERY, QUERY_S, KEY, KEY_S, VALUE, VALUE_S,
) = range(len(SLOTS))  # fmt: skip

HUGE = 1 << 46
"""Length of arrays whose real length the caller vouches for."""

floats_at = array_at(types.float32)
bytes_at = array_at(types.uint8)
halves_at = array_at(types.uint16)


@njit(error_model="numpy")
def share(part, parts, pieces):
    """First and last piece of a part."""
    return pieces * part // parts, pieces * (part + 1) // parts


@njit(error_model="numpy")
def place(rows, number):
    """Where the outputs of 64 channels of all rows stand: a thread has three such places."""
    return (rows + 15) // 16 * 16 * CHANNELS * number


@njit(error_model="numpy")
def multiply(part, shape, work, weights, scales, piece, K, inputs, rows, number):
    """A piece of 64 outputs of a product, for all rows, into a place of this thread."""
    product(
        shape.kind, shape.tiles, bytes_at(weights, HUGE), halves_at(scales, HUGE),
        piece * CHANNELS // PANEL, (piece + 1) * CHANNELS // PANEL, K, inputs.bytes, inputs.steps,
        inputs.corrections, rows, work.outputs[part][place(rows, number):], CHANNELS, work.layout,
        work.bytes[part],
    )  # fmt: skip


@njit(error_model="numpy")
def norm_rows(part, parts, shape, work, scale, rows):
    """RMSNorm of the residual stream, as input of products."""
    first, last = share(part, parts, rows)
    scales, row, D = floats_at(scale, HUGE), work.row[part], shape.padded_width
    for m in range(first, last):
        norm_row(work.x, m * D, scales, shape.width, D, shape.eps, row, 0)
        prepare_row(
            shape.kind, row, 0, m, D, work.first.bytes, work.first.floats, work.first.steps,
            work.first.corrections,
        )  # fmt: skip


@njit(error_model="numpy")
def project(part, parts, shape, work, weights, scales, width, K, inputs, target, rows):
    """``target = inputs @ weights``, no bias."""
    first, last = share(part, parts, width // CHANNELS)
    out = work.outputs[part]
    for piece in range(first, last):
        multiply(part, shape, work, weights, scales, piece, K, inputs, rows, 0)
        for m in range(rows):
            for c in range(0, CHANNELS, LANES):
                store(target, m * width + piece * CHANNELS + c, load(out, m * CHANNELS + c))


@njit(error_model="numpy")
def add_to_stream(part, parts, shape, work, weights, scales, bias, K, rows):
    """``x += inputs @ weights + bias``: the way back from a block."""
    D = shape.padded_width
    first, last = share(part, parts, D // CHANNELS)
    out, b = work.outputs[part], floats_at(bias, HUGE)
    for piece in range(first, last):
        multiply(part, shape, work, weights, scales, piece, K, work.second, rows, 0)
        for m in range(rows):
            for c in range(0, CHANNELS, LANES):
                at = piece * CHANNELS + c
                y = load(out, m * CHANNELS + c) + load(b, at)
                store(work.x, m * D + at, load(work.x, m * D + at) + y)


@njit(error_model="numpy")
def branches(part, parts, shape, work, w, state, call, rows):
    """Both ways into a recurrent block: through GeLU, and through the convolution."""
    R, G, D = shape.lru_width, shape.gate_width, shape.padded_width
    pieces = R // CHANNELS
    first, last = share(part, parts, 2 * pieces)
    out = work.outputs[part]
    y_bias, x_bias = floats_at(w[Y_B], HUGE), floats_at(w[X_B], HUGE)
    conv, conv_bias = floats_at(w[CONV], HUGE), floats_at(w[CONV_B], HUGE)
    past = floats_at(state[0], HUGE)
    padded = (rows + 15) // 16 * 16
    for number in range(first, last):
        piece = number % pieces
        if number < pieces:
            multiply(part, shape, work, w[Y], w[Y_S], piece, D, work.first, rows, 0)
            for m in range(rows):
                for c in range(0, CHANNELS, LANES):
                    at = piece * CHANNELS + c
                    z = load(out, m * CHANNELS + c) + load(y_bias, at)
                    store(work.branch, m * R + at, gelu(z))
            continue
        multiply(part, shape, work, w[X], w[X_S], piece, D, work.first, rows, 0)
        for c in range(0, CHANNELS, LANES):
            at = piece * CHANNELS + c
            for m in range(rows):
                store(work.raw, m * R + at, load(out, m * CHANNELS + c) + load(x_bias, at))
            for s in range(len(call.segments)):
                begin, end, row = call.segments[s]
                convolve(
                    work.raw, work.mixed, at // G * G * padded, at, R, G, conv, conv_bias,
                    shape.conv, R, past, row * (shape.conv - 1) * R, call.positions, begin, end,
                )  # fmt: skip


@njit(error_model="numpy")
def recurrence(part, parts, shape, work, w, state, call, rows):
    """Gates, RG-LRU and the product of both branches."""
    R, G = shape.lru_width, shape.gate_width
    first, last = share(part, parts, R // CHANNELS)
    out, kind, padded = work.outputs[part], w[GATES_KIND], (rows + 15) // 16 * 16
    b_a, b_x, rate = floats_at(w[B_A], HUGE), floats_at(w[B_X], HUGE), floats_at(w[RATE], HUGE)
    h, nothing = floats_at(state[1], HUGE), halves_at(0, 0)
    z_r, z_i, y = (out[place(rows, 0) :], out[place(rows, 1) :], out[place(rows, 2) :])
    mixed = work.mixed.view(np.uint8)
    for piece in range(first, last):
        head = piece * CHANNELS // G * G * padded
        for number in range(2):
            product(
                kind, False, bytes_at(w[W_X] if number else w[W_A], HUGE), nothing,
                piece * CHANNELS // PANEL, (piece + 1) * CHANNELS // PANEL, G, mixed[4 * head:],
                work.first.steps, work.first.corrections, rows, z_i if number else z_r, CHANNELS,
                work.layout, work.bytes[part],
            )  # fmt: skip
        for c in range(0, CHANNELS, LANES):
            for s in range(len(call.segments)):
                begin, end, row = call.segments[s]
                recur(
                    work.mixed, head, piece * CHANNELS + c, G, z_r, z_i, b_a, b_x, rate, h, row * R,
                    y, CHANNELS, call.positions, begin, end,
                )  # fmt: skip
        for m in range(rows):
            at, o = m * R + piece * CHANNELS, m * CHANNELS
            prepare_group(
                shape.kind, load(y, o) * load(work.branch, at),
                load(y, o + 16) * load(work.branch, at + 16),
                load(y, o + 32) * load(work.branch, at + 32),
                load(y, o + 48) * load(work.branch, at + 48),
                m, piece, R, work.second.bytes, work.second.floats, work.second.steps,
                work.second.corrections,
            )  # fmt: skip


@njit(error_model="numpy")
def rotate(part, parts, shape, work, rows):
    """Rotary positions of queries and keys; queries are scaled for the softmax too."""
    d, half = shape.head_dim, shape.rotary // 2
    first, last = share(part, parts, rows)
    for m in range(first, last):
        for head in range(shape.heads):
            rotate_head(work.queries, m * shape.attention_width + head * d, half, work.cos,
                        work.sin, m * half, d, shape.score_scale)  # fmt: skip
        for head in range(shape.kv_heads):
            rotate_head(work.keys, m * shape.key_width + head * d, half, work.cos, work.sin,
                        m * half, d, np.float32(1))  # fmt: skip


@njit(error_model="numpy")
def attention(part, parts, sync, shape, work, w, state, call, rows):
    """Everything of an attention block between the norm and the way back."""
    D, Q = shape.padded_width, shape.kv_heads
    inputs = work.first
    project(part, parts, shape, work, w[QUERY], w[QUERY_S], shape.attention_width, D, inputs,
            work.queries, rows)  # fmt: skip
    project(part, parts, shape, work, w[KEY], w[KEY_S], shape.key_width, D, inputs, work.keys, rows)
    project(part, parts, shape, work, w[VALUE], w[VALUE_S], shape.key_width, D, inputs,
            work.values, rows)  # fmt: skip
    barrier(sync, parts)
    rotate(part, parts, shape, work, rows)
    barrier(sync, parts)
    keys, values = floats_at(state[0], HUGE), floats_at(state[1], HUGE)
    size = shape.window * Q * shape.head_dim
    for s in range(len(call.segments)):
        begin, end, row = call.segments[s]
        attend(
            part, parts, work.queries, work.keys, work.values, work.attended, keys, values,
            row * size, call.positions, begin, end, shape.heads, Q, shape.head_dim, shape.window,
            work.attention[part],
        )  # fmt: skip
    barrier(sync, parts)
    for s in range(len(call.segments)):
        begin, end, row = call.segments[s]
        store_ring(
            part, parts, work.keys, work.values, keys, values, row * size, call.positions, begin,
            end, Q, shape.head_dim, shape.window,
        )  # fmt: skip
    first, last = share(part, parts, rows)
    for m in range(first, last):
        prepare_row(
            shape.kind, work.attended, m * shape.attention_width, m, shape.attention_width,
            work.second.bytes, work.second.floats, work.second.steps, work.second.corrections,
        )  # fmt: skip


@njit(error_model="numpy")
def expand(part, parts, shape, work, w, rows):
    """The gated MLP's two branches and their product."""
    first, last = share(part, parts, shape.mlp_width // CHANNELS)
    gate_bias, up_bias = floats_at(w[GATE_B], HUGE), floats_at(w[UP_B], HUGE)
    out = work.outputs[part]
    other = place(rows, 1)
    for piece in range(first, last):
        multiply(part, shape, work, w[GATE], w[GATE_S], piece, shape.padded_width, work.first,
                 rows, 0)  # fmt: skip
        multiply(part, shape, work, w[UP], w[UP_S], piece, shape.padded_width, work.first, rows, 1)
        for m in range(rows):
            o, b = m * CHANNELS, piece * CHANNELS
            for c in range(0, CHANNELS, LANES):
                gate = gelu(load(out, o + c) + load(gate_bias, b + c))
                up = load(out, other + o + c) + load(up_bias, b + c)
                store(out, o + c, gate * up)
            prepare_group(
                shape.kind, load(out, o), load(out, o + 16), load(out, o + 32), load(out, o + 48),
                m, piece, shape.mlp_width, work.second.bytes, work.second.floats,
                work.second.steps, work.second.corrections,
            )  # fmt: skip


@njit(error_model="numpy")
def embed_row(shape, weights, scales, token, x, o):
    """One row of the embedding, out of its packed form, scaled."""
    D = shape.padded_width
    panel, lane, kind = token // PANEL, token % PANEL, shape.kind
    factor = np.float32(shape.embedding_scale)
    if kind == FLOAT32:
        table = floats_at(weights, HUGE)
        for k in range(D):
            x[o + k] = table[(panel * D + k) * PANEL + lane] * factor
    elif kind == BFLOAT16:
        pairs = halves_at(weights, HUGE)
        for k in range(D):
            bits = pairs[((panel * (D // 2) + k // 2) * PANEL + lane) * 2 + k % 2]
            x[o + k] = widened(bits) * factor
    else:
        codes, steps = bytes_at(weights, HUGE), halves_at(scales, HUGE)
        for k in range(D):
            step = widened(steps[(panel * (D // GROUP) + k // GROUP) * PANEL + lane])
            quad = panel * (D // 4) + k // 4
            if kind == INT8:
                code = np.int32(codes[(quad * PANEL + lane) * 4 + k % 4]) - np.int32(128)
            else:
                both = np.int32(codes[(quad * LANES + lane % LANES) * 4 + k % 4])
                code = ((both >> 4) if lane >= LANES else (both & 15)) - np.int32(8)
            x[o + k] = np.float32(code) * step * factor


@njit(error_model="numpy")
def widened(bits):
    """A bfloat16, given by its bits, as float32."""
    return float_from_bits(np.int64(bits) << 16)


@njit(error_model="numpy")
def begin(part, parts, shape, work, embedding, embedding_scales, call, rows):
    """The residual stream before the first block, and rotary angles."""
    first, last = share(part, parts, rows)
    D, half = shape.padded_width, shape.rotary // 2
    for m in range(first, last):
        if len(call.tokens):
            embed_row(shape, embedding, embedding_scales, call.tokens[m], work.x, m * D)
        else:
            for k in range(shape.width):
                work.x[m * D + k] = call.embeddings[m * shape.width + k] * np.float32(
                    shape.embedding_scale
                )
            for k in range(shape.width, D):
                work.x[m * D + k] = np.float32(0)
        rope_angles(call.positions[m], half, shape.rope_base, work.cos, work.sin, m * half)


@njit(error_model="numpy")
def finish(part, parts, sync, shape, work, final_norm, embedding, embedding_scales, call):
    """Final norm of the wanted tokens, in place, and their logits where there is room for them."""
    wanted, D = len(call.wanted), shape.padded_width
    first, last = share(part, parts, wanted)
    scale, row = floats_at(final_norm, HUGE), work.row[part]
    for i in range(first, last):
        at = call.wanted[i] * D
        norm_row(work.x, at, scale, shape.width, D, shape.eps, row, 0)
        prepare_row(
            shape.kind, row, 0, i, D, work.first.bytes, work.first.floats, work.first.steps,
            work.first.corrections,
        )  # fmt: skip
        for c in range(0, D, LANES):
            store(work.x, at + c, load(row, c))
    barrier(sync, parts)
    if not len(call.logits):
        return
    first, last = share(part, parts, (shape.vocab + CHANNELS - 1) // CHANNELS)
    out = work.outputs[part]
    inverse = np.float32(1 / shape.cap) if shape.cap else np.float32(0)
    for piece in range(first, last):
        multiply(part, shape, work, embedding, embedding_scales, piece, D, work.first, wanted, 0)
        count = min(CHANNELS, shape.vocab - piece * CHANNELS)
        for i in range(wanted):
            o = i * CHANNELS
            if call.goes_to[i] < 0:
                continue
            to = call.goes_to[i] * shape.vocab + piece * CHANNELS
            for c in range(0, count, LANES):
                z = load(out, o + c)
                if shape.cap:
                    z = broadcast(np.float32(shape.cap)) * tanh(z * broadcast(inverse))
                if c + LANES <= count:
                    store(call.logits, to + c, z)
                else:
                    store_first(call.logits, to + c, count - c, z)


def run(
    part, parts, sync, shape, work, table, embedding, embedding_scales, final_norm, call, rows,
    first_block, last_block, starts, ends,
):  # fmt: skip
    """Take a slab of tokens through blocks ``first_block`` to ``last_block - 1``.

    Parameters
    ----------
    part, parts : int
        Which of how many threads this is.
    sync : array of shape (SYNC_SIZE,), int64
        Of :mod:`griffin_kernels.cpu.sync`.
    shape : Shape
    work : Work
    table : array of shape (blocks, len(SLOTS)), int64
        Addresses of packed weights.
    embedding, embedding_scales, final_norm : int
        Addresses.
    call : Call
    rows : int
        Tokens.
    first_block, last_block : int
    starts, ends : bool
        Begin with the embedding; end with the final norm and logits.
    """
    if starts:
        begin(part, parts, shape, work, embedding, embedding_scales, call, rows)
        barrier(sync, parts)
    for b in range(first_block, last_block):
        w, state = table[b], call.state[b]
        norm_rows(part, parts, shape, work, w[TEMPORAL_NORM], rows)
        barrier(sync, parts)
        if w[IS_RECURRENT]:
            branches(part, parts, shape, work, w, state, call, rows)
            barrier(sync, parts)
            recurrence(part, parts, shape, work, w, state, call, rows)
            inner = shape.lru_width
        else:
            attention(part, parts, sync, shape, work, w, state, call, rows)
            inner = shape.attention_width
        barrier(sync, parts)
        add_to_stream(part, parts, shape, work, w[OUT], w[OUT_S], w[OUT_B], inner, rows)
        barrier(sync, parts)
        norm_rows(part, parts, shape, work, w[MLP_NORM], rows)
        barrier(sync, parts)
        expand(part, parts, shape, work, w, rows)
        barrier(sync, parts)
        add_to_stream(
            part, parts, shape, work, w[DOWN], w[DOWN_S], w[DOWN_B], shape.mlp_width, rows
        )
        barrier(sync, parts)
    if ends:
        finish(part, parts, sync, shape, work, final_norm, embedding, embedding_scales, call)
        barrier(sync, parts)


run = kernel(run)
