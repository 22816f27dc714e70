"""Cross-entropy through the tied head, without ever holding all logits.

The head is the largest matrix product of a small model, and its logits the largest array. Tokens
are taken in chunks; each chunk's logits, loss and gradient are made while they are in the cache,
so the backward pass has nothing left to do but scale.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ["cross_entropy_sum"]

CHUNK = 512


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy_sum(
    embedding: Array, x: Array, labels: Array, weights: Array, cap: float
) -> Array:
    """Sum over tokens of ``weight * -log p(label)`` in nats.

    Parameters
    ----------
    embedding : Array of shape (V, D)
        Tied head.
    x : Array of shape (N, D)
        Normalised output of the last block.
    labels : Array of shape (N,)
    weights : Array of shape (N,)
        0 leaves a token out.
    cap : float
        Soft cap of the logits; 0 means none.

    Returns
    -------
    Array of shape (), float32
    """
    return _by_chunks(embedding, x, labels, weights, cap, gradient=False)[0]


def _by_chunks(embedding, x, labels, weights, cap, gradient):
    N, D = x.shape
    size = min(CHUNK, N)
    chunks = -(-N // size)
    pad = chunks * size - N

    def cut(z):
        widths = ((0, pad),) + ((0, 0),) * (z.ndim - 1)
        return jnp.pad(z, widths).reshape(chunks, size, *z.shape[1:])

    def one(carry, inputs):
        loss, d_embedding = carry
        x, label, weight = inputs
        logits = (x @ embedding.T).astype(jnp.float32)
        bounded = jnp.tanh(logits / cap) if cap else logits
        logits = cap * bounded if cap else logits
        log_z = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
        loss = loss + jnp.sum(weight * (log_z - picked))
        if not gradient:
            return (loss, d_embedding), None
        p = jnp.exp(logits - log_z[:, None])
        d = (p - (jnp.arange(p.shape[1]) == label[:, None])) * weight[:, None]
        d = (d * (1 - bounded**2) if cap else d).astype(embedding.dtype)
        return (loss, d_embedding + d.T @ x), d @ embedding

    zero = jnp.zeros_like(embedding) if gradient else jnp.zeros(())
    carry, dx = lax.scan(one, (jnp.zeros(()), zero), (cut(x), cut(labels), cut(weights)))
    return carry[0], carry[1], dx.reshape(-1, D)[:N] if gradient else None


def _forward(embedding, x, labels, weights, cap):
    loss, d_embedding, dx = _by_chunks(embedding, x, labels, weights, cap, gradient=True)
    return loss, (d_embedding, dx)


def _backward(cap, saved, g):
    d_embedding, dx = saved
    return g * d_embedding, g * dx, None, None


cross_entropy_sum.defvjp(_forward, _backward)
