"""A state whose arrays stay on the device until somebody looks at them."""

from functools import cached_property
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from griffin_kernels.xla.sharding import fetch
from griffin_np.config import GriffinConfig
from griffin_np.errors import StateError
from griffin_np.state import AttentionState, LayerState, RecurrentState, State

__all__ = ["DeviceState"]


class DeviceState(State):
    """As :class:`griffin_np.state.State`; the first look at an array fetches all of them.

    From then on the NumPy arrays are the state, and may be changed like those of any other.

    Parameters
    ----------
    device : tree of Array
        Layers as the engine holds them, with rows of padding at the end. None after they have been
        fetched.
    position : array of shape (B,), int64
    config : GriffinConfig
    fingerprint : str
    dtype : dtype
        Of convolution inputs, keys and values.
    """

    device: Any

    def __init__(
        self, device: Any, position: NDArray, config: GriffinConfig, fingerprint: str, dtype
    ):
        # The class is frozen, as its parent is.
        for name, value in (
            ("device", device),
            ("position", position),
            ("config", config),
            ("fingerprint", fingerprint),
            ("dtype", np.dtype(dtype)),
        ):
            object.__setattr__(self, name, value)

    @cached_property
    def layers(self) -> tuple[LayerState, ...]:
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self.device)):
            raise StateError(
                "this state was given to advance(), which used it up: keep the state that it "
                "returned, or call the model instead"
            )
        layers = fetch(self.device)
        object.__setattr__(self, "device", None)
        return tuple(
            _of_names({name: np.array(array[: self.batch]) for name, array in layer.items()})
            for layer in layers
        )

    def check_arrays(self, what: str = "this state") -> None:
        """Nothing: the engine made them."""

    def has_dtype(self, dtype) -> bool:
        return self.dtype == np.dtype(dtype)  # type: ignore[attr-defined]


def _of_names(arrays: dict[str, NDArray]) -> LayerState:
    return RecurrentState(**arrays) if "rg_lru" in arrays else AttentionState(**arrays)
