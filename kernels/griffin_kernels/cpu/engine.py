"""The CPU engine behind the call contract of :class:`griffin_np.base.Model`.

A call is cut into slabs of at most 512 tokens, whatever their rows; each slab goes through the
whole model in one compiled function on all threads (:mod:`.step`). So memory does not grow with the
length of a text, and results have the same bits for any cut, batch, padding and number of threads.
"""

import math
import weakref
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from griffin_kernels.cpu import memory
from griffin_kernels.cpu.attention import scratch_size
from griffin_kernels.cpu.compiled import announced, without_dispatch
from griffin_kernels.cpu.isa import amx
from griffin_kernels.cpu.isa.common import GROUP
from griffin_kernels.cpu.matmul import BYTES_PER_INPUT, TILE_LAYOUT, scratch_bytes
from griffin_kernels.cpu.pack import aligned
from griffin_kernels.cpu.pool import pool
from griffin_kernels.cpu.step import OUTPUTS, ROWS, Activations, Call, Shape, Work, run
from griffin_kernels.cpu.weights import (
    KINDS,
    Layout,
    address_table,
    packed,
    parameters_of,
    random,
)
from griffin_np.base import Model
from griffin_np.config import GriffinConfig
from griffin_np.errors import ConfigError
from griffin_np.notation import Trace, no_trace
from griffin_np.params import fingerprint as identify
from griffin_np.params import flatten, nest, validate
from griffin_np.state import State

__all__ = ["SLAB", "NumbaModel", "random_model"]

SLAB = ROWS
"""Tokens that go through the model together: weights are read seldom, memory stays small."""


