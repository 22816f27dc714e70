"""The linear recurrence ``h_t = a_t * h_(t-1) + x_t`` in plain XLA, two ways; all ways by name.

``sequential_scan`` walks time once, forwards for the values and backwards for the gradients, and
keeps nothing but ``h``: the recurrence is bound by memory, so one pass over it is what counts
(Griffin, appendix D). ``associative_scan`` does log2(T) passes and is differentiated by JAX: the
textbook alternative, kept for comparison and for machines with far more parallelism than memory.
``scan_pallas.linear_scan`` is the single pass as a kernel for TPUs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from griffin_kernels.xla.scan_pallas import linear_scan

__all__ = ["SCANS", "associative_scan", "fastest_scan", "sequential_scan"]


def sequential_scan(
    a: Array, x: Array, h0: Array, starts: Array | None = None
) -> tuple[Array, Array]:
    """All states of the recurrence, one step of time after the other.

    Parameters
    ----------
    a, x : Array of shape (B, T, R), float32 or bfloat16
        Decay and input.
    h0 : Array of shape (B, R), float32
        State before the first step.
    starts : Array of shape (B, T), bool, optional
        Where the state is forgotten before the step, even if it is not finite.

    Returns
    -------
    h : Array of shape (B, T, R), dtype of ``x``
    last : Array of shape (B, R), float32
        The last state, to carry on with.
    """
    wide = a.astype(jnp.float32)
    if starts is not None:
        wide = jnp.where(starts[..., None], 0.0, wide)
    h = _states(wide, x.astype(jnp.float32), h0.astype(jnp.float32))
    return h.astype(x.dtype), h[:, -1]


@jax.custom_vjp
def _states(a: Array, x: Array, h0: Array) -> Array:
    """The states, all in float32; a decay of exactly 0 forgets, as in the Pallas kernel."""
    return _walk(a, x, h0, reverse=False)


def _walk(a: Array, x: Array, h0: Array, reverse: bool) -> Array:
    def step(h, inputs):
        a_t, x_t = inputs
        h = jnp.where(a_t == 0, 0.0, a_t * h) + x_t
        return h, h

    time_major = (a.swapaxes(0, 1), x.swapaxes(0, 1))
    _, h = lax.scan(step, h0, time_major, reverse=reverse)
    return h.swapaxes(0, 1)


def _forward(a, x, h0):
    h = _states(a, x, h0)
    return h, (a, h, h0)


def _backward(saved, dh):
    # With g_t the gradient that reaches h_t from its own output and from all later steps,
    # g_t = dh_t + a_(t+1) g_(t+1): the same recurrence, run backwards with `a` shifted by one.
    a, h, h0 = saved
    a_next = jnp.concatenate([a[:, 1:], jnp.zeros_like(a[:, :1])], axis=1)
    g = _walk(a_next, dh, jnp.zeros_like(h0), reverse=True)
    h_before = jnp.concatenate([h0[:, None], h[:, :-1]], axis=1)
    return g * h_before, g, jnp.where(a[:, 0] == 0, 0.0, a[:, 0] * g[:, 0])


_states.defvjp(_forward, _backward)


def associative_scan(
    a: Array, x: Array, h0: Array, starts: Array | None = None
) -> tuple[Array, Array]:
    """The same by a parallel prefix over (a, x); see :func:`sequential_scan`."""

    def combine(earlier, later):
        a1, x1, s1 = earlier
        a2, x2, s2 = later
        # Selected before the product, whose gradient would otherwise be that of 0 * inf.
        return jnp.where(s2, 0.0, a1 * a2), a2 * jnp.where(s2, 0.0, x1) + x2, s1 | s2

    if starts is None:
        starts = jnp.zeros(x.shape[:2], bool)
    steps = (a.astype(jnp.float32), x.astype(jnp.float32), starts[..., None])
    decay, h, forgotten = lax.associative_scan(combine, steps, axis=1)
    h = h + decay * jnp.where(forgotten, 0.0, h0.astype(jnp.float32)[:, None])
    return h.astype(x.dtype), h[:, -1]


SCANS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "sequential": sequential_scan,
    "associative": associative_scan,
    "pallas": linear_scan,
}
"""``scan(a, x, h0, starts=None) -> (h, last)`` by the names that options have."""


def fastest_scan(platform: str) -> str:
    """What to take where nothing was asked for; Pallas is interpreted anywhere but on TPUs."""
    return {"cpu": "sequential", "tpu": "pallas"}.get(platform, "associative")
