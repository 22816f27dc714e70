"""Wrong versions of the reference's functions, for :mod:`griffin_conformance.mutants`.

Each is the reference's own text with one thing changed, or with the choice as a parameter.
"""

import contextlib
import math
from collections.abc import Callable

import numpy as np

from griffin_np import attention, layers, model, rg_lru
from griffin_np.notation import no_trace

ORIGINAL: dict[str, Callable] = {
    function.__name__: function
    for function in (
        rg_lru.rg_lru, rg_lru.scan, rg_lru.multiplier, rg_lru.softplus, rg_lru.sigmoid,
        rg_lru.block_diagonal, rg_lru.log_decay, layers.rms_norm, layers.gelu, layers.causal_conv,
        layers.linear, attention.rope, attention.local_attention, attention.roll,
        attention.softmax, model.embed, model.head,
    )
}  # fmt: skip
"""The right versions, by name."""


MODULES = (rg_lru, layers, attention, model)


@contextlib.contextmanager
def in_place(functions: dict[str, Callable]):
    """Put functions in place of the reference's own, wherever they were imported to."""
    undo = []
    for name, wrong in functions.items():
        for module in MODULES:
            if getattr(module, name, None) is ORIGINAL[name]:
                undo.append((module, name))
                setattr(module, name, wrong)
    try:
        yield
    finally:
        for module, name in undo:
            setattr(module, name, ORIGINAL[name])


def rg_lru_variant(*, undamped_start=True, forgets=True, long_only=False):
    """RG-LRU that may damp a document's first input, or keep the state that it should forget."""

    def wrong(p, x, positions, h, trace=no_trace):
        r, i = rg_lru.recurrence_gate(p, x), rg_lru.input_gate(p, x)
        log_a = rg_lru.log_decay(p, r)
        starts = (positions == 0)[:, None]
        reset = starts & (forgets and not (long_only and len(x) == 1))
        if reset[:1].any():
            h = np.zeros_like(h)
        a = np.where(reset, 0, np.exp(log_a))
        gain = np.where(starts & undamped_start, 1, rg_lru.multiplier(log_a))
        y = rg_lru.scan(a, gain * (i * x), h)
        for name, array in (("r", r), ("i", i), ("a", a), ("h", y)):
            trace(name, array)
        return y, y[-1] if len(y) else h

    return wrong


def scan_in(round_state):
    """A scan whose state goes through ``round_state`` after every step."""

    def wrong(a, x, h):
        states = np.empty_like(x)
        for t in range(len(x)):
            h = round_state(a[t] * h + x[t]).astype(x.dtype)
            states[t] = h
        return states

    return wrong


def scan_in_tiles(size):
    """A scan that loses its state after every so many steps."""

    def wrong(a, x, h):
        states = np.empty_like(x)
        for t in range(len(x)):
            h = a[t] * (h if t == 0 or t % size else np.zeros_like(h)) + x[t]
            states[t] = h
        return states

    return wrong


def softmax_as_written(z):
    """Softmax without taking the maximum out first."""
    e = np.exp(z)
    return e / e.sum(axis=-1, keepdims=True)


def conv_variant(*, reads_cache=True, masks_documents=True, trusts_cache=False):
    """Convolution that may overwrite its cache, see other documents, or not clear its cache."""

    def wrong(p, x, positions, past):
        w, T, K = p["weight"], len(x), len(p["weight"])
        if not reads_cache and T > 1:
            past = np.zeros_like(past)
        inputs = np.concatenate([past, x])
        starts = np.concatenate([np.zeros(K - 1, bool), positions == 0])
        y = np.zeros_like(x)
        for s in range(K):
            seen = np.ones(T, bool)
            for back in range(s):
                # Hidden once a start lies between the two, among the tokens of this call.
                seen &= ~starts[K - 1 - back : K - 1 - back + T] | (not masks_documents)
            if not trusts_cache and masks_documents:
                seen &= positions >= s
            y += np.where(seen[:, None], inputs[K - 1 - s : K - 1 - s + T], 0) * w[K - 1 - s]
        if T and not trusts_cache and masks_documents:
            inputs[: max(len(inputs) - (positions[-1] + 1), 0)] = 0
        return y + p["bias"], inputs[T:]

    return wrong


