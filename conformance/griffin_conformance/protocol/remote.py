"""Models and states that live in an engine, as the suite's checks use them.

Nothing that the engine holds is kept here: arrays and positions are asked for each time, so that a
state which the engine changes behind its handle is seen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from griffin_conformance.backends import Unsupported
from griffin_conformance.protocol.engine import Engine, EngineFailure, Handle

__all__ = ["RemoteModel", "RemoteState", "RemoteTokenizer", "model_class", "tokenizer_class"]


class RemoteState:
    """A state in an engine.

    What else it has depends on what the engine can do: :func:`model_class` adds the members of
    :data:`STATE_MEMBERS` whose capability is declared, so that checks see what is missing.
    """

    engine: ClassVar[Engine]

    def __init__(self, handle: Handle):
        self.handle: Handle | None = handle

    def __del__(self):
        if self.handle is not None:
            self.engine.unused("states", self.handle)

    @classmethod
    def ask(cls, method: str, **params: Any) -> Any:
        """A state that a method gives."""
        number = cls.engine.call(method, **params)["state"]
        return cls(Handle(number, cls.engine.start))


def _look(self: RemoteState) -> tuple[NDArray, dict[str, NDArray], int]:
    """Position, arrays and bytes."""
    engine = self.engine
    found = engine.call("state_get", state=self.handle)
    position = engine.array(found["position"], "'position' of 'state_get'")
    if position.ndim != 1 or position.dtype.kind != "i":
        raise EngineFailure(
            f"'position' of 'state_get' is {position.dtype} {position.shape}, expected integers "
            f"of shape (B,)"
        )
    arrays = {
        name: engine.array(tensor, f"{name!r} of 'state_get'")
        for name, tensor in found["arrays"].items()
    }
    for name, array in arrays.items():
        if array.shape[:1] != position.shape:
            raise EngineFailure(
                f"{name!r} of 'state_get' has shape {array.shape}, expected {len(position)} row(s)"
            )
    return position, arrays, found["nbytes"]


def _with_arrays(
    self: RemoteState, arrays: Mapping[str, ArrayLike], position: ArrayLike
) -> RemoteState:
    given = {name: np.asarray(array) for name, array in arrays.items()}
    return self.ask(
        "state_set", state=self.handle, position=np.asarray(position, np.int64), arrays=given
    )


def _concat(cls: type[RemoteState], states: Sequence[RemoteState]) -> RemoteState:
    return cls.ask("concat", states=[state.handle for state in states])


def _load(cls: type[RemoteState], path: str | Path) -> RemoteState:
    return cls.ask("state_load", path=str(path))


def _save(self: RemoteState, path: str | Path) -> None:
    self.engine.call("state_save", state=self.handle, path=str(path))


STATE_MEMBERS: dict[str, dict[str, Any]] = {
    "state_get": {
        "position": property(lambda self: _look(self)[0]),
        "arrays": lambda self: _look(self)[1],
        "nbytes": property(lambda self: _look(self)[2]),
    },
    "state_set": {"with_arrays": _with_arrays},
    "fork": {"fork": lambda self, n: self.ask("fork", state=self.handle, copies=int(n))},
    "select": {
        "select": lambda self, rows: self.ask(
            "select", state=self.handle, rows=[int(row) for row in rows]
        )
    },
    "concat": {"concat": classmethod(_concat)},
    "state_save": {"save": _save},
    "state_load": {"load": classmethod(_load)},
}
"""What a state has for each capability."""


class RemoteModel:
    """A model in an engine, with the call of :class:`griffin_np.base.Model`."""

    engine: ClassVar[Engine]
    state_class: ClassVar[type[RemoteState]]

    def __init__(self, handle: Handle):
        self.handle = handle

    def __del__(self):
        self.engine.unused("models", self.handle)

    def __call__(
        self,
        tokens: ArrayLike,
        positions: ArrayLike | None = None,
        state: RemoteState | None = None,
        logits: str = "all",
    ) -> tuple[NDArray | None, RemoteState]:
        """Logits, and a new state."""
        given = np.asarray(tokens, np.int64)
        found = self.engine.call(
            "forward",
            model=self.handle,
            tokens=given,
            positions=None if positions is None else np.asarray(positions, np.int64),
            state=None if state is None else state.handle,
            logits=logits,
        )
        after = self.state_class(Handle(found["state"], self.engine.start))
        if found["logits"] is None:
            if logits != "none":
                raise EngineFailure(f"'forward' gave no logits, but was asked for {logits!r}")
            return None, after
        values = self.engine.array(found["logits"], "'logits' of 'forward'")
        expected = given.shape if logits == "all" else given.shape[:1]
        if logits != "none" and values.shape[:-1] != expected:
            raise EngineFailure(
                f"'logits' of 'forward' have shape {values.shape}, expected "
                f"({', '.join(map(str, expected))}, V)"
            )
        return values, after


def _init_state(self: RemoteModel, batch: int = 1) -> RemoteState:
    return self.state_class.ask("init_state", model=self.handle, batch=int(batch))


def _hidden_states(self: RemoteModel, tokens: ArrayLike) -> tuple[NDArray, ...]:
    given = np.asarray(tokens, np.int64)
    streams = self.engine.call("hidden_states", model=self.handle, tokens=given)["streams"]
    return tuple(
        self.engine.array(stream, f"stream {i} of 'hidden_states'")
        for i, stream in enumerate(streams)
    )


def _generate(
    self: RemoteModel, prompts: Sequence[Sequence[int]], *, max_tokens: int = 16,
    temperature: float = 0.0, seed: int = 0, ignore_eos: bool = False, **others: Any,
) -> list[SimpleNamespace]:  # fmt: skip
    if others:
        raise Unsupported(f"the protocol's 'generate' has no option {sorted(others)[0]!r}")
    found = self.engine.call(
        "generate", model=self.handle, prompts=[[int(t) for t in p] for p in prompts],
        max_tokens=int(max_tokens), temperature=float(temperature), seed=int(seed),
        ignore_eos=bool(ignore_eos),
    )  # fmt: skip
    rows, reasons = found["tokens"], found["finish_reasons"]
    if not len(rows) == len(reasons) == len(prompts):
        raise EngineFailure(
            f"'generate' gave {len(rows)} rows and {len(reasons)} reasons for {len(prompts)} "
            f"prompts"
        )
    return [
        SimpleNamespace(tokens=row, finish_reason=reason)
        for row, reason in zip(rows, reasons, strict=True)
    ]


MODEL_MEMBERS: dict[str, Any] = {
    "init_state": _init_state,
    "hidden_states": _hidden_states,
    "generate": _generate,
}
"""What a model has for each capability."""


def model_class(engine: Engine) -> type[RemoteModel]:
    """The class of an engine's models, with what the engine can do, and that of their states."""
    has: dict[str, Any] = {
        name: member
        for capability, members in STATE_MEMBERS.items()
        if engine.has(capability)
        for name, member in members.items()
    }
    state = type("EngineState", (RemoteState,), {**has, "engine": engine})
    has = {name: member for name, member in MODEL_MEMBERS.items() if engine.has(name)}
    return type("EngineModel", (RemoteModel,), {**has, "engine": engine, "state_class": state})


class RemoteTokenizer:
    """A vocabulary in an engine."""

    engine: ClassVar[Engine]

    def __init__(self, handle: Handle):
        self.handle = handle

    def __del__(self):
        self.engine.unused("tokenizers", self.handle)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Ids of a text."""
        return self.engine.call("encode", tokenizer=self.handle, text=text, bos=bool(bos))["ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        given = [int(i) for i in ids]
        return self.engine.call("decode", tokenizer=self.handle, ids=given)["text"]


def _encode_dialogue(self: RemoteTokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    given = [dict(message) for message in messages]
    return self.engine.call("encode_dialogue", tokenizer=self.handle, messages=given)["ids"]


def tokenizer_class(engine: Engine) -> type[RemoteTokenizer]:
    """The class of an engine's vocabularies, with what the engine can do."""
    has = {"encode_dialogue": _encode_dialogue} if engine.has("encode_dialogue") else {}
    return type("EngineTokenizer", (RemoteTokenizer,), {**has, "engine": engine})
