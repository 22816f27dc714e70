"""Try an engine message by message, before the suite asks it for everything.

``validate("./engine --stdio")`` prints a line for each step and says what is wrong. What an engine
computes is held here only roughly against the reference of this project, to find bytes in the wrong
order or matrices in the wrong place; how exact it is, the suite tells.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.backends import Unsupported
from griffin_conformance.backends.reference import NumPyBackend
from griffin_conformance.protocol.client import CommandBackend
from griffin_conformance.protocol.engine import EngineFailure
from griffin_conformance.protocol.messages import CAPABILITIES, as_tensor
from griffin_conformance.schemas import shortened
from griffin_conformance.worlds import World
from griffin_np.config import GriffinConfig

__all__ = ["validate"]

ROUGHLY = 0.05
"""Difference that is taken for rounding here, relative to the largest number."""

TOKENS = 6


class Wrong(Exception):
    """What is wrong, in a line."""


def validate(
    command: str, report: Callable[[str], None] = print, seconds: float | None = None
) -> bool:
    """Try an engine's answers, one kind of message after the other.

    Parameters
    ----------
    command : str
        As a shell takes it: ``./engine --stdio``; ``cmd:`` may stand before it.
    report : callable
        Is given one line for each step.
    seconds : float, optional
        For one answer.

    Returns
    -------
    bool
        Whether nothing is wrong. What the engine does not have is told, and not wrong.
    """
    try:
        backend = CommandBackend(command.removeprefix("cmd:"), seconds=seconds)
    except ValueError as error:
        report(f"WRONG    hello: {error}")
        return False
    right = True
    try:
        for name, step in STEPS.items():
            try:
                report(f"ok       {name}: {step(backend)}")
            except Unsupported as missing:
                report(f"not had  {name}: {missing}")
            except (EngineFailure, Wrong, ValueError) as error:
                right = False
                report(f"WRONG    {name}: {error}")
        code = backend.close()
        if code == 0:
            report("ok       shutdown: it answered and exited with code 0")
        else:
            right = False
            how = "did not exit by itself" if code is None else f"exited with code {code}"
            report(f"WRONG    shutdown: it {how}, expected an answer and code 0")
    finally:
        backend.close()
    return right


def world(backend: CommandBackend) -> World:
    """A small model, of a form that the engine can represent."""
    config = GriffinConfig(width=16, depth=3, num_heads=2, vocab_size=11, lru_width=8, window=3)
    return World(backend.adapt(config), seed=1, lengths=(TOKENS,))


def model_of(backend: CommandBackend) -> tuple[Any, Any, NDArray]:
    """The small model in the engine, the same in the reference, and its text (1, T)."""
    small = world(backend)
    flat = small.parameters(backend.profile)
    return (
        backend.model(small.config, flat),
        NumPyBackend("float64").model(small.config, flat),
        small.tokens(0)[None],
    )


def alike(what: str, found: Any, expected: Any) -> None:
    """Refuse numbers that are far from what they should be."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    if found.shape != expected.shape:
        raise Wrong(f"{what} has shape {found.shape}, expected {expected.shape}")
    off = np.abs(found - expected)
    if off.size and not off.max() <= ROUGHLY * max(np.abs(expected).max(), 1e-6):
        place = np.unravel_index(np.argmax(np.nan_to_num(off, nan=np.inf)), off.shape)
        where = ", ".join(map(str, place))
        raise Wrong(f"{what}[{where}] is {found[place]:.6g}, expected {expected[place]:.6g}")


def the_same(what: str, found: Any, expected: Any) -> None:
    """Refuse arrays that are not the same to the bit."""
    if not np.array_equal(np.asarray(found), np.asarray(expected), equal_nan=True):
        raise Wrong(f"{what} is not the same: {shortened(str(found))}")


def refused(what: str, call: Callable[[], Any]) -> str:
    """What the engine says when it refuses a call."""
    try:
        call()
    except ValueError as error:
        return shortened(str(error))
    raise Wrong(f"{what} was taken without an error of kind 'refused'")


# -- the steps


def hello(backend: CommandBackend) -> str:
    told = backend.engine.hello
    missing = [name for name in CAPABILITIES if name not in told["capabilities"]]
    lacks = f"; it does not have {', '.join(missing)}" if missing else ""
    return f"{told['name']} in {', '.join(told['dtypes'])}{lacks}"


def unknown_method(backend: CommandBackend) -> str:
    request = json.dumps({"id": 7, "method": "no_such_method", "params": {}}).encode()
    reply = backend.engine.send(request, "an unknown method")
    if "error" not in reply or reply["error"]["kind"] != "unsupported" or reply["id"] != 7:
        raise Wrong(
            f"expected the id 7 and an error of kind 'unsupported', got "
            f"{shortened(json.dumps(reply))}"
        )
    return shortened(reply["error"]["message"])


def no_json(backend: CommandBackend) -> str:
    reply = backend.engine.send(b'{"id": 8, "method": ', "a line that is no JSON")
    if "error" not in reply or reply["id"] is not None:
        raise Wrong(f"expected an error with the id null, got {shortened(json.dumps(reply))}")
    return shortened(reply["error"]["message"])


