"""The model as one compiled function: a slab of tokens through all blocks, on all threads.

Every thread runs :func:`run` with its own ``part``. Phases of the computation are parted by
barriers; within a phase threads share out rows, or take pieces of 64 outputs as long as there are
any, and never meet. Outputs go through the matrix product and everything that follows channel by
channel (bias, GeLU, convolution, recurrence, rounding for the next product) while they are in the
cache. Of many rows that is done one piece at a time; of a few rows many pieces go together, so that
weights are read in long runs.

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
from griffin_kernels.cpu.matmul import BFLOAT16, FLOAT32, GROUP_BYTES, INT8, product
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
from griffin_kernels.cpu.sync import barrier, claim

__all__ = ["OUTPUTS", "ROWS", "SLOTS", "Activations", "Call", "Shape", "Work", "run"]

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
    "gate", "gate_bias", "up", "up_bias", "down", "down_bias", "out", "out_bias",
    "y", "y_bias", "x", "x_bias", "conv", "conv_bias", "w_a", "b_a", "w_x", "b_x", "gates_kind",
    "rate",
    "query", "key", "value",
)  # fmt: skip
"""Columns of the table of weights: addresses, but for ``recurrent`` (0 or 1) and ``gates_kind``.
``out`` leads back to the residual stream, from either kind of block."""
(
    IS_RECURRENT, TEMPORAL_NORM, MLP_NORM,
    GATE, GATE_B, UP, UP_B, DOWN, DOWN_B, OUT, OUT_B,
    Y, Y_B, X, X_B, CONV, CONV_B, W_A, B_A, W_X, B_X, GATES_KIND, RATE,
    QUERY, KEY, VALUE,
) = range(len(SLOTS))  # fmt: skip

ROWS = 512
"""The most tokens of a slab."""

PLACE = ROWS * CHANNELS
OUTPUTS = 3 * PLACE
"""float32 numbers of a thread's ``outputs``: it has three places for outputs of products."""

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
def at_once(rows):
    """Pieces of so many rows that fit into a place."""
    return ROWS // ((rows + 15) // 16 * 16)


