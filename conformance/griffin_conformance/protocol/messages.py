"""What a message may look like, and tensors as text.

``schema.json`` has the rules, for people and for other languages' validators; :func:`check` holds
messages against the same file, with what JSON Schema it uses and nothing more.
"""

import base64
import binascii
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin_np.checkpoints.files import SafetensorsFile
from griffin_np.errors import CheckpointError

__all__ = [
    "CAPABILITIES",
    "INLINE",
    "MUST",
    "VERSION",
    "MessageError",
    "Tensor",
    "as_tensor",
    "check",
    "decode",
    "from_tensor",
    "rules",
]

VERSION = "griffin-conformance/1"

MUST = ("hello", "model", "forward", "free", "shutdown")
"""What every engine has; everything else is a capability that it may declare."""

INLINE = 8 << 20
"""Bytes of the largest tensor that travels inside a message; larger ones travel in files."""


class MessageError(ValueError):
    """A message that breaks the rules; says where and how, in one line.

    Parameters
    ----------
    message : str
    depth : int
        How deep inside the message that is.
    """

    def __init__(self, message: str, depth: int = 0):
        super().__init__(message)
        self.depth = depth


Tensor = dict[str, Any]
"""A tensor as it stands in a message."""


@functools.cache
def rules() -> dict[str, Any]:
    """The definitions of ``schema.json`` by name."""
    text = (Path(__file__).parent / "schema.json").read_text(encoding="utf-8")
    return json.loads(text)["$defs"]


CAPABILITIES: tuple[str, ...] = tuple(
    rules()["hello.result"]["properties"]["capabilities"]["items"]["enum"]
)
"""Methods that an engine may have."""


def check(value: Any, rule: str, where: str = "") -> None:
    """Hold a JSON value against one of the definitions of ``schema.json``.

    Parameters
    ----------
    value : object
    rule : str
        ``"request"``, ``"reply"``, ``"forward.result"`` and so on.
    where : str
        What the value is called in an error.

    Raises
    ------
    MessageError
        Naming the first part of the message that is wrong.
    """
    chosen = rules()[rule]
    if rule == "request" and isinstance(value, dict):
        # Only one of the alternatives can hold, and its own error says more than the others'.
        for choice in chosen["anyOf"]:
            if choice["properties"]["method"]["const"] == value.get("method"):
                chosen = choice
    _hold(value, chosen, where or rule)


def _hold(value: Any, rule: Mapping[str, Any], where: str) -> None:
    """The keywords that ``schema.json`` uses; a rule with another one is a mistake of ours."""
    for keyword, expected in rule.items():
        match keyword:
            case "$ref":
                _hold(value, rules()[expected.removeprefix("#/$defs/")], where)
            case "type":
                _need(value, _is(value, expected), where, _NAMES[expected])
            case "const":
                same = type(value) is type(expected) and value == expected
                _need(value, same, where, json.dumps(expected))
            case "enum":
                _need(value, isinstance(value, str) and value in expected, where, _list(expected))
            case "minimum":
                wrong = _is(value, "number") and value < expected
                _need(value, not wrong, where, f"at least {expected}")
            case "maximum":
                wrong = _is(value, "number") and value > expected
                _need(value, not wrong, where, f"at most {expected}")
            case "minLength":
                wrong = isinstance(value, str) and len(value) < expected
                _need(value, not wrong, where, "text that is not empty")
            case "minItems":
                wrong = isinstance(value, list) and len(value) < expected
                _need(value, not wrong, where, f"at least {expected} item(s)")
            case "items" if isinstance(value, list):
                for i, item in enumerate(value):
                    _hold(item, expected, f"{where}[{i}]")
            case "required" if isinstance(value, dict):
                for name in expected:
                    if name not in value:
                        raise MessageError(f"{where} has no {name!r}", _depth(where))
            case "properties" if isinstance(value, dict):
                for name, inner in expected.items():
                    if name in value:
                        _hold(value[name], inner, f"{where}.{name}")
            case "additionalProperties" if isinstance(value, dict):
                for name, item in value.items():
                    _hold(item, expected, f"{where}.{name}")
            case "anyOf":
                _any_of(value, expected, where)
            case "items" | "required" | "properties" | "additionalProperties" | "description":
                pass
            case _:
                raise NotImplementedError(f"schema.json uses {keyword!r}, which is not known here")


