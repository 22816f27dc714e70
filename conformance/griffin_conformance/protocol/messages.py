"""What a message may look like, and tensors as text.

``schema.json`` has the rules, for people and for other languages' validators; :func:`check` holds
messages against the same file.
"""

import base64
import binascii
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.schemas import Draft202012Validator, shortened, wrong_with
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
    """A message that breaks the rules; says where and how, in one line."""


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


@functools.cache
def validator(rule: str, method: str | None = None) -> Draft202012Validator:
    """Of one of the definitions; of the requests, the one for a method, whose errors say more."""
    chosen = rules()[rule]
    if method is not None:
        for choice in chosen["anyOf"]:
            if choice["properties"]["method"]["const"] == method:
                chosen = choice
    return Draft202012Validator({**chosen, "$defs": rules()})


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
        Naming a part of the message that is wrong.
    """
    method = value.get("method") if rule == "request" and isinstance(value, dict) else None
    known = validator(rule, method if isinstance(method, str) else None)
    if fault := wrong_with(value, known, where or rule):
        raise MessageError(fault)


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
