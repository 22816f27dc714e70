"""The model once more, as slow and as plain as it can be: the oracle.

Scalar and small-array float64, one token after the other, every document with its whole history at
hand: no caches, no rings, no scans over arrays, attention by a loop over the visible positions.
It imports nothing of griffin_np; configurations and parameters are used by their names alone. The
formulas are those of Griffin (De et al. 2024), section 2.4 and figure 2, and of the code that
trained the released weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Document", "Oracle"]


@dataclass
class Document:
    """Everything that one block has seen of the current document."""

    conv_inputs: list[NDArray] = field(default_factory=list)
    h: NDArray | None = None
    keys: list[NDArray] = field(default_factory=list)
    values: list[NDArray] = field(default_factory=list)


class Oracle:
    """The forward pass of one row in float64.

    Parameters
    ----------
    flat : mapping of str to array
        Parameters by flat name.
    config : object
        Anything with the fields of a ``GriffinConfig``.
    """

    def __init__(self, flat: Mapping[str, NDArray], config):
        self.p = {name: np.asarray(array, np.float64) for name, array in flat.items()}
        self.c = config
        self.documents = [Document() for _ in config.block_types]
        self.position = 0

    def read(self, tokens: Sequence[int], positions: Sequence[int]) -> NDArray:
        """Logits (T, V) of a row; a position of -1 is padding, 0 starts a document."""
        rows = []
        for token, position in zip(tokens, positions, strict=True):
            if position == -1:
                rows.append(np.zeros(self.c.vocab_size))
                continue
            if position == 0:
                self.documents = [Document() for _ in self.c.block_types]
            rows.append(self.step(int(token), int(position)))
            self.position = int(position) + 1
        return np.array(rows).reshape(len(rows), self.c.vocab_size)

    def step(self, token: int, position: int) -> NDArray:
        """Logits (V,) of one token."""
        c, p = self.c, self.p
        scale = nearest_bfloat16(math.sqrt(c.width)) if c.scale_embeddings else 1.0
        x = p["embedding"][token] * scale
        for i, kind in enumerate(c.block_types):
            name = f"blocks.{i}."
            u = self.norm(x, p[name + "temporal_norm"])
            if kind == "recurrent":
                x = x + self.recurrent(name + "recurrent.", u, position, self.documents[i])
            else:
                x = x + self.attention(name + "attention.", u, position, self.documents[i])
            u = self.norm(x, p[name + "mlp_norm"])
            gate = np.array([gelu(z) for z in self.affine(name + "mlp.gate", u)])
            x = x + self.affine(name + "mlp.down", gate * self.affine(name + "mlp.up", u))
        logits = p["embedding"] @ self.norm(x, p["final_norm"])
        cap = c.logits_soft_cap
        return np.array([cap * math.tanh(z / cap) for z in logits]) if cap else logits

    def norm(self, x: NDArray, scale: NDArray) -> NDArray:
        """RMSNorm."""
        mean_square = sum(float(v) * float(v) for v in x) / len(x)
        return x / math.sqrt(mean_square + self.c.norm_eps) * (1 + scale)

    def affine(self, name: str, x: NDArray) -> NDArray:
        """A linear layer."""
        y = x @ self.p[name + ".weight"]
        return y + self.p[name + ".bias"] if name + ".bias" in self.p else y

    def recurrent(self, name: str, u: NDArray, position: int, past: Document) -> NDArray:
        """Recurrent block; the document's past convolution inputs are all there."""
        branch = np.array([gelu(z) for z in self.affine(name + "linear_y", u)])
        past.conv_inputs.append(self.affine(name + "linear_x", u))
        w, K = self.p[name + "conv.weight"], self.c.conv_width
        v = self.p[name + "conv.bias"].copy()
        for s in range(min(K, len(past.conv_inputs))):
            v = v + w[K - 1 - s] * past.conv_inputs[-1 - s]
        past.h = self.rg_lru(name + "rg_lru.", v, position, past.h)
        return self.affine(name + "linear_out", past.h * branch)

    def rg_lru(self, name: str, v: NDArray, position: int, h: NDArray | None) -> NDArray:
        """Equations (1) to (4), channel by channel."""
        p, G = self.p, self.c.lru_width // self.c.num_heads
        after = np.empty_like(v)
        for j in range(len(v)):
            head, k = divmod(j, G)
            block = v[head * G : (head + 1) * G]
            r = logistic(float(block @ p[name + "w_a"][head, :, k]) + p[name + "b_a"][head, k])
            i = logistic(float(block @ p[name + "w_x"][head, :, k]) + p[name + "b_x"][head, k])
            log_a = -8 * r * log1p_exp(float(p[name + "a_param"][j]))
            if position == 0 or h is None:
                after[j] = i * v[j]
            else:
                after[j] = math.exp(log_a) * h[j] + math.sqrt(-math.expm1(2 * log_a)) * (i * v[j])
        return after

    def attention(self, name: str, u: NDArray, position: int, past: Document) -> NDArray:
        """Attention over the W positions before this one, and itself."""
        c, d = self.c, self.c.width // self.c.num_heads
        query = self.affine(name + "query", u).reshape(c.num_heads, d)
        key = self.affine(name + "key", u).reshape(c.num_kv_heads, d)
        value = self.affine(name + "value", u).reshape(c.num_kv_heads, d)
        past.keys.append(np.array([self.rotate(k, position) for k in key]))
        past.values.append(value)
        mixed = np.zeros((c.num_heads, d))
        for head in range(c.num_heads):
            q = self.rotate(query[head], position)
            shared = head * c.num_kv_heads // c.num_heads
            visible = range(max(0, len(past.keys) - 1 - c.window), len(past.keys))
            scores = [float(q @ past.keys[s][shared]) / math.sqrt(d) for s in visible]
            top = max(scores)
            weights = [math.exp(z - top) for z in scores]
            total = sum(weights)
            for s, weight in zip(visible, weights, strict=True):
                mixed[head] += weight / total * past.values[s][shared]
        return self.affine(name + "output", mixed.ravel())

    def rotate(self, x: NDArray, position: int) -> NDArray:
        """Rotary embedding: channel j of the first half pairs with channel j of the second."""
        half = int(len(x) * self.c.rope_fraction) // 2
        y = x.copy()
        for j in range(half):
            angle = position * float(self.c.rope_base) ** (-j / half)
            cos, sin = math.cos(angle), math.sin(angle)
            y[j] = x[j] * cos - x[j + half] * sin
            y[j + half] = x[j + half] * cos + x[j] * sin
        return y

    def state(self) -> dict[str, NDArray]:
        """The state of this one row, laid out as a state file has it, with a batch axis of 1."""
        c = self.c
        arrays = {}
        for i, (kind, past) in enumerate(zip(c.block_types, self.documents, strict=True)):
            if kind == "recurrent":
                conv = np.zeros((c.conv_width - 1, c.lru_width))
                for back in range(min(len(conv), len(past.conv_inputs))):
                    conv[len(conv) - 1 - back] = past.conv_inputs[-1 - back]
                arrays[f"layers.{i}.conv"] = conv[None]
                h = np.zeros(c.lru_width) if past.h is None else past.h
                arrays[f"layers.{i}.rg_lru"] = h[None]
                continue
            for part, entries in (("keys", past.keys), ("values", past.values)):
                ring = np.zeros((c.window, c.num_kv_heads, c.width // c.num_heads))
                for s in range(max(0, len(entries) - c.window), len(entries)):
                    ring[s % c.window] = entries[s]
                arrays[f"layers.{i}.{part}"] = ring[None]
        return arrays


def logistic(z: float) -> float:
    """``1 / (1 + exp(-z))``."""
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def log1p_exp(z: float) -> float:
    """``log(1 + exp(z))``."""
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def gelu(z: float) -> float:
    """GeLU, tanh form."""
    return 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)))


def nearest_bfloat16(value: float) -> float:
    """``value`` rounded to 8 significant bits, ties to even."""
    exponent = math.floor(math.log2(value))
    step = 2.0 ** (exponent - 7)
    return round(value / step) * step
