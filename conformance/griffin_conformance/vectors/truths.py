"""What the oracle says of a vector's inputs, and of nothing else."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.oracle import Oracle
from griffin_np.config import GriffinConfig

__all__ = ["block_truth", "greedy_truth", "truth_of"]


def truth_of(
    flat: Mapping[str, NDArray], config: GriffinConfig, tokens: NDArray, positions: NDArray,
    start: int = 0, streams: bool = False, after_each: bool = False,
) -> dict[str, NDArray]:  # fmt: skip
    """What the oracle says of a batch.

    Parameters
    ----------
    flat : mapping of str to array
    config : GriffinConfig
    tokens, positions : array of shape (B, T)
    start : int
        Every row begins as a state of zeros does that stands at this position.
    streams : bool
        The residual stream too: ``embedding``, ``blocks.i.residual``, ``final_norm``, (B, T, D).
    after_each : bool
        The state after every token of the one row, in place of the last.

    Returns
    -------
    dict of str to array
        ``logits`` (B, T, V), the state's arrays by their names, and ``position`` (B,).
    """
    found: dict[str, list] = {"logits": [], "position": []}
    for row, at in zip(tokens, positions, strict=True):
        oracle = Oracle(flat, config, start)
        # Padding behind a row that has no tokens leaves the position at its start.
        real = at >= 0
        if after_each:
            states = []
            for t in range(len(row)):
                found["logits"].append(oracle.read(row[t : t + 1], at[t : t + 1])[0])
                states.append(_state_of(oracle))
            for name in states[0]:
                found[name] = [state[name] for state in states]
            found["position"] = (at + 1).tolist()
            continue
        found["logits"].append(oracle.read(row, at))
        found["position"].append(oracle.position)
        for name, array in _state_of(oracle).items():
            found.setdefault(name, []).append(array)
        if streams:
            names = ["embedding", *(f"blocks.{i}.residual" for i in range(config.depth))]
            for k, name in enumerate([*names, "final_norm"]):
                if name != f"blocks.{config.depth - 1}.residual":
                    stream = np.zeros((len(row), config.width))
                    stream[real] = np.array([token[k] for token in oracle.streams])
                    found.setdefault(name, []).append(stream)
    return {
        name: np.array(rows, np.int64 if name == "position" else np.float64)
        for name, rows in found.items()
    }


def _state_of(oracle: Oracle) -> dict[str, NDArray]:
    """The state that a row has now, as STATE-1 and STATE-2 want it."""
    c, n, arrays = oracle.c, oracle.position, {}
    for i, (kind, past) in enumerate(zip(c.block_types, oracle.documents, strict=True)):
        if kind == "recurrent":
            conv = np.zeros((c.conv_width - 1, c.lru_width))
            kept = min(len(past.conv_inputs), c.conv_width - 1)
            if kept:
                conv[-kept:] = past.conv_inputs[-kept:]
            if c.conv_width > 1:
                arrays[f"layers.{i}.conv"] = conv
            arrays[f"layers.{i}.rg_lru"] = past.h[-1] if past.h else np.zeros(c.lru_width)
            continue
        for part, entries in (("keys", past.keys), ("values", past.values)):
            ring = np.zeros((c.window, c.num_kv_heads, c.width // c.num_heads))
            for p in range(max(n - c.window, 0), n):
                ring[p % c.window] = entries[p - n]
            arrays[f"layers.{i}.{part}"] = ring
    return arrays


def block_truth(flat: Mapping[str, NDArray], config: GriffinConfig, i: int, x: NDArray) -> NDArray:
    """What the oracle says of one block on a row that begins a document."""
    oracle = Oracle(flat, config)
    return np.array([oracle.block(i, row, t) for t, row in enumerate(x.astype(np.float64))])


def greedy_truth(
    flat: Mapping[str, NDArray], config: GriffinConfig, prompts: NDArray, new: int
) -> tuple[NDArray, NDArray, list[list[int]]]:
    """Best tokens (B, new), their lead over the second best, and the texts without the last."""
    tokens, margins, texts = [], [], []
    for prompt in prompts:
        text = [int(t) for t in prompt if t >= 0]
        oracle, chosen, leads = Oracle(flat, config), [], []
        logits = oracle.read(text, range(len(text)))[-1]
        for n in range(new):
            best = int(logits.argmax())
            chosen.append(best)
            leads.append(float(logits[best] - np.delete(logits, best).max()))
            if n < new - 1:
                text.append(best)
                logits = oracle.read([best], [oracle.position])[-1]
        tokens.append(chosen)
        margins.append(leads)
        texts.append(text)
    return np.array(tokens), np.array(margins), texts
