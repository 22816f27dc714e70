"""Training and fine-tuning: AdamW on packed documents, resumable to the same bits.

A run is a pure function of its options, its first weights and its text: :class:`Trainer` feeds
batches to :func:`griffin_kernels.xla.update.update`, keeps checkpoints and reports. A checkpoint
holds what is trained (all weights, or LoRA's factors), the optimiser's state and the step.
"""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from numpy.typing import ArrayLike

from griffin_kernels.xla.data import Batch, Document, Packed, batches, pack
from griffin_kernels.xla.distributed import first_process, first_process_says
from griffin_kernels.xla.lora import LoraOptions, init_factors
from griffin_kernels.xla.runs import digest, read_run, text_digest, write_run
from griffin_kernels.xla.sharding import fetch, on_mesh, place, shardings, spec
from griffin_kernels.xla.update import (
    TrainOptions,
    compiled_update,
    decay_mask,
    effective,
    loss_sum,
    optimizer,
)
from griffin_np.config import GriffinConfig
from griffin_np.errors import CheckpointError, ConfigError, TokenizerError, TrainingError
from griffin_np.params import init_parameters, map_parameters, validate

__all__ = ["Evaluation", "LoraOptions", "TrainOptions", "Trainer", "decay_mask", "optimizer"]


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts some documents.

    Attributes
    ----------
    nats : float
        Summed loss.
    tokens : int
        That were predicted.
    bytes : int
        Of the text, where all of it was predicted; 0 where only answers were.
    """

    nats: float
    tokens: int
    bytes: int = 0

    @property
    def loss(self) -> float:
        """Nats for each predicted token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Of text; NaN where there are no bytes to count."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def __str__(self) -> str:
        if self.bytes:
            return f"{self.bits_per_byte:.4f} bits/byte"
        return f"loss {self.loss:.4f}, perplexity {self.perplexity:.2f}"


