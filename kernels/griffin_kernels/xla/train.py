"""Training from scratch: AdamW on packed documents, resumable to the same bits.

Choices of the RecurrentGemma report, section 2: no weight decay on the RG-LRU's parameters (nor on
norms and biases), the derivative of the square root clipped at 1000. A run is a pure function of
its options and its text; a checkpoint holds the weights, the optimiser's state and the step.
"""

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from griffin_kernels.xla.data import Packed, batches, pack
from griffin_kernels.xla.loss import cross_entropy_sum
from griffin_kernels.xla.model import hidden
from griffin_np.config import GriffinConfig
from griffin_np.errors import CheckpointError, ConfigError, TrainingError
from griffin_np.params import flatten, init_parameters, nest
from griffin_np.tokenizer import Tokenizer

__all__ = ["TrainOptions", "Trainer", "decay_mask", "optimizer"]


@dataclass(frozen=True)
class TrainOptions:
    """What a run's result depends on, beside the configuration and the text.

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
        Decoupled decay of matrices (see :func:`decay_mask`).
    beta1, beta2 : float
        Decay of AdamW's two averages.
    clip : float
        Largest global norm of a gradient.
    seed : int
        Of the initial weights and the order of the documents.
    scan : {"sequential", "associative"}
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

    def __post_init__(self):
        for name in ("steps", "batch_size"):
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
    adamw = optax.adamw(
        schedule, options.beta1, options.beta2, weight_decay=options.weight_decay, mask=decay_mask
    )
    return optax.chain(optax.clip_by_global_norm(options.clip), adamw)


class Trainer:
    """A training run that can be stopped and taken up again at any step.

    Parameters
    ----------
    config : GriffinConfig
    options : TrainOptions
    documents : sequence of list of int
        Training documents as token ids, special tokens included.
    folder : path, optional
        Where checkpoints are written, and looked for: a run found there is resumed.

    Raises
    ------
    CheckpointError
        If ``folder`` holds a run with another configuration, other options or other text.
    """

    def __init__(
        self,
        config: GriffinConfig,
        options: TrainOptions,
        documents: Sequence[Sequence[int]],
        folder: str | os.PathLike | None = None,
    ):
        self.config, self.options = config, options
        self.folder = Path(folder) if folder is not None else None
        self.step = 0
        self.tokens_seen = 0
        params = jax.tree.map(jnp.asarray, init_parameters(config, options.seed))
        self._optimizer = optimizer(options)
        self._carry = (params, self._optimizer.init(params))
        self._update = partial(_update, config=config, scan=options.scan, optimizer=self._optimizer)
        self._loss = partial(_loss_sum, config=config, scan=options.scan)
        self._identity = {
            "config": config.to_dict(),
            "options": asdict(options),
            "documents": len(documents),
            "tokens": sum(map(len, documents)),
            "text": _digest(documents),
        }
        if self.folder is not None:
            self._resume(self.folder)
        self._batches = batches(
            documents, options.length, options.batch_size, options.seed, skip=self.step
        )

    @property
    def params(self) -> dict:
        """Current weights as a parameter tree of NumPy arrays."""
        return jax.tree.map(np.asarray, self._carry[0])

    def train_step(self) -> float:
        """One update; returns the batch's mean loss in nats per token."""
        batch = next(self._batches)
        self._carry, loss = self._update(
            self._carry, batch.tokens, batch.positions, batch.labels, batch.weights
        )
        self.step += 1
        self.tokens_seen += int((batch.positions >= 0).sum())
        return float(loss)

    def evaluate(self, packed: Packed) -> tuple[float, int]:
        """Summed loss in nats over packed documents, and the number of predicted tokens."""
        total, count = 0.0, 0
        size = max(self.options.batch_size, 1)
        for start in range(0, len(packed.tokens), size):
            b = packed.batch(start, size)
            total += float(self._loss(self._carry[0], b.tokens, b.positions, b.labels, b.weights))
            count += int(b.weights.sum())
        return total, count

    def run(
        self,
        heldout: Sequence[Sequence[int]] = (),
        heldout_bytes: int = 0,
        *,
        checkpoint_every: int = 500,
        evaluate_every: int = 500,
        log_every: int = 20,
        log: TextIO | None = None,
    ) -> float | None:
        """Train to the last step; returns held-out bits per byte, if there is held-out text.

        Progress goes to ``log`` (default: stderr): one line every ``log_every`` steps with the
        loss, tokens/s, the time left and the latest held-out bits per byte.

        Raises
        ------
        TrainingError
            If the loss becomes infinite or NaN; the last checkpoint is from before that.
        """
        log = log or sys.stderr
        packed = pack(heldout, self.options.length) if len(heldout) else None
        bits = None
        started, first, seen, losses = time.monotonic(), self.step, self.tokens_seen, []
        while self.step < self.options.steps:
            losses.append(self.train_step())
            if not math.isfinite(losses[-1]):
                raise TrainingError(
                    f"the loss became {losses[-1]} at step {self.step}: "
                    f"lower the learning rate ({self.options.learning_rate}) and start again"
                )
            last = self.step == self.options.steps
            if self.folder is not None and (last or self.step % checkpoint_every == 0):
                self.save()
            if packed is not None and (last or self.step % evaluate_every == 0):
                bits = self.evaluate(packed)[0] / math.log(2) / heldout_bytes
            if last or self.step % log_every == 0:
                elapsed = time.monotonic() - started
                left = elapsed / (self.step - first) * (self.options.steps - self.step)
                held = f"  held-out {bits:.4f} bits/byte" if bits is not None else ""
                print(
                    f"step {self.step}/{self.options.steps}  loss {np.mean(losses):.4f}  "
                    f"{(self.tokens_seen - seen) / elapsed:.0f} tokens/s  "
                    f"{int(left) // 60}:{int(left) % 60:02d} left{held}",
                    file=log, flush=True,
                )  # fmt: skip
                losses = []
        if packed is not None and bits is None:
            bits = self.evaluate(packed)[0] / math.log(2) / heldout_bytes
        return bits

    def save(self) -> Path:
        """Write a checkpoint (to a temporary name, then renamed) and drop older ones."""
        if self.folder is None:
            raise CheckpointError("this run has no folder to keep checkpoints in")
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(self._carry))}
        meta = {"identity": self._identity, "step": self.step, "tokens_seen": self.tokens_seen}
        target = self.folder / f"step-{self.step:08d}.safetensors"
        partial_file = target.with_suffix(".partial")
        save_file(arrays, partial_file, metadata={"run": json.dumps(meta)})
        partial_file.replace(target)
        for old in sorted(self.folder.glob("step-*.safetensors"))[:-2]:
            old.unlink()
        return target

    def _resume(self, folder: Path) -> None:
        for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
            try:
                with safe_open(path, framework="np") as file:
                    meta = json.loads(file.metadata()["run"])
                    leaves = [file.get_tensor(str(i)) for i in range(len(file.keys()))]
            except (SafetensorError, KeyError, TypeError, ValueError):
                continue  # cut short by a crash of the machine: an older one remains
            if meta["identity"] != self._identity:
                changed = _differences(meta["identity"], self._identity)
                raise CheckpointError(
                    f"{folder} holds a run with other settings ({changed}): "
                    f"repeat them to resume it, or choose another folder"
                )
            structure = jax.tree.structure(self._carry)
            self._carry = jax.tree.unflatten(structure, [jnp.asarray(x) for x in leaves])
            self.step, self.tokens_seen = meta["step"], meta["tokens_seen"]
            return


