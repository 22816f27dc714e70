"""RecurrentGemma of mlx-lm behind the call contract of :class:`griffin_np.base.Model`.

mlx-lm's model is called with tokens and a prompt cache, and with nothing else: neither positions
nor a mask. The call contract is put into these terms, and nothing is repaired:

- Every row keeps a prompt cache of its own, from the model's ``make_cache``. It is copied before a
  call changes it, as mlx-lm's own server does.
- Padding is left out: mlx-lm is given the tokens of each row as a list. Several rows go through
  its batches, ``PromptProcessingBatch``, which merge the caches, fill shorter rows up on the right,
  tell the caches the lengths, and take the caches apart again. One row is one call of the model.
- Rows without a token in a call are not part of the batch.
- A row that begins at position 0 gets a new cache. Documents that are packed into one call are
  given as they come: mlx-lm has nothing to tell where one ends, and says so nowhere.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm import batch_generate
from mlx_lm.generate import PromptProcessingBatch
from mlx_lm.models import recurrent_gemma as theirs
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache
from mlx_lm.sample_utils import make_sampler
from numpy.typing import ArrayLike, NDArray

from griffin_np.checkpoints.hf_config import config_to_json
from griffin_np.checkpoints.hf_names import tensor_names
from griffin_np.config import ATTENTION, RECURRENT, GriffinConfig

__all__ = ["CONV_WIDTH", "MlxModel", "Prompts", "build", "numbers", "tapped"]

CONV_WIDTH = 4
"""Of every convolution; ``conv1d_width`` is read and not used."""


def build(
    config: GriffinConfig, flat: Mapping[str, NDArray], dtype: str, keys: int
) -> theirs.Model:
    """A model of mlx-lm with given weights, made as its ``load`` makes one of a checkpoint.

    Parameters
    ----------
    config : GriffinConfig
    flat : mapping of str to array
        Parameters by flat name.
    dtype : {"float32", "bfloat16"}
        Of the weights, and with them of everything.
    keys : int
        ``attention_window_size``, which counts the token itself.
    """
    values = config_to_json(config, dtype) | {"attention_window_size": keys}
    model = theirs.Model(theirs.ModelArgs.from_dict(values))
    weights = {
        name: mx.array(np.ascontiguousarray(save(np.asarray(flat[ours], np.float32))))
        for ours, (name, _, save) in tensor_names(config).items()
    }
    weights = {k: v.astype(getattr(mx, dtype)) for k, v in model.sanitize(weights).items()}
    model.load_weights(list(weights.items()), strict=True)
    return model


def numbers(array: mx.array) -> NDArray:
    """As NumPy holds it, which has no bfloat16."""
    return np.array(array.astype(mx.float32))


@dataclass
class Prompts:
    """What a user keeps between calls: a prompt cache for each row.

    Attributes
    ----------
    caches : list of list
        For each row, mlx-lm's cache of each layer.
    config : GriffinConfig
        Tells the shapes of what is not there yet.
    """

    caches: list[list[Any]]
    config: GriffinConfig

    @property
    def position(self) -> NDArray:
        """Tokens read by each row, as its first cache of keys counts them; recurrences do not."""
        at = self.config.block_types.index(ATTENTION)
        return np.array([row[at].offset for row in self.caches])

    @property
    def nbytes(self) -> int:
        """Bytes of all caches, by mlx-lm's account."""
        return sum(cache.nbytes for row in self.caches for cache in row)

    def arrays(self) -> dict[str, NDArray]:
        """Copies of what the caches hold, keys and values in a ring: slot = position mod W."""
        c = self.config
        found: dict[str, NDArray] = {}
        for i, kind in enumerate(c.block_types):
            rows = [row[i] for row in self.caches]
            if kind == RECURRENT:
                for slot, name in enumerate(("conv", "rg_lru")):
                    shape = (CONV_WIDTH - 1, c.lru_width) if name == "conv" else (c.lru_width,)
                    held = (np.zeros((1, *shape)) if r[slot] is None else numbers(r[slot])
                            for r in rows)  # fmt: skip
                    found[f"layers.{i}.{name}"] = np.concatenate(list(held))
            else:
                for part in ("keys", "values"):
                    found[f"layers.{i}.{part}"] = np.array([self._ring(r, part) for r in rows])
        return found

    def _ring(self, cache, part: str) -> NDArray:
        """The last W keys or values of a row's cache, each in the slot of its position."""
        c = self.config
        ring = np.zeros((c.window, c.num_kv_heads, c.width // c.num_heads))
        if cache.keys is not None:
            in_order = numbers(cache._temporal_order(getattr(cache, part)))[0].swapaxes(0, 1)
            n = min(len(in_order), c.window, cache.offset)
            slots = np.arange(cache.offset - n, cache.offset) % c.window
            ring[slots] = in_order[len(in_order) - n :]
        return ring

    def save(self, path: Path) -> None:
        """A folder with a file for each row, as mlx-lm writes prompt caches."""
        Path(path).mkdir()
        for i, row in enumerate(self.caches):
            told = {"rows": str(len(self.caches)), "config": json.dumps(asdict(self.config))}
            save_prompt_cache(str(Path(path, f"{i}.safetensors")), row, told)

    @classmethod
    def load(cls, path: Path) -> "Prompts":
        """What :meth:`save` wrote, as mlx-lm reads it."""
        found: list[list[Any]] = []
        rows = 1
        while len(found) < rows:
            row, told = load_prompt_cache(str(Path(path, f"{len(found)}.safetensors")), True)
            found.append(row)
            rows = int(told["rows"])
        return cls(found, GriffinConfig(**json.loads(told["config"])))

    def select(self, rows: list[int]) -> "Prompts":
        """Copies of some rows."""
        return Prompts([copy.deepcopy(self.caches[i]) for i in rows], self.config)

    def fork(self, times: int) -> "Prompts":
        """Every row so many times, one copy after the other."""
        return self.select([i for i in range(len(self.caches)) for _ in range(times)])

    @classmethod
    def concat(cls, states: list["Prompts"]) -> "Prompts":
        """Rows of several states in one."""
        return cls([row for state in states for row in state.caches], states[0].config)


class Tap:
    """Keeps what goes into a block, and passes it through the block, if there is one."""

    def __init__(self, block, streams: list[mx.array]):
        self.block, self.streams = block, streams

    def __call__(self, x, **given):
        self.streams.append(x)
        return x if self.block is None else self.block(x, **given)


def tapped(model: theirs.Model, tokens: ArrayLike, blocks: bool = True) -> list[NDArray]:
    """What enters each block, and what leaves the final norm, (B, T, D) each."""
    streams: list[mx.array] = []
    inner, plain = model.model, model.model.layers
    inner.layers = [Tap(block if blocks else None, streams) for block in plain]
    try:
        streams.append(inner(mx.array(np.asarray(tokens))))
    finally:
        inner.layers = plain
    return [numbers(stream) for stream in streams]


class MlxModel:
    """The call contract of :class:`griffin_np.base.Model` on a model of mlx-lm.

    Parameters
    ----------
    config : GriffinConfig
        Of which the shapes are used.
    model : mlx_lm.models.recurrent_gemma.Model
    ends : collection of int
        Tokens that end a text.
    """

    def __init__(self, config: GriffinConfig, model: theirs.Model, ends: Iterable[int]):
        self.config, self.model, self.ends = config, model, set(ends)

    def __call__(self, tokens, positions=None, state=None, logits="all"):
        """Read tokens (B, T). Padding, which mlx-lm is not given, has logits 0."""
        tokens = np.asarray(tokens)
        real = np.ones(tokens.shape, bool)
        if state is None:
            caches = [self.model.make_cache() for _ in tokens]
        else:
            caches = copy.deepcopy(state.caches)
        if positions is not None:
            positions = np.asarray(positions)
            real = positions != -1
            for i, steps in enumerate(positions[: len(caches)]):
                if steps[real[i]][:1].tolist() == [0]:
                    caches[i] = self.model.make_cache()
        texts = [row[keep].tolist() for row, keep in zip(tokens, real, strict=True)]
        values = np.zeros((*tokens.shape, self.config.vocab_size), np.float32)
        last = np.zeros((len(tokens), self.config.vocab_size), np.float32)
        for i, found in self.read(texts, caches):
            values[i, real[i]], last[i] = found, found[-1]
        told = {"all": values, "last": last, "none": None}
        return told[logits], Prompts(caches, self.config)

    def read(self, texts: list[list[int]], caches: list[list[Any]]):
        """Logits of each row that has tokens; ``caches`` are changed."""
        busy = [i for i, text in enumerate(texts) if text]
        if len(texts) == len(caches) == 1 and busy:
            return [(0, numbers(self.model(mx.array(texts), cache=caches[0]))[0])]
        if not busy:
            return []
        heard = []
        held = [i for i in busy if i < len(caches)]

        def listening(tokens, cache):
            heard.append(self.model(tokens, cache=cache))

        batch = PromptProcessingBatch(listening, held, [caches[i] for i in held])
        batch.prompt([texts[i] for i in busy])
        for j, i in enumerate(held):
            caches[i] = batch.extract_cache(j)
        found = numbers(mx.concatenate(heard, axis=1))
        return [(i, found[j, : len(texts[i])]) for j, i in enumerate(busy)]

    def hidden_states(self, tokens):
        """Residual streams: the embedding, each block's, the last through the final norm."""
        return tuple(tapped(self.model, tokens))

    def generate(self, prompts, max_tokens=16, temperature=0.0, seed=0, ignore_eos=False):
        """Continuations by mlx-lm's own ``batch_generate``."""
        mx.random.seed(seed)
        found = batch_generate(
            self.model,
            SimpleNamespace(eos_token_ids=set() if ignore_eos else self.ends, decode=str),
            [list(map(int, prompt)) for prompt in prompts],
            max_tokens=max_tokens,
            sampler=make_sampler(temp=temperature),
            return_token_ids=True,
        )
        return [SimpleNamespace(tokens=tokens) for tokens in found.token_ids]
