"""One step of training as a pure function, and the options that it depends on.

``update(carry, base, batch, config=..., options=...)`` takes and returns ``carry``, the trained
arrays and the optimiser's state; ``base`` holds frozen weights where factors are trained on them
(:mod:`griffin_kernels.xla.lora`), else None. Nothing else goes in or comes out.
:func:`compiled_update` is the same as a compiled program.

Choices of the RecurrentGemma report, section 2: no weight decay on the RG-LRU's parameters (nor on
norms and biases), the derivative of the square root clipped at 1000.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from griffin_kernels.xla.data import Batch
from griffin_kernels.xla.lora import LoraOptions, merge
from griffin_kernels.xla.loss import cross_entropy_sum
from griffin_kernels.xla.model import hidden
from griffin_kernels.xla.sharding import by_hand, constrain_tree, cut, mesh_shape
from griffin_np.config import GriffinConfig
from griffin_np.errors import ConfigError
from griffin_np.params import flatten, nest

__all__ = [
    "TrainOptions",
    "compiled_update",
    "compiler_options",
    "decay_mask",
    "effective",
    "loss_and_gradient",
    "loss_sum",
    "optimizer",
    "update",
]


@dataclass(frozen=True)
class TrainOptions:
    """What a run's result depends on, beside the configuration, the first weights and the text.

    Parameters
    ----------
    steps : int
        Updates in all; the learning rate follows a cosine to zero over them.
    batch_size, length : int
        Rows of a batch and tokens of a row.
    learning_rate : float
        At the end of the warm-up.
    warmup : int
        Steps of linear warm-up.
    weight_decay : float
        Decoupled decay of matrices (see :func:`decay_mask`) or of LoRA's factors.
    beta1, beta2 : float
        Decay of AdamW's two averages.
    clip : float
        Largest global norm of a gradient.
    seed : int
        Of the initial weights or factors and the order of the documents.
    scan : {"sequential", "associative", "pallas"}
    accumulate : int
        Batches of ``batch_size`` rows whose gradients make one update.
    remat : bool
        Compute each block again in the backward pass, instead of keeping its intermediates: less
        memory, more time, the same gradients but for rounding.
    lora : LoraOptions, optional
        Train factors on frozen weights instead of the weights.
    """

    steps: int = 1000
    batch_size: int = 4
    length: int = 512
    learning_rate: float = 2.5e-3
    warmup: int = 200
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.98
    clip: float = 1.0
    seed: int = 0
    scan: str = "sequential"
    accumulate: int = 1
    remat: bool = False
    lora: LoraOptions | None = None

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.length < 2:
            raise ConfigError(f"length must be at least 2 tokens, got {self.length}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.warmup <= self.steps:
            raise ConfigError(f"warmup must be in [0, steps={self.steps}], got {self.warmup}")


def decay_mask(params: dict) -> dict:
    """True for what weight decay shrinks: matrices outside the RG-LRU; no norms, no biases."""

    def decays(name: str) -> bool:
        return ".rg_lru." not in name and not name.endswith(("norm", "bias"))

    return nest({name: decays(name) for name in flatten(params)})


@cache
def optimizer(options: TrainOptions) -> optax.GradientTransformation:
    """AdamW behind a clip of the gradient's global norm, under warm-up and cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if options.warmup else options.learning_rate,
        peak_value=options.learning_rate,
        warmup_steps=options.warmup,
        decay_steps=max(options.steps, options.warmup + 1),
    )
    mask = decay_mask if options.lora is None else None  # both factors are matrices
    adamw = optax.adamw(
        schedule, options.beta1, options.beta2, weight_decay=options.weight_decay, mask=mask
    )
    return optax.chain(optax.clip_by_global_norm(options.clip), adamw)


def effective(trained: dict, base: dict | None, lora: LoraOptions | None) -> dict:
    """The parameter tree that a model computes with."""
    if lora is None:
        return trained
    assert base is not None
    return merge(base, trained, lora)


