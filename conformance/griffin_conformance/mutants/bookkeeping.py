"""Wrong versions of the reference's model, for :mod:`griffin_conformance.mutants`.

The mathematics is right in them; what they get wrong is the bookkeeping of rows, positions and
states. Each takes the model class and returns a wrong subclass.
"""

from dataclasses import replace

import numpy as np

from griffin_conformance.mutants.functions import attention_variant, in_place, rg_lru_variant
from griffin_np import base
from griffin_np.errors import StateError
from griffin_np.state import State


def shares_its_state(right):
    """The recurrent state lives in the model; states that were returned refer to it."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            values, after = super()._forward(inputs, positions, state, logits, trace)
            arrays = after.arrays()
            shared = self.__dict__.setdefault("shared", {})
            for name in arrays:
                if name.endswith("rg_lru"):
                    kept = shared.setdefault((name, after.batch), arrays[name])
                    kept[...] = arrays[name]
                    arrays[name] = kept
            return values, after.with_arrays(arrays, after.position)

    return Wrong


def stale_state(right):
    """A fresh call of one token continues what the model has read before."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            last = self.__dict__.get("last")
            fresh = positions.shape[1] == 1 and (positions == 0).all()
            if fresh and last is not None and last.batch == state.batch:
                state = last.with_arrays(last.arrays(), state.position)
                with in_place({"rg_lru": rg_lru_variant(forgets=False)}):
                    return super()._forward(inputs, positions, state, logits, trace)
            values, self.last = super()._forward(inputs, positions, state, logits, trace)
            return values, self.last

    return Wrong


def stale_keys(right):
    """A document that starts in a fresh call attends to what the model has read before."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            before = self.__dict__.get("before")
            self.before = inputs, positions
            fresh = positions.size and (positions[:, 0] == 0).all() and logits == "all"
            if not fresh or before is None or len(before[0]) != len(inputs):
                return super()._forward(inputs, positions, state, logits, trace)
            both = [np.concatenate(pair, axis=1) for pair in zip(before, self.before, strict=True)]
            both[1][:, 0] = np.where(both[1][:, 0] > 0, 0, both[1][:, 0])
            with in_place({"local_attention": attention_variant(documents=False)}):
                values, after = super()._forward(*both, state, logits, trace)
            return values[:, before[0].shape[1] :], after

    return Wrong


def state_as_wide_as_the_stream(right):
    """The state of the recurrence is made as wide as the residual stream, and does not fit."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            c = self.config
            recurrent = "recurrent" in c.block_types
            if recurrent and c.lru_width != c.width and positions.shape[1] == 1:
                raise RuntimeError(f"state ({c.width},) does not fit inputs ({c.lru_width},)")
            return super()._forward(inputs, positions, state, logits, trace)

    return Wrong


def remembers_documents(right):
    """Slots of the state that the new document has not come to keep what was there."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            values, after = super()._forward(inputs, positions, state, logits, trace)
            before, arrays = state.arrays(), after.arrays()
            for name, array in arrays.items():
                if name.endswith(("keys", "values")):
                    empty = (array == 0).all(axis=(2, 3), keepdims=True)
                    arrays[name] = np.where(
                        empty, before[name] + 0.5 * (after.position.max() > 2), array
                    )
            return values, after.with_arrays(arrays, after.position)

    return Wrong


def counts_padding(right):
    """The state's position counts columns of padding too."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            values, after = super()._forward(inputs, positions, state, logits, trace)
            pads = (positions < 0).sum(axis=1)
            return values, after.with_arrays(after.arrays(), after.position + pads)

    return Wrong


def wavers(right):
    """Every third call of a model is a little off."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            values, after = super()._forward(inputs, positions, state, logits, trace)
            self.calls = self.__dict__.get("calls", 0) + 1
            return values if values is None or self.calls % 3 else values * 1.01, after

    return Wrong


def ends_early(right):
    """Positions beyond 2^24 are refused."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            if positions.size and positions.max() > 2**24:
                raise ValueError("the text is too long")
            return super()._forward(inputs, positions, state, logits, trace)

    return Wrong


def says_little(right):
    """Impossible calls are refused without a word about where they are."""

    class Wrong(right):
        def __call__(self, *args, **options):
            try:
                return super().__call__(*args, **options)
            except ValueError:
                raise ValueError("bad input") from None

    return Wrong


