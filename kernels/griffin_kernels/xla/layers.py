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
    """Root-mean-square normalisation times ``1 + scale``: in float32, rounded once."""
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * inverse * (1 + scale.astype(jnp.float32))).astype(x.dtype)


def linear(p: dict, x: Array) -> Array:
    """``x @ weight + bias``: sums in float32, rounded once to the dtype of ``x``.

    One matrix product over all tokens; a batched one is slower.
    """
    rows = x.reshape(-1, x.shape[-1])
    y = jnp.matmul(rows, p["weight"], preferred_element_type=jnp.float32)
    if "bias" in p:
        y = y + p["bias"].astype(jnp.float32)
    return y.astype(x.dtype).reshape(*x.shape[:-1], -1)


def gelu(x: Array) -> Array:
    """GeLU by its tanh approximation: in float32, rounded once."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


def mlp(p: dict, x: Array) -> Array:
    """Gated MLP (Griffin 2.2): GeLU on one of two branches."""
    return linear(p["down"], gelu(linear(p["gate"], x)) * linear(p["up"], x))
