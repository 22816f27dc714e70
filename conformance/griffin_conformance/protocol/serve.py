"""Serve a Python backend over the protocol: the other end of :class:`CommandBackend`.

python -m griffin_conformance.protocol.serve --backend numpy --dtype float64

An example of an engine in Python, and what the client is tried on.
"""

import argparse
import dataclasses
import inspect
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from griffin_conformance.backends import Backend, Unsupported, find_backend
from griffin_conformance.protocol.messages import (
    CAPABILITIES,
    MUST,
    VERSION,
    MessageError,
    as_tensor,
    check,
    decode,
    from_tensor,
)
from griffin_conformance.quantisation import Quantisation
from griffin_np.checkpoints.files import SafetensorsFile
from griffin_np.config import GriffinConfig
from griffin_np.state import State

__all__ = ["Server", "main"]

STATES = ("state_get", "state_set", "fork", "select", "concat", "state_save", "state_load")
"""Methods that work on states of :class:`griffin_np.State` or its like."""


class Server:
    """Answers requests with a backend.

    Parameters
    ----------
    backend : Backend
    """

    def __init__(self, backend: Backend):
        self.backend = backend
        self.models: dict[int, Any] = {}
        self.states: dict[int, Any] = {}
        self.tokenizers: dict[int, Any] = {}
        self.numbers = itertools.count(1)
        self.done = False

    def serve(self, lines: BinaryIO, out: BinaryIO) -> None:
        """Answer every line until ``shutdown`` or the end."""
        for line in lines:
            out.write(json.dumps(self.answer(line)).encode() + b"\n")
            out.flush()
            if self.done:
                return

    def answer(self, line: bytes) -> dict[str, Any]:
        """The reply to one line."""
        number = None
        try:
            request = decode(line)
            if isinstance(request, dict) and isinstance(request.get("id"), int):
                number = request["id"]
            if isinstance(request, dict) and isinstance(request.get("method"), str):
                method = request["method"]
                if method not in MUST and method not in CAPABILITIES:
                    raise Unsupported(f"there is no method {method!r}")
            check(request, "request")
            return {"id": number, "result": self._do(request["method"], request["params"])}
        except Unsupported as error:
            kind, message = "unsupported", str(error)
        except MessageError as error:
            kind, message = "failed", str(error)
        except ValueError as error:
            kind, message = "refused", str(error)
        except Exception as error:  # whatever a backend raises is told, and serving goes on
            kind, message = "failed", f"{type(error).__name__}: {error}"
        return {"id": number, "error": {"kind": kind, "message": message}}

    def _do(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method in MUST or method in HANDLERS:
            return getattr(self, f"_{method}")(**{k: _inward(v, k) for k, v in params.items()})
        given = {name: _inward(value, name) for name, value in params.items()}
        if method == "rg_lru":
            names = ("w_a", "b_a", "w_x", "b_x", "a_param")
            given["p"] = {name: given.pop(name) for name in names}
        found = getattr(self.backend, method)(**given)
        results = found if isinstance(found, tuple) else (found,)
        return {
            name: as_tensor(array)
            for name, array in zip(RESULTS.get(method, ("y",)), results, strict=True)
        }

    # -- what there is

    def _hello(self, protocol: str, folder: str, dtype: str | None) -> dict[str, Any]:
        backend = self.backend
        if dtype is not None and dtype != backend.dtype:
            self.backend = backend = type(backend)(dtype)
            self.models.clear()
            self.states.clear()
        return {
            "protocol": VERSION,
            "name": f"{backend.name} by griffin_conformance.protocol.serve",
            "versions": backend.versions(),
            "dtypes": [backend.dtype, *(d for d in backend.dtypes if d != backend.dtype)],
            "capabilities": list(self.capabilities()),
            "fixed_shapes": backend.fixed_shapes,
            "cannot": sorted(backend.cannot),
            "quantised": {name: _told(how) for name, how in backend.quantised.items()},
        }

    def capabilities(self) -> list[str]:
        """What the backend overrides, and what its models and states have."""
        own = type(self.backend)

        def overridden(name: str) -> bool:
            return getattr(own, name, None) is not getattr(Backend, name, None)

        found = [name for name in CAPABILITIES if overridden(name)]
        found += ["checkpoint"] if overridden("load") else []
        if overridden("tokenizer"):
            found += ["encode", "decode", "encode_dialogue"]
        if overridden("model"):
            # States are known only once there is a model; any engine of this package has them all.
            found += [*STATES, "init_state", "hidden_states", "generate"]
        return [name for name in CAPABILITIES if name in found]

    def _shutdown(self) -> dict[str, Any]:
        self.done = True
        return {}

    def _free(self, models: list, states: list, tokenizers: Sequence = ()) -> dict[str, Any]:
        for known, numbers in (
            (self.models, models), (self.states, states), (self.tokenizers, tokenizers)
        ):  # fmt: skip
            for number in numbers:
                _look_up(known, number)
                del known[number]
        return {}

    # -- models

    def _model(self, config: dict, weights: str) -> dict[str, Any]:
        shape, flat = _read(config, weights)
        return self._new_model(self.backend.model(shape, flat), shape, flat)

    def _compiled(self, config: dict, weights: str) -> dict[str, Any]:
        shape, flat = _read(config, weights)
        return self._new_model(self.backend.compiled(shape, flat), shape, flat)

    def _dequantised(self, config: dict, weights: str) -> dict[str, Any]:
        found = self.backend.dequantised(*_read(config, weights))
        return {"arrays": {name: as_tensor(array) for name, array in found.items()}}

    def _input_groups(self, config: dict, name: str, inputs: int) -> dict[str, Any]:
        groups = self.backend.input_groups(GriffinConfig.from_dict(config), name, inputs)
        return {"groups": as_tensor(np.asarray(groups, np.int64))}

    def _nf4(self, parts: dict, shape: list) -> dict[str, Any]:
        given = {name: from_tensor(part, name) for name, part in parts.items()}
        return {"y": as_tensor(self.backend.nf4(given, tuple(shape)))}

    def _tokenizer(self, folder: str) -> dict[str, Any]:
        number = next(self.numbers)
        self.tokenizers[number] = self.backend.tokenizer(Path(folder))
        return {"tokenizer": number}

    def _encode(self, tokenizer: int, text: str, bos: bool) -> dict[str, Any]:
        ids = _look_up(self.tokenizers, tokenizer).encode(text, bos=bos)
        return {"ids": [int(i) for i in ids]}

    def _decode(self, tokenizer: int, ids: list) -> dict[str, Any]:
        return {"text": _look_up(self.tokenizers, tokenizer).decode(ids)}

    def _encode_dialogue(self, tokenizer: int, messages: list) -> dict[str, Any]:
        vocabulary = _look_up(self.tokenizers, tokenizer)
        if not hasattr(vocabulary, "encode_dialogue"):
            raise Unsupported("its tokenizer has no dialogues")
        return {"ids": [int(i) for i in vocabulary.encode_dialogue(messages)]}

    def _checkpoint(self, folder: str) -> dict[str, Any]:
        return self._new_model(self.backend.load(Path(folder)), None, {})

    def _new_model(
        self, model: Any, config: GriffinConfig | None, flat: Mapping[str, Any]
    ) -> dict[str, Any]:
        number = next(self.numbers)
        self.models[number] = (model, config, flat)
        return {"model": number}

    def _get(self, number: int, method: str) -> Any:
        model = _look_up(self.models, number)[0]
        if method and not hasattr(model, method):
            raise Unsupported(f"its model has no {method}")
        return model

    def _adapt(self, config: dict) -> dict[str, Any]:
        return {"config": self.backend.adapt(GriffinConfig.from_dict(config)).to_dict()}

    def _block(self, model: int, index: int, x: Any, positions: Any) -> dict[str, Any]:
        _, config, flat = _look_up(self.models, model)
        return {"y": as_tensor(self.backend.block(config, flat, index, x, positions))}

    def _forward(
        self, model: int, tokens: Any, positions: Any, state: int | None, logits: str
    ) -> dict[str, Any]:
        before = None if state is None else _look_up(self.states, state)
        values, after = self._get(model, "")(tokens, positions, before, logits=logits)
        return {"logits": None if values is None else as_tensor(values), **self._new(after)}

    def _hidden_states(self, model: int, tokens: Any) -> dict[str, Any]:
        return {"streams": [as_tensor(s) for s in self._get(model, "hidden_states")
                .hidden_states(tokens)]}  # fmt: skip

    def _generate(self, model: int, prompts: list, **options: Any) -> dict[str, Any]:
        found = self._get(model, "generate").generate(prompts, **options)
        return {
            "tokens": [[int(t) for t in generation.tokens] for generation in found],
            "finish_reasons": [getattr(g, "finish_reason", "length") for g in found],
        }

    # -- states

    def _new(self, state: Any) -> dict[str, Any]:
        number = next(self.numbers)
        self.states[number] = state
        return {"state": number}

    def _state(self, number: int, *needed: str) -> Any:
        state = _look_up(self.states, number)
        if missing := [name for name in needed if not hasattr(state, name)]:
            raise Unsupported(f"its state has no {', '.join(missing)}")
        return state

    def _init_state(self, model: int, batch: int) -> dict[str, Any]:
        return self._new(self._get(model, "init_state").init_state(batch))

    def _state_get(self, state: int) -> dict[str, Any]:
        found = self._state(state, "arrays", "position", "nbytes")
        return {
            "position": as_tensor(np.asarray(found.position, np.int64)),
            "arrays": {
                name: as_tensor(array, str(np.asarray(array).dtype))
                for name, array in found.arrays().items()
            },
            "nbytes": int(found.nbytes),
        }

    def _state_set(self, state: int, position: Any, arrays: dict) -> dict[str, Any]:
        given = {name: from_tensor(t, name) for name, t in arrays.items()}
        return self._new(self._state(state, "with_arrays").with_arrays(given, position))

    def _fork(self, state: int, copies: int) -> dict[str, Any]:
        return self._new(self._state(state, "fork").fork(copies))

    def _select(self, state: int, rows: list) -> dict[str, Any]:
        return self._new(self._state(state, "select").select(rows))

    def _concat(self, states: list) -> dict[str, Any]:
        found = [self._state(number, "concat") for number in states]
        return self._new(type(found[0]).concat(found))

    def _state_save(self, state: int, path: str) -> dict[str, Any]:
        found = self._state(state, "save")
        found.save(Path(path))
        # What a state's class is matters to `load`, which has nothing but the file.
        self.kind = type(found)
        return {}

    def _state_load(self, path: str) -> dict[str, Any]:
        return self._new(getattr(self, "kind", State).load(Path(path)))


HANDLERS = (
    *STATES, "adapt", "block", "hidden_states", "init_state", "generate", "compiled", "checkpoint",
    "tokenizer", "encode", "decode", "encode_dialogue", "nf4", "dequantised", "input_groups",
)  # fmt: skip
"""Methods beside those of :data:`MUST` that are not simply passed on to the backend."""

RESULTS = {"causal_conv": ("y", "past"), "decay": ("a", "scale")}
"""Names of the results of operations that have several."""


def _look_up(known: Mapping[int, Any], number: int) -> Any:
    if number not in known:
        raise MessageError(f"there is nothing of the number {number}, or it has been freed")
    return known[number]


def _read(config: dict, weights: str) -> tuple[GriffinConfig, dict[str, Any]]:
    """Configuration and parameters of a model."""
    file = SafetensorsFile(Path(weights))
    return GriffinConfig.from_dict(config), {n: file.array(n).copy() for n in file.names}


def _told(how: Quantisation) -> dict[str, Any]:
    """What a backend says of one of its quantised dtypes."""
    return {
        "weights": how.weights and dataclasses.asdict(how.weights),
        "activations": how.activations and dataclasses.asdict(how.activations),
        "group": how.group,
        "profile": how.profile.name,
        "matrices": list(how.matrices),
    }


def _inward(value: Any, name: str) -> Any:
    """A parameter: tensors become arrays, floats as float64 as the suite gives them."""
    if isinstance(value, dict) and ("data" in value or "path" in value):
        array = from_tensor(value, name)
        return array.astype(np.float64) if array.dtype.kind == "f" else array
    return value


def main(arguments: list[str] | None = None) -> None:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser(
        prog="python -m griffin_conformance.protocol.serve",
        description=inspect.getdoc(sys.modules[__name__]) or "",
    )
    parser.add_argument("--backend", default="numpy", metavar="NAME|MODULE:CLASS")
    parser.add_argument("--dtype")
    told = parser.parse_args(arguments)
    try:
        backend = find_backend(told.backend, told.dtype)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    serve(backend)


def serve(backend: Backend) -> None:
    """Answer on standard output, which nothing else in this process can reach any more."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not come between the replies
        Server(backend).serve(sys.stdin.buffer, out)


if __name__ == "__main__":
    main()