@partial(jax.jit, static_argnames=("config", "scan", "remat", "lora"))
def loss_sum(
    trained: dict,
    base: dict | None,
    batch: Batch,
    *,
    config: GriffinConfig,
    scan: str = "sequential",
    remat: bool = False,
    lora: LoraOptions | None = None,
) -> Array:
    """Summed loss in nats over the labels of a batch of rows (B, T)."""
    params = effective(trained, base, lora)
    tokens, positions, labels, weights = batch
    x = hidden(params, tokens, positions, config, scan=scan, remat=remat)

    def part(embedding, x, labels, weights):
        return cross_entropy_sum(
            embedding, x.reshape(-1, config.width), labels.ravel(), weights.ravel(),
            config.logits_soft_cap,
        )  # fmt: skip

    if not mesh_shape():
        return part(params["embedding"], x, labels, weights)
    # All devices share the tokens, and each has the whole head for its part of them.
    rows, text = cut("data", len(tokens)), cut("sequence", tokens.shape[1])
    axes = tuple(axis for axis in (rows, text) if axis)
    here = P(rows, text)
    run = by_hand(lambda *z: lax.psum(part(*z), axes), (P(), here, here, here), P())
    return run(params["embedding"], x, labels, weights)


def loss_and_gradient(
    trained: dict, base: dict | None, batch: Batch, *, config: GriffinConfig, options: TrainOptions
) -> tuple[Array, dict]:
    """Mean loss over all labels of several batches (N, B, T), and its gradient.

    The batches are computed one after the other. Each is divided by the labels of all, so the
    result is that of one batch of N B rows, however unevenly labels are spread.
    """
    labels = jnp.maximum(batch.weights.sum(), 1)

    def part(trained: dict, rows: Batch) -> Array:
        total = loss_sum(
            trained, base, rows,
            config=config, scan=options.scan, remat=options.remat, lora=options.lora,
        )  # fmt: skip
        return total / labels

    one = jax.value_and_grad(part)
    if batch.tokens.shape[0] == 1:
        return one(trained, jax.tree.map(lambda z: z[0], batch))

    def add(sums, rows: Batch):
        return jax.tree.map(jnp.add, sums, one(trained, rows)), None

    return lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained)), batch)[0]


def update(
    carry: tuple, base: dict | None, batch: Batch, *, config: GriffinConfig, options: TrainOptions
) -> tuple[tuple, Array]:
    """One step of AdamW.

    Parameters
    ----------
    carry : tuple
        Trained arrays and the optimiser's state.
    base : dict or None
        Frozen parameter tree under LoRA's factors.
    batch : Batch
        Arrays of shape (N, B, T): N batches whose gradients are added.

    Returns
    -------
    carry : tuple
    loss : Array of shape (), float32
        Before the step, in nats per label.
    """
    trained, state = carry
    loss, gradient = loss_and_gradient(trained, base, batch, config=config, options=options)
    updates, state = optimizer(options).update(gradient, state, trained)
    carry = optax.apply_updates(trained, updates), state
    return constrain_tree(carry, spread=True), loss


def compiler_options(options: TrainOptions) -> dict[str, str]:
    """What XLA must be told for the blocks to be computed again where that is asked for.

    ``jax.checkpoint`` puts barriers between the forward computation and its repetition. XLA's CPU
    compiler removes them and then finds that both are the same, so that nothing would be saved.
    """
    if options.remat and jax.default_backend() == "cpu":
        return {"xla_disable_hlo_passes": "cse_barrier_expander"}
    return {}


@cache
def compiled_update(config: GriffinConfig, options: TrainOptions) -> Callable:
    """:func:`update` of ``(carry, base, batch)`` as a program that reuses the carry's memory."""
    return jax.jit(
        partial(update, config=config, options=options),
        donate_argnums=0,
        compiler_options=compiler_options(options),
    )
