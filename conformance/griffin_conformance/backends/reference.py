"""The NumPy reference of this project."""

import numpy as np

import griffin_np
from griffin_conformance.backends import Backend
from griffin_np import attention, chat, layers, model, rg_lru
from griffin_np.params import nest
from griffin_np.state import State
from griffin_np.tokenizer import Tokenizer

__all__ = ["NumPyBackend", "Vocabulary"]


class Vocabulary(Tokenizer):
    """``griffin_np``'s tokenizer, with dialogues."""

    def encode_dialogue(self, messages):
        """Token ids of a dialogue, up to where the model's turn begins."""
        return chat.encode_dialogue(self, messages)


class NumPyBackend(Backend):
    """``griffin_np`` in float32 or float64."""

    name = "numpy"
    dtypes = ("float32", "float64")

    def load(self, folder):
        return griffin_np.load(folder, "numpy", self.dtype)

    def tokenizer(self, folder):
        return Vocabulary(folder / "tokenizer.model")

    def cast(self, array):
        """An array in this backend's dtype; None stays."""
        return None if array is None else np.asarray(array, self.dtype)

    def tree(self, flat):
        """Parameters as a tree in this backend's dtype."""
        return nest({name: self.cast(array) for name, array in flat.items()})

    def model(self, config, flat):
        return model.NumPyModel(config, self.tree(flat))

    def block(self, config, flat, i, x, positions):
        layer = State.zeros(config, 1, self.cast(x).dtype).layers[i]
        layer = type(layer)(**{name: array[0] for name, array in vars(layer).items()})
        block = self.tree(flat)["blocks"][i]
        kind = config.block_types[i]
        return model.residual_block(block, kind, config, self.cast(x), positions, layer)[0]

    def embed(self, rows):
        T, D = rows.shape
        config = _only_a_width(D)
        return model.embed({"embedding": self.cast(rows)}, config, np.arange(T))

    def rms_norm(self, x, scale, eps):
        return layers.rms_norm(self.cast(x), self.cast(scale), eps)

    def linear(self, x, weight, bias):
        p = {"weight": self.cast(weight), "bias": self.cast(bias)}
        return layers.linear({k: v for k, v in p.items() if v is not None}, self.cast(x))

    def gelu(self, x):
        return layers.gelu(self.cast(x))

    def causal_conv(self, x, weight, bias, positions, past):
        p = {"weight": self.cast(weight), "bias": self.cast(bias)}
        return layers.causal_conv(p, self.cast(x), positions, self.cast(past))

    def gate(self, x, w, b):
        p = {"w_x": self.cast(w), "b_x": self.cast(b)}
        return rg_lru.input_gate(p, self.cast(x))

    def decay(self, r, a_param):
        log_a = rg_lru.log_decay({"a_param": self.cast(a_param)}, self.cast(r))
        return np.exp(log_a), rg_lru.multiplier(log_a)

    def scan(self, a, x, h):
        return rg_lru.scan(self.cast(a), self.cast(x), self.cast(h))

    def rg_lru(self, x, p, positions, h):
        p = {name: self.cast(array) for name, array in p.items()}
        return rg_lru.rg_lru(p, self.cast(x), positions, self.cast(h))[0]

    def rope(self, x, positions, base, rotary_dim):
        return attention.rope(self.cast(x), positions, base, rotary_dim)

    def attention(self, q, k, v, positions, window):
        return attention.local_attention(
            self.cast(q), self.cast(k), self.cast(v), positions, window
        )

    def logits(self, x, embedding, cap):
        config = _only_a_width(x.shape[1], logits_soft_cap=cap)
        return model.head({"embedding": self.cast(embedding)}, config, self.cast(x))


def _only_a_width(width: int, **changes):
    from griffin_np.config import GriffinConfig

    return GriffinConfig(
        width=width, depth=1, num_heads=1, vocab_size=3, block_pattern=("recurrent",), **changes
    )
