"""An engine behind a command as a backend of the suite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.backends import Backend, Unsupported
from griffin_conformance.protocol.engine import Engine, EngineFailure, Handle
from griffin_conformance.protocol.remote import (
    RemoteModel,
    RemoteTokenizer,
    model_class,
    tokenizer_class,
)
from griffin_conformance.quantisation import (
    ActivationRounding,
    Quantisation,
    SymmetricWeights,
)
from griffin_conformance.rounding import PROFILES
from griffin_np.config import GriffinConfig

__all__ = ["CommandBackend"]


class CommandBackend(Backend):
    """An engine in any language, asked over its standard input and output.

    Parameters
    ----------
    command : str
        As a shell takes it: ``./engine --stdio``.
    dtype : str, optional
    seconds : float, optional
        For one answer; by default what ``GRIFFIN_NP_ENGINE_TIMEOUT`` says, or 60.

    Raises
    ------
    ValueError
        If the engine cannot be started, does not speak the protocol, or has no such dtype.
    """

    def __init__(self, command: str, dtype: str | None = None, seconds: float | None = None):
        self.name = f"cmd:{command}"
        try:
            self.engine = Engine(command, None, seconds)
        except EngineFailure as error:
            raise ValueError(f"backend {self.name} cannot be used: {error}") from None
        try:
            self.engine.begin()
            hello = self.engine.hello
            self.dtypes = tuple(hello["dtypes"])
            self.fixed_shapes = hello.get("fixed_shapes", False)
            self.cannot = frozenset(hello.get("cannot", ()))
            self.quantised = {
                name: quantisation_of(told) for name, told in hello.get("quantised", {}).items()
            }
            super().__init__(dtype)
            if self.dtype != self.dtypes[0]:
                self.engine.greet(self.dtype)
            self.engine.dtype = self.dtype
            self._model = model_class(self.engine)
            self._tokenizer = tokenizer_class(self.engine)
        except (EngineFailure, Unsupported, ValueError) as error:
            self.close()
            raise ValueError(f"backend {self.name} cannot be used: {error}") from None

    def close(self) -> int | None:
        """End the engine; its exit code, or None if it had to be killed or does not run."""
        return self.engine.close()

    def versions(self) -> dict[str, str]:
        hello = self.engine.hello
        return super().versions() | {"engine": hello["name"], **hello["versions"]}

    def adapt(self, config: GriffinConfig) -> GriffinConfig:
        if not self.engine.has("adapt"):
            return config
        found = self.engine.call("adapt", config=config.to_dict())["config"]
        known = config.to_dict()
        return GriffinConfig.from_dict({name: found[name] for name in known})

    def model(self, config: GriffinConfig, flat: Mapping[str, NDArray]) -> RemoteModel:
        return self._made("model", **self._described("model", config, flat))

    def compiled(self, config: GriffinConfig, flat: Mapping[str, NDArray]) -> RemoteModel:
        return self._made("compiled", **self._described("compiled", config, flat))

    def _described(
        self, method: str, config: GriffinConfig, flat: Mapping[str, NDArray]
    ) -> dict[str, Any]:
        """What a method is told of a model."""
        if not self.engine.has(method):
            raise Unsupported(f"its engine has no {method!r}")
        weights = {name: np.asarray(array, np.float32) for name, array in flat.items()}
        return {"config": config.to_dict(), "weights": self.engine.file(weights)}

    # -- L4 and L5

    def tokenizer(self, folder: Path) -> RemoteTokenizer:
        number = self.engine.call("tokenizer", folder=str(folder))["tokenizer"]
        return self._tokenizer(Handle(number, self.engine.start))

    def nf4(self, parts: Mapping[str, NDArray], shape: tuple[int, ...]) -> NDArray:
        given = {name: np.asarray(part) for name, part in parts.items()}
        found = self.engine.call("nf4", parts=given, shape=[int(n) for n in shape])
        return self.engine.array(found["y"], "'y' of 'nf4'", shape)

    def dequantised(
        self, config: GriffinConfig, flat: Mapping[str, NDArray]
    ) -> Mapping[str, NDArray]:
        found = self.engine.call("dequantised", **self._described("dequantised", config, flat))
        return {
            name: self.engine.array(tensor, f"{name!r} of 'dequantised'")
            for name, tensor in found["arrays"].items()
        }

    def input_groups(self, config: GriffinConfig, name: str, inputs: int) -> NDArray:
        if not self.engine.has("input_groups"):
            return super().input_groups(config, name, inputs)
        found = self.engine.call(
            "input_groups", config=config.to_dict(), name=name, inputs=int(inputs)
        )
        return self.engine.array(found["groups"], "'groups' of 'input_groups'", (inputs,))

    def load(self, folder: Path) -> RemoteModel:
        return self._made("checkpoint", folder=str(folder))

    def _made(self, method: str, **params: Any) -> RemoteModel:
        number = self.engine.call(method, **params)["model"]
        return self._model(Handle(number, self.engine.start))

    def block(self, config, flat, i, x, positions):
        if not self.engine.has("block"):
            raise Unsupported("its engine has no 'block'")
        model = self.model(config, flat)
        return self._ask(
            "block", {"y": np.shape(x)}, model=model.handle, index=i, x=x, positions=positions
        )

    # -- L0

    def _ask(self, method: str, shapes: Mapping[str, tuple[int, ...]], **params: Any) -> Any:
        """Ask for an operation, whose results have these shapes; one array, or all of several."""
        given = {
            name: np.asarray(value) if isinstance(value, (list, tuple)) else value
            for name, value in params.items()
        }
        result = self.engine.call(method, **given)
        found = [
            self.engine.array(result[name], f"{name!r} of {method!r}", shape)
            for name, shape in shapes.items()
        ]
        return found[0] if len(found) == 1 else tuple(found)

    def embed(self, rows):
        return self._ask("embed", {"y": rows.shape}, rows=rows)

    def rms_norm(self, x, scale, eps):
        return self._ask("rms_norm", {"y": x.shape}, x=x, scale=scale, eps=float(eps))

    def linear(self, x, weight, bias):
        shape = (len(x), weight.shape[1])
        return self._ask("linear", {"y": shape}, x=x, weight=weight, bias=bias)

    def gelu(self, x):
        return self._ask("gelu", {"y": x.shape}, x=x)

    def causal_conv(self, x, weight, bias, positions, past):
        shapes = {"y": x.shape, "past": past.shape}
        return self._ask(
            "causal_conv", shapes, x=x, weight=weight, bias=bias, positions=positions, past=past
        )

    def gate(self, x, w, b):
        return self._ask("gate", {"y": x.shape}, x=x, w=w, b=b)

    def decay(self, r, a_param):
        return self._ask("decay", {"a": r.shape, "scale": r.shape}, r=r, a_param=a_param)

    def scan(self, a, x, h):
        return self._ask("scan", {"y": x.shape}, a=a, x=x, h=h)

    def rg_lru(self, x, p, positions, h):
        return self._ask("rg_lru", {"y": x.shape}, x=x, **p, positions=positions, h=h)

    def rope(self, x, positions, base, rotary_dim):
        return self._ask(
            "rope", {"y": x.shape}, x=x, positions=positions, base=float(base),
            rotary_dim=int(rotary_dim),
        )  # fmt: skip

    def attention(self, q, k, v, positions, window):
        return self._ask(
            "attention", {"y": q.shape}, q=q, k=k, v=v, positions=positions, window=int(window)
        )

    def logits(self, x, embedding, cap):
        shape = (len(x), len(embedding))
        return self._ask("logits", {"y": shape}, x=x, embedding=embedding, cap=float(cap))


def quantisation_of(told: Mapping[str, Any]) -> Quantisation:
    """What the engine says of one of its quantised dtypes.

    Raises
    ------
    ValueError
        If its other numbers are of a precision that the suite does not know.
    """
    given: dict[str, Any] = {k: told[k] for k in ("group",) if k in told}
    if told.get("weights"):
        names = ("smallest", "largest", "step_bits")
        given["weights"] = SymmetricWeights(
            **{k: v for k, v in told["weights"].items() if k in names}
        )
    if told.get("activations"):
        rounding = told["activations"]
        given["activations"] = ActivationRounding(rounding["bits"], rounding["exact"])
    if "profile" in told:
        if told["profile"] not in PROFILES:
            raise ValueError(
                f"it quantises beside {told['profile']!r}; the suite knows {', '.join(PROFILES)}"
            )
        given["profile"] = PROFILES[told["profile"]]
    if "matrices" in told:
        given["matrices"] = tuple(told["matrices"])
    return Quantisation(**given)