def _digest(documents: Sequence[Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for ids in documents:
        digest.update(np.asarray(ids, "<i4").tobytes())
    return digest.hexdigest()[:16]


def _differences(old: dict, new: dict) -> str:
    old, new = flatten(old), flatten(new)
    return ", ".join(
        f"{k}: {old.get(k)} then, {new.get(k)} now"
        for k in sorted(old | new)
        if old.get(k) != new.get(k)
    )


@partial(jax.jit, static_argnames=("config", "scan"))
def _loss_sum(params, tokens, positions, labels, weights, *, config, scan):
    x = hidden(params, tokens, positions, config, scan=scan)
    return cross_entropy_sum(
        params["embedding"], x.reshape(-1, config.width), labels.ravel(), weights.ravel(),
        config.logits_soft_cap,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("config", "scan", "optimizer"), donate_argnums=0)
def _update(carry, tokens, positions, labels, weights, *, config, scan, optimizer):
    params, state = carry

    def mean_loss(params):
        total = _loss_sum(params, tokens, positions, labels, weights, config=config, scan=scan)
        return total / jnp.maximum(weights.sum(), 1)

    loss, gradient = jax.value_and_grad(mean_loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), loss


def encode_documents(documents: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each document between its beginning and end tokens."""
    return [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(documents)]
