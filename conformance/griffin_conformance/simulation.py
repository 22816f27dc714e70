"""The model in rounded arithmetic: what correct programs of a given precision may compute.

Every intermediate result is rounded, in directions that stay the same through time: rounding of a
recurrence is systematic, so errors drawn anew at each step would average out, and correct programs
would be called wrong on long texts. The algorithms that a correct program may choose are sampled
too: the scan in sequence or as a tree, with or without fused multiply-adds, and
``sqrt(1 - exp(2 log a))`` and ``sqrt(1 - a * a)`` beside ``sqrt(-expm1(2 log a))``.

Shapes: S samples, T tokens of one row without padding, then channels.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from griffin_conformance.oracle import embedding_scale, turn
from griffin_conformance.rounding import SAMPLES, Arithmetic, Profile, round_to

__all__ = ["Simulation"]


class Simulation(Arithmetic):
    """Operations and the whole model in sampled arithmetic.

    Parameters
    ----------
    profile : Profile
    samples : int
    seed : int
    strict : bool
        Leave out algorithms that are admitted but lose accuracy: ``1 - exp(2 log a)`` and
        ``1 - a * a``. Otherwise :attr:`cancels` says which samples use them.
    """

    def __init__(self, profile: Profile, samples: int = SAMPLES, seed: int = 0,
                 strict: bool = False):  # fmt: skip
        super().__init__(profile, samples, seed)
        # Algorithms alternate among samples, so that every combination occurs.
        index = np.arange(samples)
        self.tree = index % 2 == 1
        self.by_pairs = (index // 8) % 2 == 0
        self.cancels = ((index // 2) % 2 == 1) & (not strict)
        self.squares = (index // 4) % 2 == 1
        self.normalises_first = (index // 4) % 2 == 1
        self.rounds_weights = (index // 2) % 2 == 1

    # -- operations

    def norm(self, x: NDArray, scale: NDArray, eps: float) -> NDArray:
        """RMSNorm."""
        bits, D = self.accumulators, x.shape[-1]
        squares = self.rounded(self.dot(x * x, np.ones((D, 1))) / D, bits)
        inverse = self.function(lambda v: 1 / np.sqrt(v), self.rounded(squares + eps, bits), bits)
        return self.rounded(self.rounded(x * inverse, bits) * self.rounded((1 + scale)[None, None]))

    def product(self, name: str, x: NDArray, weight: NDArray) -> NDArray:
        """``x @ weight`` with the matrix of that name, of which a quantised model has two kinds."""
        return self.dot(x, weight)

    def affine(self, x: NDArray, weight: NDArray, bias: NDArray | None = None,
               name: str = "") -> NDArray:  # fmt: skip
        """A linear layer, its result in the activations' precision."""
        y = self.product(name, x, weight)
        if bias is not None:
            y = self.rounded(y, self.accumulators) + bias
        return self.rounded(y)

    def gelu(self, z: NDArray) -> NDArray:
        """GeLU, tanh form."""
        bits = self.accumulators
        cube = self.rounded(self.rounded(z * z, bits) * z, bits)
        inner = self.rounded(z + self.rounded(0.044715 * cube, bits), bits)
        inner = self.rounded(math.sqrt(2 / math.pi) * inner, bits)
        tail = self.rounded(1 + self.function(np.tanh, inner, bits), bits)
        return self.rounded(0.5 * z * tail)

    def convolve(self, x: NDArray, weight: NDArray, bias: NDArray, at: NDArray,
                 past: NDArray | None = None) -> NDArray:  # fmt: skip
        """Causal convolution; ``past`` (K - 1, R) are the inputs before the first token."""
        K, T = len(weight), x.shape[1]
        before = np.zeros((K - 1, x.shape[2])) if past is None else past
        inputs = np.concatenate([np.broadcast_to(before, (self.S, *before.shape)), x], axis=1)
        y = np.zeros_like(x)
        for back in self.orders(K).T:  # one of each sample
            columns = (K - 1 - back)[:, None] + np.arange(T)
            seen = np.take_along_axis(inputs, columns[:, :, None], axis=1)
            seen = np.where((at >= back[:, None])[:, :, None], seen, 0)
            y = self.rounded(y + seen * weight[K - 1 - back][:, None], self.accumulators)
        return self.rounded(y + bias)

    def gate(self, v: NDArray, w: NDArray, b: NDArray) -> NDArray:
        """Equations (1) and (2)."""
        bits = self.state
        blocks = v.reshape(*v.shape[:2], *b.shape)
        z = np.concatenate([self.dot(blocks[:, :, j], w[j], bits) for j in range(len(w))], axis=2)
        z = self.rounded(z + b.ravel(), bits)
        e = self.function(np.exp, -np.abs(z), bits)
        return self.rounded(np.where(z >= 0, 1, e) / self.rounded(1 + e, bits), bits)

    def decay(self, r: NDArray, a_param: NDArray) -> tuple[NDArray, NDArray]:
        """Equation (3): a and ``sqrt(1 - a^2)``."""
        bits = self.state
        tail = self.function(np.log1p, np.exp(-np.abs(a_param))[None, None], bits)
        soft = self.rounded(np.maximum(a_param, 0) + tail, bits)
        log_a = self.rounded(-8 * self.rounded(r * soft, bits), bits)
        a = self.function(np.exp, log_a, bits)
        exact = np.sqrt(self.function(lambda v: -np.expm1(v), 2 * log_a, bits))
        # What cancellation loses is not proportional to the unit roundoff, so it is computed with
        # the profile's own bits and scaled up where the simulation is scaled down.
        full = min(self.profile.state, 52)
        square = np.where(
            self.squares[:, None, None],
            self.rounded(self.function(np.exp, log_a, full) ** 2, full),
            self.function(np.exp, 2 * log_a, full),
        )
        lost = np.sqrt(np.maximum(1 - square, 0)) - np.sqrt(-np.expm1(2 * log_a))
        scale = exact + np.where(self.cancels[:, None, None], lost / self.profile.shrink, 0)
        return a, self.rounded(scale, bits)

    def rg_lru(self, v: NDArray, p: Mapping[str, NDArray], at: NDArray,
               h: NDArray | None = None) -> NDArray:  # fmt: skip
        """Equations (1) to (4): the state at every time, from the state ``h`` (R,)."""
        r, i = self.gate(v, p["w_a"], p["b_a"]), self.gate(v, p["w_x"], p["b_x"])
        a, scale = self.decay(r, p["a_param"])
        starts = (at == 0)[:, None]
        gated = self.rounded(
            np.where(starts, 1, scale) * self.rounded(i * v, self.state), self.state
        )
        return self.scan(np.where(starts, 0, a), gated, h)

    def scan(self, a: NDArray, x: NDArray, h: NDArray | None = None) -> NDArray:
        """Equation (4), in sequence in some samples and as a tree in the others."""
        states = np.empty_like(x)
        before = np.zeros(x.shape[2]) if h is None else h
        sequential = ~self.tree
        states[sequential] = self._in_sequence(a[sequential], x[sequential], before)
        for by_pairs in (False, True):
            chosen = self.tree & (self.by_pairs == by_pairs)
            if chosen.any():
                prefixes = self._in_pairs if by_pairs else self._in_spans
                states[chosen] = self._as_tree(prefixes, a[chosen], x[chosen], before)
        return states

    def _in_sequence(self, a: NDArray, x: NDArray, before: NDArray) -> NDArray:
        bits = self.state
        product, total = (self.draw(len(a), a.shape[2]) for _ in range(2))
        fused = self.rng.random((len(a), 1)) < 0.5  # one rounding for product and sum
        h, states = np.broadcast_to(before, (len(a), a.shape[2])), np.empty_like(x)
        for t in range(a.shape[1]):
            ah = a[:, t] * h
            ah = np.where(fused, ah, round_to(ah, bits, product))
            h = round_to(ah + x[:, t], bits, total)
            states[:, t] = h
        return states

    def _as_tree(self, prefixes, a: NDArray, x: NDArray, before: NDArray) -> NDArray:
        """The recurrence from 0 by parallel prefixes, and then the state from before."""
        a, h = prefixes(a, x)
        directions = self.draw(2, len(a), 1, a.shape[2])
        moved = round_to(a * before, self.state, directions[0])
        return round_to(h + moved, self.state, directions[1])

    def _combined(self, early: tuple[NDArray, NDArray], late: tuple[NDArray, NDArray]):
        """Decay and state over two neighbouring spans."""
        directions, bits = self.draw(3, len(early[0]), 1, early[0].shape[2]), self.state
        moved = round_to(late[0] * early[1], bits, directions[0])
        state = round_to(moved + late[1], bits, directions[1])
        return round_to(late[0] * early[0], bits, directions[2]), state

    def _in_spans(self, a: NDArray, x: NDArray) -> tuple[NDArray, NDArray]:
        """Spans of length 1, 2, 4 ... ending at each time (Hillis and Steele 1986)."""
        span = 1
        while span < a.shape[1]:
            decay, state = self._combined((a[:, :-span], x[:, :-span]), (a[:, span:], x[:, span:]))
            a = np.concatenate([a[:, :span], decay], axis=1)
            x = np.concatenate([x[:, :span], state], axis=1)
            span *= 2
        return a, x

    def _in_pairs(self, a: NDArray, x: NDArray) -> tuple[NDArray, NDArray]:
        """Neighbours first, and then the prefixes of these (Blelloch 1990)."""
        T = a.shape[1]
        if T < 2:
            return a, x
        even = self._combined(
            (a[:, : T - T % 2 : 2], x[:, : T - T % 2 : 2]), (a[:, 1::2], x[:, 1::2])
        )
        decay, state = self._in_pairs(*even)
        last = slice((T - 1) // 2)
        between = self._combined((decay[:, last], state[:, last]), (a[:, 2::2], x[:, 2::2]))
        a, x = a.copy(), x.copy()
        for whole, odd_places, even_places in zip((a, x), (decay, state), between, strict=True):
            whole[:, 1::2], whole[:, 2::2] = odd_places, even_places
        return a, x

    def rotate(self, x: NDArray, at: NDArray, base: float, rotary_dim: int) -> NDArray:
        """Rotary embedding of x (S, T, heads, d), with errors of the angles as the profile says."""
        bits, half = self.accumulators, rotary_dim // 2
        if not half:
            return x
        exact = np.array([[turn(int(p), j, half, base) for j in range(half)] for p in at])
        cos, sin = exact[None, :, None, :, 0], exact[None, :, None, :, 1]  # (1, T, 1, half)
        # A float64 angle is wrong by up to two units in its last place, however large it is.
        size = at[:, None, None] * float(base) ** (-np.arange(half) / half)
        wrong = self.directions(1, half) * np.minimum(
            np.maximum(self.profile.angle, size * 2.0**-52), 2.5e-7
        ) / self.profile.shrink  # fmt: skip
        turned_cos = cos * np.cos(wrong) - sin * np.sin(wrong)
        turned_sin = sin * np.cos(wrong) + cos * np.sin(wrong)
        cos, sin = self.rounded(turned_cos, bits), self.rounded(turned_sin, bits)
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        first = self.rounded(a * cos, bits) - self.rounded(b * sin, bits)
        second = self.rounded(b * cos, bits) + self.rounded(a * sin, bits)
        return self.rounded(np.concatenate([first, second, rest], axis=-1))

    def attend(self, q: NDArray, k: NDArray, v: NDArray, at: NDArray, window: int) -> NDArray:
        """Local attention: q (S, T, H, d), k and v (S, past + T, Q, d) to (S, T, H, d)."""
        bits, (S, T, H, d), (past, Q) = self.accumulators, q.shape, (k.shape[1], k.shape[2])
        past -= T
        back = np.arange(past, past + T)[:, None] - np.arange(past + T)
        visible = (back >= 0) & (back <= np.minimum(window, at)[:, None])
        mixed = np.zeros((S, T, H, d))
        for head in range(H):
            g = head * Q // H
            scores = np.zeros((S, T, past + T))
            for j in self.orders(d).T[:, :, None]:  # one of each sample
                term = np.take_along_axis(q[:, :, head], j[:, None], axis=2) * np.take_along_axis(
                    k[:, :, g], j[:, None], axis=2
                ).swapaxes(1, 2)
                scores = round_to(scores + term, bits, self.directions(1))
            scores = round_to(scores / math.sqrt(d), bits - 1, self.directions(1))
            scores = np.where(visible, scores, -np.inf)
            e = np.exp(scores - scores.max(axis=-1, keepdims=True))
            e = round_to(e, bits - 1, self.directions(1))
            order = self.orders(past + T)
            e = np.take_along_axis(e, order[:, None], axis=2)
            values = np.take_along_axis(v[:, :, g], order[:, :, None], axis=1)
            total, y = np.zeros((S, T, 1)), np.zeros((S, T, d))
            for s in range(past + T):
                total = self.rounded(total + e[:, :, s, None], bits)
            first = self.normalises_first[:, None, None]
            e = np.where(first, round_to(e / total, bits, self.directions(1)), e)
            if self.activations < bits:
                # What is multiplied may have the activations' precision, as with DeepMind.
                coarse = self.rounded(e)
                e = np.where(self.rounds_weights[:, None, None], coarse, e)
            for s in range(past + T):
                y = self.rounded(y + e[:, :, s, None] * values[:, None, s], bits)
            mixed[:, :, head] = self.rounded(np.where(first, y, y / total))
        return mixed

    def logits(self, x: NDArray, embedding: NDArray, cap: float) -> NDArray:
        """Tied head and soft cap."""
        bits = self.accumulators
        z = self.product("embedding", x, embedding.T)
        if cap:
            z = self.rounded(cap * self.function(np.tanh, self.rounded(z / cap, bits), bits), bits)
        return z

    def embed(self, rows: NDArray, scale: float) -> NDArray:
        """Rows of the embedding (T, D), scaled, in every sample."""
        return self.rounded(np.repeat(rows[None], self.S, axis=0) * scale)

    # -- blocks and the model

    def block(self, i: int, x: NDArray, p: Mapping[str, NDArray], c, at: NDArray,
              found: dict[str, NDArray]) -> NDArray:  # fmt: skip
        """Residual block i; what enters the state is put into ``found`` by its name there.

        Where the first position is not 0, a state of zeros came before it.
        """
        name = f"blocks.{i}."

        def linear(leaf: str, u: NDArray) -> NDArray:
            weight = f"{name}{leaf}.weight"
            return self.affine(u, p[weight], p.get(f"{name}{leaf}.bias"), weight)

        u = self.norm(x, p[name + "temporal_norm"], c.norm_eps)
        if c.block_types[i] == "recurrent":
            branch = self.gelu(linear("recurrent.linear_y", u))
            v = found[f"layers.{i}.conv"] = linear("recurrent.linear_x", u)
            conv = name + "recurrent.conv."
            v = self.convolve(v, p[conv + "weight"], p[conv + "bias"], at)
            inner = name + "recurrent.rg_lru."
            parts = {k.removeprefix(inner): w for k, w in p.items() if k.startswith(inner)}
            h = found[f"layers.{i}.rg_lru"] = self.rg_lru(v, parts, at)
            y = linear("recurrent.linear_out", self.rounded(self.rounded(h) * branch))
        else:
            d = c.width // c.num_heads
            base, turned = float(c.rope_base), int(d * c.rope_fraction)
            shape = (self.S, len(at), -1, d)
            q = self.rotate(linear("attention.query", u).reshape(shape), at, base, turned)
            k = self.rotate(linear("attention.key", u).reshape(shape), at, base, turned)
            v = linear("attention.value", u).reshape(shape)
            found[f"layers.{i}.keys"], found[f"layers.{i}.values"] = k, v
            before = np.zeros((self.S, min(int(at[0]), c.window), *k.shape[2:]))
            k, v = np.concatenate([before, k], axis=1), np.concatenate([before, v], axis=1)
            mixed = self.attend(q, k, v, at, c.window)
            y = linear("attention.output", mixed.reshape(self.S, len(at), -1))
        x = self.rounded(x + y)
        u = self.norm(x, p[name + "mlp_norm"], c.norm_eps)
        gated = self.rounded(self.gelu(linear("mlp.gate", u)) * linear("mlp.up", u))
        return self.rounded(x + linear("mlp.down", gated))

    def run(self, flat: Mapping[str, NDArray], config, tokens: ArrayLike,
            positions: ArrayLike) -> dict[str, NDArray]:  # fmt: skip
        """Residual streams, what enters the state, and logits of a row, each (S, T, ...).

        ``positions`` (T,) count up from 0, or from any position after a state of zeros.
        """
        p = {name: np.asarray(array, np.float64) for name, array in flat.items()}
        at = np.asarray(positions)
        scale = embedding_scale(config.width) if config.scale_embeddings else 1.0
        x = self.embed(p["embedding"][np.asarray(tokens)], scale)
        found: dict[str, NDArray] = {"embedding": x}
        for i in range(len(config.block_types)):
            x = found[f"blocks.{i}.residual"] = self.block(i, x, p, config, at, found)
        x = found["final_norm"] = self.norm(x, p["final_norm"], config.norm_eps)
        found["logits"] = self.logits(x, p["embedding"], config.logits_soft_cap)
        return found
