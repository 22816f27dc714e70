"""Asking an engine: requests and replies, restarts, and when to stop asking."""

import itertools
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.backends import Unsupported
from griffin_conformance.protocol.messages import (
    INLINE,
    MUST,
    VERSION,
    MessageError,
    as_tensor,
    check,
    decode,
    from_tensor,
    shortened,
)
from griffin_conformance.protocol.patience import Patience
from griffin_conformance.protocol.process import EngineFailure, Process, new_folder
from griffin_np.checkpoints.files import write_safetensors

__all__ = ["Engine", "EngineFailure", "Handle", "time_limit"]

SECONDS = 60.0
"""Time for one answer, unless :data:`LIMIT` says otherwise."""

LIMIT = "GRIFFIN_NP_ENGINE_TIMEOUT"
"""Environment variable: seconds for one answer."""


class Handle(int):
    """A number that the engine has given a model or state, and which start of it that was."""

    start: int

    def __new__(cls, number: int, start: int):
        """As an integer that remembers its start."""
        handle = super().__new__(cls, number)
        handle.start = start
        return handle


def time_limit() -> float:
    """Seconds for one answer.

    Raises
    ------
    ValueError
        If :data:`LIMIT` is set to something else than a positive number.
    """
    text = os.environ.get(LIMIT, "")
    if not text:
        return SECONDS
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise ValueError(f"{LIMIT} must be a positive number of seconds, got {text!r}")