class Trainer:
    """A training run that can be stopped and taken up again at any step.

    Parameters
    ----------
    config : GriffinConfig
    options : TrainOptions
    documents : sequence of Document, or of token ids
        What to learn, special tokens included.
    folder : path, optional
        Where checkpoints are written, and looked for: a run found there is resumed.
    base : dict, optional
        Parameter tree to begin with, in any dtype: it is trained in float32. By default random
        weights.
    mesh : Mesh, optional
        Devices to share rows, tokens and weights (:mod:`griffin_kernels.xla.sharding`). Weights and
        the optimiser's state are spread over rows' devices too. The mesh may span processes, all of
        which then make the same calls and see the same ``folder``; the first one writes. A run goes
        on to the same bits on a mesh of the same shape. On accelerators matrix products have the
        precision that JAX's ``jax_default_matmul_precision`` says.

    Raises
    ------
    CheckpointError
        If ``folder`` holds a run with another configuration, other options, other first weights
        or other text.
    ConfigError
        If LoRA is asked for without weights to adapt.
    TokenizerError
        If the documents hold nothing to predict.
    """

    def __init__(
        self,
        config: GriffinConfig,
        options: TrainOptions,
        documents: Sequence[ArrayLike | Document],
        folder: str | os.PathLike | None = None,
        *,
        base: dict | None = None,
        mesh: Mesh | None = None,
    ):
        self.config, self.options, self.mesh = config, options, mesh
        self.folder = Path(folder) if folder is not None else None
        self.step = 0
        self.tokens_seen = 0
        given = [Document.of(document) for document in documents]
        if not any(document.learn[1:].any() for document in given):
            raise TokenizerError("the documents hold no token to learn: give more text")
        identity = {
            "config": config.to_dict(),
            "options": asdict(options),
            "documents": len(given),
            "tokens": sum(map(len, given)),
            "text": text_digest(given),
        }
        if base is not None:
            validate(base, config)
            base = map_parameters(lambda array: np.asarray(array, np.float32), base)
            identity["base"] = digest(base)
        self._base: dict | None = None
        if options.lora is None:
            first = base if base is not None else init_parameters(config, options.seed)
        elif base is None:
            raise ConfigError("LoRA adapts a trained model: give one, or train all weights")
        else:
            first = init_factors(config, options.lora, options.seed)
            self._base = self._place(base)
        trained, start = self._place(first), optimizer(options).init
        where = None
        if mesh is not None:
            where = shardings(jax.eval_shape(start, trained), mesh, spread=True)
        self._carry = (trained, jax.jit(start, out_shardings=where)(trained))
        self._update = compiled_update(config, options)
        self._identity = json.loads(json.dumps(identity))
        if self.folder is not None and (found := read_run(self.folder, self._identity)):
            meta, arrays = found
            self._carry = self._place(jax.tree.unflatten(jax.tree.structure(self._carry), arrays))
            self.step, self.tokens_seen = meta["step"], meta["tokens_seen"]
        theirs = first_process_says(self.step)
        if theirs != self.step:
            raise CheckpointError(
                f"the first process goes on at step {theirs}, this one at {self.step}: all must "
                f"share the folder {folder}"
            )
        rows = options.batch_size * options.accumulate
        self._batches = batches(given, options.length, rows, options.seed, skip=self.step)

    @property
    def params(self) -> dict:
        """Current weights, LoRA's factors merged into them, as a tree of NumPy arrays."""
        return fetch(effective(self._carry[0], self._base, self.options.lora))

    @property
    def num_trained(self) -> int:
        """Numbers that are trained."""
        return sum(array.size for array in jax.tree.leaves(self._carry[0]))

    def train_step(self) -> float:
        """One update; returns the batch's mean loss in nats per label."""
        batch = next(self._batches)
        parts = batch.split(self.options.accumulate)
        with on_mesh(self.mesh):
            self._carry, loss = self._update(self._carry, self._base, self._put(parts))
        self.step += 1
        self.tokens_seen += int((batch.positions >= 0).sum())
        return float(loss)

    def evaluate(self, packed: Packed, size: int = 0) -> Evaluation:
        """Loss over packed documents, ``size`` bytes of text if all of it is predicted."""
        options, nats, count = self.options, 0.0, 0
        for start in range(0, len(packed.tokens), options.batch_size):
            batch = packed.batch(start, options.batch_size)
            with on_mesh(self.mesh):
                loss = loss_sum(
                    self._carry[0], self._base, self._put(batch),
                    config=self.config, scan=options.scan, lora=options.lora,
                )  # fmt: skip
            nats += float(loss)
            count += int(batch.weights.sum())
        return Evaluation(nats, count, size)

    def run(
        self,
        heldout: Sequence[ArrayLike | Document] = (),
        heldout_bytes: int = 0,
        *,
        checkpoint_every: int = 500,
        evaluate_every: int = 500,
        log_every: int = 20,
        log: TextIO | None = None,
    ) -> Evaluation | None:
        """Train to the last step; returns how well held-out text is predicted, if there is some.

        Progress goes to ``log`` (default: stderr): one line every ``log_every`` steps with the
        loss, tokens/s, the time left and how well held-out text is predicted, if that was measured
        since the line before. Weights that were trained before are evaluated before the first step,
        too.

        Raises
        ------
        TrainingError
            If the loss becomes infinite or NaN; the last checkpoint is from before that.
        """
        log = log or sys.stderr
        steps = self.options.steps
        packed = pack(heldout, self.options.length) if len(heldout) else None
        held: Evaluation | None = None
        news = ""
        if packed is not None and self.step == 0 and "base" in self._identity:
            held = self.evaluate(packed, heldout_bytes)
            print(f"step 0/{steps}  held-out {held}", file=log, flush=True)
        started, first, seen, losses = time.monotonic(), self.step, self.tokens_seen, []
        while self.step < steps:
            losses.append(self.train_step())
            if not math.isfinite(losses[-1]):
                raise TrainingError(
                    f"the loss became {losses[-1]} at step {self.step}: "
                    f"lower the learning rate ({self.options.learning_rate}) and start again"
                )
            last = self.step == steps
            if self.folder is not None and (last or self.step % checkpoint_every == 0):
                self.save()
            if packed is not None and (last or self.step % evaluate_every == 0):
                held = self.evaluate(packed, heldout_bytes)
                news = f"  held-out {held}"
            if last or self.step % log_every == 0:
                elapsed = time.monotonic() - started
                left = elapsed / (self.step - first) * (steps - self.step)
                print(
                    f"step {self.step}/{steps}  loss {np.mean(losses):.4f}  "
                    f"{(self.tokens_seen - seen) / elapsed:.0f} tokens/s  "
                    f"{int(left) // 60}:{int(left) % 60:02d} left{news}",
                    file=log, flush=True,
                )  # fmt: skip
                losses, news = [], ""
        if packed is not None and held is None:
            held = self.evaluate(packed, heldout_bytes)
        return held

    def save(self) -> Path:
        """Write a checkpoint and drop older ones."""
        if self.folder is None:
            raise CheckpointError("this run has no folder to keep checkpoints in")
        meta = {"identity": self._identity, "step": self.step, "tokens_seen": self.tokens_seen}
        arrays = jax.tree.leaves(fetch(self._carry))
        return write_run(self.folder, self.step, arrays, meta, write=first_process())

    def _place(self, tree: Any) -> Any:
        """Copies of arrays on the devices; a step's result takes their place in memory."""
        mesh = self.mesh
        return place(tree, None if mesh is None else shardings(tree, mesh, spread=True))

    def _put(self, batch: Batch) -> Batch:
        """Rows along ``data`` and tokens along ``sequence``."""
        if self.mesh is None:
            return batch
        cuts = (None,) * (batch.tokens.ndim - 2) + ("data", "sequence")
        found = spec(cuts, batch.tokens.shape, dict(self.mesh.shape))
        return place(batch, NamedSharding(self.mesh, found))
