"""The model once more, as slow and as plain as it can be: the oracle.

Scalar and small-array float64, one token after the other, every document with its whole history at
hand: no caches, no rings, no scans over arrays, attention by a loop over the visible positions.
It imports nothing of griffin_np; configurations and parameters are used by their names alone. The
formulas are those of Griffin (De et al. 2024), section 2.4 and figure 2, and of the code that
trained the released weights. Rotary angles are computed with mpmath, because at position 2^31 a
float64 angle has an error of 2e-7 rad.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import mpmath
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Document",
    "Oracle",
    "attend",
    "convolve",
    "embedding_scale",
    "gate",
    "gelu",
    "linear",
    "log_decay",
    "logistic",
    "multiplier",
    "rg_lru",
    "rms_norm",
    "rotate",
    "soft_cap",
    "softplus",
]


# -- single operations


def logistic(z: float) -> float:
    """``1 / (1 + exp(-z))``."""
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def softplus(z: float) -> float:
    """``log(1 + exp(z))``."""
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def gelu(z: float) -> float:
    """GeLU, tanh form."""
    return 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)))


def linear(x: NDArray, weight: NDArray, bias: NDArray | None = None) -> NDArray:
    """``x @ weight + bias`` for one token: x (K,), weight (K, N); sums are correctly rounded."""
    y = np.array([math.fsum(products) for products in (x[:, None] * weight).T])
    return y if bias is None else y + bias


def soft_cap(z: float, cap: float) -> float:
    """``cap * tanh(z / cap)``; a cap of 0 is none."""
    return cap * math.tanh(z / cap) if cap else z


def embedding_scale(width: int) -> float:
    """``sqrt(width)`` rounded to 8 significant bits, ties to even: what training used."""
    value = math.sqrt(width)
    step = 2.0 ** (math.floor(math.log2(value)) - 7)
    return round(value / step) * step


def rms_norm(x: NDArray, scale: NDArray, eps: float) -> NDArray:
    """RMSNorm of one token, x and scale of shape (D,)."""
    mean_square = math.fsum(x * x) / len(x)
    return x / math.sqrt(mean_square + eps) * (1 + scale)


def convolve(inputs: Sequence[NDArray], weight: NDArray, bias: NDArray) -> NDArray:
    """Causal convolution at the last of a document's ``inputs``; weight[K-1] meets that one."""
    y = bias.copy()
    for back in range(min(len(weight), len(inputs))):
        y = y + weight[len(weight) - 1 - back] * inputs[-1 - back]
    return y


def gate(x: NDArray, w: NDArray, b: NDArray) -> NDArray:
    """Equations (1) and (2) for one token: w is (H, G, G), one block for each head; b is (H, G)."""
    H, G = b.shape
    result = np.empty(H * G)
    for head in range(H):
        block = x[head * G : (head + 1) * G]
        for k in range(G):
            z = math.fsum(block * w[head, :, k])
            result[head * G + k] = logistic(z + float(b[head, k]))
    return result


def log_decay(a_param: float, r: float) -> float:
    """Equation (3): the logarithm of a_t."""
    return -8 * r * softplus(a_param)


def multiplier(log_a: float) -> float:
    """``sqrt(1 - a^2)`` of equation (4)."""
    return math.sqrt(-math.expm1(2 * log_a))


def rg_lru(p: Mapping[str, NDArray], v: NDArray, position: int, h: NDArray) -> NDArray:
    """Equations (1) to (4) for one token, channel by channel: v and h of shape (R,)."""
    r, i = gate(v, p["w_a"], p["b_a"]), gate(v, p["w_x"], p["b_x"])
    after = np.empty_like(v)
    for j in range(len(v)):
        if position == 0:
            after[j] = i[j] * v[j]
            continue
        log_a = log_decay(float(p["a_param"][j]), r[j])
        after[j] = math.exp(log_a) * h[j] + multiplier(log_a) * (i[j] * v[j])
    return after


@lru_cache(maxsize=1 << 16)
def turn(position: int, j: int, half: int, base: float) -> tuple[float, float]:
    """Cosine and sine of ``position * base^(-j / half)``, correctly rounded."""
    with mpmath.workdps(50):
        angle = position * mpmath.power(base, -mpmath.mpf(j) / half)
        return float(mpmath.cos(angle)), float(mpmath.sin(angle))


def rotate(x: NDArray, position: int, base: float, rotary_dim: int) -> NDArray:
    """Rotary embedding of one head, (d,): channel j turns with channel ``j + rotary_dim / 2``."""
    half = rotary_dim // 2
    y = x.copy()
    for j in range(half):
        cos, sin = turn(position, j, half, base)
        y[j] = x[j] * cos - x[j + half] * sin
        y[j + half] = x[j + half] * cos + x[j] * sin
    return y


def attend(query: NDArray, keys: Sequence[NDArray], values: Sequence[NDArray], window: int):
    """One head of one token over the last ``window + 1`` keys (d,), its own among them."""
    visible = range(max(0, len(keys) - 1 - window), len(keys))
    scores = [math.fsum(query * keys[s]) / math.sqrt(len(query)) for s in visible]
    top = max(scores)
    weights = [math.exp(z - top) for z in scores]
    total = math.fsum(weights)
    mixed = np.zeros(len(query))
    for s, weight in zip(visible, weights, strict=True):
        mixed += weight / total * values[s]
    return mixed


