"""The reference model: Griffin (De et al. 2024), section 2, and the RecurrentGemma report.

Read it from :func:`forward` down; the parts are in ``layers``, ``rg_lru`` and ``attention``. It
computes one row at a time, without padding: a batch is a loop over rows. Slow, plain, and what
everything else is measured against.
"""

import numpy as np
from numpy.typing import NDArray

from griffin_np.attention import attention_block
from griffin_np.base import Model
from griffin_np.config import RECURRENT, GriffinConfig
from griffin_np.errors import ConfigError
from griffin_np.layers import mlp, recurrent_block, rms_norm
from griffin_np.notation import Floats, Positions, Stream, Trace, no_trace, scoped
from griffin_np.params import fingerprint as identify
from griffin_np.params import flatten, validate
from griffin_np.state import AttentionState, LayerState, RecurrentState, State

__all__ = ["NumPyModel", "embed", "forward", "head", "residual_block"]


def forward(
    params: dict,
    config: GriffinConfig,
    x: Stream,
    positions: Positions,
    layers: list[LayerState],
    trace: Trace = no_trace,
) -> tuple[Stream, list[LayerState]]:
    """All residual blocks and the final norm (Griffin 2.1, figure 2a), for one row.

    Parameters
    ----------
    params : dict
        Parameter tree.
    config : GriffinConfig
    x : array of shape (T, D)
        Scaled embeddings.
    positions : array of shape (T,)
        Position of each token in its document; no padding.
    layers : list of RecurrentState or AttentionState
        One row of the state, block by block, without the batch axis.

    Returns
    -------
    x : array of shape (T, D)
        Ready for :func:`head`.
    layers : list
        The state after the last token.
    """
    trace("embedding", x)
    after = []
    for i, (kind, p) in enumerate(zip(config.block_types, params["blocks"], strict=True)):
        x, layer = residual_block(
            p, kind, config, x, positions, layers[i], scoped(trace, f"blocks.{i}")
        )
        after.append(layer)
    x = rms_norm(x, params["final_norm"], config.norm_eps)
    trace("final_norm", x)
    return x, after


def residual_block(
    p: dict,
    kind: str,
    config: GriffinConfig,
    x: Stream,
    positions: Positions,
    layer: LayerState,
    trace: Trace = no_trace,
) -> tuple[Stream, LayerState]:
    """``x + Temporal(RMSNorm(x))``, then ``x + MLP(RMSNorm(x))`` (Griffin 2.1, figure 2a)."""
    u = rms_norm(x, p["temporal_norm"], config.norm_eps)
    inner = scoped(trace, kind)
    if kind == RECURRENT:
        assert isinstance(layer, RecurrentState)
        y, *parts = recurrent_block(p[kind], u, positions, layer.conv, layer.rg_lru, inner)
        layer = RecurrentState(*parts)
    else:
        assert isinstance(layer, AttentionState)
        # The first token continues `positions[0]` tokens of its document, or starts anew.
        seen = int(positions[0])
        y, *parts = attention_block(
            p[kind], u, positions, layer.keys, layer.values, seen, config, inner
        )
        layer = AttentionState(*parts)
    trace("temporal", y)
    x = x + y
    x = x + mlp(p["mlp"], rms_norm(x, p["mlp_norm"], config.norm_eps))
    trace("residual", x)
    return x, layer


def embed(params: dict, config: GriffinConfig, tokens: NDArray) -> Stream:
    """Rows of the embedding, (T,) to (T, D), times sqrt(D) (RecurrentGemma report, section 2)."""
    return params["embedding"][tokens] * config.embedding_scale


def head(params: dict, config: GriffinConfig, x: Stream) -> Floats:
    """Logits (T, V): the embedding again (Griffin 2.1), softly capped where the model says so."""
    logits = x @ params["embedding"].T
    cap = config.logits_soft_cap
    return cap * np.tanh(logits / cap) if cap else logits


class NumPyModel(Model):
    """The reference behind the call contract of :class:`griffin_np.base.Model`.

    Parameters
    ----------
    config : GriffinConfig
    params : dict
        Parameter tree, all float32 or all float64; the computation has the same dtype.
    fingerprint : str, optional
        Identity of the weights where it is known; computed by default.

    Raises
    ------
    ParameterError
        If the parameters do not fit the configuration.
    ConfigError
        If they are neither float32 nor float64.
    """

    backend = "numpy"

    def __init__(self, config: GriffinConfig, params: dict, fingerprint: str = ""):
        validate(params, config)
        dtype = str(params["embedding"].dtype)
        if dtype not in ("float32", "float64"):
            raise ConfigError(f"the numpy backend computes in float32 or float64, got {dtype}")
        super().__init__(config, dtype, fingerprint or identify(params, config))
        self._params = params

    @property
    def parameters(self) -> dict:
        return self._params

    @property
    def weight_bytes(self) -> int:
        return sum(array.nbytes for array in flatten(self._params).values())

    @property
    def state_dtype(self) -> np.dtype:
        return np.dtype(self.dtype)

    def _forward(
        self, inputs: NDArray, positions: NDArray, state: State, logits: str, trace: Trace
    ) -> tuple[NDArray | None, State]:
        config, params = self.config, self._params
        B, T = positions.shape
        V = config.vocab_size
        out = (
            None
            if logits == "none"
            else np.zeros((B, T, V) if logits == "all" else (B, V), self.dtype)
        )
        arrays = {name: array.copy() for name, array in state.arrays().items()}
        position = state.position.copy()
        watched = _Rows(B, T) if trace is not no_trace else None

        for row in range(B):
            columns = np.flatnonzero(positions[row] >= 0)
            if not len(columns):
                continue
            steps, tokens = positions[row, columns], inputs[row, columns]
            if inputs.ndim == 2:
                x = embed(params, config, tokens)
            else:
                x = tokens.astype(self.dtype) * config.embedding_scale
            layers = [_row(layer, row) for layer in state.layers]
            row_trace = watched.row(row, columns) if watched else no_trace
            x, layers = forward(params, config, x, steps, layers, row_trace)
            for i, layer in enumerate(layers):
                for name, array in vars(layer).items():
                    arrays[f"layers.{i}.{name}"][row] = array
            position[row] = steps[-1] + 1
            if out is not None and logits == "all":
                out[row, columns] = head(params, config, x)
            elif out is not None:
                out[row] = head(params, config, x[-1:])[0]

        if watched:
            for name, array in watched.arrays.items():
                trace(name, array)
        return out, state.with_arrays(arrays, position)


class _Rows:
    """Gathers the traces of single rows into arrays of shape (B, T, ...); padding is 0."""

    def __init__(self, batch: int, length: int):
        self.shape = (batch, length)
        self.arrays: dict[str, NDArray] = {}

    def row(self, row: int, columns: NDArray) -> Trace:
        def keep(name: str, array: NDArray) -> None:
            if name not in self.arrays:
                self.arrays[name] = np.zeros((*self.shape, *array.shape[1:]), array.dtype)
            start = written.get(name, 0)  # attention reports its queries block by block
            written[name] = start + len(array)
            self.arrays[name][row, columns[start : start + len(array)]] = array

        written: dict[str, int] = {}
        return keep


def _row(layer: LayerState, row: int) -> LayerState:
    return type(layer)(**{name: array[row] for name, array in vars(layer).items()})