def _any_of(value: Any, choices: list, where: str) -> None:
    errors: list[MessageError] = []
    for choice in choices:
        try:
            return _hold(value, choice, where)
        except MessageError as error:
            errors.append(error)
    # The error that is deepest inside the message belongs to the choice that was meant.
    raise max(errors, key=lambda error: error.depth)


def _depth(where: str) -> int:
    return where.count(".") + where.count("[")


_NAMES = {
    "object": "an object", "array": "an array", "string": "text", "integer": "an integer",
    "number": "a number", "boolean": "true or false", "null": "null",
}  # fmt: skip


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()  # as JSON Schema has it
    kinds: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
        "boolean": bool, "null": type(None),
    }  # fmt: skip
    return isinstance(value, kinds[kind])


def _need(value: Any, right: bool, where: str, expected: str) -> None:
    if not right:
        found = shortened(json.dumps(value))
        raise MessageError(f"{where} is {found}, expected {expected}", _depth(where))


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def shortened(text: str, length: int = 120) -> str:
    """Text that fits into a line of an error."""
    text = text.replace("\n", "\\n")
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


def decode(line: bytes) -> Any:
    """A line as JSON.

    Raises
    ------
    MessageError
        If it is none; NaN and Infinity are none.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON; such numbers travel in tensors")

    try:
        return json.loads(line.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        text = shortened(line.decode("utf-8", "replace").strip())
        raise MessageError(f"no JSON ({error}): {text}") from None


# -- tensors


def _dtypes() -> dict[str, np.dtype]:
    from ml_dtypes import bfloat16

    names = ("float32", "float64", "float16", "int32", "int64", "uint8")
    return {name: np.dtype(name) for name in names} | {"bfloat16": np.dtype(bfloat16)}


def as_tensor(array: Any, dtype: str | None = None) -> Tensor:
    """An array as it travels inside a message.

    In its own dtype by default; float64 that holds nothing but float32 values travels as float32,
    which is what engines of that precision compute in.
    """
    array = np.asarray(array)
    if dtype is None and array.dtype == np.float64:
        with np.errstate(over="ignore"):
            single = array.astype(np.float32)
        dtype = "float32" if np.array_equal(single, array, equal_nan=True) else "float64"
    name = dtype or str(array.dtype)
    little = array.astype(_dtypes()[name].newbyteorder("<"), copy=False)
    data = base64.b64encode(little.tobytes("C")).decode("ascii")
    return {"dtype": name, "shape": list(array.shape), "data": data}


def from_tensor(tensor: Tensor, where: str = "the tensor") -> NDArray:
    """The array of a tensor that has passed :func:`check`; always of its own memory.

    Raises
    ------
    MessageError
        If its bytes do not fit its shape, or it is in a file that has no such tensor.
    """
    if "data" not in tensor:
        return _from_file(tensor["path"], tensor["name"], where)
    dtype, shape = _dtypes()[tensor["dtype"]], tuple(int(n) for n in tensor["shape"])
    try:
        data = base64.b64decode(tensor["data"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise MessageError(f"{where}.data is no base64: {error}") from None
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise MessageError(
            f"{where} has {len(data)} bytes, expected {expected} for {tensor['dtype']} {shape}"
        )
    array = np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape)
    return array.astype(dtype, copy=True)


def _from_file(path: str, name: str, where: str) -> NDArray:
    try:
        file = SafetensorsFile(Path(path))
        if name not in file.names:
            raise MessageError(f"{where}: {path} has no tensor {name!r}")
        return file.array(name).copy()
    except CheckpointError as error:
        raise MessageError(f"{where}: {error}") from None