def attention_variant(*, window=lambda w: w, future=0, documents=True, scale=None, shared=None):
    """Attention with another window, that sees the future or other documents, or scales wrongly."""

    def wrong(q, k, v, positions, W, trace=no_trace):
        T, H, d = q.shape
        past, Q = len(k) - T, k.shape[1]
        y = np.empty_like(q)
        for t in range(T):
            reach = min(window(W), positions[t]) if documents else window(W)
            first, last = max(past + t - reach, 0), min(past + t + 1 + future, len(k))
            for h in range(H):
                g = shared(h, H, Q) if shared else h * Q // H
                scores = k[first:last, g] @ q[t, h] / (scale(d, H) if scale else math.sqrt(d))
                y[t, h] = attention.softmax(scores) @ v[first:last, g]
        return y

    return wrong


def masked_by_columns(q, k, v, positions, W, trace=no_trace):
    """Of a text beyond the window the last W keys are kept, and masked as the first would be."""
    T = len(q)
    if T <= W + 1 or len(k) > T + W:
        return ORIGINAL["local_attention"](q, k, v, positions, W, trace)
    y = np.empty_like(q)
    kept, H, Q = slice(len(k) - W, None), q.shape[1], k.shape[1]
    for t in range(T):
        seen = slice(0, min(t, W - 1) + 1)
        for h in range(H):
            g = h * Q // H
            scores = k[kept, g][seen] @ q[t, h] / math.sqrt(q.shape[2])
            y[t, h] = attention.softmax(scores) @ v[kept, g][seen]
    return y


def rope_variant(*, angle=lambda p, f: p * f, share=lambda turned, d: turned, interleaved=False):
    """RoPE with other angles, on another share of the channels, or on neighbouring pairs."""

    def wrong(x, positions, base, rotary_dim):
        half = share(rotary_dim, x.shape[-1]) // 2
        frequency = float(base) ** (-np.arange(half) / max(half, 1))
        turn = np.asarray(angle(positions[:, None, None], frequency), np.float64)
        cos, sin = np.cos(turn).astype(x.dtype), np.sin(turn).astype(x.dtype)
        y = x.copy()
        first = np.arange(half) * 2 if interleaved else np.arange(half)
        second = first + (1 if interleaved else half)
        y[..., first] = x[..., first] * cos - x[..., second] * sin
        y[..., second] = x[..., second] * cos + x[..., first] * sin
        return y

    return wrong


def short_ring(entries, seen, window):
    """A ring that drops its oldest entry one token too early."""
    ring = ORIGINAL["roll"](entries, seen, window)
    if seen >= window:
        ring[(seen - window) % window] = 0
    return ring


def late_ring(entries, seen, window):
    """A ring whose entries move by a slot once it has gone round three times."""
    ring = ORIGINAL["roll"](entries, seen, window)
    return np.roll(ring, 1, axis=0) if seen > 3 * window else ring


def to_bfloat16(x):
    """Rounded to bfloat16."""
    from ml_dtypes import bfloat16

    return np.asarray(x).astype(bfloat16).astype(np.asarray(x).dtype)


def then_rounded(function):
    """A function whose first result is rounded to bfloat16."""

    def rounded(*args):
        result = function(*args)
        if isinstance(result, tuple):
            return to_bfloat16(result[0]), *result[1:]
        return to_bfloat16(result)

    return rounded


def gelu_by_erf(z):
    """GeLU by the error function."""
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return (0.5 * z * (1 + erf(z / math.sqrt(2)))).astype(z.dtype)
