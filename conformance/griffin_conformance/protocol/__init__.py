"""Engines in any language: JSON lines over standard input and output, ``griffin-conformance/1``.

The suite starts the engine, writes one request to a line and reads one reply from a line::

    {"id": 1, "method": "gelu", "params": {"x": {"dtype": "float32", "shape": [1, 2],
                                                 "data": "AACAPwAAAMA="}}}
    {"id": 1, "result": {"y": {"dtype": "float32", "shape": [1, 2], "data": "XFhXP8X3Ob0="}}}
    {"id": 2, "error": {"kind": "refused", "message": "position 7 in row 0, column 2: expected 2"}}

- Requests come one at a time, and every one is answered, in order, by one line of UTF-8 with the
  request's id. Standard error is the engine's own. At the end of its input an engine exits.
- ``schema.json`` has every message. What is not named there is ignored.
- A tensor is ``{"dtype", "shape", "data"}``: little-endian bytes in row-major order, in base64, so
  that NaN and infinity travel; or ``{"path", "name"}``: a tensor of a safetensors file. Floats come
  as float32 where they have float32 values, else as float64. Weights of a model are always the path
  of a safetensors file, all float32, with the names of :mod:`griffin_np.params`.
- An engine must have ``hello``, ``model``, ``forward``, ``free`` and ``shutdown``. Everything else
  it may declare in ``capabilities``: what it leaves out is skipped with a reason and never passed.
- Models and states are handles: numbers that the engine chooses, and which live until they are
  freed. Calls are pure: ``forward`` gives a new state, and the old one stays as it was.
- An error's kind is ``unsupported`` (the engine does not have this: skipped), ``refused`` (a call
  that no text allows, or a state of another model: what the suite expects there), or ``failed``.

``examples/griffin.c`` beside this package is a complete engine; :mod:`.serve` makes one of any
Python backend; :mod:`.validate` tries an engine message by message.
"""

from griffin_conformance.protocol.client import CommandBackend
from griffin_conformance.protocol.messages import VERSION, MessageError
from griffin_conformance.protocol.process import EngineFailure

__all__ = ["VERSION", "CommandBackend", "EngineFailure", "MessageError"]
