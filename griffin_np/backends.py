"""Engines by name, imported when they are asked for; and the ways to get a model."""

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from griffin_np.base import Model
from griffin_np.config import GriffinConfig
from griffin_np.errors import ConfigError, MissingExtraError
from griffin_np.params import flatten, init_parameters, nest

__all__ = ["BACKENDS", "convert", "init", "load", "model_class", "random", "save"]

BACKENDS: dict[str, str] = {
    "numpy": "griffin_np.model:NumPyModel",
    "numba": "griffin_kernels.cpu.engine:NumbaModel",
    "jax": "griffin_kernels.xla.engine:JaxModel",
}
"""Where each engine's model class is; its dtypes, and the extra that it needs, follow."""

DTYPES: dict[str, tuple[str, ...]] = {
    "numpy": ("float32", "float64"),
    "numba": ("float32", "bfloat16", "int8", "int4"),
    "jax": ("float32", "bfloat16"),
}

OPTIONS: dict[str, tuple[str, ...]] = {"jax": ("mesh", "scan", "stacked")}
"""What :func:`load` passes on to an engine's model class."""

EXTRAS: dict[str, str] = {"jax": "jax"}

PACKED = "packed.safetensors"
"""The file by which a folder of packed weights is known."""

DEMO = Path(__file__).parent / "demo"
"""Folder of the embedded demo model."""


def default_backend(dtype: str | None = None) -> str:
    """The CPU engine where Numba is installed and has the dtype, else the reference."""
    if dtype in ("float64", np.float64):
        return "numpy"
    return "numba" if importlib.util.find_spec("numba") else "numpy"


