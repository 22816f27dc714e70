"""From logits to the next tokens, for a batch, inside a compiled program.

The same steps in the same order as ``griffin_np.sampling``, which see: bias, penalties,
temperature, top-k, top-p, min-p, and one uniform number that picks a token. Nothing is sorted:
the least logit that is kept is found bit by bit, in 32 passes over the vocabulary.

Shapes: B rows, V tokens of the vocabulary, N tokens that penalties look back on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from griffin_np.errors import SamplingError
from griffin_np.sampling import Sampler

__all__ = ["FAULTS", "Options", "Steps", "choose", "options_of"]

FAULTS = {
    1: "a logit is NaN or +inf: the model's weights or state are damaged",
    2: "bias and penalties take a logit to infinity: use smaller ones",
    3: "every token is ruled out: nothing can be sampled",
}
"""What can go wrong, by the number that :func:`choose` returns; 0 is nothing."""


class Steps(NamedTuple):
    """Which steps there are: fixed when a program is compiled."""

    greedy: bool
    top_k: bool
    top_p: bool
    min_p: bool
    penalties: bool
    bias: bool


class Options(NamedTuple):
    """Their numbers, scalars that a compiled program takes as arguments; ``bias`` (V,) or ()."""

    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    repetition: Any
    presence: Any
    frequency: Any
    bias: Any


def options_of(sampler: Sampler, vocab_size: int) -> tuple[Steps, Options]:
    """Both for a sampler.

    Raises
    ------
    SamplingError
        If a bias names a token that does not exist.
    """
    bias = np.zeros(vocab_size if sampler.logit_bias else (), np.float32)
    for token, value in sampler.logit_bias.items():
        if not 0 <= token < vocab_size:
            raise SamplingError(
                f"logit_bias names token {token}, the vocabulary is [0, {vocab_size})"
            )
        bias[token] = value
    s = sampler
    changed = s.repetition_penalty != 1 or s.presence_penalty or s.frequency_penalty
    steps = Steps(
        greedy=not s.temperature,
        top_k=0 < s.top_k < vocab_size,
        top_p=s.top_p < 1,
        min_p=s.min_p > 0,
        penalties=bool(changed and s.repeat_last_n),
        bias=bool(s.logit_bias),
    )
    # What single precision cannot hold becomes the next number that it can.
    limits = np.finfo(np.float32)
    return steps, Options(
        temperature=np.float32(np.clip(s.temperature or 1, limits.tiny, limits.max)),
        top_k=np.int32(min(s.top_k or vocab_size, vocab_size)),
        top_p=np.float32(np.clip(s.top_p, limits.tiny, 1)),
        min_p=np.float32(s.min_p),
        repetition=np.float32(s.repetition_penalty),
        presence=np.float32(s.presence_penalty),
        frequency=np.float32(s.frequency_penalty),
        bias=bias,
    )


def choose(
    logits: Array, uniform: Array, recent: Array, options: Options, steps: Steps
) -> tuple[Array, Array, Array]:
    """The next token of each row.

    Parameters
    ----------
    logits : Array of shape (B, V), float32
    uniform : Array of shape (B,)
        In [0, 1).
    recent : Array of shape (B, N), int32
        Tokens for the penalties, in any order; -1 is none.
    options, steps
        From :func:`options_of`.

    Returns
    -------
    token : Array of shape (B,), int32
    logprob : Array of shape (B,), float32
        Under the model itself.
    fault : Array of shape (B,), int32
        See :data:`FAULTS`.
    """
    damaged = ~(jnp.max(logits, axis=-1) < jnp.inf)  # NaN, if there is one, is the maximum
    z = logits + options.bias if steps.bias else logits
    if steps.penalties:
        z = penalised(z, recent, options)
    top = jnp.max(z, axis=-1, keepdims=True)
    infinite, nothing = ~(top[:, 0] < jnp.inf), top[:, 0] == -jnp.inf
    fault = jnp.where(damaged, 1, jnp.where(infinite, 2, jnp.where(nothing, 3, 0)))

    if steps.greedy:
        token = jnp.argmax(z, axis=-1)
    else:
        p = jnp.exp((z - top) / options.temperature)
        key = _ordered(z)
        p = p / p.sum(axis=-1, keepdims=True)
        if steps.top_k:
            kept = _at_least(key, lambda above: jnp.sum(above, axis=-1) >= options.top_k)
            p = _only(p, _first_ties(key, kept, options.top_k - jnp.sum(key > kept, axis=-1)))
        if steps.top_p:
            p = _top_p(p, key, options.top_p)
        if steps.min_p:
            p = _only(p, p >= options.min_p * p.max(axis=-1, keepdims=True))
        cumulative = jnp.cumsum(p, axis=-1)
        target = uniform[:, None] * cumulative[:, -1:]
        # Sums in parallel may fall by a rounding from one token to the next, so it has to be said
        # that a token without probability is none.
        covers = (cumulative > target) & (p > 0)
        last = p.shape[1] - 1 - jnp.argmax(p[:, ::-1] > 0, axis=-1)
        token = jnp.where(jnp.any(covers, axis=-1), jnp.argmax(covers, axis=-1), last)
    token = token.astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token, chosen - jax.nn.logsumexp(logits, axis=-1), fault


def penalised(z: Array, recent: Array, options: Options) -> Array:
    """Logits (B, V) of tokens that occurred in ``recent`` (B, N), lowered."""
    rows = jnp.arange(len(z))[:, None]
    counts = jnp.zeros(z.shape, jnp.float32)
    counts = counts.at[rows, recent].add(recent >= 0, mode="drop", wrap_negative_indices=False)
    r = options.repetition
    lowered = jnp.where(z > 0, z / r, z * r) - options.presence - options.frequency * counts
    return jnp.where(counts > 0, lowered, z)


def _top_p(p: Array, key: Array, share: Array) -> Array:
    """The fewest most probable tokens whose probabilities (B, V) reach ``share``."""

    def reaches(above):
        return jnp.sum(jnp.where(above, p, 0), axis=-1) >= share

    kept = _at_least(key, reaches)
    equal = key == kept
    above = jnp.sum(jnp.where(key > kept, p, 0), axis=-1)
    one = jnp.max(jnp.where(equal, p, 0), axis=-1)
    count = jnp.maximum(jnp.ceil((share - above) / jnp.maximum(one, 1e-38)), 1)
    return _only(p, _first_ties(key, kept, count))


def _only(p: Array, which: Array) -> Array:
    p = jnp.where(which, p, 0)
    return p / p.sum(axis=-1, keepdims=True)


def _ordered(z: Array) -> Array:
    """Unsigned numbers in the order of float32 ones."""
    zero = jnp.float32(0)  # and -0 are equal
    bits = lax.bitcast_convert_type(jnp.where(z == 0, zero, z), jnp.uint32)
    sign = bits >> 31
    return jnp.where(sign == 1, ~bits, bits | jnp.uint32(1 << 31))


def _at_least(key: Array, enough: Callable[[Array], Array]) -> Array:
    """The largest number (B, 1) for which what is not below it, ``key >= number``, is enough."""

    def bit(i, found):
        tried = found | (jnp.uint32(1) << (jnp.uint32(31) - i.astype(jnp.uint32)))
        return jnp.where(enough(key >= tried)[:, None], tried, found)

    return lax.fori_loop(0, 32, bit, jnp.zeros((len(key), 1), jnp.uint32))


def _first_ties(key: Array, least: Array, count: Array) -> Array:
    """What is above ``least`` (B, 1), and the first ``count`` (B,) of what equals it."""
    equal = key == least
    return (key > least) | (equal & (jnp.cumsum(equal, axis=-1) <= count[:, None]))
