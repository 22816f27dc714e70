"""What every block of the JAX model is built of; where rows end; how results are watched."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

__all__ = [
    "Layer",
    "Watch",
    "gelu",
    "last_positions",
    "linear",
    "mlp",
    "no_watch",
    "real_tokens",
    "rms_norm",
    "scoped",
]

Layer = dict[str, Array]
"""State of a block, named as in ``griffin_np.state``: conv and rg_lru, or keys and values."""

Watch = Callable[[str, Any], None]
"""Receives intermediate results by name, while the program is traced."""


def no_watch(name: str, array: Array) -> None:
    """Watches nothing."""


def scoped(watch: Watch, scope: str) -> Watch:
    """A watch that puts ``scope.`` before every name."""
    if watch is no_watch:
        return no_watch
    return lambda name, array: watch(f"{scope}.{name}", array)


def real_tokens(positions: Array) -> Array:
    """Number of tokens of each row, (B,), which stand before its padding; from (B, T)."""
    return jnp.sum(positions >= 0, axis=1, dtype=jnp.int32)


def last_positions(positions: Array) -> Array:
    """Position of each row's last token, (B,), -1 in an empty row; from (B, T)."""
    column = jnp.maximum(real_tokens(positions) - 1, 0)
    return jnp.take_along_axis(positions, column[:, None], axis=1)[:, 0]


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Root-mean-square normalisation times ``1 + scale``, statistics in float32."""
    mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(mean_square + eps)).astype(x.dtype) * (1 + scale)


def linear(p: dict, x: Array) -> Array:
    """``x @ weight + bias``, as one matrix product over all tokens (a batched one is slower)."""
    y = (x.reshape(-1, x.shape[-1]) @ p["weight"]).reshape(*x.shape[:-1], -1)
    return y + p["bias"] if "bias" in p else y


def gelu(x: Array) -> Array:
    """GeLU by its tanh approximation."""
    return jax.nn.gelu(x, approximate=True)


def mlp(p: dict, x: Array) -> Array:
    """Gated MLP (Griffin 2.2): GeLU on one of two branches."""
    return linear(p["down"], gelu(linear(p["gate"], x)) * linear(p["up"], x))
