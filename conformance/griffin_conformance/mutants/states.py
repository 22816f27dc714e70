"""Wrong states, for :mod:`griffin_conformance.mutants`."""

from collections.abc import Callable

import numpy as np

from griffin_np.state import State

__all__: list[str] = []


class GrowingState(State):
    """Keeps everything that was ever attended to."""

    @property
    def nbytes(self) -> int:
        return super().nbytes + 8 * int(self.position.sum())


class LossyState(State):
    """Is kept on disk in half precision."""

    def save(self, path, metadata=None):
        half = {
            name: np.float16(array).astype(array.dtype) for name, array in self.arrays().items()
        }
        State.save(self.with_arrays(half, self.position), path, metadata)


class SortedState(State):
    """Rows come in ascending order, whatever order was asked for."""

    def select(self, rows):
        return super().select(np.sort(np.asarray(rows)))


class BareState(State):
    """Shows no arrays at all."""

    def arrays(self):
        return {}

    def check_arrays(self, what=""):
        pass


def returns(kind: type[State]) -> Callable:
    """Models whose states are of another class."""

    def wrong(right):
        class Wrong(right):
            def _forward(self, inputs, positions, state, logits, trace):
                values, after = super()._forward(inputs, positions, state, logits, trace)
                return values, kind(after.layers, after.position, after.config, after.fingerprint)

        return Wrong

    return wrong
