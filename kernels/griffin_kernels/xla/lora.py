"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): small factors on frozen matrices.

A matrix W of shape (inputs, outputs), which multiplies from the right, becomes
``W + (alpha / rank) A B`` with A (inputs, rank) and B (rank, outputs). A begins random and B zero,
so that training begins at the base model, exactly. Only the factors have gradients, optimiser state
and checkpoints; the sum is formed inside the training step, and once more for the export.

Factors are a flat tree, ``{"blocks.0.mlp.up.a": A, "blocks.0.mlp.up.b": B, ...}``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from griffin_np.config import GriffinConfig
from griffin_np.errors import ConfigError
from griffin_np.params import flatten, nest, parameter_shapes

__all__ = ["TARGETS", "LoraOptions", "init_factors", "merge"]

TARGETS = (
    "linear_x", "linear_y", "linear_out", "query", "key", "value", "output", "gate", "up", "down",
)  # fmt: skip
"""Matrices that can be adapted: all projections of :mod:`griffin_np.params`."""


@dataclass(frozen=True)
class LoraOptions:
    """What is adapted, and how far.

    Parameters
    ----------
    rank : int
        Columns of A and rows of B.
    alpha : float
        The product of the factors is scaled by ``alpha / rank``.
    targets : tuple of str
        Names from :data:`TARGETS`; by default all, which is where adaptation reaches what full
        training does.

    Raises
    ------
    ConfigError
        If the rank is below 1, alpha not positive, or a target unknown.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self):
        if self.rank < 1:
            raise ConfigError(f"the rank of LoRA must be at least 1, got {self.rank}")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ConfigError(f"alpha of LoRA must be positive and finite, got {self.alpha}")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise ConfigError(
                f"no LoRA target {', '.join(map(repr, unknown)) or 'given'}; choose from "
                f"{', '.join(TARGETS)}"
            )


def init_factors(config: GriffinConfig, lora: LoraOptions, seed: int) -> dict[str, np.ndarray]:
    """Factors at the start: A normal with variance 1 / inputs, B zero; float32.

    Raises
    ------
    ConfigError
        If the model has none of the targets.
    """
    rng = np.random.default_rng([seed, 2])
    factors = {}
    for name, shape in parameter_shapes(config).items():
        path, _, leaf = name.rpartition(".")
        if leaf == "weight" and path.rpartition(".")[2] in lora.targets:
            inputs, outputs = shape
            scale = np.float32(1 / math.sqrt(inputs))
            factors[f"{path}.a"] = rng.standard_normal((inputs, lora.rank), np.float32) * scale
            factors[f"{path}.b"] = np.zeros((lora.rank, outputs), np.float32)
    if not factors:
        raise ConfigError(f"this model has none of the LoRA targets {', '.join(lora.targets)}")
    return factors


def merge(base: dict, factors: Mapping[str, Array], lora: LoraOptions) -> dict:
    """The parameter tree that computes with the factors; ``base`` itself gets no gradient."""
    flat = {name: lax.stop_gradient(jnp.asarray(array)) for name, array in flatten(base).items()}
    for path in (name.removesuffix(".a") for name in factors if name.endswith(".a")):
        # In full precision also where an accelerator would round the operands of a product.
        product = jnp.matmul(factors[f"{path}.a"], factors[f"{path}.b"], precision="highest")
        flat[f"{path}.weight"] += (lora.alpha / lora.rank) * product
    return nest(flat)