# -- the model


@dataclass
class Document:
    """Everything that one block has seen of the current document, token by token."""

    conv_inputs: list[NDArray] = field(default_factory=list)
    h: list[NDArray] = field(default_factory=list)
    keys: list[NDArray] = field(default_factory=list)
    values: list[NDArray] = field(default_factory=list)


def as_it_is(name: str, x: NDArray) -> NDArray:
    """What meets a matrix in a model that is not quantised."""
    return x


class Oracle:
    """The forward pass of one row in float64.

    Parameters
    ----------
    flat : mapping of str to array
        Parameters by flat name.
    config : object
        Anything with the fields of a ``GriffinConfig``.
    start : int
        Begin as a state of zeros does that stands at this position.
    meets : callable
        ``meets(name, x)`` is what the matrix of that name is given in place of x (K,): in a
        quantised model, x rounded to few bits.

    Attributes
    ----------
    documents : list of Document
        History of each block, from the start of the current document.
    streams : list of list of array
        For each token read: its embedding, the residual stream after each block, and the final
        norm's output.
    position : int
        The position of the next token.
    """

    def __init__(self, flat: Mapping[str, NDArray], config, start: int = 0,
                 meets: Callable[[str, NDArray], NDArray] = as_it_is):  # fmt: skip
        self.p = {name: np.asarray(array, np.float64) for name, array in flat.items()}
        self.c, self.meets = config, meets
        self.position = start
        self.streams: list[list[NDArray]] = []
        self.documents = [Document() for _ in config.block_types]
        if start:
            kv = (config.num_kv_heads, config.width // config.num_heads)
            for past in self.documents:
                past.conv_inputs = [np.zeros(config.lru_width)] * min(config.conv_width - 1, start)
                past.h = [np.zeros(config.lru_width)]
                past.keys = [np.zeros(kv)] * min(config.window, start)
                past.values = [np.zeros(kv)] * min(config.window, start)

    def read(self, tokens: Iterable[int], positions: Iterable[int]) -> NDArray:
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
        x = p["embedding"][token] * (embedding_scale(c.width) if c.scale_embeddings else 1.0)
        stream = [x]
        for i in range(len(c.block_types)):
            x = self.block(i, x, position)
            stream.append(x)
        x = rms_norm(x, p["final_norm"], c.norm_eps)
        self.streams.append([*stream, x])
        logits = linear(self.meets("embedding", x), p["embedding"].T)
        return np.array([soft_cap(float(z), c.logits_soft_cap) for z in logits])

    def block(self, i: int, x: NDArray, position: int) -> NDArray:
        """Residual block i on one token, (D,) to (D,)."""
        c, p, name = self.c, self.p, f"blocks.{i}."
        u = rms_norm(x, p[name + "temporal_norm"], c.norm_eps)
        if c.block_types[i] == "recurrent":
            x = x + self.recurrent(name + "recurrent.", u, position, self.documents[i])
        else:
            x = x + self.attention(name + "attention.", u, position, self.documents[i])
        u = rms_norm(x, p[name + "mlp_norm"], c.norm_eps)
        branch = np.array([gelu(z) for z in self.affine(name + "mlp.gate", u)])
        return x + self.affine(name + "mlp.down", branch * self.affine(name + "mlp.up", u))

    def affine(self, name: str, x: NDArray) -> NDArray:
        """A linear layer."""
        x = self.meets(name + ".weight", x)
        return linear(x, self.p[name + ".weight"], self.p.get(name + ".bias"))

    def recurrent(self, name: str, u: NDArray, position: int, past: Document) -> NDArray:
        """Recurrent block; the document's past convolution inputs are all there."""
        p = self.p
        branch = np.array([gelu(z) for z in self.affine(name + "linear_y", u)])
        past.conv_inputs.append(self.affine(name + "linear_x", u))
        v = convolve(past.conv_inputs, p[name + "conv.weight"], p[name + "conv.bias"])
        before = past.h[-1] if past.h else np.zeros_like(v)
        inner = name + "rg_lru."
        parts = {n.removeprefix(inner): w for n, w in p.items() if n.startswith(inner)}
        past.h.append(rg_lru(parts, v, position, before))
        return self.affine(name + "linear_out", past.h[-1] * branch)

    def attention(self, name: str, u: NDArray, position: int, past: Document) -> NDArray:
        """Attention over the W positions before this one, and itself."""
        c, d = self.c, self.c.width // self.c.num_heads
        base, turned = float(c.rope_base), int(d * c.rope_fraction)
        query = self.affine(name + "query", u).reshape(c.num_heads, d)
        key = self.affine(name + "key", u).reshape(c.num_kv_heads, d)
        past.keys.append(np.array([rotate(k, position, base, turned) for k in key]))
        past.values.append(self.affine(name + "value", u).reshape(c.num_kv_heads, d))
        mixed = np.zeros((c.num_heads, d))
        for head in range(c.num_heads):
            shared = head * c.num_kv_heads // c.num_heads
            mixed[head] = attend(
                rotate(query[head], position, base, turned),
                [k[shared] for k in past.keys[-c.window - 1 :]],
                [v[shared] for v in past.values[-c.window - 1 :]],
                c.window,
            )
        return self.affine(name + "output", mixed.ravel())
