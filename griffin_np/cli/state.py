"""Inspect, convert and compare state files.

griffin-np state show story.state
griffin-np state convert story.state story-bf16.state --dtype bfloat16
griffin-np state compare a.state b.state
"""

import argparse
import json

import numpy as np

from griffin_np.cli.common import human_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="what a file holds")
    show.add_argument("file")
    show.add_argument("--json", action="store_true")
    convert = actions.add_parser("convert", help="write it in another dtype")
    convert.add_argument("file")
    convert.add_argument("out")
    convert.add_argument("--dtype", required=True, help="float64, float32, float16 or bfloat16 "
                         "(the recurrent state stays in at least 32 bits)")  # fmt: skip
    compare = actions.add_parser("compare", help="how far two files are apart, array by array")
    compare.add_argument("file")
    compare.add_argument("other")
    compare.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from griffin_np.state import State

    state = State.load(args.file)
    if args.action == "show":
        facts = describe(state, State.read_metadata(args.file))
        print(json.dumps(facts) if args.json else as_text(args.file, facts))
    elif args.action == "convert":
        metadata = State.read_metadata(args.file)
        state.astype(_dtype(args.dtype)).save(args.out, metadata)
    else:
        other = State.load(args.other)
        other.check_model(state.config, state.fingerprint, args.other)
        facts = difference(state, other)
        print(json.dumps(facts) if args.json else difference_as_text(facts))
        return 0 if facts["equal"] else 1
    return 0


def _dtype(name: str) -> np.dtype:
    from griffin_np.checkpoints.files import numpy_dtypes
    from griffin_np.errors import StateError

    floats = {d.name: d for d in numpy_dtypes().values() if "float" in d.name}
    if name not in floats:
        raise StateError(f"no state dtype {name!r}; choose one of {', '.join(floats)}")
    return floats[name]


def describe(state, metadata: dict[str, str]) -> dict:
    """What a state file holds, as JSON values."""
    return {
        "rows": state.batch,
        "position": state.position.tolist(),
        "bytes": state.nbytes,
        "fingerprint": state.fingerprint,
        "conversation": "conversation" in metadata,
        "config": state.config.to_dict(),
        "arrays": {
            name: {
                "shape": list(array.shape),
                "dtype": array.dtype.name,
                "largest": float(np.abs(array.astype(np.float64)).max(initial=0)),
            }
            for name, array in state.arrays().items()
        },
    }


def as_text(path: str, facts: dict) -> str:
    talk = ", with a conversation" if facts["conversation"] else ""
    lines = [
        f"{path}: {facts['rows']} row(s), {human_bytes(facts['bytes'])}{talk}",
        f"tokens of the current document: {', '.join(map(str, facts['position']))}",
        f"model fingerprint {facts['fingerprint'] or '(any)'}",
    ]
    for name, a in facts["arrays"].items():
        lines.append(f"{name:<20} {a['dtype']:<9} {a['shape']!s:<22} largest {a['largest']:.4g}")
    return "\n".join(lines)


def difference(state, other) -> dict:
    """Largest difference of every array, and whether all are the same to the bit."""
    theirs = other.arrays()
    arrays = {}
    for name, array in state.arrays().items():
        a, b = array.astype(np.float64), theirs[name].astype(np.float64)
        same_shape = a.shape == b.shape
        arrays[name] = {
            "equal": bool(
                same_shape and array.dtype == theirs[name].dtype and np.array_equal(a, b)
            ),
            "largest_difference": float(np.abs(a - b).max(initial=0)) if same_shape else None,
            "largest": float(max(np.abs(a).max(initial=0), np.abs(b).max(initial=0))),
        }
    positions = [state.position.tolist(), other.position.tolist()]
    equal = positions[0] == positions[1] and all(a["equal"] for a in arrays.values())
    return {"equal": equal, "positions": positions, "arrays": arrays}


def difference_as_text(facts: dict) -> str:
    lines = [f"positions {facts['positions'][0]} and {facts['positions'][1]}"]
    for name, a in facts["arrays"].items():
        gap = a["largest_difference"]
        text = (
            "equal"
            if a["equal"]
            else "other shape"
            if gap is None
            else f"differs by up to {gap:.3g}"
        )
        lines.append(f"{name:<20} {text:<28} (largest value {a['largest']:.4g})")
    lines.append("the states are equal" if facts["equal"] else "the states differ")
    return "\n".join(lines)