class NumbaModel(Model):
    """Griffin on all cores of a CPU.

    Parameters
    ----------
    config : GriffinConfig
    params : dict
        Parameter tree, float32 or bfloat16.
    fingerprint : str, optional
        Identity of the weights where it is known; computed by default.
    dtype : {"float32", "bfloat16", "int8", "int4"}
        Of the weights; they are rounded to it here. Gates, convolution, norms, biases and the
        recurrent state are float32 in all of them.

    Raises
    ------
    ParameterError
        If the parameters do not fit the configuration, or are not finite and to be quantised.
    ConfigError
        If the dtype is unknown, int4 does not fit the configuration, or memory is too short.
    """

    backend = "numba"

    def __init__(
        self, config: GriffinConfig, params: dict, fingerprint: str = "", dtype: str | None = None
    ):
        validate(params, config)
        flat = flatten(params)
        dtype = dtype or str(flat["embedding"].dtype)
        if dtype not in KINDS:
            raise ConfigError(
                f"the numba backend has no dtype {dtype!r}; choose {', '.join(KINDS)}"
            )
        memory.require(config, dtype)
        arrays = dict(packed(config, flat.__getitem__, dtype))
        self._set_up(config, arrays, dtype, fingerprint or identify(params, config))

    @classmethod
    def from_packed(
        cls, config: GriffinConfig, arrays: Iterable[tuple[str, NDArray]], dtype: str,
        fingerprint: str,
    ) -> "NumbaModel":  # fmt: skip
        """A model of arrays that are packed already, as :func:`.weights.packed` makes them."""
        memory.require(config, dtype)
        model = cls.__new__(cls)
        model._set_up(config, dict(arrays), dtype, fingerprint)
        return model

    def _set_up(
        self, config: GriffinConfig, arrays: Mapping[str, NDArray], dtype: str, fingerprint: str
    ) -> None:
        super().__init__(config, dtype, fingerprint)
        self.arrays = arrays
        self._layout = layout = Layout(config)
        self._table = address_table(config, arrays)
        self._ends = tuple(arrays[name].ctypes.data for name in ("embedding", "final_norm"))
        # A mask of channels that the model has, for states whose heads are padded.
        self._aligned = layout.lru_width == config.lru_width and layout.head_dim == config.head_dim
        self._shape = Shape(
            width=config.width, padded_width=layout.width, lru_width=layout.lru_width,
            mlp_width=layout.mlp_width, attention_width=layout.attention_width,
            key_width=layout.key_width, heads=config.num_heads, kv_heads=config.num_kv_heads,
            head_dim=layout.head_dim, rotary=config.rotary_dim, gate_width=layout.gate_width,
            window=config.window, conv=config.conv_width, vocab=config.vocab_size,
            eps=float(config.norm_eps), cap=float(config.logits_soft_cap),
            embedding_scale=float(config.embedding_scale), rope_base=float(config.rope_base),
            score_scale=np.float32(1 / math.sqrt(config.head_dim)), kind=KINDS[dtype],
            tiles=amx.permitted(),
        )  # fmt: skip
        self._work: dict[tuple[int, int], Work] = {}
        self._recent: tuple[list[weakref.ref], NDArray] = [], np.empty((0, 2), np.int64)

    @property
    def parameters(self) -> dict:
        """Weights as they are computed with, unpacked to float32: a copy, as large as that."""
        return nest(parameters_of(self.config, self.arrays, self.dtype))

    @property
    def weight_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def state_dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def _forward(self, inputs, positions, state, logits, trace):
        copies = {name: array.copy() for name, array in state.arrays().items()}
        return self._run(inputs, positions, state, copies, logits, trace)

    def _advance(self, inputs, positions, state, logits):
        arrays = {
            name: array if array.flags.c_contiguous and array.flags.writeable else array.copy()
            for name, array in state.arrays().items()
        }
        return self._run(inputs, positions, state, arrays, logits, no_trace)

    def _run(
        self, inputs: NDArray, positions: NDArray, state: State, arrays: dict[str, NDArray],
        logits: str, trace: Trace,
    ) -> tuple[NDArray | None, State]:  # fmt: skip
        """Compute; ``arrays`` are the state's, and are changed."""
        c, (B, T) = self.config, positions.shape
        out = None
        if logits != "none":
            shape = (B, T, c.vocab_size) if logits == "all" else (B, c.vocab_size)
            real = (positions >= 0).any(axis=None if B == 1 else 1).all()
            whole = (positions >= 0).all() if logits == "all" else real
            out = (np.empty if whole else np.zeros)(shape, np.float32)
        inner, addresses = self._inner(arrays)
        watch = _Watch(self, trace, B, T) if trace is not no_trace else None
        rows, columns = np.nonzero(positions >= 0)
        last = np.full(B, -1)
        np.maximum.at(last, rows, columns)
        for start in range(0, len(rows), SLAB):
            r, t = rows[start : start + SLAB], columns[start : start + SLAB]
            if logits == "all":
                wanted = np.arange(len(r))
                goes_to = r * T + t
            elif logits == "last":
                wanted = np.flatnonzero(last[r] == t)
                goes_to = r[wanted]
            else:
                wanted = goes_to = np.empty(0, np.int64)
            self._slab(inputs, positions, r, t, addresses, wanted, goes_to, out, watch)
        if watch:
            watch.report()
        self._outer(inner, arrays)
        after, read = state.position.copy(), np.flatnonzero(last >= 0)
        after[read] = positions[read, last[read]] + 1
        return out, state.with_arrays(arrays, after)

    def _slab(
        self, inputs, positions, rows, columns, addresses, wanted, goes_to, out, watch
    ) -> None:
        """A slab of tokens, given by rows and columns in the call, through the whole model."""
        count, threads = len(rows), pool()
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        segments = np.stack([starts, np.append(starts[1:], count), rows[starts]], axis=1)
        given = inputs[rows, columns]
        tokens, embeddings = given, np.empty(0, np.float32)
        if inputs.ndim == 3:
            tokens = np.empty(0, np.int64)
            embeddings = np.ascontiguousarray(given, np.float32).ravel()
        if watch:
            # All tokens go through the final norm; those whose logits nobody wants go nowhere.
            everywhere = np.full(count, -1)
            everywhere[wanted] = goes_to
            wanted, goes_to = np.arange(count), everywhere
        with threads.busy:
            work = self._work_for(count, threads.threads)
            logits = np.empty(0, np.float32) if out is None else out.reshape(-1)
            call = Call(
                tokens, embeddings, np.ascontiguousarray(positions[rows, columns]), segments,
                wanted, goes_to, logits, addresses,
            )  # fmt: skip
            depth = self.config.depth
            stages = [(0, depth, True, True)]
            if watch:
                stages = [(0, 0, True, False), *((i, i + 1, False, False) for i in range(depth))]
                stages.append((depth, depth, False, True))
            for first, last, begins, ends in stages:
                with announced(run, "the CPU engine"):
                    threads.run(
                        without_dispatch(run), self._shape, work, self._table, *self._ends, call,
                        count, first, last, begins, ends,
                    )  # fmt: skip
                if watch:
                    stream = work.x[: count * self._layout.width].reshape(count, -1)
                    watch.keep(first, begins, ends, rows, columns, stream)

    def _work_for(self, rows: int, threads: int) -> Work:
        """Buffers, made once for a number of rows (in powers of two) and threads."""
        size = max(16, 1 << (rows - 1).bit_length())
        key = (size, threads)
        if key not in self._work:
            if len(self._work) > 1 and size > 16:
                self._work = {k: w for k, w in self._work.items() if k[0] == 16}
            self._work[key] = make_work(self._layout, self._shape, size, threads)
        return self._work[key]

    def _inner(self, arrays: dict[str, NDArray]) -> tuple[dict[str, NDArray], NDArray]:
        """State arrays in the kernels' layout, and their addresses."""
        inner = arrays if self._aligned else {n: self._widened(n, a) for n, a in arrays.items()}
        known, addresses = self._recent
        # A generation goes on with the same arrays; asking them for addresses takes a while.
        if len(known) != len(inner) or any(
            ref() is not array for ref, array in zip(known, inner.values(), strict=True)
        ):
            addresses = np.array([a.ctypes.data for a in inner.values()], np.int64).reshape(-1, 2)
            self._recent = [weakref.ref(a) for a in inner.values()], addresses
        return inner, addresses

    def _places(self, name: str) -> tuple[int, NDArray]:
        """Width of the last axis in the kernels' layout, and where the model's channels stand."""
        if name.endswith(("keys", "values")):
            return self._layout.head_dim, np.arange(self.config.head_dim)
        at, width = self._layout.lru_places, self._layout.lru_width
        return width, np.arange(width) if at is None else np.flatnonzero(at >= 0)

    def _widened(self, name: str, array: NDArray) -> NDArray:
        width, at = self._places(name)
        result = np.zeros((*array.shape[:-1], width), np.float32)
        result[..., at] = array
        return result

    def _outer(self, inner: dict[str, NDArray], arrays: dict[str, NDArray]) -> None:
        if inner is arrays:
            return
        for name, array in inner.items():
            arrays[name][...] = array[..., self._places(name)[1]]


