"""The state: all that a Griffin remembers of a text, of the same size however long it was.

Per recurrent block the last inputs of the convolution and the state of the RG-LRU; per attention
block a ring of the last W keys and values. Rows are independent texts.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from griffin_np.config import RECURRENT, GriffinConfig
from griffin_np.errors import CheckpointError, ConfigError, StateError

__all__ = ["AttentionState", "RecurrentState", "State"]

FORMAT = "griffin-np state"
VERSION = 1


@dataclass(frozen=True)
class RecurrentState:
    """State of a recurrent block.

    Attributes
    ----------
    conv : array of shape (B, K - 1, R)
        Raw inputs of the convolution, oldest first; zero before the document's start.
    rg_lru : array of shape (B, R)
        h of equation (4); float32, or float64 in a float64 model.
    """

    conv: NDArray
    rg_lru: NDArray


@dataclass(frozen=True)
class AttentionState:
    """State of an attention block.

    Attributes
    ----------
    keys, values : array of shape (B, W, Q, d)
        Those of the last W positions, keys after rotation; position p stands in slot ``p mod W``,
        and slots outside the current document are zero.
    """

    keys: NDArray
    values: NDArray


LayerState = RecurrentState | AttentionState


@dataclass(frozen=True)
class State:
    """What a model remembers of each row of a batch.

    Attributes
    ----------
    layers : tuple of RecurrentState or AttentionState
        One per block.
    position : array of shape (B,), int64
        The position that the next token of each row has in its document.
    config : GriffinConfig
        Of the model that this state belongs to.
    fingerprint : str
        Identity of that model's weights; empty fits any model of the configuration.
    """

    layers: tuple[LayerState, ...]
    position: NDArray
    config: GriffinConfig
    fingerprint: str = ""

    @classmethod
    def zeros(
        cls, config: GriffinConfig, batch: int = 1, dtype=np.float32, fingerprint: str = ""
    ) -> "State":
        """The state before any text.

        ``dtype`` is that of convolution inputs, keys and values; the recurrent state has at least
        32 bits.
        """
        dtype = np.dtype(dtype)
        layers = tuple(
            _STATE_OF[kind](**{
                name: np.zeros(shape, recurrent_dtype(dtype) if name == "rg_lru" else dtype)
                for name, shape in _shapes(kind, config, batch).items()
            })
            for kind in config.block_types
        )  # fmt: skip
        return State(layers, np.zeros(batch, np.int64), config, fingerprint)

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.position)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays: a function of the configuration, dtype and batch alone."""
        return self.position.nbytes + sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, NDArray]:
        """Arrays by name, ``layers.0.conv`` and so on, without ``position``."""
        names = _names(tuple(type(layer) for layer in self.layers))
        return {name: getattr(self.layers[i], field) for i, field, name in names}

    def __len__(self) -> int:
        return self.batch

    def __iter__(self) -> Iterator["State"]:
        return (self.select([row]) for row in range(self.batch))

    def fork(self, n: int) -> "State":
        """``n`` independent copies of every row, side by side: a state of ``n * B`` rows.

        Raises
        ------
        StateError
            If ``n`` is less than 1.
        """
        if not isinstance(n, int | np.integer) or n < 1:
            raise StateError(f"fork needs at least 1 copy, got {n!r}")
        return self.select(np.repeat(np.arange(self.batch), n))

    def select(self, rows: Sequence[int] | NDArray) -> "State":
        """Copies of some rows, in the order given; a row may come several times.

        Raises
        ------
        StateError
            If a row does not exist.
        """
        index = np.asarray(rows)
        if index.dtype == bool and index.shape == (self.batch,):
            index = np.flatnonzero(index)
        if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
            raise StateError(f"rows must be a list of row numbers, got {rows!r}")
        index = index.astype(np.int64)
        wrong = index[(index < -self.batch) | (index >= self.batch)]
        if wrong.size:
            raise StateError(f"row {wrong[0]} does not exist in a state of {self.batch} row(s)")
        return self._map(lambda array: array[index])

    @classmethod
    def concat(cls, states: Sequence["State"]) -> "State":
        """The rows of several states of one model, one after the other.

        Raises
        ------
        StateError
            If there is none, or they are of different models or dtypes.
        """
        states = list(states)
        if not states:
            raise StateError("concat needs at least one state, got none")
        first = states[0]
        known = next((state.fingerprint for state in states if state.fingerprint), "")
        for i, other in enumerate(states):
            other.check_model(first.config, known, f"state {i} of concat")
            for name, array in other.arrays().items():
                if array.dtype != first.arrays()[name].dtype:
                    raise StateError(
                        f"state {i} of concat has {name} in {array.dtype}, state 0 in "
                        f"{first.arrays()[name].dtype}: bring them to one dtype with astype"
                    )
        parts = [state.arrays() for state in states]
        joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        position = np.concatenate([state.position for state in states])
        return replace(first.with_arrays(joined, position), fingerprint=known)

    def astype(self, dtype) -> "State":
        """Arrays in another dtype (the recurrent state in at least 32 bits); always a copy."""
        dtype = np.dtype(dtype)

        def convert(name: str, array: NDArray) -> NDArray:
            return array.astype(recurrent_dtype(dtype) if name.endswith("rg_lru") else dtype)

        converted = {name: convert(name, array) for name, array in self.arrays().items()}
        return self.with_arrays(converted, self.position.copy())

    def with_arrays(self, arrays: dict[str, NDArray], position: NDArray) -> "State":
        """A state of the same model made of other arrays, named as :meth:`arrays` names them."""
        kinds = tuple(type(layer) for layer in self.layers)
        found: list[dict[str, NDArray]] = [{} for _ in kinds]
        for i, field, name in _names(kinds):
            found[i][field] = arrays[name]
        layers = tuple(kind(**parts) for kind, parts in zip(kinds, found, strict=True))
        return State(layers, position, self.config, self.fingerprint)

    def _map(self, function) -> "State":
        mapped = {name: function(array) for name, array in self.arrays().items()}
        return self.with_arrays(mapped, function(self.position))

    def check_arrays(self, what: str = "this state") -> None:
        """Refuse arrays that are misshapen or no floats.

        Raises
        ------
        StateError
            Naming the first of them, what it is, and what was expected.
        """
        shapes = {kind: _shapes(kind, self.config, self.batch) for kind in _STATE_OF}
        kinds = self.config.block_types
        for i, field, name in _names(tuple(type(layer) for layer in self.layers)):
            array, shape = getattr(self.layers[i], field), shapes[kinds[i]][field]
            is_float = array.dtype.kind == "f" or "float" in str(array.dtype)  # bfloat16 is "V"
            if array.shape != shape or not is_float:
                raise StateError(
                    f"{name} of {what} is {array.dtype} {array.shape}, expected floats {shape}"
                )

    def has_dtype(self, dtype) -> bool:
        """Whether all arrays are as in a model of ``dtype``; see :meth:`astype`."""
        dtype = np.dtype(dtype)
        recurrent = recurrent_dtype(dtype)
        return all(
            array.dtype == (recurrent if name.endswith("rg_lru") else dtype)
            for name, array in self.arrays().items()
        )

    def check_model(
        self, config: GriffinConfig, fingerprint: str, what: str = "this state"
    ) -> None:
        """Refuse a state of another model.

        Raises
        ------
        StateError
            If configuration or fingerprint differ.
        """
        if self.config != config:
            theirs, ours = self.config.to_dict(), config.to_dict()
            changed = [f"{k} {theirs[k]} (model: {ours[k]})" for k in ours if theirs[k] != ours[k]]
            raise StateError(f"{what} belongs to a model with {', '.join(changed)}")
        if self.fingerprint and fingerprint and self.fingerprint != fingerprint:
            raise StateError(
                f"{what} belongs to a model with other weights "
                f"(fingerprint {self.fingerprint}, this model {fingerprint}): "
                f"load the model that made it, or start without a state"
            )

    def save(self, path: str | os.PathLike, metadata: dict[str, str] | None = None) -> None:
        """Write to a safetensors file: first under a temporary name, then renamed.

        ``metadata`` may hold further strings, which :meth:`read_metadata` returns.
        """
        import json

        from griffin_np.checkpoints.files import write_safetensors

        header = {
            "format": FORMAT,
            "version": str(VERSION),
            "fingerprint": self.fingerprint,
            "config": json.dumps(self.config.to_dict()),
        }
        write_safetensors(
            Path(path), {"position": self.position, **self.arrays()}, {**(metadata or {}), **header}
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "State":
        """Read a file that :meth:`save` wrote.

        A model refuses the state when it is used, if it is of another model.

        Raises
        ------
        StateError
            If the file is missing, damaged, no state, or of another format version.
        """
        import json

        arrays, header = _read(Path(path))
        try:
            config = GriffinConfig.from_dict(json.loads(header["config"]))
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"{path} has no valid configuration in it: {error}") from None
        position = arrays.pop("position", None)
        if (
            position is None
            or position.ndim != 1
            or position.dtype != np.int64
            or (position < 0).any()
        ):
            raise StateError(f"{path} is damaged: 'position' must be (B,) int64 of at least 0")
        state = cls.zeros(config, 1, np.float32, header.get("fingerprint", ""))
        wrong = sorted(set(arrays) ^ set(state.arrays()))
        if wrong:
            raise StateError(f"{path} is damaged: {wrong[0]} is missing or unknown")
        state = state.with_arrays(arrays, position)
        state.check_arrays(str(path))
        return state

    @staticmethod
    def read_metadata(path: str | os.PathLike) -> dict[str, str]:
        """All strings in a state file's header.

        Raises
        ------
        StateError
            As :meth:`load` does.
        """
        return _read(Path(path))[1]


