"""The implementations that the suite knows, and how it finds others."""

import importlib
from importlib import metadata

from griffin_conformance.backends.base import Backend, Unsupported, versions_of
from griffin_np.errors import GriffinError, MissingExtraError

__all__ = [
    "ADAPTERS",
    "ENTRY_POINTS",
    "Backend",
    "Unsupported",
    "available",
    "find_backend",
    "versions_of",
]

ADAPTERS = {
    "numpy": "griffin_conformance.backends.reference:NumPyBackend",
    "numba": "griffin_conformance.backends.cpu:NumbaBackend",
    "jax": "griffin_conformance.backends.xla:JaxBackend",
    "jax-associative": "griffin_conformance.backends.xla:JaxAssociative",
    "jax-pallas": "griffin_conformance.backends.xla:JaxPallas",
    "transformers": "griffin_conformance.backends.transformers:TransformersBackend",
    "transformers-w1": "griffin_conformance.backends.transformers:TransformersW1",
    "mlx-lm": "griffin_conformance.backends.mlx:MlxLm",
    "mlx-lm-w1": "griffin_conformance.backends.mlx:MlxLmW1",
    "mlx-lm-bfloat16": "griffin_conformance.backends.mlx:MlxLmBfloat16",
    "deepmind-jax": "griffin_conformance.backends.deepmind_jax:DeepMindJax",
    "deepmind-torch": "griffin_conformance.backends.deepmind_torch:DeepMindTorch",
}
"""Adapters by name."""

EXTRAS = {
    "jax": "jax",
    "jax-associative": "jax",
    "jax-pallas": "jax",
    "transformers": "peers",
    "transformers-w1": "peers",
}
"""The extra that an adapter needs."""

PACKAGES = {
    "mlx-lm": '"mlx-lm[cpu]"',
    "mlx-lm-w1": '"mlx-lm[cpu]"',
    "mlx-lm-bfloat16": '"mlx-lm[cpu]"',
    "deepmind-jax": '"recurrentgemma[jax]"',
    # Its package imports JAX and Flax also where only PyTorch is used.
    "deepmind-torch": '"recurrentgemma[jax,torch]"',
}
"""What pip is to install for an adapter that none of our extras brings."""


class MissingPackageError(GriffinError, ImportError):
    """An implementation that is not installed."""


ENTRY_POINTS = "griffin_np.backends"
"""Group of entry points by which installed packages offer adapters of their own."""


def offered() -> dict[str, metadata.EntryPoint]:
    """Adapters that installed packages offer, by name; names of this suite's own are not theirs."""
    found = metadata.entry_points(group=ENTRY_POINTS)
    return {point.name: point for point in found if point.name not in ADAPTERS}


def available() -> dict[str, str]:
    """Every named backend, and what it lacks on this machine; nothing if it can be run."""
    missing = {}
    for name in (*ADAPTERS, *offered()):
        try:
            find_backend(name)
        except (GriffinError, ValueError) as error:
            missing[name] = str(error)
        else:
            missing[name] = ""
    return missing


def find_backend(spec: str, dtype: str | None = None) -> Backend:
    """An adapter by name, from an installed package's entry point, as ``module:Class``, or a
    program that speaks :mod:`griffin_conformance.protocol`, as ``cmd:./engine --stdio``.

    Raises
    ------
    ValueError
        If there is none of that name, or it does not have the dtype.
    """
    if spec.startswith("cmd:"):
        from griffin_conformance.protocol import CommandBackend

        return CommandBackend(spec.removeprefix("cmd:"), dtype)
    point = None if spec in ADAPTERS else offered().get(spec)
    path = ADAPTERS.get(spec, point.value if point else spec)
    module, separator, attribute = path.partition(":")
    if not (separator and module and attribute):
        raise ValueError(
            f"no backend {spec!r}; choose one of {', '.join(ADAPTERS)}, or give module:Class "
            f'or "cmd:COMMAND"'
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if spec in EXTRAS and error.name:
            raise MissingExtraError(error.name, EXTRAS[spec]) from None
        if spec in PACKAGES and error.name:
            raise MissingPackageError(
                f"backend {spec} needs the package {error.name!r}, which is not installed: "
                f"run  pip install {PACKAGES[spec]}"
            ) from None
        raise ValueError(f"backend {spec} cannot be loaded: {error}") from error
    except Exception as error:  # a user's module may raise anything
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"backend {spec} cannot be loaded: {what}") from error
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise ValueError(f"backend {spec} is no subclass of griffin_conformance.Backend")
    try:
        backend = found(dtype)
        backend.name = spec
        assert backend.dtype in found.dtypes
    except (GriffinError, ValueError):
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"backend {spec} cannot be made: {what}; its __init__ must take a dtype and pass it "
            f"to Backend.__init__"
        ) from error
    return backend
