"""The JAX model behind the call contract of ``griffin_np``: texts of any length, with a state.

XLA compiles a program for every shape, so a call is brought into one of few: each row's tokens are
moved to the left, and rows and tokens are padded to powers of two. Programs are kept by
configuration and take the weights as an argument, so that models of one configuration share them.

States are NumPy arrays between calls. On an accelerator every call moves them there and back.
"""

from collections import OrderedDict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from griffin_kernels.xla.layers import Layer, no_watch, real_tokens
from griffin_kernels.xla.model import embed, head, residual_blocks
from griffin_np.base import Model
from griffin_np.config import GriffinConfig
from griffin_np.errors import ConfigError
from griffin_np.notation import Trace, no_trace
from griffin_np.params import fingerprint as identify
from griffin_np.params import flatten, validate
from griffin_np.state import State

__all__ = ["JaxModel", "Layout"]


class JaxModel(Model):
    """A Griffin in JAX, on JAX's default device.

    Parameters
    ----------
    config : GriffinConfig
    params : dict
        Parameter tree, all float32; so is the computation. On a CPU the arrays may be used where
        they are: do not change them afterwards.
    fingerprint : str, optional
        Identity of the weights where it is known; computed by default.

    Raises
    ------
    ParameterError
        If the parameters do not fit the configuration.
    ConfigError
        If they are not float32.
    """

    backend = "jax"

    def __init__(self, config: GriffinConfig, params: dict, fingerprint: str = ""):
        validate(params, config)
        dtype = str(params["embedding"].dtype)
        if dtype != "float32":
            raise ConfigError(f"the jax backend computes in float32, got {dtype}")
        super().__init__(config, dtype, fingerprint or identify(params, config))
        self._params = jax.device_put(params)

    @property
    def parameters(self) -> dict:
        return jax.tree.map(np.asarray, self._params)

    @property
    def weight_bytes(self) -> int:
        return sum(array.nbytes for array in flatten(self._params).values())

    @property
    def state_dtype(self) -> np.dtype:
        return np.dtype(self.dtype)

    def _forward(
        self, inputs: NDArray, positions: NDArray, state: State, logits: str, trace: Trace
    ) -> tuple[NDArray | None, State]:
        layout = Layout(positions)
        steps = layout.gather(positions, -1)
        values, after, watched = jax.device_get(
            _run(
                self._params,
                layout.gather(inputs, 0).astype(np.int32 if inputs.ndim == 2 else np.float32),
                steps.astype(np.int32),
                [{k: layout.pad_rows(v) for k, v in vars(layer).items()} for layer in state.layers],
                config=self.config,
                logits=logits,
                watch=trace is not no_trace,
            )
        )
        for name, array in watched.items():
            trace(name, layout.scatter(array))
        B, busy = state.batch, layout.count > 0
        if logits == "all":
            values = layout.scatter(values)
        elif logits == "last":
            values = np.where(busy[:, None], values[:B], 0)
        arrays = {
            f"layers.{i}.{name}": array[:B].copy()  # what JAX gives may not be written to
            for i, layer in enumerate(after)
            for name, array in layer.items()
        }
        last = steps[np.arange(B), layout.count - 1]
        return values, state.with_arrays(arrays, np.where(busy, last + 1, state.position))


@partial(jax.jit, static_argnames=("config", "logits", "watch"))
def _run(
    params: dict,
    inputs: Array,
    positions: Array,
    layers: list[Layer],
    *,
    config: GriffinConfig,
    logits: str,
    watch: bool,
) -> tuple[Array | None, list[Layer], OrderedDict[str, Array]]:
    """Logits, the state after the tokens, and what is watched, by name in order of computation."""
    watched: OrderedDict[str, Array] = OrderedDict()
    with jax.default_matmul_precision("highest"):  # accelerators would round float32 factors
        x = embed(params, inputs, config) if inputs.ndim == 2 else inputs * config.embedding_scale
        x, after = residual_blocks(
            params, x, positions, config, layers,
            watch=watched.__setitem__ if watch else no_watch,
        )  # fmt: skip
        if logits == "none":
            return None, after, watched
        if logits == "last":
            x = x[jnp.arange(len(x)), real_tokens(positions) - 1]
        return head(params, x, config), after, watched


class Layout:
    """Where the real tokens of a batch stand, and where they go: to the left of padded rows.

    Parameters
    ----------
    positions : array of shape (B, T)
        -1 is padding, anywhere.

    Attributes
    ----------
    count : array of shape (B,)
        Real tokens of each row.
    shape : tuple of int
        Rows and tokens of the padded batch, powers of two.
    """

    def __init__(self, positions: NDArray):
        real = positions >= 0
        self.count = real.sum(axis=1)
        self.shape = (_bucket(len(positions)), _bucket(int(self.count.max(initial=0))))
        self._given = positions.shape
        self._rows, self._columns = np.nonzero(real)  # row by row, so ranks count up within each
        first = np.cumsum(self.count) - self.count
        self._ranks = np.arange(len(self._rows)) - first[self._rows]

    def gather(self, array: NDArray, fill: int) -> NDArray:
        """(B, T, ...) to the padded batch."""
        padded = np.full((*self.shape, *array.shape[2:]), fill, array.dtype)
        padded[self._rows, self._ranks] = array[self._rows, self._columns]
        return padded

    def scatter(self, padded: NDArray) -> NDArray:
        """Inverse of :meth:`gather`; padding becomes 0."""
        array = np.zeros((*self._given, *padded.shape[2:]), padded.dtype)
        array[self._rows, self._columns] = padded[self._rows, self._ranks]
        return array

    def pad_rows(self, array: NDArray) -> NDArray:
        """(B, ...) with rows of zeros to the padded batch."""
        missing = self.shape[0] - len(array)
        return np.pad(array, ((0, missing),) + ((0, 0),) * (array.ndim - 1)) if missing else array


def _bucket(size: int) -> int:
    """The power of two that is at least ``size`` and 1."""
    return 1 << max(size - 1, 0).bit_length()