def make_work(layout: Layout, shape: Shape, rows: int, threads: int) -> Work:
    """Buffers for slabs of up to ``rows`` tokens, a multiple of 16."""
    widest = max(layout.width, layout.lru_width, layout.mlp_width, layout.attention_width)

    def singles(*size: int) -> NDArray:
        result = aligned(math.prod(size), np.float32).reshape(size)
        result[...] = 0
        return result

    def activations(width: int) -> Activations:
        data = aligned(rows * width * BYTES_PER_INPUT[shape.kind])
        data[:] = 0
        groups = rows * width // GROUP
        return Activations(
            data, data.view(np.float32), np.zeros(groups, np.float32), np.zeros(groups, np.int32)
        )

    half = max(shape.rotary // 2, 1)
    has_attention = scratch_size(shape.heads, shape.kv_heads, shape.head_dim)
    return Work(
        x=singles(rows * layout.width),
        first=activations(layout.width),
        second=activations(widest),
        branch=singles(rows * layout.lru_width),
        raw=singles(rows * layout.lru_width),
        mixed=singles(rows * layout.lru_width),
        queries=singles(rows * layout.attention_width),
        keys=singles(rows * layout.key_width),
        values=singles(rows * layout.key_width),
        attended=singles(rows * layout.attention_width),
        cos=singles(rows * half),
        sin=singles(rows * half),
        outputs=singles(threads, OUTPUTS),
        bytes=aligned(threads * scratch_bytes(widest)).reshape(threads, -1),
        row=singles(threads, layout.width),
        attention=singles(threads, -(-has_attention // 16) * 16),
        layout=TILE_LAYOUT,
    )


class _Watch:
    """Gathers the residual stream of a traced call, slab by slab; padding is 0."""

    def __init__(self, model: NumbaModel, trace: Trace, batch: int, length: int):
        self.trace, self.depth = trace, model.config.depth
        self.shape = (batch, length, model.config.width)
        self.arrays: dict[str, NDArray] = {}

    def keep(self, block: int, begins: bool, ends: bool, rows, columns, stream: NDArray) -> None:
        name = "embedding" if begins else "final_norm" if ends else f"blocks.{block}.residual"
        array = self.arrays.setdefault(name, np.zeros(self.shape, np.float32))
        array[rows, columns] = stream[:, : self.shape[2]]

    def report(self) -> None:
        names = ["embedding", *(f"blocks.{i}.residual" for i in range(self.depth)), "final_norm"]
        for name in names:
            self.trace(name, self.arrays.get(name, np.zeros(self.shape, np.float32)))


def random_model(config: GriffinConfig, dtype: str, seed: int = 0) -> NumbaModel:
    """A model of random bytes, for measuring speed; every byte of its weights is its own."""
    return NumbaModel.from_packed(config, random(config, dtype, seed), dtype, f"random {seed}")
