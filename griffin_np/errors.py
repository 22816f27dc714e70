"""Exceptions of griffin-np.

::

    GriffinError
    ├── ConfigError         (also ValueError)   an impossible or unsupported configuration
    ├── ParameterError      (also ValueError)   parameters that do not fit the configuration
    ├── CheckpointError     (also ValueError)   a folder or file that cannot be read as a checkpoint
    ├── StateError          (also ValueError)   a state that does not belong here
    ├── PositionError       (also ValueError)   tokens or positions that break the call contract
    ├── TokenizerError      (also ValueError)   text, ids or a tokenizer file that cannot be used
    ├── TrainingError       (also ArithmeticError)  a run whose loss is no longer a number
    ├── SamplingError       (also ValueError)   impossible sampling options or logits
    └── MissingExtraError   (also ImportError)  an optional dependency that is not installed

Every message names the value, what was expected, and what to do about it.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "GriffinError",
    "MissingExtraError",
    "ParameterError",
    "PositionError",
    "SamplingError",
    "StateError",
    "TokenizerError",
    "TrainingError",
]


class GriffinError(Exception):
    """Base of every error that griffin-np raises on purpose."""


class ConfigError(GriffinError, ValueError):
    """An impossible or unsupported configuration."""


class ParameterError(GriffinError, ValueError):
    """Parameters that do not fit the configuration."""


class CheckpointError(GriffinError, ValueError):
    """A folder or file that cannot be read as a checkpoint."""


class StateError(GriffinError, ValueError):
    """A state that does not belong to this model, batch or format version."""


class PositionError(GriffinError, ValueError):
    """Tokens or positions that break the call contract."""


class TokenizerError(GriffinError, ValueError):
    """Text, ids or a tokenizer file that cannot be used."""


class SamplingError(GriffinError, ValueError):
    """Impossible sampling options, or logits from which nothing can be drawn."""


class TrainingError(GriffinError, ArithmeticError):
    """A training run whose loss is no longer a number."""


class MissingExtraError(GriffinError, ImportError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(
            f"this needs the package {package!r}, which is not installed: "
            f'run  pip install "griffin-np[{extra}]"'
        )
