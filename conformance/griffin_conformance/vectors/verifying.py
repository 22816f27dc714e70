"""Run a backend over a folder of vectors."""

import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.alone import has_arrays
from griffin_conformance.backends import Backend, Unsupported
from griffin_conformance.checks import Violation
from griffin_conformance.envelope import Comparison, Envelope
from griffin_conformance.vectors.files import DATA, Expectation, Folder
from griffin_np.config import GriffinConfig

__all__ = ["VectorResult", "verify"]


@dataclass
class VectorResult:
    """What came out of one vector.

    Attributes
    ----------
    id, level : str
    clauses : tuple of str
    status : {"passed", "failed", "skipped"}
    comparisons : list of Comparison
    reason : str
        Why it failed or was skipped.
    not_compared : list of str
        What the backend does not show.
    """

    id: str
    level: str
    clauses: tuple[str, ...]
    status: str = "passed"
    comparisons: list[Comparison] = field(default_factory=list)
    reason: str = ""
    not_compared: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ratio = f"{self.worst.ratio:8.3g}" if self.worst else " " * 8
        return f"{self.level}  {self.id:36}{self.status:9}{ratio}  {self.reason}".rstrip()

    @property
    def worst(self) -> Comparison | None:
        """The comparison nearest to, or farthest beyond, what is allowed."""
        return max(self.comparisons, key=lambda c: c.ratio, default=None)


def verify(folder: str | os.PathLike | None, backend: Backend) -> list[VectorResult]:
    """Hold a backend against the vectors of a folder; None means those that the package ships.

    What the backend lacks is skipped with a reason.

    Raises
    ------
    VectorsError
        If the folder is missing or damaged.
    """
    opened = Folder(DATA if folder is None else folder)
    return [_result(opened, entry, backend) for entry in opened.manifest["vectors"]]


def _result(folder: Folder, entry: dict, backend: Backend) -> VectorResult:
    result = VectorResult(entry["id"], entry["level"], tuple(entry["clauses"]))
    precision = backend.profile.name
    if precision not in entry["precisions"]:
        result.status = "skipped"
        result.reason = (
            f"it is for {', '.join(entry['precisions'])}, and the backend computes in {precision}"
        )
        return result
    run = {"operation": _operation, "block": _block, "model": _model, "steps": _steps,
           "greedy": _greedy}[entry["kind"]]  # fmt: skip
    expected = folder.expectations(entry)
    try:
        with np.errstate(all="ignore"):  # numbers that are not finite are found by comparing
            found = run(folder, entry, backend)
            place = entry["precisions"].index(precision)
            _compare(result, found, expected, entry["kind"], backend, place)
    except Unsupported as missing:
        result.status, result.reason = "skipped", str(missing)
    except Violation as violation:
        result.status, result.reason = "failed", str(violation)
    except (Exception, SystemExit) as error:  # whatever a backend raises on a legal call
        where = "".join(traceback.format_exception(error)[-4:])
        result.status, result.reason = "failed", f"{type(error).__name__}: {error}\n{where}"
    return result


def _compare(
    result: VectorResult, found: Mapping[str, Any], expected: list[Expectation], kind: str,
    backend: Backend, place: int,
) -> None:  # fmt: skip
    """Fill in comparisons and the status."""
    for e in expected:
        if found.get(e.name) is None:
            result.not_compared.append(e.name)
            continue
        if kind == "greedy":
            _compare_texts(found[e.name], e, expected, place)
            break
        if e.allowed is None:
            if not np.array_equal(np.asarray(found[e.name]), e.truth):
                raise Violation(
                    f"{e.name} is {np.asarray(found[e.name]).tolist()}, expected {e.truth.tolist()}"
                )
            continue
        result.comparisons.append(compare(e, found[e.name], backend, place))
    wrong = next((c for c in result.comparisons if not c.passed), None)
    if wrong:
        result.status, result.reason = "failed", str(wrong)
    elif not result.comparisons and kind != "greedy":
        raise Unsupported(f"it shows none of {', '.join(result.not_compared)}")


def compare(e: Expectation, found: NDArray, backend: Backend, place: int) -> Comparison:
    """Hold one array against its expectation; entries are positions in order of memory.

    ``place`` is that of the backend's precision among the vector's.
    """
    assert e.allowed is not None
    profile = backend.profile
    found = np.asarray(found, np.float64)
    if found.shape != e.truth.shape:
        raise Violation(f"{e.name} has shape {found.shape}, expected {e.truth.shape}")
    allowed = e.allowed[place]
    positions = allowed.size
    flat = e.truth.reshape(positions, -1)
    unit = profile.state_unit if e.name.endswith("rg_lru") else profile.unit
    envelope = Envelope(flat, allowed.ravel(), allowed.ravel(), unit, profile.tiny)
    return envelope.compare(e.name, found.reshape(flat.shape))