def model_class(backend: str | None) -> Callable[..., Model]:
    """The model class of an engine; None is the default engine.

    Raises
    ------
    ConfigError
        If there is no such engine.
    MissingExtraError
        If a package that the engine needs is not installed.
    """
    name = backend or default_backend()
    if name not in BACKENDS:
        raise ConfigError(f"no backend {name!r}; choose one of {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if name not in EXTRAS or package.startswith("griffin_"):
            raise
        raise MissingExtraError(package, EXTRAS[name]) from None


def _dtype(backend: str | None, dtype: str | None, stored: str = "float32") -> str:
    name = backend or default_backend(dtype)
    known = DTYPES[name]
    if dtype is None:
        return stored if stored in known else known[0]
    try:
        wanted = dtype if dtype in known else np.dtype(dtype).name
    except TypeError:
        wanted = str(dtype)
    if wanted not in known:
        raise ConfigError(
            f"the {name} backend has no dtype {wanted!r}; choose one of {', '.join(known)}"
        )
    return wanted


def load(
    path: str | os.PathLike | None = None,
    backend: str | None = None,
    dtype: str | None = None,
    *,
    window: int | None = None,
    **options,
) -> Model:
    """Load a checkpoint.

    Parameters
    ----------
    path : path, optional
        A Hugging Face folder, or one that :func:`convert` wrote; by default the demo model.
    backend : {"numpy", "numba", "jax"}, optional
        By default "numba", the CPU engine, where Numba is installed, else "numpy", the
        reference, which alone has float64.
    dtype : {"float32", "float64", "bfloat16", "int8", "int4"}, optional
        By default the checkpoint's own where the engine has it, else float32. "numpy" has float32
        and float64, "jax" float32 and bfloat16, "numba" all but float64; it rounds weights on
        loading.
    window : int, optional
        Past positions that a token sees beside itself, in place of the checkpoint's
        ``attention_window_size``. A model trained inside transformers needs that minus 1, because
        transformers counts the token itself.
    **options
        Of the engine's model class. "jax" has ``mesh``, ``scan`` and ``stacked``; see
        :class:`griffin_kernels.xla.engine.JaxModel`.

    Returns
    -------
    Model
        With its tokenizer, if the folder has a ``tokenizer.model``.

    Raises
    ------
    CheckpointError
        If the folder is missing, damaged or foreign; names file and tensor.
    ConfigError
        If there is no such backend, dtype or option.
    MissingExtraError
        If a package that the backend needs is not installed.
    """
    from griffin_np.tokenizer import Tokenizer

    folder = Path(DEMO if path is None else path)
    backend = backend or default_backend(dtype)
    unknown = sorted(set(options) - set(OPTIONS.get(backend, ())))
    if unknown:
        known = ", ".join(OPTIONS.get(backend, ())) or "none"
        raise ConfigError(f"the {backend} backend has no option {unknown[0]!r}; it has: {known}")
    if (folder / PACKED).is_file():
        model = _load_packed(folder, backend, dtype, window)
    else:
        model = _load_checkpoint(folder, backend, dtype, window, options)
    vocabulary = folder / "tokenizer.model"
    if vocabulary.is_file():
        model.attach_tokenizer(Tokenizer(vocabulary))
    return model


def _load_checkpoint(
    folder: Path, backend: str | None, dtype: str | None, window: int | None, options: dict
) -> Model:
    from griffin_np.checkpoints.huggingface import HuggingFaceFolder

    make = model_class(backend)
    source = HuggingFaceFolder(folder)
    wanted = _dtype(backend, dtype, source.dtype)
    config = source.config if window is None else source.config.replace(window=window)
    if backend == "numba":
        # Weights are rounded and packed one by one: a bfloat16 file is read as it is.
        stored = source.dtype if source.dtype == "bfloat16" else "float32"
        params = nest(dict(source.parameters(stored)))
        model = make(config, params, source.fingerprint, wanted)
    else:
        params = nest(dict(source.parameters(wanted)))
        model = make(config, params, source.fingerprint, **options)
    model.generation = source.generation
    return model


def _load_packed(folder: Path, backend: str | None, dtype: str | None, window: int | None) -> Model:
    from griffin_kernels.cpu.engine import NumbaModel
    from griffin_kernels.cpu.folder import PackedFolder

    if backend != "numba":
        raise ConfigError(
            f"{folder} holds weights packed for the numba backend; {backend} needs the original "
            f"checkpoint"
        )
    source = PackedFolder(folder)
    if dtype is not None and dtype != source.dtype:
        raise ConfigError(
            f"{folder} holds {source.dtype} weights: load it without a dtype, or convert the "
            f"original checkpoint to {dtype}"
        )
    config = source.config if window is None else source.config.replace(window=window)
    model = NumbaModel.from_packed(config, source.arrays(), source.dtype, source.fingerprint)
    model.generation = source.generation
    return model


def convert(
    path: str | os.PathLike | None, folder: str | os.PathLike, dtype: str, *,
    window: int | None = None, progress: Callable[[str], None] | None = None,
) -> None:  # fmt: skip
    """Pack a checkpoint's weights for the CPU engine, once, in a folder of their own.

    One matrix is held in memory at a time.

    Parameters
    ----------
    path : path or None
        A Hugging Face folder; None is the embedded demo model.
    folder : path
        Must not exist, or be empty; it appears whole or not at all.
    dtype : {"float32", "bfloat16", "int8", "int4"}
    window : int, optional
        As for :func:`load`.
    progress : callable, optional
        Called with the name of every array that has been packed.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be read or the folder not be written.
    ConfigError
        If there is no such dtype, or int4 does not fit the model's widths.
    """
    from griffin_kernels.cpu.folder import write_folder
    from griffin_kernels.cpu.weights import check_groups, packed
    from griffin_np.checkpoints.huggingface import HuggingFaceFolder
    from griffin_np.params import fingerprint

    wanted = _dtype("numba", dtype)
    source = HuggingFaceFolder(DEMO if path is None else path)
    config = source.config if window is None else source.config.replace(window=window)
    check_groups(config, wanted)
    stored = source.dtype if source.dtype == "bfloat16" else "float32"
    flat = dict(source.parameters(stored))
    identity = source.fingerprint or fingerprint(nest(flat), source.config)

    def arrays():
        for name, array in packed(config, flat.__getitem__, wanted):
            yield name, array
            if progress:
                progress(name)

    vocabulary = ("tokenizer.model", "tokenizer_config.json")
    files = {
        n: (source.folder / n).read_bytes() for n in vocabulary if (source.folder / n).is_file()
    }
    write_folder(folder, config, wanted, identity, source.generation, arrays(), files)


def random(
    config: GriffinConfig, backend: str | None = None, dtype: str | None = None, seed: int = 0
) -> Model:
    """A model of random weights, made as fast as possible: for measuring speed.

    Parameters
    ----------
    config : GriffinConfig
    backend, dtype
        As for :func:`load`.
    seed : int
    """
    backend = backend or default_backend(dtype)
    if backend == "numba":
        from griffin_kernels.cpu.engine import random_model

        return random_model(config, _dtype(backend, dtype), seed)
    return init(config, seed, backend, dtype)


def init(
    config: GriffinConfig | str, seed: int = 0, backend: str | None = None, dtype: str | None = None
) -> Model:
    """A model with random weights, initialised as the official code does.

    Parameters
    ----------
    config : GriffinConfig or str
        A configuration or the name of a preset.
    seed : int
    backend, dtype
        As for :func:`load`.
    """
    if isinstance(config, str):
        config = GriffinConfig.preset(config)
    backend = backend or default_backend(dtype)
    wanted = _dtype(backend, dtype)
    if backend == "numba":
        return model_class(backend)(config, init_parameters(config, seed), "", wanted)
    return model_class(backend)(config, init_parameters(config, seed, wanted))


def save(
    model: Model,
    folder: str | os.PathLike,
    dtype: str | None = None,
    *,
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model as a Hugging Face folder, which transformers loads too.

    Parameters
    ----------
    model : Model
    folder : path
        Must not exist, or be empty; it appears whole or not at all.
    dtype : {"float32", "float16", "bfloat16"}, optional
        By default the model's own (float32 for a float64 model).
    extra_files : mapping of str to bytes, optional
        Further files for the folder, by name.

    Raises
    ------
    CheckpointError
        If the folder is not empty or cannot be written, or weights are not finite.
    """
    from griffin_np.chat import CHAT_TEMPLATE
    from griffin_np.checkpoints.hf_save import save_folder, tokenizer_files

    stored = dtype or ("float32" if model.dtype == "float64" else model.dtype)
    parameters = flatten(model.parameters)
    files = dict(extra_files or {})
    if model.tokenizer is not None:
        files |= tokenizer_files(model.tokenizer, CHAT_TEMPLATE)
    save_folder(
        folder, model.config, parameters, stored, model.fingerprint, files, model.generation
    )
