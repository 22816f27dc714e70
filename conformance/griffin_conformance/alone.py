"""What a backend says of documents that are run alone, and layouts held against that."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.backends import Backend
from griffin_conformance.checks import Violation
from griffin_conformance.envelope import Comparison
from griffin_conformance.layouts import Case, Layout, Run, execute
from griffin_conformance.rounding import Profile

__all__ = ["Alone", "as_if_alone", "has_arrays", "model_of", "profile_of", "row_of"]


def model_of(backend: Backend, case: Case):
    """A model of the case's world, made anew."""
    return backend.model(case.world.config, case.world.parameters(profile_of(backend)))


def profile_of(backend: Backend) -> Profile:
    """The precision that the backend is held to."""
    return backend.profile


class Alone:
    """What a backend says of documents that are run alone, each in one call of a fresh model."""

    def __init__(self, backend: Backend, case: Case):
        self.backend, self.case = backend, case
        self.runs: dict[tuple[int, int], Run] = {}

    def run(self, document: int, tokens: int) -> Run:
        """The first tokens of a document."""
        key = document, tokens
        if key not in self.runs:
            plain = replace(self.case, layout=Layout((((document, tokens),),)))
            self.runs[key] = execute(model_of(self.backend, plain), plain)
        return self.runs[key]

    def compare(self, run: Run, case: Case) -> list[Comparison]:
        """Logits of every token of a layout, its final states, and the logits of its padding."""
        results = []
        profile, world = profile_of(self.backend), case.world
        for i, row in enumerate(case.layout.rows):
            where, start = case.layout.columns(i), 0
            for document, n in row:
                found = run.logits[i, where[start : start + n]]
                envelope = world.history(profile, document)["logits"].rows(slice(n))
                name = f"logits of document {document} in row {i}"
                results.append(envelope.between(name, found, self.run(document, n).logits[0]))
                start += n
            padding = np.delete(run.logits[i], where, axis=0)
            if np.any(padding != 0):
                name = f"logits of padding in row {i}"
                results.append(Comparison(name, np.inf, 0, clause="PAD-4"))
            if not has_arrays(run.state):
                results.append(Comparison("the state's arrays", 0.0, 0, compared=False))
            elif not row:
                left = [n for n, a in row_of(run.state, i).items() if np.any(a != 0)]
                if left or run.state.position[i] != 0:
                    raise Violation(
                        f"row {i} has no tokens, but its state changed: position "
                        f"{run.state.position[i]}, {', '.join(left) or 'arrays untouched'}"
                    )
            elif row[-1][1]:
                document, n = row[-1]
                if run.state.position[i] != n:
                    raise Violation(
                        f"state.position of row {i} is {run.state.position[i]}, expected {n}",
                        "STATE-3",
                    )
                results += world.compare_state(
                    profile,
                    row_of(run.state, i),
                    document,
                    n,
                    row_of(self.run(document, n).state, 0),
                    padded=case.layout.is_padded(i),
                )
        return results


def has_arrays(state) -> bool:
    """Whether a state can be looked into."""
    return hasattr(state, "arrays") and hasattr(state, "position")


def row_of(state, row: int) -> dict[str, NDArray]:
    """One row of a state's arrays, by name."""
    return {name: np.asarray(array)[row] for name, array in state.arrays().items()}


def as_if_alone(backend: Backend, case: Case) -> list[Comparison]:
    """Run the case's layout and compare it with its documents run alone."""
    return Alone(backend, case).compare(execute(model_of(backend, case), case), case)
