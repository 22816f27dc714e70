"""The linear recurrence ``h_t = a_t * h_(t-1) + x_t`` in plain XLA, two ways.

``sequential_scan`` walks time once, forwards for the values and backwards for the gradients, and
keeps nothing but ``h``: the recurrence is bound by memory, so one pass over it is what counts
(Griffin, appendix D). ``associative_scan`` does log2(T) passes and is differentiated by JAX: the
textbook alternative, kept for comparison and for machines with far more parallelism than memory.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ["SCANS", "associative_scan", "sequential_scan"]


@jax.custom_vjp
def sequential_scan(a: Array, x: Array, h0: Array) -> Array:
    """All states of the recurrence, one step of time after the other.

    Parameters
    ----------
    a, x : Array of shape (B, T, R)
        Decay and input.
    h0 : Array of shape (B, R)
        State before the first step.

    Returns
    -------
    Array of shape (B, T, R)
        ``h``; its last step is the state to carry on with.
    """
    return _walk(a, x, h0, reverse=False)


def _walk(a: Array, x: Array, h0: Array, reverse: bool) -> Array:
    def step(h, inputs):
        a_t, x_t = inputs
        h = a_t * h + x_t
        return h, h

    time_major = (a.swapaxes(0, 1), x.swapaxes(0, 1))
    _, h = lax.scan(step, h0, time_major, reverse=reverse)
    return h.swapaxes(0, 1)


def _forward(a, x, h0):
    h = sequential_scan(a, x, h0)
    return h, (a, h, h0)


def _backward(saved, dh):
    # With g_t the gradient that reaches h_t from its own output and from all later steps,
    # g_t = dh_t + a_(t+1) g_(t+1): the same recurrence, run backwards with `a` shifted by one.
    a, h, h0 = saved
    a_next = jnp.concatenate([a[:, 1:], jnp.zeros_like(a[:, :1])], axis=1)
    g = _walk(a_next, dh, jnp.zeros_like(h0), reverse=True)
    h_before = jnp.concatenate([h0[:, None].astype(h.dtype), h[:, :-1]], axis=1)
    return g * h_before, g, a[:, 0] * g[:, 0]


sequential_scan.defvjp(_forward, _backward)


def associative_scan(a: Array, x: Array, h0: Array) -> Array:
    """The same states by a parallel prefix over ``(a, x)``; see :func:`sequential_scan`."""

    def combine(earlier, later):
        a1, x1 = earlier
        a2, x2 = later
        return a1 * a2, a2 * x1 + x2

    decay, h = lax.associative_scan(combine, (a, x), axis=1)
    return h + decay * h0[:, None]


SCANS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "sequential": sequential_scan,
    "associative": associative_scan,
}