def _compare_texts(
    found: NDArray, tokens: Expectation, expected: list[Expectation], place: int
) -> None:
    """Each row agrees until the first token whose margin rounding can overcome."""
    (margin,) = (e for e in expected if e.name == "margin")
    assert margin.allowed is not None
    allowed = margin.allowed[place]
    clear = margin.truth > allowed
    found = np.asarray(found)
    if found.shape != tokens.truth.shape:
        raise Violation(f"new tokens have shape {found.shape}, expected {tokens.truth.shape}")
    for i, (row, right) in enumerate(zip(found, tokens.truth, strict=True)):
        differs = np.flatnonzero(row != right)
        if differs.size and clear[i, differs[0]]:
            n = differs[0]
            raise Violation(
                f"row {i}: new token {n} is {row[n]}, expected {right[n]}, which leads by "
                f"{margin.truth[i, n]:.3g}, and {allowed[i, n]:.3g} can be "
                f"explained by rounding"
            )


# -- running


def _operation(folder: Folder, entry: dict, backend: Backend) -> dict[str, Any]:
    i = folder.inputs(entry)
    name = entry["operation"]
    if name == "rg_lru":
        p = {n: i[n] for n in ("w_a", "b_a", "w_x", "b_x", "a_param")}
        outputs = backend.rg_lru(i["x"], p, i["positions"], i["h"])
    elif name == "linear":
        outputs = backend.linear(i["x"], i["weight"], i.get("bias"))
    else:
        outputs = getattr(backend, name)(*i.values())
    names = [e["name"] for e in entry["expect"]]
    return dict(zip(names, [outputs] if len(names) == 1 else outputs, strict=True))


def _config(folder: Folder, entry: dict, backend: Backend) -> GriffinConfig:
    config = GriffinConfig.from_dict(folder.manifest["worlds"][entry["world"]]["config"])
    if backend.adapt(config) != config:
        raise Unsupported("it cannot represent this configuration")
    if config.logits_soft_cap == 0 and "no soft cap" in backend.cannot:
        raise Unsupported("it cannot be asked for a model without a soft cap")
    return config


def _block(folder: Folder, entry: dict, backend: Backend) -> dict[str, Any]:
    config, flat = _config(folder, entry, backend), folder.weights(entry["world"])
    x = folder.inputs(entry)["x"]
    return {"y": backend.block(config, flat, entry["block"], x, np.arange(len(x)))}


def _opened(folder: Folder, entry: dict, backend: Backend):
    return backend.model(_config(folder, entry, backend), folder.weights(entry["world"]))


def _model(folder: Folder, entry: dict, backend: Backend) -> dict[str, Any]:
    model, i = _opened(folder, entry, backend), folder.inputs(entry)
    tokens, positions, state = i["tokens"], i["positions"], None
    if entry["start"]:
        if not hasattr(model, "init_state"):
            raise Unsupported("its model has no init_state")
        state = model.init_state(len(tokens))
        if not hasattr(state, "with_arrays"):
            raise Unsupported("its state has no with_arrays")
        state = state.with_arrays(state.arrays(), np.full(len(tokens), entry["start"]))
    edges = [0, *entry["cuts"], tokens.shape[1]]
    logits = []
    for begin, end in pairwise(edges):
        part, state = model(tokens[:, begin:end], positions[:, begin:end], state)
        logits.append(np.asarray(part, np.float64))
    found: dict[str, Any] = {"logits": np.concatenate(logits, axis=1), **_arrays(state)}
    names = [e["name"] for e in entry["expect"] if e["name"] in ("embedding", "final_norm")
             or e["name"].endswith("residual")]  # fmt: skip
    if names and hasattr(model, "hidden_states"):
        found |= dict(zip(names, model.hidden_states(tokens, positions), strict=True))
    return found


def _arrays(state: Any) -> dict[str, Any]:
    if not has_arrays(state):
        return {}
    return {"position": np.asarray(state.position),
            **{n: np.asarray(a, np.float64) for n, a in state.arrays().items()}}  # fmt: skip


def _steps(folder: Folder, entry: dict, backend: Backend) -> dict[str, Any]:
    model, i = _opened(folder, entry, backend), folder.inputs(entry)
    state, rows = None, []
    for t in range(i["tokens"].shape[1]):
        logits, state = model(i["tokens"][:, t : t + 1], i["positions"][:, t : t + 1], state)
        arrays = {n: np.array(a[0]) for n, a in _arrays(state).items()}  # a copy of each
        rows.append({"logits": np.array(logits[0, 0], np.float64), **arrays})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _greedy(folder: Folder, entry: dict, backend: Backend) -> dict[str, Any]:
    model, prompts = _opened(folder, entry, backend), folder.inputs(entry)["prompts"]
    texts = [[int(t) for t in row if t >= 0] for row in prompts]
    (tokens,) = (e for e in entry["expect"] if e["name"] == "tokens")
    new = folder.tensor(entry["file"], tokens["tensor"]).shape[1]
    if hasattr(model, "generate"):
        found = model.generate(texts, max_tokens=new, temperature=0, ignore_eos=True)
        rows = [list(map(int, generation.tokens)) for generation in found]
        lengths = {len(row) for row in rows}
        if lengths != {new}:
            raise Violation(f"rows have {sorted(lengths)} new tokens, expected {new}")
        return {"tokens": np.array(rows)}
    rows = []
    for text in texts:
        logits, state = model([text], [list(range(len(text)))], None)
        row = [int(np.argmax(np.asarray(logits)[0, -1]))]
        for n in range(1, new):
            logits, state = model([row[-1:]], [[len(text) + n - 1]], state)
            row.append(int(np.argmax(np.asarray(logits)[0, -1])))
        rows.append(row)
    return {"tokens": np.array(rows)}
