"""The CPU engine of this project."""

from collections.abc import Mapping

import numpy as np

import griffin_np
from griffin_conformance.backends import Backend, versions_of
from griffin_conformance.backends.reference import Vocabulary
from griffin_conformance.quantisation import ActivationRounding, Quantisation, SymmetricWeights
from griffin_kernels.cpu import attention, operations, scan
from griffin_kernels.cpu.engine import NumbaModel
from griffin_kernels.cpu.isa.common import GROUP
from griffin_kernels.cpu.weights import Layout
from griffin_np.config import GriffinConfig
from griffin_np.params import flatten, nest

__all__ = ["NumbaBackend"]


def single(array):
    """A float32 array."""
    return np.asarray(array, np.float32)


def up(width, multiple):
    """The next multiple."""
    return -(-width // multiple) * multiple


class NumbaBackend(Backend):
    """``griffin_kernels.cpu``, its matrices and their inputs in any of its dtypes.

    Operations run through the engine's own kernels, each on its own. Int8 and int4 weights have one
    bfloat16 step for each output and 64 inputs, and meet activations of 8 bits.
    """

    name = "numba"
    dtypes = ("float32", "bfloat16", "int8", "int4")
    quantised: Mapping[str, Quantisation] = {
        "int8": Quantisation(SymmetricWeights(-127, 127, 8), ActivationRounding(8), GROUP),
        "int4": Quantisation(SymmetricWeights(-8, 7, 8), ActivationRounding(8), GROUP),
    }

    def adapt(self, config):
        """In int4, inputs of every matrix in whole groups, and no width that is a square."""
        if self.dtype != "int4":
            return config
        heads = config.num_heads
        whole = np.lcm(GROUP, heads)
        width = up(config.width, whole)
        return config.replace(
            width=int(width * 2 if width == 64 else width),
            lru_width=int(up(config.lru_width, whole)),
            mlp_width=up(config.mlp_width, GROUP),
        )

    def dequantised(self, config, flat):
        return flatten(self.model(config, flat).parameters)

    def input_groups(self, config, name, inputs):
        """Groups are cut where heads are padded: to 64 channels in the recurrence, else to 16."""
        layout = Layout(config)
        places = layout.matrices[name.removesuffix(".weight").split(".", 2)[-1]][1]
        at = np.arange(inputs) if places is None else np.flatnonzero(places >= 0)
        return at // GROUP

    def versions(self):
        return super().versions() | versions_of("numba", "llvmlite")

    def model(self, config, flat):
        return NumbaModel(config, nest(dict(flat)), dtype=self.dtype)

    def load(self, folder):
        return griffin_np.load(folder, "numba", self.dtype)

    def tokenizer(self, folder):
        return Vocabulary(folder / "tokenizer.model")

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
