"""How far from the truth may a correct implementation be?

The model is computed again with every intermediate result rounded to the precision that a profile
gives it. A correct program of that precision is one such computation; many of them, with rounding
directions drawn at random, show how far apart correct programs are. What lies further from the
oracle than a fixed multiple of that is wrong.

Three things make the samples like real programs:

- directions are drawn per operation and channel **and then kept for all time steps**. Rounding of a
  recurrence is systematic: the same inputs round the same way at every step. Drawn anew at each
  step, errors would average out, and correct programs would be called wrong on long texts.
- dot products round every partial sum, in a random order of the terms.
- the algorithms that a correct program may choose are sampled too: the scan in sequence or as a
  tree, ``sqrt(1 - exp(2 log a))`` beside ``sqrt(-expm1(2 log a))``.

All samples are computed at once, as a leading axis.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.oracle import nearest_bfloat16
from griffin_conformance.rounding import Profile, round_to

__all__ = ["FACTOR", "Comparison", "Simulation", "allowed", "compare"]

SAMPLES = 16

FACTOR = 4.0
"""Allowed over the largest deviation among samples; one number for the whole project."""


class Simulation:
    """Samples of the forward pass of one row in rounded arithmetic.

    Parameters
    ----------
    flat : mapping of str to array
        Parameters by flat name.
    config : object
        Anything with the fields of a ``GriffinConfig``.
    profile : Profile
    samples : int
    seed : int
    """

    def __init__(self, flat: Mapping[str, NDArray], config, profile: Profile,
                 samples: int = SAMPLES, seed: int = 0):  # fmt: skip
        self.p = {name: np.asarray(array, np.float64) for name, array in flat.items()}
        self.c = config
        self.profile = profile
        self.S = samples
        self.rng = np.random.default_rng([seed, profile.activations])
        # Algorithms alternate among samples, so that every combination occurs.
        index = np.arange(samples)
        self.tree = index % 2 == 1
        self.naive = (index // 2) % 2 == 1

    # -- arithmetic

    def directions(self, *channels: int) -> NDArray:
        """Directions (S, 1, ...channels): one per sample and channel, the same at every time."""
        return self.rng.integers(-1, 2, (self.S, 1, *channels))

    def rounded(self, x: NDArray, bits: int | None = None) -> NDArray:
        """``x`` of shape (S, T, ...) rounded; activations' bits by default."""
        return round_to(x, bits or self.profile.activations, self.directions(*x.shape[2:]))

    def dot(self, x: NDArray, w: NDArray, bits: int | None = None) -> NDArray:
        """``x @ w`` for x (S, T, K) and w (K, N), partial sums rounded in a random order."""
        bits = bits or self.profile.accumulators
        total = np.zeros((*x.shape[:2], w.shape[1]))
        for k in self.rng.permutation(len(w)):
            total = self.rounded(total + x[:, :, k, None] * w[k], bits)
        return total

    def affine(self, name: str, x: NDArray) -> NDArray:
        """A linear layer, its result in the activations' precision."""
        y = self.dot(x, self.p[name + ".weight"])
        if name + ".bias" in self.p:
            y = y + self.p[name + ".bias"]
        return self.rounded(y)

    # -- the model

    def run(self, tokens: Sequence[int], positions: Sequence[int]) -> dict[str, NDArray]:
        """Residual streams, states over time and logits of a row, each of shape (S, T, ...).

        Padding (position -1) is left out; ``columns`` of the result says where the rest stood.
        """
        p, c = self.p, self.c
        columns = np.flatnonzero(np.asarray(positions) >= 0)
        at = np.asarray(positions)[columns]
        scale = nearest_bfloat16(math.sqrt(c.width)) if c.scale_embeddings else 1.0
        x = np.repeat(p["embedding"][np.asarray(tokens)[columns]][None], self.S, axis=0)
        x = self.rounded(x * scale)
        found: dict[str, NDArray] = {"columns": columns}
        for i, kind in enumerate(c.block_types):
            name = f"blocks.{i}."
            u = self.norm(x, p[name + "temporal_norm"])
            if kind == "recurrent":
                y, h = self.recurrent(name + "recurrent.", u, at)
                found[f"layers.{i}.rg_lru"] = h
            else:
                y, k, v = self.attention(name + "attention.", u, at)
                found[f"layers.{i}.keys"], found[f"layers.{i}.values"] = k, v
            x = self.rounded(x + y)
            u = self.norm(x, p[name + "mlp_norm"])
            gated = self.gelu(self.affine(name + "mlp.gate", u)) * self.affine(name + "mlp.up", u)
            x = self.rounded(x + self.affine(name + "mlp.down", self.rounded(gated)))
            found[f"blocks.{i}.residual"] = x
        logits = self.dot(self.norm(x, p["final_norm"]), p["embedding"].T)
        if c.logits_soft_cap:
            cap = c.logits_soft_cap
            bits = self.profile.accumulators
            logits = self.rounded(
                cap * self.rounded(np.tanh(self.rounded(logits / cap, bits)), bits), bits
            )
        found["logits"] = logits
        return found

    def norm(self, x: NDArray, scale: NDArray) -> NDArray:
        bits = self.profile.accumulators
        squares = self.dot(x * x, np.full((x.shape[-1], 1), 1 / x.shape[-1]))
        inverse = self.rounded(1 / np.sqrt(self.rounded(squares + self.c.norm_eps, bits)), bits)
        return self.rounded(self.rounded(x * inverse, bits) * (1 + scale))

    def gelu(self, z: NDArray) -> NDArray:
        bits = self.profile.accumulators
        inner = self.rounded(
            math.sqrt(2 / math.pi) * self.rounded(z + 0.044715 * z * z * z, bits), bits
        )
        return self.rounded(0.5 * z * self.rounded(1 + np.tanh(inner), bits))

    def recurrent(self, name: str, u: NDArray, at: NDArray) -> tuple[NDArray, NDArray]:
        p, K = self.p, self.c.conv_width
        branch = self.gelu(self.affine(name + "linear_y", u))
        x = self.affine(name + "linear_x", u)
        v = np.zeros_like(x)
        for s in self.rng.permutation(min(K, x.shape[1])):
            shifted = np.zeros_like(x)
            shifted[:, s:] = x[:, : x.shape[1] - s]
            term = np.where((at >= s)[:, None], shifted, 0) * p[name + "conv.weight"][K - 1 - s]
            v = self.rounded(v + term, self.profile.accumulators)
        v = self.rounded(v + p[name + "conv.bias"])
        h = self.rg_lru(name + "rg_lru.", v, at)
        return self.affine(name + "linear_out", self.rounded(self.rounded(h) * branch)), h

    def rg_lru(self, name: str, v: NDArray, at: NDArray) -> NDArray:
        """Equations (1) to (4); returns the state at every time, (S, T, R)."""
        p, bits = self.p, self.profile.state
        S, T = v.shape[:2]
        blocks = v.reshape(S, T, *p[name + "b_a"].shape)

        def gate(w: NDArray, b: NDArray) -> NDArray:
            z = np.concatenate(
                [self.dot(blocks[:, :, j], w[j], bits) for j in range(len(w))], axis=2
            )
            z = self.rounded(z + b.ravel(), bits)
            e = np.exp(-np.abs(z))
            return self.rounded(np.where(z >= 0, 1, e) / self.rounded(1 + e, bits), bits)

        r, i = gate(p[name + "w_a"], p[name + "b_a"]), gate(p[name + "w_x"], p[name + "b_x"])
        a_param = p[name + "a_param"]
        soft = self.rounded(
            (np.maximum(a_param, 0) + np.log1p(np.exp(-np.abs(a_param))))[None, None], bits
        )
        log_a = self.rounded(-8 * self.rounded(r * soft, bits), bits)
        a = self.rounded(np.exp(log_a), bits)
        exact = self.rounded(-np.expm1(2 * log_a), bits)
        cancelled = self.rounded(1 - self.rounded(np.exp(2 * log_a), bits), bits)
        squared = np.where(self.naive[:, None, None], np.maximum(cancelled, 0), exact)
        starts = (at == 0)[:, None]
        multiplier = np.where(starts, 1, self.rounded(np.sqrt(squared), bits))
        gated = self.rounded(multiplier * self.rounded(i * v, bits), bits)
        a = np.where(starts, 0, a)
        h = np.empty_like(gated)
        h[~self.tree] = self.sequential(a[~self.tree], gated[~self.tree], bits)
        h[self.tree] = self.associative(a[self.tree], gated[self.tree], bits)
        return h

    def sequential(self, a: NDArray, x: NDArray, bits: int) -> NDArray:
        """The scan step by step; each product and each sum keeps its direction through time."""
        product, total = (self.rng.integers(-1, 2, (len(a), a.shape[2])) for _ in range(2))
        fused = (
            self.rng.random((len(a), 1)) < 0.5
        )  # with a fused multiply-add there is one rounding
        h, states = np.zeros((len(a), a.shape[2])), np.empty_like(x)
        for t in range(a.shape[1]):
            ah = a[:, t] * h
            ah = np.where(fused, ah, round_to(ah, bits, product))
            h = round_to(ah + x[:, t], bits, total)
            states[:, t] = h
        return states

    def associative(self, a: NDArray, x: NDArray, bits: int) -> NDArray:
        """The scan as a tree: spans of length 1, 2, 4 ... are combined, rounding at each level."""
        a, h = a.copy(), x.copy()
        span = 1
        while span < a.shape[1]:
            directions = self.rng.integers(-1, 2, (3, len(a), 1, a.shape[2]))
            moved = round_to(a[:, span:] * h[:, :-span], bits, directions[0])
            combined = round_to(moved + h[:, span:], bits, directions[1])
            decay = round_to(a[:, span:] * a[:, :-span], bits, directions[2])
            h = np.concatenate([h[:, :span], combined], axis=1)
            a = np.concatenate([a[:, :span], decay], axis=1)
            span *= 2
        return h

    def attention(self, name: str, u: NDArray, at: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        c, bits = self.c, self.profile.accumulators
        S, T, _ = u.shape
        d = c.width // c.num_heads
        q = self.rotate(self.affine(name + "query", u).reshape(S, T, c.num_heads, d), at)
        k = self.rotate(self.affine(name + "key", u).reshape(S, T, c.num_kv_heads, d), at)
        v = self.affine(name + "value", u).reshape(S, T, c.num_kv_heads, d)
        back = np.arange(T)[:, None] - np.arange(T)
        visible = (back >= 0) & (back <= np.minimum(c.window, at)[:, None])
        mixed = np.zeros((S, T, c.num_heads, d))
        for head in range(c.num_heads):
            g = head * c.num_kv_heads // c.num_heads
            scores = np.zeros((S, T, T))
            for j in self.rng.permutation(d):
                term = q[:, :, head, j, None] * k[:, None, :, g, j]
                scores = round_to(scores + term, bits, self.directions(1))
            scores = round_to(scores / math.sqrt(d), bits, self.directions(1))
            scores = np.where(visible, scores, -np.inf)
            e = np.exp(scores - scores.max(axis=-1, keepdims=True))
            e = round_to(e, bits, self.directions(1))
            total = np.zeros((S, T, 1))
            y = np.zeros((S, T, d))
            for s in range(T):
                total = self.rounded(total + e[:, :, s, None], bits)
                y = self.rounded(y + e[:, :, s, None] * v[:, None, s, g], bits)
            mixed[:, :, head] = self.rounded(y / total)
        return self.affine(name + "output", mixed.reshape(S, T, -1)), k, v

    def rotate(self, x: NDArray, at: NDArray) -> NDArray:
        d, bits = x.shape[-1], self.profile.accumulators
        half = int(d * self.c.rope_fraction) // 2
        angle = at[:, None, None] * float(self.c.rope_base) ** (-np.arange(half) / max(half, 1))
        cos = self.rounded(np.cos(angle)[None], bits)
        sin = self.rounded(np.sin(angle)[None], bits)
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        first = self.rounded(a * cos, bits) - self.rounded(b * sin, bits)
        second = self.rounded(b * cos, bits) + self.rounded(a * sin, bits)
        return self.rounded(np.concatenate([first, second, rest], axis=-1))


def norms(x: NDArray) -> NDArray:
    """Euclidean norm over the last axis of x (..., T, N): one number per position."""
    return np.sqrt(np.sum(np.square(x), axis=-1))


def allowed(samples: NDArray, truth: NDArray, unit: float) -> NDArray:
    """Allowed distance at each position, (T,).

    Parameters
    ----------
    samples : array of shape (S, T, N)
    truth : array of shape (T, N)
    unit : float
        Unit roundoff: results can never be held to less than ``unit * norm(truth)``.
    """
    spread = norms(samples - truth[None]).max(axis=0)
    return FACTOR * np.maximum(spread, unit * norms(truth))


@dataclass(frozen=True)
class Comparison:
    """One array of a backend against the truth.

    Attributes
    ----------
    name : str
    ratio : float
        Largest observed / allowed over positions; above 1 is wrong. Infinite for NaN.
    position : int
        Column of the row where that is.
    ulps : tuple of float
        50th, 99th, 99.9th percentile and maximum of the error of single values, in units in the
        last place of the profile at the scale of the largest value in that position.
    """

    name: str
    ratio: float
    position: int
    ulps: tuple[float, float, float, float]

    @property
    def passed(self) -> bool:
        return self.ratio <= 1


def compare(
    name: str, found: NDArray, truth: NDArray, samples: NDArray, profile: Profile
) -> Comparison:
    """Hold an array (T, N) of a backend against truth and envelope."""
    found = np.asarray(found, np.float64)
    if found.shape != truth.shape:
        raise ValueError(f"{name} has shape {found.shape}, expected {truth.shape}")
    limit = allowed(samples, truth, profile.unit)
    observed = norms(found - truth)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(observed == 0, 0.0, observed / limit)
    ratios = np.where(np.isfinite(observed), ratios, np.inf)
    worst = int(np.argmax(ratios)) if len(ratios) else 0
    scale = np.maximum(np.abs(truth).max(axis=-1, keepdims=True, initial=0), 1e-300)
    ulps = np.abs(found - truth) / (scale * 2 * profile.unit)
    percentiles = np.percentile(ulps, [50, 99, 99.9, 100]) if ulps.size else np.zeros(4)
    return Comparison(name, float(ratios.max(initial=0)), worst, tuple(map(float, percentiles)))
