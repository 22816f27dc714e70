"""Everything of a residual block except attention: norm, MLP, convolution, recurrent block.

Griffin (De et al. 2024), sections 2.1 to 2.3 and figure 2. One row at a time: shapes have no batch.
"""

import math

import numpy as np

from griffin_np.notation import (
    Channels,
    ConvState,
    Floats,
    Hidden,
    Positions,
    Stream,
    Trace,
    no_trace,
    scoped,
)
from griffin_np.rg_lru import rg_lru

__all__ = ["causal_conv", "gelu", "linear", "mlp", "recurrent_block", "rms_norm"]


def rms_norm(x: Stream, scale: Floats, eps: float) -> Stream:
    """RMSNorm (Griffin 2.1): ``x / sqrt(mean(x^2) + eps) * (1 + scale)``, scale of shape (D,)."""
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + eps) * (1 + scale)


def linear(p: dict, x: Floats) -> Floats:
    """``x @ weight + bias``; a projection without ``bias`` adds none."""
    y = x @ p["weight"]
    return y + p["bias"] if "bias" in p else y


def gelu(z: Floats) -> Floats:
    """GeLU by its tanh approximation, as every released model uses it."""
    return 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)))


def mlp(p: dict, x: Stream) -> Stream:
    """Gated MLP (Griffin 2.2, figure 2b): two branches of width E, GeLU on one, and back to D."""
    return linear(p["down"], gelu(linear(p["gate"], x)) * linear(p["up"], x))


def causal_conv(
    p: dict, x: Channels, positions: Positions, past: ConvState
) -> tuple[Channels, ConvState]:
    """Separable temporal convolution of width K (Griffin 2.3, figure 2c).

    ``y_t = b + sum over s < K of w[K-1-s] * x_(t-s)``, where the sum stops at the document's start.

    Parameters
    ----------
    p : dict
        ``weight`` (K, R), whose last row meets the current token, and ``bias`` (R,).
    x : array of shape (T, R)
    positions : array of shape (T,)
    past : array of shape (K - 1, R)
        The inputs before the first of ``x``, oldest first.

    Returns
    -------
    y : array of shape (T, R)
    past : array of shape (K - 1, R)
        The inputs to carry on with; zero where they would lie before the document's start.
    """
    w, T, K = p["weight"], len(x), len(p["weight"])
    inputs = np.concatenate([past, x])  # row t + K - 1 is x[t]
    y = np.zeros_like(x)
    for s in range(K):
        in_document = (positions >= s)[:, None]
        y += np.where(in_document, inputs[K - 1 - s : K - 1 - s + T], 0) * w[K - 1 - s]
    if T:
        inputs[: max(len(inputs) - (positions[-1] + 1), 0)] = 0
    return y + p["bias"], inputs[T:]


def recurrent_block(
    p: dict,
    x: Stream,
    positions: Positions,
    conv: ConvState,
    h: Hidden,
    trace: Trace = no_trace,
) -> tuple[Stream, ConvState, Hidden]:
    """Recurrent block (Griffin 2.3, figure 2c).

    Two branches of width R: one through the convolution and the RG-LRU, the other through GeLU;
    their product goes back to D. Returns the output, and the two parts of the state after it.
    """
    gate = gelu(linear(p["linear_y"], x))
    u, conv = causal_conv(p["conv"], linear(p["linear_x"], x), positions, conv)
    trace("conv", u)
    y, h = rg_lru(p["rg_lru"], u, positions, h, scoped(trace, "rg_lru"))
    return linear(p["linear_out"], y * gate), conv, h