@njit(error_model="numpy")
def multiply(part, shape, work, weights, first, last, K, inputs, rows, number):
    """Some pieces of a product, for all rows, into a place of this thread."""
    product(
        shape.kind, shape.tiles, bytes_at(weights, HUGE),
        first * CHANNELS // PANEL, last * CHANNELS // PANEL, K, inputs.bytes, inputs.steps,
        inputs.corrections, rows, work.outputs[part][number * PLACE:], (last - first) * CHANNELS,
        work.layout, work.bytes[part],
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
def project(part, parts, sync, kind, shape, work, weights, width, K, inputs, target, rows):
    """``target = inputs @ weights``, no bias."""
    out = work.outputs[part]
    while True:
        first, last = claim(sync, parts, width // CHANNELS, at_once(rows), kind)
        if first == last:
            return
        multiply(part, shape, work, weights, first, last, K, inputs, rows, 0)
        at, ld = first * CHANNELS, (last - first) * CHANNELS
        for m in range(rows):
            for c in range(0, ld, LANES):
                store(target, m * width + at + c, load(out, m * ld + c))


@njit(error_model="numpy")
def add_to_stream(part, parts, sync, shape, work, weights, bias, K, rows):
    """``x += inputs @ weights + bias``: the way back from a block."""
    D, out, b = shape.padded_width, work.outputs[part], floats_at(bias, HUGE)
    while True:
        first, last = claim(sync, parts, D // CHANNELS, at_once(rows), 0)
        if first == last:
            return
        multiply(part, shape, work, weights, first, last, K, work.second, rows, 0)
        at, ld = first * CHANNELS, (last - first) * CHANNELS
        for m in range(rows):
            for c in range(0, ld, LANES):
                y = load(out, m * ld + c) + load(b, at + c)
                store(work.x, m * D + at + c, load(work.x, m * D + at + c) + y)


@njit(error_model="numpy")
def gelu_branch(part, parts, sync, shape, work, w, rows):
    """The way through a recurrent block that only goes through GeLU."""
    R, D = shape.lru_width, shape.padded_width
    out, bias = work.outputs[part], floats_at(w[Y_B], HUGE)
    while True:
        first, last = claim(sync, parts, R // CHANNELS, at_once(rows), 0)
        if first == last:
            return
        multiply(part, shape, work, w[Y], first, last, D, work.first, rows, 0)
        at, ld = first * CHANNELS, (last - first) * CHANNELS
        for m in range(rows):
            for c in range(0, ld, LANES):
                store(work.branch, m * R + at + c, gelu(load(out, m * ld + c) + load(bias, at + c)))


@njit(error_model="numpy")
def convolved_branch(part, parts, sync, shape, work, w, state, call, rows):
    """The other way, as far as the convolution."""
    R, G, D = shape.lru_width, shape.gate_width, shape.padded_width
    out, bias = work.outputs[part], floats_at(w[X_B], HUGE)
    conv, conv_bias = floats_at(w[CONV], HUGE), floats_at(w[CONV_B], HUGE)
    past, padded = floats_at(state[0], HUGE), (rows + 15) // 16 * 16
    while True:
        first, last = claim(sync, parts, R // CHANNELS, at_once(rows), 1)
        if first == last:
            return
        multiply(part, shape, work, w[X], first, last, D, work.first, rows, 0)
        ld = (last - first) * CHANNELS
        for c in range(0, ld, LANES):
            at = first * CHANNELS + c
            for m in range(rows):
                store(work.raw, m * R + at, load(out, m * ld + c) + load(bias, at))
            for s in range(len(call.segments)):
                begin, end, row = call.segments[s]
                convolve(
                    work.raw, work.mixed, at // G * G * padded, at, R, G, conv, conv_bias,
                    shape.conv, R, past, row * (shape.conv - 1) * R, call.positions, begin, end,
                )  # fmt: skip


@njit(error_model="numpy")
def recurrence(part, parts, sync, shape, work, w, state, call, rows):
    """Gates, RG-LRU and the product of both branches."""
    R, G = shape.lru_width, shape.gate_width
    out, kind, padded = work.outputs[part], w[GATES_KIND], (rows + 15) // 16 * 16
    b_a, b_x, rate = floats_at(w[B_A], HUGE), floats_at(w[B_X], HUGE), floats_at(w[RATE], HUGE)
    h = floats_at(state[1], HUGE)
    z_r, z_i, y = out[:PLACE], out[PLACE:], out[2 * PLACE :]
    mixed = work.mixed.view(np.uint8)
    while True:
        first, last = claim(sync, parts, R // CHANNELS, at_once(rows), 0)
        if first == last:
            return
        ld = (last - first) * CHANNELS
        for number in range(2):
            for piece in range(first, last):
                head = piece * CHANNELS // G * G * padded
                product(
                    kind, False, bytes_at(w[W_X] if number else w[W_A], HUGE),
                    piece * CHANNELS // PANEL, (piece + 1) * CHANNELS // PANEL, G,
                    mixed[4 * head:], work.first.steps, work.first.corrections, rows,
                    (z_i if number else z_r)[(piece - first) * CHANNELS:], ld, work.layout,
                    work.bytes[part],
                )  # fmt: skip
        for c in range(0, ld, LANES):
            at = first * CHANNELS + c
            for s in range(len(call.segments)):
                begin, end, row = call.segments[s]
                recur(
                    work.mixed, at // G * G * padded, at, G, z_r, z_i, b_a, b_x, rate, h, row * R,
                    y, c, ld, call.positions, begin, end,
                )  # fmt: skip
        for m in range(rows):
            for piece in range(first, last):
                at, o = m * R + piece * CHANNELS, m * ld + (piece - first) * CHANNELS
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
    project(part, parts, sync, 0, shape, work, w[QUERY], shape.attention_width, D,
            inputs, work.queries, rows)  # fmt: skip
    project(part, parts, sync, 1, shape, work, w[KEY], shape.key_width, D, inputs,
            work.keys, rows)  # fmt: skip
    project(part, parts, sync, 2, shape, work, w[VALUE], shape.key_width, D, inputs,
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
def expand(part, parts, sync, shape, work, w, rows):
    """The gated MLP's two branches and their product."""
    D, out = shape.padded_width, work.outputs[part]
    gate_bias, up_bias = floats_at(w[GATE_B], HUGE), floats_at(w[UP_B], HUGE)
    while True:
        first, last = claim(sync, parts, shape.mlp_width // CHANNELS, at_once(rows), 0)
        if first == last:
            return
        multiply(part, shape, work, w[GATE], first, last, D, work.first, rows, 0)
        multiply(part, shape, work, w[UP], first, last, D, work.first, rows, 1)
        ld = (last - first) * CHANNELS
        for m in range(rows):
            for piece in range(first, last):
                o, b = m * ld + (piece - first) * CHANNELS, piece * CHANNELS
                for c in range(0, CHANNELS, LANES):
                    gate = gelu(load(out, o + c) + load(gate_bias, b + c))
                    up = load(out, PLACE + o + c) + load(up_bias, b + c)
                    store(out, o + c, gate * up)
                prepare_group(
                    shape.kind, load(out, o), load(out, o + 16), load(out, o + 32),
                    load(out, o + 48), m, piece, shape.mlp_width, work.second.bytes,
                    work.second.floats, work.second.steps, work.second.corrections,
                )  # fmt: skip


@njit(error_model="numpy")
def embed_row(shape, weights, token, x, o):
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
        codes, halves = bytes_at(weights, HUGE), halves_at(weights, HUGE)
        size = GROUP_BYTES[kind]
        for k in range(D):
            group = (panel * (D // GROUP) + k // GROUP) * size
            step = widened(halves[(group + size) // 2 - PANEL + lane])
            quad = k % GROUP // 4
            if kind == INT8:
                code = np.int32(codes[group + (quad * PANEL + lane) * 4 + k % 4]) - np.int32(128)
            else:
                both = np.int32(codes[group + (quad * LANES + lane % LANES) * 4 + k % 4])
                code = ((both >> 4) if lane >= LANES else (both & 15)) - np.int32(8)
            x[o + k] = np.float32(code) * step * factor


@njit(error_model="numpy")
def widened(bits):
    """A bfloat16, given by its bits, as float32."""
    return float_from_bits(np.int64(bits) << 16)


@njit(error_model="numpy")
def begin(part, parts, shape, work, embedding, call, rows):
    """The residual stream before the first block, and rotary angles."""
    first, last = share(part, parts, rows)
    D, half = shape.padded_width, shape.rotary // 2
    for m in range(first, last):
        if len(call.tokens):
            embed_row(shape, embedding, call.tokens[m], work.x, m * D)
        else:
            for k in range(shape.width):
                work.x[m * D + k] = call.embeddings[m * shape.width + k] * np.float32(
                    shape.embedding_scale
                )
            for k in range(shape.width, D):
                work.x[m * D + k] = np.float32(0)
        rope_angles(call.positions[m], half, shape.rope_base, work.cos, work.sin, m * half)


@njit(error_model="numpy")
def finish(part, parts, sync, shape, work, final_norm, embedding, call):
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
    if not wanted or not len(call.logits):
        return
    out, pieces = work.outputs[part], (shape.vocab + CHANNELS - 1) // CHANNELS
    inverse = np.float32(1 / shape.cap) if shape.cap else np.float32(0)
    while True:
        first, last = claim(sync, parts, pieces, at_once(wanted), 0)
        if first == last:
            return
        multiply(part, shape, work, embedding, first, last, D, work.first,
                 wanted, 0)  # fmt: skip
        at, ld = first * CHANNELS, (last - first) * CHANNELS
        count = min(ld, shape.vocab - at)
        for i in range(wanted):
            if call.goes_to[i] < 0:
                continue
            to = call.goes_to[i] * shape.vocab + at
            for c in range(0, count, LANES):
                z = load(out, i * ld + c)
                if shape.cap:
                    z = broadcast(np.float32(shape.cap)) * tanh(z * broadcast(inverse))
                if c + LANES <= count:
                    store(call.logits, to + c, z)
                else:
                    store_first(call.logits, to + c, count - c, z)


def run(
    part, parts, sync, shape, work, table, embedding, final_norm, call, rows,
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
    embedding, final_norm : int
        Addresses.
    call : Call
    rows : int
        Tokens.
    first_block, last_block : int
    starts, ends : bool
        Begin with the embedding; end with the final norm and logits.
    """
    if starts:
        begin(part, parts, shape, work, embedding, call, rows)
        barrier(sync, parts)
    for b in range(first_block, last_block):
        w, state = table[b], call.state[b]
        norm_rows(part, parts, shape, work, w[TEMPORAL_NORM], rows)
        barrier(sync, parts)
        if w[IS_RECURRENT]:
            gelu_branch(part, parts, sync, shape, work, w, rows)
            convolved_branch(part, parts, sync, shape, work, w, state, call, rows)
            barrier(sync, parts)
            recurrence(part, parts, sync, shape, work, w, state, call, rows)
            inner = shape.lru_width
        else:
            attention(part, parts, sync, shape, work, w, state, call, rows)
            inner = shape.attention_width
        barrier(sync, parts)
        add_to_stream(part, parts, sync, shape, work, w[OUT], w[OUT_B], inner, rows)
        barrier(sync, parts)
        norm_rows(part, parts, shape, work, w[MLP_NORM], rows)
        barrier(sync, parts)
        expand(part, parts, sync, shape, work, w, rows)
        barrier(sync, parts)
        add_to_stream(part, parts, sync, shape, work, w[DOWN], w[DOWN_B], shape.mlp_width, rows)
        barrier(sync, parts)
    if ends:
        finish(part, parts, sync, shape, work, final_norm, embedding, call)
        barrier(sync, parts)


run = kernel(run)
