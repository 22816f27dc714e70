"""A quantised model in NumPy, to try the suite on: plain, slow, and right.

The reference with its linear layers and head replaced. Weights are whole numbers times a float32
step, one for each output and 16 inputs; what meets them is rounded to 8 bits, one step for each
token and the same 16 inputs; whole numbers are summed without error.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.backends.reference import NumPyBackend
from griffin_conformance.mutants.functions import in_place
from griffin_conformance.quantisation import (
    ActivationRounding,
    Quantisation,
    SymmetricWeights,
)
from griffin_np import model
from griffin_np.params import fingerprint

__all__ = ["Matrix", "QuantisedNumPy"]

GROUP = 16


@dataclass
class Matrix:
    """Weights (inputs, outputs) as codes, and their steps (groups, outputs)."""

    codes: NDArray
    steps: NDArray


class QuantisedNumPy(NumPyBackend):
    """``griffin_np`` with its matrices in int8 or int4; each part of the rounding is a method."""

    name = "numpy-quantised"
    dtypes = ("int8", "int4")
    quantised: Mapping[str, Quantisation] = {
        "int8": Quantisation(SymmetricWeights(-127, 127), ActivationRounding(8), GROUP),
        "int4": Quantisation(SymmetricWeights(-7, 7), ActivationRounding(8), GROUP),
    }

    @property
    def largest(self):
        """The largest code of a weight."""
        weights = self.quantised[self.dtype].weights
        assert weights is not None
        return weights.largest

    def cast(self, array):
        return None if array is None else np.asarray(array, np.float32)

    # -- rounding

    def groups(self, inputs):
        """The group of each input."""
        return np.arange(inputs) // GROUP

    def quantise(self, weights):
        """A matrix (inputs, outputs) of float32."""
        groups = self.groups(len(weights))
        top = np.zeros((groups.max(initial=0) + 1, weights.shape[1]), np.float32)
        np.maximum.at(top, groups, np.abs(weights))
        steps = self.stored(top / np.float32(self.largest))
        whole = np.where(steps > 0, steps, 1)[groups]
        codes = np.clip(self.nearest(weights / whole), -self.largest, self.largest)
        return Matrix(codes.astype(np.int32), steps)

    def stored(self, steps):
        """Steps as they are kept."""
        return steps

    def nearest(self, x):
        """Whole numbers, of weights."""
        return np.rint(x)

    def dequantise(self, matrix):
        """What a matrix stands for, exactly: float64."""
        steps = matrix.steps.astype(np.float64)
        return matrix.codes * steps[self.groups(len(matrix.codes))]

    def round_inputs(self, x):
        """Rows (T, inputs) as codes, and their steps (T, groups)."""
        groups = self.groups(x.shape[1])
        top = np.zeros((len(x), groups.max(initial=0) + 1), np.float32)
        for k, group in enumerate(groups):
            top[:, group] = np.maximum(top[:, group], np.abs(x[:, k]))
        steps = top / np.float32(127)
        codes = np.rint(x / np.where(steps > 0, steps, 1)[:, groups])
        return codes.astype(np.int32), steps

    def multiply(self, x, matrix):
        """``x @ matrix`` for float32 rows (T, inputs)."""
        groups, (codes, steps) = self.groups(x.shape[1]), self.round_inputs(x)
        y = np.zeros((len(x), matrix.codes.shape[1]), np.float32)
        for g in range(len(matrix.steps)):
            members = groups == g
            whole = (codes[:, members] @ matrix.codes[members]).astype(np.float32)
            y += whole * (steps[:, g, None] * self.step_at_use(matrix.steps[g]))
        return y

    def step_at_use(self, steps):
        """Steps of the weights as they are multiplied with."""
        return steps

    def is_quantised(self, name):
        """Whether a parameter becomes a :class:`Matrix`."""
        return self.quantised[self.dtype].covers(name)

    # -- the model

    def matrices(self, flat):
        """Quantised weights by name, (inputs, outputs)."""
        found = {}
        for name, array in flat.items():
            if self.is_quantised(name):
                array = self.cast(array)
                outputs = 1 if array.ndim == 1 else array.shape[-1]
                found[name] = self.quantise(
                    array.T if name == "embedding" else array.reshape(-1, outputs)
                )
        return found

    def dequantised(self, config, flat):
        held = {name: np.asarray(array, np.float64) for name, array in flat.items()}
        for name, matrix in self.matrices(flat).items():
            weights = self.dequantise(matrix)
            held[name] = weights.T if name == "embedding" else weights.reshape(held[name].shape)
        return held

    def functions(self, of):
        """Linear layers and head of the reference, with weights looked up by their array."""

        def linear(p, x):
            y = self.multiply(x, of[id(p["weight"])])
            return y + p["bias"] if "bias" in p else y

        def head(params, config, x):
            logits = self.multiply(x, of[id(params["embedding"])])
            cap = config.logits_soft_cap
            return cap * np.tanh(logits / np.float32(cap)) if cap else logits

        return {"linear": linear, "head": head}

    def prepared(self, config, flat):
        """Parameters as the model holds them, flat, and the functions that compute with them."""
        held = {n: self.cast(array) for n, array in self.dequantised(config, flat).items()}
        matrices = self.matrices(flat)
        return held, self.functions({id(held[name]): matrix for name, matrix in matrices.items()})

    def model(self, config, flat):
        held, functions = self.prepared(config, flat)

        class Quantised(model.NumPyModel):
            def _forward(self, *args):
                with in_place(functions):
                    return super()._forward(*args)

        answering = self.answering(Quantised)
        return answering(config, self.tree(held), fingerprint(self.tree(flat), config))

    def answering(self, model_class):
        """The class of the model."""
        return model_class

    def block(self, config, flat, i, x, positions):
        held, functions = self.prepared(config, flat)
        with in_place(functions):
            return super().block(config, held, i, x, positions)

    def linear(self, x, weight, bias):
        y = self.multiply(self.cast(x), self.quantise(self.cast(weight)))
        return y if bias is None else y + self.cast(bias)

    def logits(self, x, embedding, cap):
        z = self.multiply(self.cast(x), self.quantise(self.cast(embedding).T))
        return cap * np.tanh(z / np.float32(cap)) if cap else z