def operation(backend: CommandBackend) -> str:
    x = np.array([[1.0, -2.0, 0.5], [np.nan, np.inf, 0.0]])
    found = backend.gelu(x)
    alike("gelu of 1, -2, 0.5", found[0], [0.841192, -0.045402, 0.345714])
    if not (np.isnan(found[1, 0]) and np.isposinf(found[1, 1])):
        raise Wrong(f"gelu of NaN and infinity is {found[1, 0]:g} and {found[1, 1]:g}")
    return "gelu, with NaN and infinity"


def tensor_in_a_file(backend: CommandBackend) -> str:
    engine = backend.engine
    if not engine.has("gelu"):
        raise Unsupported("its engine has no 'gelu'")
    path = engine.file({"first": np.zeros((1, 2), np.float32), "x": np.ones((1, 2), np.float32)})
    found = engine.call("gelu", x={"path": path, "name": "x"})
    alike("gelu of 1", engine.array(found["y"], "'y' of 'gelu'"), np.full((1, 2), 0.841192))
    return "the second of two in a safetensors file"


def forward(backend: CommandBackend) -> str:
    model, reference, tokens = model_of(backend)
    logits, _ = model(tokens)
    alike("logits", logits, reference(tokens)[0])
    last, _ = model(tokens, logits="last")
    alike("the last logits", last, logits[:, -1])
    if model(tokens, logits="none")[0] is not None:
        raise Wrong('logits="none" gave logits')
    return f"{TOKENS} tokens; all logits, the last, and none"


def positions(backend: CommandBackend) -> str:
    model, reference, tokens = model_of(backend)
    packed = np.array([[0, 1, -1, 0, 1, -1]])
    logits, _ = model(tokens, packed)
    if np.any(logits[0, packed[0] < 0] != 0):
        raise Wrong("logits of padding are not 0")
    alike("logits of two documents with padding", logits, reference(tokens, packed)[0])
    said = refused("position 7 after position 1", lambda: model(tokens[:, :3], [[0, 1, 7]]))
    refused("a token outside the vocabulary", lambda: model([[999]]))
    return f"two documents and padding; a gap is refused: {said}"


def states(backend: CommandBackend) -> str:
    """Two sessions in turns, from states that stay as they were."""
    model, _, tokens = model_of(backend)
    other = (tokens + 1) % 11
    whole, _ = model(tokens)
    alone, _ = model(other)
    _, first = model(tokens[:, :3])
    _, second = model(other[:, :3])
    for _ in range(2):  # twice from the same states
        alike("logits of one session", model(tokens[:, 3:], state=first)[0], whole[:, 3:])
        alike("logits of the other", model(other[:, 3:], state=second)[0], alone[:, 3:])
    return "two sessions in turns, each continued twice from one state"


def state_arrays(backend: CommandBackend) -> str:
    model, reference, tokens = model_of(backend)
    if not backend.engine.has("state_get"):
        raise Unsupported("its engine has no 'state_get'")
    _, state = model(tokens)
    _, expected = reference(tokens)
    the_same("position", state.position, [TOKENS])
    arrays, wanted = state.arrays(), expected.arrays()
    if set(arrays) != set(wanted):
        raise Wrong(f"arrays are {sorted(arrays)}, expected {sorted(wanted)}")
    for name, array in wanted.items():
        alike(name, arrays[name], array)
    if not backend.engine.has("state_set"):
        return f"{len(arrays)} arrays; it has no 'state_set'"
    given = {name: np.full_like(array, np.nan) for name, array in arrays.items()}
    changed = state.with_arrays(given, np.array([4]))
    the_same("position after state_set", changed.position, [4])
    for name, array in changed.arrays().items():
        the_same(f"{name} after state_set", array, given[name])
    for name, array in state.arrays().items():
        the_same(f"{name} of the state that state_set was given", array, arrays[name])
    return f"{len(arrays)} arrays, taken out and set"


def freed(backend: CommandBackend) -> str:
    model, _, tokens = model_of(backend)
    _, state = model(tokens)
    handle, state.handle = state.handle, None
    backend.engine.call("free", models=[], states=[handle], tokenizers=[])
    request = {"model": int(model.handle), "tokens": as_tensor(np.zeros((1, 1), np.int64)),
               "positions": None, "state": int(handle), "logits": "none"}  # fmt: skip
    line = json.dumps({"id": 9, "method": "forward", "params": request}).encode()
    reply = backend.engine.send(line, "a state that has been freed")
    if "error" not in reply:
        raise Wrong("a state that had been freed was taken without an error")
    return shortened(reply["error"]["message"])


STEPS: dict[str, Callable[[CommandBackend], str]] = {
    "hello": hello,
    "unknown method": unknown_method,
    "no JSON": no_json,
    "operation": operation,
    "tensor in a file": tensor_in_a_file,
    "model and forward": forward,
    "positions": positions,
    "states": states,
    "state arrays": state_arrays,
    "free": freed,
}
"""What is tried, in order."""