_STATE_OF: dict[str, type] = {RECURRENT: RecurrentState, "attention": AttentionState}


@functools.cache
def _names(kinds: tuple[type, ...]) -> tuple[tuple[int, str, str], ...]:
    """Of every array in such layers: its layer, its field, and its name."""
    return tuple(
        (i, f.name, f"layers.{i}.{f.name}") for i, kind in enumerate(kinds) for f in fields(kind)
    )


def recurrent_dtype(dtype: np.dtype) -> np.dtype:
    """Dtype of the recurrent state in a model of ``dtype``: never less than 32 bits."""
    return np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)


def _shapes(kind: str, config: GriffinConfig, batch: int) -> dict[str, tuple[int, ...]]:
    assert config.lru_width is not None
    if kind == RECURRENT:
        R = config.lru_width
        return {"conv": (batch, config.conv_width - 1, R), "rg_lru": (batch, R)}
    ring = (batch, config.window, config.num_kv_heads, config.head_dim)
    return {"keys": ring, "values": ring}


def _read(path: Path) -> tuple[dict[str, NDArray], dict[str, str]]:
    from griffin_np.checkpoints.files import SafetensorsFile

    try:
        file = SafetensorsFile(path)
    except CheckpointError as error:
        raise StateError(str(error)) from None
    header = file.metadata
    if header.get("format") != FORMAT:
        raise StateError(f"{path} is no griffin-np state file")
    if header.get("version") != str(VERSION):
        raise StateError(
            f"{path} is a state of format version {header.get('version')}; "
            f"this griffin-np reads version {VERSION}"
        )
    return {name: file.array(name).copy() for name in file.names}, header
