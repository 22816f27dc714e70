"""From logits to the next token: greedy, temperature, top-k, top-p, min-p, penalties, bias.

The steps apply in this order, each to what the one before left:

1. logit bias is added;
2. tokens among the last ``repeat_last_n`` are penalised: first repetition, then presence and
   frequency;
3. temperature divides; at 0 the largest logit wins, the lowest id among equals;
4. top-k keeps the k most probable tokens, top-p the fewest most probable ones that reach p in
   sum, min-p those at least ``min_p`` times as probable as the best; among equally probable tokens
   the lower id comes first;
5. what remains is a distribution again, and one number from the generator picks a token.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from griffin_np.errors import SamplingError

__all__ = ["Sampler", "log_softmax"]


@dataclass(frozen=True)
class Sampler:
    """Options of sampling; the defaults are greedy.

    Parameters
    ----------
    temperature : float
        At least 0; 0 is greedy.
    top_k : int
        0 keeps all.
    top_p : float
        In (0, 1]; 1 keeps all.
    min_p : float
        In [0, 1]; 0 keeps all.
    repetition_penalty : float
        Positive; a positive logit is divided by it, a negative one multiplied (Keskar et al. 2019).
    presence_penalty : float
        Subtracted from the logit of every token that occurred.
    frequency_penalty : float
        Subtracted once for every time a token occurred.
    repeat_last_n : int
        How many tokens of prompt and text the penalties look back on; 0 means none, -1 all.
    logit_bias : mapping of int to float
        Added to the logits of single tokens; ``-inf`` rules a token out.

    Raises
    ------
    SamplingError
        Naming the option, its value and its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self):
        inf = math.inf
        for name, low, high, open_low in (
            ("temperature", 0.0, inf, False),
            ("top_p", 0.0, 1.0, True),
            ("min_p", 0.0, 1.0, False),
            ("repetition_penalty", 0.0, inf, True),
            ("presence_penalty", -inf, inf, False),
            ("frequency_penalty", -inf, inf, False),
        ):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            inside = number and low <= value <= high and not (open_low and value == low)
            if not inside or not math.isfinite(value):
                opening, closing = "(" if open_low else "[", "]" if high < inf else ")"
                raise SamplingError(
                    f"{name} must be in {opening}{low:g}, {high:g}{closing}, got {value!r}"
                )
        for name, low in (("top_k", 0), ("repeat_last_n", -1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
                raise SamplingError(f"{name} must be an integer of at least {low}, got {value!r}")
        for token, bias in self.logit_bias.items():
            if isinstance(token, bool) or not isinstance(token, Integral):
                raise SamplingError(f"logit_bias must be keyed by token ids, got {token!r}")
            if math.isnan(bias) or bias == inf:
                raise SamplingError(
                    f"logit_bias of token {token} must be finite or -inf, got {bias}"
                )

    def distribution(self, logits: ArrayLike, history: Sequence[int] = ()) -> NDArray:
        """Probabilities (V,) from which the next token is drawn, in float64.

        Parameters
        ----------
        logits : array_like of shape (V,)
            ``-inf`` marks a token as impossible.
        history : sequence of int
            Tokens so far, for the penalties.

        Raises
        ------
        SamplingError
            If a logit is NaN or +inf, or every token is impossible.
        """
        z = np.array(logits, dtype=np.float64)
        if z.ndim != 1 or not z.size:
            raise SamplingError(f"logits must have shape (V,), got {z.shape}")
        wrong = np.flatnonzero(np.isnan(z) | (z == np.inf))
        if wrong.size:
            raise SamplingError(
                f"the logit of token {wrong[0]} is {z[wrong[0]]} ({wrong.size} such in all): "
                f"the model's weights or state are damaged"
            )
        with np.errstate(over="ignore"):
            self._add_bias(z)
            self._penalise(z, history)
        if (z == np.inf).any():
            raise SamplingError(
                f"bias and penalties take the logit of token {z.argmax()} to infinity: "
                f"use smaller ones"
            )
        if not np.isfinite(z).any():
            raise SamplingError("every token is ruled out: nothing can be sampled")
        if self.temperature == 0:
            p = np.zeros_like(z)
            p[np.argmax(z)] = 1
            return p
        with np.errstate(over="ignore"):  # a tiny temperature may send gaps to -inf, as it should
            p = np.exp((z - z.max()) / self.temperature)
        p /= p.sum()
        for keep in (self._top_k, self._top_p, self._min_p):
            kept = keep(p)
            if kept is not None:
                p = np.where(kept, p, 0)
                p /= p.sum()
        return p

    def sample(self, logits: ArrayLike, history: Sequence[int], rng: np.random.Generator) -> int:
        """The next token: greedy, or the one whose cumulative probability covers a uniform draw."""
        cumulative = np.cumsum(self.distribution(logits, history))
        u = rng.random() * cumulative[-1] if self.temperature else 0.0
        return int(np.searchsorted(cumulative, u, side="right"))

    def _add_bias(self, z: NDArray) -> None:
        for token, bias in self.logit_bias.items():
            if not 0 <= token < len(z):
                raise SamplingError(
                    f"logit_bias names token {token}, the vocabulary is [0, {len(z)})"
                )
            z[token] += bias

    def _penalise(self, z: NDArray, history: Sequence[int]) -> None:
        n = self.repeat_last_n
        recent = np.asarray(history[-n:] if n > 0 else history if n < 0 else (), dtype=np.int64)
        tokens, counts = np.unique(recent, return_counts=True)
        if not tokens.size:
            return
        r = self.repetition_penalty
        z[tokens] = np.where(z[tokens] > 0, z[tokens] / r, z[tokens] * r)
        z[tokens] -= self.presence_penalty + self.frequency_penalty * counts

    def _top_k(self, p: NDArray) -> NDArray | None:
        if not 0 < self.top_k < len(p):
            return None
        threshold = np.partition(p, -self.top_k)[-self.top_k]
        kept = p > threshold
        ties = np.flatnonzero(p == threshold)
        kept[ties[: self.top_k - kept.sum()]] = True
        return kept

    def _top_p(self, p: NDArray) -> NDArray | None:
        if self.top_p == 1:
            return None
        # Tokens below this share sum to less than 1 - top_p together: the set never needs them.
        candidates = np.flatnonzero(p >= (1 - self.top_p) / len(p))
        order = candidates[np.argsort(-p[candidates], kind="stable")]
        count = int(np.searchsorted(np.cumsum(p[order]), self.top_p, side="left")) + 1
        kept = np.zeros(len(p), bool)
        kept[order[:count]] = True
        return kept

    def _min_p(self, p: NDArray) -> NDArray | None:
        return p >= self.min_p * p.max() if self.min_p else None


def log_softmax(logits: ArrayLike) -> NDArray:
    """``log p`` over the last axis, in float64."""
    z = np.asarray(logits, dtype=np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
