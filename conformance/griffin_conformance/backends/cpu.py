"""The CPU engine of this project."""

import numpy as np

from griffin_conformance.backends import Backend, versions_of
from griffin_kernels.cpu import attention, operations, scan
from griffin_kernels.cpu.engine import NumbaModel
from griffin_np.config import GriffinConfig
from griffin_np.params import nest

__all__ = ["NumbaBackend"]


def single(array):
    """A float32 array."""
    return np.asarray(array, np.float32)


class NumbaBackend(Backend):
    """``griffin_kernels.cpu``, its matrices and their inputs in float32 or bfloat16.

    Operations run through the engine's own kernels, each on its own.
    """

    name = "numba"
    dtypes = ("float32", "bfloat16")

    def versions(self):
        return super().versions() | versions_of("numba", "llvmlite")

    def model(self, config, flat):
        return NumbaModel(config, nest(dict(flat)), dtype=self.dtype)

    def block(self, config, flat, i, x, positions):
        return operations.block(config, flat, i, x, self.dtype)

    def embed(self, rows):
        config = GriffinConfig(
            width=rows.shape[1], depth=1, num_heads=1, vocab_size=3, block_pattern=("recurrent",)
        )
        return operations.embed(rows, config.embedding_scale, self.dtype)

    def rms_norm(self, x, scale, eps):
        return operations.rms_norm(x, scale, eps)

    def linear(self, x, weight, bias):
        return operations.linear(x, weight, bias, self.dtype)

    def gelu(self, x):
        return operations.gelu(x)

    def causal_conv(self, x, weight, bias, positions, past):
        return operations.causal_conv(x, weight, bias, positions, past)

    def gate(self, x, w, b):
        return operations.gate(x, w, b)

    def decay(self, r, a_param):
        return scan.decay(single(r), scan.softplus_8(a_param))

    def scan(self, a, x, h):
        return scan.scan(single(a), single(x), single(h))

    def rg_lru(self, x, p, positions, h):
        return operations.rg_lru(x, p, positions, h)

    def rope(self, x, positions, base, rotary_dim):
        return operations.rope(x, positions, base, rotary_dim)

    def attention(self, q, k, v, positions, window):
        return attention.attention(q, k, v, positions, window)

    def logits(self, x, embedding, cap):
        return operations.logits(x, embedding, cap, self.dtype)
