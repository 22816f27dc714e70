"""One fault put into the reference: a wrong backend, for the suite to catch."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import griffin_np
from griffin_conformance.backends.reference import NumPyBackend
from griffin_conformance.mutants import functions as faults
from griffin_conformance.mutants.functions import ORIGINAL, in_place
from griffin_np import model
from griffin_np.params import flatten

__all__ = ["NO_FAULT", "Mutant", "mutate"]

PASSES_ON = ("linear", "rms_norm", "gelu", "causal_conv", "rope", "local_attention", "embed")
"""Functions whose results are activations."""


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes
    ----------
    name : str
    fault : str
        What is wrong.
    caught_by : tuple of str
        Checks that fail.
    functions : dict
        Functions of the reference by name, and what takes their place.
    parameters : callable, optional
        From flat parameters to wrong ones.
    model : callable, optional
        From the model class to a wrong subclass.
    rounding : tuple of str
        Precisions in which it is a fault of rounding only, and need not stand far outside the
        envelope, nor outside at all.
    trap : str
        Number of the known fault of public implementations that it stands for, if any.
    clause : str
        Clause of the specification that it violates: the suite has to name it.
    base : callable, optional
        Makes the right backend that it is a variant of, for a dtype; the reference by default.
    backend : callable, optional
        From the backend class to a wrong subclass.
    """

    name: str
    fault: str
    caught_by: tuple[str, ...]
    functions: dict[str, Callable] = field(default_factory=dict)
    parameters: Callable | None = None
    model: Callable | None = None
    rounding: tuple[str, ...] = ()
    trap: str = ""
    clause: str = ""
    compiled: bool = False
    backend: Callable | None = None


NO_FAULT = Mutant("none", "nothing is wrong", ())


def mutate(mutant: Mutant = NO_FAULT, dtype: str = "float32") -> NumPyBackend:
    """The reference as a backend, with the fault in it.

    In bfloat16, where the reference has no such dtype, everything that passes between operations is
    rounded to it: a right program of that precision, but for the fault.
    """
    functions = dict(mutant.functions)
    if dtype == "bfloat16":
        for name in PASSES_ON:
            functions[name] = faults.then_rounded(functions.get(name, ORIGINAL[name]))

    class Wrong(model.NumPyModel):
        def _forward(self, *args):
            with in_place(functions):
                return super()._forward(*args)

    wrong_model = mutant.model(Wrong) if mutant.model else Wrong

    class WrongBackend(NumPyBackend):
        dtypes = (*NumPyBackend.dtypes, "bfloat16")

        def cast(self, array):
            single = array is not None and self.dtype == "bfloat16"
            return np.asarray(array, np.float32) if single else super().cast(array)

        def tree(self, flat):
            return super().tree(mutant.parameters(dict(flat)) if mutant.parameters else flat)

        def model(self, config, flat):
            kind = model.NumPyModel if mutant.compiled else wrong_model
            return kind(config, self.tree(flat))

        def compiled(self, config, flat):
            if not mutant.compiled:
                return super().compiled(config, flat)
            return wrong_model(config, self.tree(flat))

        def load(self, folder):
            found = griffin_np.load(folder, "numpy", np.dtype(self.cast(0.0).dtype).name)
            loaded = self.model(found.config, flatten(found.parameters))
            loaded.attach_tokenizer(found.tokenizer)
            loaded.generation = found.generation
            return loaded

    def with_fault(operation):
        def call(self, *args):
            with in_place({} if mutant.compiled else functions):
                return operation(self, *args)

        return call

    for operation in (
        "block", "embed", "rms_norm", "linear", "gelu", "causal_conv", "gate", "decay", "scan",
        "rg_lru", "rope", "attention", "logits",
    ):  # fmt: skip
        setattr(WrongBackend, operation, with_fault(getattr(NumPyBackend, operation)))
    backend = (mutant.backend(WrongBackend) if mutant.backend else WrongBackend)(dtype)
    backend.name = f"the reference, mutant: {mutant.name}"
    return backend