class Engine:
    """An engine behind a command: started when it is asked, and anew after it has failed.

    Parameters
    ----------
    command : str
    dtype : str, optional
        The engine's first by default.
    seconds : float, optional
        For one answer; :func:`time_limit` by default.

    Attributes
    ----------
    hello : dict
        What the engine says of itself.
    start : int
        How often it has been started.
    folder : Path
        Where files that pass between the two are; it is removed at the end.
    """

    def __init__(self, command: str, dtype: str | None = None, seconds: float | None = None):
        self.command, self.dtype = command, dtype
        self.seconds = time_limit() if seconds is None else seconds
        self.hello: dict[str, Any] = {}
        self.start = 0
        self._process: Process | None = None
        self._ids = itertools.count(1)
        self._unused: dict[str, list[Handle]] = {"models": [], "states": [], "tokenizers": []}
        self.folder = new_folder()
        self._files: list[Path] = []
        self._patience = Patience(self.seconds)

    # -- asking

    def has(self, method: str) -> bool:
        """Whether the engine has a method."""
        return method in MUST or method in self.hello.get("capabilities", ())

    def call(self, method: str, /, **params: Any) -> dict[str, Any]:
        """Ask, and return the result.

        Arrays among the parameters travel as tensors, those of the result come as arrays by
        :meth:`array`.

        Raises
        ------
        Unsupported
            If the engine does not have it.
        ValueError
            If it refuses.
        EngineFailure
            If there is no answer, or none as the protocol demands.
        """
        if not self.has(method):
            raise Unsupported(f"its engine has no {method!r}")
        if refusal := self._patience.refusal(method):
            raise EngineFailure(refusal)
        began = time.monotonic()
        try:
            self.begin()
            self._free()
            return self._ask(method, {name: self._outward(v) for name, v in params.items()})
        except EngineFailure as failure:
            lost = time.monotonic() - began
            self._patience.failed(method, str(failure), lost, self._process is None)
            raise
        except BaseException as error:
            if not isinstance(error, (Unsupported, ValueError)):
                self.end()  # interrupted, perhaps between request and reply
            raise
        finally:
            self._remove_files()

    def send(self, line: bytes, what: str) -> dict[str, Any]:
        """Send any line, which need be no request, and return the reply that it gets.

        Raises
        ------
        EngineFailure
            If there is none, or it is none as the protocol demands.
        """
        self.begin()
        assert self._process is not None
        try:
            reply = decode(self._process.exchange(line + b"\n", self.seconds, what))
            check(reply, "reply", "the reply")
        except (EngineFailure, MessageError) as error:
            self.end()
            raise EngineFailure(f"the answer to {what} is wrong: {error}") from None
        return reply

    def array(self, value: Any, where: str, shape: Sequence[int] | None = None) -> NDArray:
        """A tensor of a reply as an array.

        Raises
        ------
        EngineFailure
            If its data do not fit together, or it has another shape than expected.
        """
        try:
            array = from_tensor(value, where)
        except MessageError as error:
            raise EngineFailure(f"the engine's reply is wrong: {error}") from None
        if "path" in value and Path(value["path"]).parent == self.folder:
            Path(value["path"]).unlink(missing_ok=True)
        if shape is not None and array.shape != tuple(shape):
            raise EngineFailure(f"{where} has shape {array.shape}, expected {tuple(shape)}")
        return array

    def unused(self, kind: str, handle: Handle) -> None:
        """Let the engine forget one of its ``models``, ``states`` or ``tokenizers`` later on."""
        self._unused[kind].append(handle)

    def file(self, arrays: Mapping[str, NDArray]) -> str:
        """Path of a safetensors file that is kept until the next reply."""
        path = self.folder / f"{next(self._ids)}.safetensors"
        write_safetensors(path, arrays, {})
        self._files.append(path)
        return str(path)

    def _outward(self, value: Any) -> Any:
        if isinstance(value, Handle):
            if value.start != self.start:
                raise EngineFailure("the engine was started anew: its models and states are gone")
            return int(value)
        if isinstance(value, Mapping):
            return {name: self._outward(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._outward(inner) for inner in value]
        if isinstance(value, np.ndarray):
            if value.nbytes > INLINE:
                return {"path": self.file({"x": value}), "name": "x"}
            return as_tensor(value)
        return value

    def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        number = next(self._ids)
        request = {"id": number, "method": method, "params": params}
        line = json.dumps(request, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        began, limit = time.monotonic(), self._patience.limit(method)
        try:
            answer = self._process.exchange(line, limit, method)
            reply = self._read(answer, number, method)
        except EngineFailure:
            if time.monotonic() - began >= limit:
                self._patience.hung(method)
            self.end()
            raise
        self._patience.replied(method, time.monotonic() - began)
        error = reply.get("error")
        if error is None:
            try:
                check(reply["result"], f"{method}.result", f"the result of {method!r}")
            except MessageError as wrong:
                raise EngineFailure(f"the engine's reply is wrong: {wrong}") from None
            return reply["result"]
        if error["kind"] == "unsupported":
            raise Unsupported(error["message"] or f"its engine has no {method!r}")
        if error["kind"] == "refused":
            raise ValueError(error["message"])
        message = shortened(error["message"], 600)
        raise EngineFailure(f"the engine failed at {method!r}: {message}")

    def _read(self, line: bytes, number: int, method: str) -> dict[str, Any]:
        """The reply of a line, if it is one to the request of this number."""
        try:
            reply = decode(line)
            check(reply, "refusal" if isinstance(reply, dict) and "error" in reply else "answer",
                  "the reply")  # fmt: skip
        except MessageError as error:
            assert self._process is not None
            raise EngineFailure(
                f"the engine's answer to {method!r} is wrong: {error}{self._process.last_words()}"
            ) from None
        if reply["id"] is None:
            raise EngineFailure(
                f"the engine could not read {method!r}: {shortened(reply['error']['message'])}"
            )
        if reply["id"] != number:
            raise EngineFailure(
                f"the engine's answer to {method!r} has the id {reply['id']}, expected {number}"
            )
        return reply

    def _free(self) -> None:
        unused = {
            kind: [int(h) for h in handles if h.start == self.start]
            for kind, handles in self._unused.items()
        }
        for handles in self._unused.values():
            handles.clear()
        if any(unused.values()):
            self._ask("free", unused)

    def _remove_files(self) -> None:
        for path in self._files:
            path.unlink(missing_ok=True)
        self._files.clear()

    # -- starting and ending

    def begin(self) -> None:
        """Start the engine if it does not run, and greet it.

        Raises
        ------
        EngineFailure
            If it cannot be started, or does not answer as the protocol demands.
        """
        if self._process is not None:
            return
        try:
            self._process = Process(self.command)
            self.start += 1
            self.hello = self._ask("hello", self._greeting())
        except (EngineFailure, ValueError, Unsupported) as error:
            self.end()
            self._patience.started(str(error))
            raise EngineFailure(f"{error}") from None
        self._patience.started()

    def greet(self, dtype: str) -> None:
        """Ask for another dtype."""
        self.dtype = dtype
        self.begin()
        self.hello = self._ask("hello", self._greeting())

    def _greeting(self) -> dict[str, Any]:
        return {"protocol": VERSION, "folder": str(self.folder), "dtype": self.dtype}

    def end(self) -> None:
        """Kill the engine, if it runs."""
        if self._process is not None:
            self._process.end()
        self._process = None

    def close(self) -> int | None:
        """Let the engine shut down, and remove the folder.

        Returns its exit code; None if it does not run, or had to be killed.
        """
        code = None
        if self._process is not None:
            with suppress(EngineFailure, Unsupported, ValueError):
                self._ask("shutdown", {})
            if self._process is not None:
                code = self._process.finish(self._patience.limit("shutdown"))
        self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)
        return code