def writes_into_its_input(right):
    """The new convolution inputs are written into the caller's state."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            values, after = super()._forward(inputs, positions, state, logits, trace)
            for name, array in state.arrays().items():
                if name.endswith(("conv", "keys")):
                    array[...] = after.arrays()[name]
            return values, after

    return Wrong


def pads_reach_the_convolution(right):
    """Padding before a text goes through the convolution as if it were text."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            arrays = {name: array.copy() for name, array in state.arrays().items()}
            for row, steps in enumerate(positions):
                real = np.flatnonzero(steps >= 0)
                if len(real) and real[0] > 0:
                    for name, array in arrays.items():
                        if name.endswith("conv"):
                            array[row, max(array.shape[1] - real[0], 0) :] = 0.5
            state = state.with_arrays(arrays, state.position)
            return super()._forward(inputs, positions, state, logits, trace)

    return Wrong


def rows_leak(right):
    """The last row of a batch gets its recurrent state from the first."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            values, after = super()._forward(inputs, positions, state, logits, trace)
            arrays = after.arrays()
            for name, array in arrays.items():
                if name.endswith("rg_lru") and len(array) > 1:
                    array[-1] = array[0]
            return values, after

    return Wrong


def padding_has_logits(right):
    """Logits of padding are those of the token before."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            values, after = super()._forward(inputs, positions, state, logits, trace)
            if logits == "all":
                for row, steps in enumerate(positions):
                    for t in range(1, len(steps)):
                        if steps[t] < 0:
                            values[row, t] = values[row, t - 1]
            return values, after

    return Wrong


def last_column(right):
    """The last logits are those of the last column, padding or not."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            values, after = super()._forward(inputs, positions, state, logits, trace)
            if logits == "last" and positions.shape[1]:
                values[positions[:, -1] < 0] = 0
            return values, after

    return Wrong


def anything_goes(right):
    """Nothing that is passed in is looked at."""

    class Wrong(right):
        def __call__(self, tokens, positions=None, state=None, logits="all", **options):
            checks = {name: getattr(base, name) for name in ("check_positions", "check_tokens")}
            base.check_positions = lambda steps, start: None
            base.check_tokens = lambda t, steps, size: np.where(steps >= 0, t, 0) % size
            try:
                if isinstance(state, State):
                    state = replace(state, config=self.config, fingerprint="")
                    if state.batch != len(tokens):
                        state = state.select(np.arange(len(tokens)) % state.batch)
                if positions is not None:
                    positions = np.where(np.asarray(positions) < -1, 1, positions)
                return super().__call__(tokens, positions, state, logits, **options)
            except StateError:
                return super().__call__(tokens, None, None, logits, **options)
            finally:
                for name, check in checks.items():
                    setattr(base, name, check)

    return Wrong


def starts_anew(right):
    """Where no positions are told, every call starts a document."""

    class Wrong(right):
        def __call__(self, tokens, positions=None, state=None, logits="all", **options):
            if positions is None:
                positions = np.tile(np.arange(np.shape(tokens)[1]), (len(tokens), 1))
            return super().__call__(tokens, positions, state, logits, **options)

    return Wrong


def none_forgets(right):
    """A call that is asked for no logits leaves the state where it was."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            values, after = super()._forward(inputs, positions, state, logits, trace)
            return values, state if logits == "none" else after

    return Wrong


def eight_rows(right):
    """Rows beyond the eighth are not computed."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            values, after = super()._forward(inputs, positions, state, logits, trace)
            if logits != "none":
                values[8:] = 0
            return values, after

    return Wrong


def trusts_positions(right):
    """Positions are checked against each other, and not against the state."""

    class Wrong(right):
        def __call__(self, tokens, positions=None, state=None, logits="all", **options):
            if state is not None and positions is not None:
                steps = np.asarray(positions)
                first = np.array([row[row != -1][:1].sum() for row in steps], np.int64)
                state = replace(state, position=np.maximum(first, 0))
            return super().__call__(tokens, positions, state, logits, **options)

    return Wrong


def moves_the_callers_position(right):
    """The caller's state is told the new position."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            values, after = super()._forward(inputs, positions, state, logits, trace)
            state.position[...] = after.position
            return values, after

    return Wrong


def forgets_its_seed(right):
    """What a row draws depends on how many rows there are."""

    class Wrong(right):
        def generate(self, prompts, seed=0, **options):
            return super().generate(prompts, seed=seed + 1000 * len(prompts), **options)

    return Wrong


def takes_the_second_best(right):
    """Generation excludes the best token."""

    class Wrong(right):
        def _forward(self, inputs, positions, state, logits, trace):
            values, after = super()._forward(inputs, positions, state, logits, trace)
            if logits != "none":
                rows = np.arange(values.reshape(-1, values.shape[-1]).shape[0])
                flat = values.reshape(-1, values.shape[-1])
                if flat.size:
                    flat[rows, flat.argmax(-1)] = flat.min(-1)
            return values, after

    return Wrong
