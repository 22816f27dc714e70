"""griffin-np: Griffin / RecurrentGemma in NumPy.

>>> import griffin_np as gnp
>>> model = gnp.init(gnp.GriffinConfig(width=8, depth=3, num_heads=2, vocab_size=16, window=4))
>>> logits, state = model([[2, 5, 7]])
>>> logits.shape
(1, 3, 16)

Start reading at :mod:`griffin_np.notation`, then :mod:`griffin_np.rg_lru` and
:mod:`griffin_np.model`.
"""

from griffin_np.backends import init, load, save
from griffin_np.base import Model
from griffin_np.config import PRESETS, GriffinConfig
from griffin_np.errors import GriffinError
from griffin_np.state import State

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "Conversation",
    "Generation",
    "GriffinConfig",
    "GriffinError",
    "Model",
    "Sampler",
    "State",
    "Tokenizer",
    "init",
    "load",
    "save",
]

# Names that only text generation needs, imported on first use.
_LATER = {
    "Conversation": "griffin_np.chat",
    "Generation": "griffin_np.generate",
    "Sampler": "griffin_np.sampling",
    "Tokenizer": "griffin_np.tokenizer",
}


def __getattr__(name: str):
    if name in _LATER:
        import importlib

        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'griffin_np' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])
