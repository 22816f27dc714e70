"""How to tell a right Griffin from a wrong one.

:mod:`~griffin_conformance.oracle` says what is right, :mod:`~griffin_conformance.envelope` how far
from it a correct program may be, :mod:`~griffin_conformance.laws` and its neighbours what must
hold; :func:`certify` asks all of it of a backend.
"""

import importlib

_WHERE = {
    "Backend": "backends",
    "BlockCase": "blocks",
    "Case": "layouts",
    "Certificate": "certificate",
    "DamageCase": "damage",
    "DialogueCase": "tokenizers",
    "EndCase": "stopping",
    "FolderCase": "checkpoint_files",
    "Form": "checkpoint_files",
    "GriffinConfig": None,
    "Layout": "layouts",
    "MatrixCase": "quantised_weights",
    "NF4Case": "nf4",
    "OperationCase": "operations",
    "Restless": "continuations",
    "Spelling": "checkpoint_files",
    "TextCase": "tokenizers",
    "TurnCase": "stopping",
    "Unsupported": "backends",
    "Violation": "checks",
    "World": "worlds",
    "certify": "certificate",
    "find_backend": "backends",
    "reproduce": "certificate",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name == "GriffinConfig":
        from griffin_np.config import GriffinConfig

        return GriffinConfig
    if name in _WHERE:
        module = importlib.import_module(f"griffin_conformance.{_WHERE[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'griffin_conformance' has no attribute {name!r}")
