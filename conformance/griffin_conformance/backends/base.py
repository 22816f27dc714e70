"""What the suite asks of an implementation.

An adapter is a subclass of :class:`Backend` that overrides what its implementation has. What it
leaves out is skipped with a reason, and never counts as passed.
"""

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.quantisation import Quantisation, QuantisedProfile
from griffin_conformance.rounding import PROFILES, Profile
from griffin_np.config import GriffinConfig

__all__ = ["Backend", "Unsupported", "versions_of"]


class Unsupported(Exception):
    """The implementation does not have this; the message says what is missing."""


class Backend:
    """One implementation, in one dtype.

    All arrays that go in and out are NumPy arrays. Operations and blocks work on one row without
    padding: T tokens, in ascending order. Parameters are flat (``blocks.0.mlp.up.weight``), float32
    valued, in the layout of :mod:`griffin_np.params`.

    Parameters
    ----------
    dtype : str, optional
        One of :attr:`dtypes`; the first by default.

    Attributes
    ----------
    name : str
        As the command line takes it.
    dtypes : tuple of str
        Precision profiles that it can compute in, and names of :attr:`quantised`.
    quantised : dict of str to Quantisation
        How it rounds weights and activations, for each of its dtypes that does.
    fixed_shapes : bool
        It compiles every shape anew: draw models from a fixed pool.
    cannot : frozenset of str
        Strata that it cannot be asked for, such as ``"no soft cap"``.
    """

    name: str = ""
    dtypes: tuple[str, ...] = ("float32",)
    quantised: Mapping[str, Quantisation] = {}
    fixed_shapes: bool = False
    cannot: frozenset[str] = frozenset()

    def __init__(self, dtype: str | None = None):
        self.dtype = dtype or self.dtypes[0]
        if unknown := set(self.dtypes) - set(PROFILES) - set(self.quantised):
            raise ValueError(
                f"backend {self.name} claims {sorted(unknown)}; the suite knows the precisions "
                f"{', '.join(PROFILES)}, and those that it describes in `quantised`"
            )
        if self.dtype not in self.dtypes:
            raise ValueError(
                f"backend {self.name} has no dtype {dtype!r}; choose one of "
                f"{', '.join(self.dtypes)}"
            )

    def adapt(self, config: GriffinConfig) -> GriffinConfig:
        """The configuration nearest to this one that the implementation can represent."""
        return config

    def versions(self) -> dict[str, str]:
        """What was tested, by name of the distribution."""
        return {"python": platform.python_version(), **versions_of("griffin-np", "numpy")}

    @property
    def spec(self) -> str:
        """What :func:`find_backend` finds it by."""
        from griffin_conformance.backends import ADAPTERS

        known = self.name in ADAPTERS or ":" in self.name
        return self.name if known else f"{type(self).__module__}:{type(self).__qualname__}"

    @property
    def profile(self) -> Profile:
        """The precision that it is held to."""
        if self.dtype in self.quantised:
            return QuantisedProfile.of(self)
        return PROFILES[self.dtype]

    @property
    def levels(self) -> tuple[str, ...]:
        """Levels at which its dtype is judged: quantised models at their own, which has the laws
        of the others.
        """
        return ("L5",) if self.dtype in self.quantised else ("L0", "L1", "L2", "L3", "L4")

    # -- L5

    def dequantised(
        self, config: GriffinConfig, flat: Mapping[str, NDArray]
    ) -> Mapping[str, NDArray]:
        """All weights as a model holds them that was given ``flat``, by the same names.

        Float32 or float64, without error: a code times its step. A dtype that is in
        :attr:`quantised` needs this.
        """
        raise Unsupported("it does not show the weights that it holds")

    def input_groups(self, config: GriffinConfig, name: str, inputs: int) -> NDArray:
        """The number of the group of each input of a matrix, (inputs,), by its flat name.

        By default :attr:`Quantisation.group` inputs after another make a group.
        """
        return np.arange(inputs) // (self.quantised[self.dtype].group or max(inputs, 1))

    # -- L4

    def load(self, folder: Path) -> Any:
        """A model as :meth:`model` gives it, of a Hugging Face folder.

        The folder has a ``config.json`` and weights as safetensors, and perhaps a
        ``generation_config.json`` and a vocabulary. What is no complete checkpoint is refused by
        any exception, and should be by one that names the tensor or the file.
        """
        raise Unsupported("it loads no checkpoint folders")

    def tokenizer(self, folder: Path) -> Any:
        """The vocabulary of a folder with ``tokenizer.model`` and ``tokenizer_config.json``.

        An object with ``encode(text, bos=True)`` to a list of ids, ``decode(ids)`` to text and, if
        it has dialogues, ``encode_dialogue(messages)``: messages are dictionaries of "role", which
        is "user" or "model", and "content", and the ids end where the model's turn begins.
        """
        raise Unsupported("it has no tokenizer")

    def nf4(self, parts: Mapping[str, NDArray], shape: tuple[int, ...]) -> NDArray:
        """A matrix of this shape, (outputs, inputs), that bitsandbytes has stored as nf4.

        ``parts`` are the tensors of the file: "weight" and, without their common prefix
        ``weight.``, "absmax", "quant_map", "quant_state.bitsandbytes__nf4" and, where scales are
        quantised themselves, "nested_absmax" and "nested_quant_map".
        """
        raise Unsupported("it reads no nf4 tensors")

    # -- L2 and L3

    def model(self, config: GriffinConfig, flat: Mapping[str, NDArray]) -> Any:
        """A model that answers the call contract of :class:`griffin_np.base.Model`."""
        raise Unsupported("it has no models")

    def compiled(self, config: GriffinConfig, flat: Mapping[str, NDArray]) -> Any:
        """The same model compiled or traced, where the implementation offers both."""
        raise Unsupported("it has no other way of running a model that is compiled")

    # -- L1

    def block(
        self, config: GriffinConfig, flat: Mapping[str, NDArray], i: int, x: NDArray,
        positions: NDArray,
    ) -> NDArray:  # fmt: skip
        """Residual block i on a row: x (T, D), positions (T,) from 0; to (T, D)."""
        raise Unsupported("it has no single blocks")

    # -- L0

    def embed(self, rows: NDArray) -> NDArray:
        """Embedding rows (T, D), scaled."""
        raise Unsupported("it has no single operation 'embed'")

    def rms_norm(self, x: NDArray, scale: NDArray, eps: float) -> NDArray:
        """RMSNorm of x (T, D); what multiplies is ``1 + scale``."""
        raise Unsupported("it has no single operation 'rms_norm'")

    def linear(self, x: NDArray, weight: NDArray, bias: NDArray | None) -> NDArray:
        """``x @ weight + bias``: (T, K), (K, N), (N,) to (T, N)."""
        raise Unsupported("it has no single operation 'linear'")

    def gelu(self, x: NDArray) -> NDArray:
        """GeLU in its tanh form, (T, E)."""
        raise Unsupported("it has no single operation 'gelu'")

    def causal_conv(
        self, x: NDArray, weight: NDArray, bias: NDArray, positions: NDArray, past: NDArray
    ) -> tuple[NDArray, NDArray]:
        """Convolution of x (T, R) after inputs ``past`` (K - 1, R); result and new past."""
        raise Unsupported("it has no single operation 'causal_conv'")

    def gate(self, x: NDArray, w: NDArray, b: NDArray) -> NDArray:
        """Equation (1) or (2): x (T, R), w (H, G, G), b (H, G)."""
        raise Unsupported("it has no single operation 'gate'")

    def decay(self, r: NDArray, a_param: NDArray) -> tuple[NDArray, NDArray]:
        """Equation (3): a and ``sqrt(1 - a^2)``, (T, R) each."""
        raise Unsupported("it has no single operation 'decay'")

    def scan(self, a: NDArray, x: NDArray, h: NDArray) -> NDArray:
        """``h_t = a_t h_(t-1) + x_t`` for (T, R) from the state h (R,): the state at every time."""
        raise Unsupported("it has no single operation 'scan'")

    def rg_lru(
        self, x: NDArray, p: Mapping[str, NDArray], positions: NDArray, h: NDArray
    ) -> NDArray:
        """Equations (1) to (4): x (T, R), parameters w_a, b_a, w_x, b_x, a_param; to (T, R)."""
        raise Unsupported("it has no single operation 'rg_lru'")

    def rope(self, x: NDArray, positions: NDArray, base: float, rotary_dim: int) -> NDArray:
        """Rotary embedding of x (T, H, d) on its first ``rotary_dim`` channels."""
        raise Unsupported("it has no single operation 'rope'")

    def attention(
        self, q: NDArray, k: NDArray, v: NDArray, positions: NDArray, window: int
    ) -> NDArray:
        """Local attention: q (T, H, d), k and v (T, Q, d), already rotated; to (T, H, d)."""
        raise Unsupported("it has no single operation 'attention'")

    def logits(self, x: NDArray, embedding: NDArray, cap: float) -> NDArray:
        """Tied head and soft cap: x (T, D), embedding (V, D); to (T, V)."""
        raise Unsupported("it has no single operation 'logits'")


def versions_of(*distributions: str) -> dict[str, str]:
    """Installed versions by name of the distribution."""
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
