"""The JAX model behind the call contract of ``griffin_np``: texts of any length, with a state.

XLA compiles a program for every shape, so a call is brought into one of few: each row's tokens are
moved to the left, and rows and tokens are padded to powers of two. Programs are kept by
configuration and take the weights as an argument, so that models of one configuration share them.

The state stays on the device from call to call, until somebody looks at it. A call leaves the state
that it was given as it was, by working on a copy; the generation loop owns its state, and there the
compiled program changes it in place.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from griffin_kernels.xla.device_state import DeviceState
from griffin_kernels.xla.distributed import common_seed
from griffin_kernels.xla.generate import DeviceRun, decode
from griffin_kernels.xla.layers import no_watch, real_tokens
from griffin_kernels.xla.layout import Layout, padded_rows
from griffin_kernels.xla.model import embed, head, residual_blocks, stack, unstack
from griffin_kernels.xla.sampling import Options, Steps
from griffin_kernels.xla.scan_xla import SCANS, fastest_scan
from griffin_kernels.xla.sharding import constrain_tree, fetch, on_mesh, place, shardings
from griffin_np.base import Model
from griffin_np.config import GriffinConfig
from griffin_np.errors import ConfigError
from griffin_np.generate import Run
from griffin_np.notation import Trace, no_trace
from griffin_np.params import fingerprint as identify
from griffin_np.params import flatten, validate
from griffin_np.state import State

__all__ = ["JaxModel"]

DTYPES = ("float32", "bfloat16")


class JaxModel(Model):
    """A Griffin in JAX, on JAX's default device or on a mesh of devices.

    Parameters
    ----------
    config : GriffinConfig
    params : dict
        Parameter tree, all float32 or all bfloat16. That is the dtype of activations, convolution
        inputs, keys and values too; sums, norms, gates, the recurrence and logits are float32.
    fingerprint : str, optional
        Identity of the weights where it is known; computed by default.
    scan : {"sequential", "associative", "pallas"}, optional
        How the recurrence runs along a text; by default what is fastest on the platform.
    stacked : bool, optional
        Compile one repetition of the block pattern and scan over all of them: compiles fast, and
        runs as fast on accelerators. On a CPU every matrix would be copied first, so the default
        there is no.
    mesh : Mesh, optional
        From :func:`griffin_kernels.xla.sharding.make_mesh`; it may span processes, all of which
        then make the same calls.

    Raises
    ------
    ParameterError
        If the parameters do not fit the configuration.
    ConfigError
        If they have another dtype, or there is no such scan.
    """

    backend = "jax"

    def __init__(
        self,
        config: GriffinConfig,
        params: dict,
        fingerprint: str = "",
        *,
        scan: str | None = None,
        stacked: bool | None = None,
        mesh: Mesh | None = None,
    ):
        validate(params, config)
        dtype = str(params["embedding"].dtype)
        if dtype not in DTYPES:
            raise ConfigError(f"the jax backend computes in {' or '.join(DTYPES)}, got {dtype}")
        platform = (mesh.devices.flat[0] if mesh else jax.devices()[0]).platform
        scan = scan or fastest_scan(platform)
        if scan not in SCANS:
            raise ConfigError(f"no scan {scan!r}; choose one of {', '.join(SCANS)}")
        super().__init__(config, dtype, fingerprint or identify(params, config))
        self.scan, self.mesh = scan, mesh
        self.stacked = platform != "cpu" if stacked is None else stacked
        if self.stacked:
            params = {**params, **stack(params["blocks"], config)}
        if mesh is None:
            self._params = jax.device_put(params)
        else:
            self._params = place(params, shardings(params, mesh))

    @property
    def parameters(self) -> dict:
        params = dict(self._params)
        if "groups" in params:
            params = {"blocks": unstack(params)} | {
                name: array for name, array in params.items() if name not in ("groups", "blocks")
            }
        return fetch(params)

    @property
    def weight_bytes(self) -> int:
        return sum(array.nbytes for array in flatten(self._params).values())

    @property
    def state_dtype(self) -> np.dtype:
        return jnp.dtype(self.dtype)

    def new_run(self, prompts: list, **options) -> Run:
        return DeviceRun(self, prompts, **options)

    def new_seed(self) -> int:
        return common_seed() if self._spans_processes else super().new_seed()

    def _forward(
        self, inputs: NDArray, positions: NDArray, state: State, logits: str, trace: Trace
    ) -> tuple[NDArray | None, State]:
        return self._run(inputs, positions, state, logits, trace, keep=True)

    def _advance(
        self, inputs: NDArray, positions: NDArray, state: State, logits: str
    ) -> tuple[NDArray | None, State]:
        return self._run(inputs, positions, state, logits, no_trace, keep=False)

    def _run(
        self,
        inputs: NDArray,
        positions: NDArray,
        state: State,
        logits: str,
        trace: Trace,
        keep: bool,
    ) -> tuple[NDArray | None, State]:
        layout = Layout(positions, self._axis("data"), self._axis("sequence"))
        steps = layout.gather(positions, -1)
        kind = np.int32 if inputs.ndim == 2 else jnp.dtype(self.dtype)
        with on_mesh(self.mesh):
            values, after, watched = read_text(
                self._params,
                self._put(layout.gather(inputs, 0).astype(kind), "data"),
                self._put(steps.astype(np.int32), "data"),
                self._layers(state, layout.shape[0], keep),
                config=self.config,
                scan=self.scan,
                logits=logits,
                watch=trace is not no_trace,
                step=layout.shape[1] == 1 and not (steps == 0).any(),
                gather=self._spans_processes,
            )
        values, watched = fetch((values, watched))
        for name, array in watched.items():
            trace(name, layout.scatter(array))
        B, busy = state.batch, layout.count > 0
        if logits == "all":
            values = layout.scatter(values)
        elif logits == "last":
            values = np.where(busy[:, None], values[:B], 0)
        last = steps[np.arange(B), layout.count - 1]
        position = np.where(busy, last + 1, state.position)
        return values, self._state(after, position)

    def decode(
        self,
        state: State,
        logits: NDArray | None,
        pending: NDArray,
        done: NDArray,
        recent: NDArray,
        cursor: NDArray,
        uniforms: NDArray,
        limit: int,
        ends: NDArray,
        options: Options,
        steps: Steps,
    ) -> tuple[dict[str, Any], State]:
        """A chunk of the generation loop; see :func:`griffin_kernels.xla.generate.decode`.

        Arrays have the rows of ``state``, which is used up.
        """
        B = state.batch
        rows = padded_rows(B, self._axis("data"))

        def pad(array, fill=0):
            widths = ((0, rows - B),) + ((0, 0),) * (array.ndim - 1)
            return self._put(np.pad(array, widths, constant_values=fill), "data")

        with on_mesh(self.mesh):
            found = decode(
                self._params,
                self._layers(state, rows, keep=False),
                None if logits is None else pad(logits.astype(np.float32)),
                pad(pending.astype(np.int32), -1),
                pad(state.position.astype(np.int32)),
                pad(done, True),
                pad(recent, -1),
                pad(cursor),
                pad(uniforms),
                self._put(np.int32(limit)),
                self._put(ends),
                jax.tree.map(self._put, options),
                config=self.config,
                scan=self.scan,
                steps=steps,
            )
        after = found.pop("layers")
        host = fetch(found)
        kept = {name: array[:B] if array.ndim else array for name, array in host.items()}
        return kept, self._state(after, kept["position"].astype(np.int64))

    def _axis(self, name: str) -> int:
        return self.mesh.shape[name] if self.mesh is not None else 1

    @property
    def _spans_processes(self) -> bool:
        return self.mesh is not None and len(self.mesh.devices.flat) > len(self.mesh.local_devices)

    def _put(self, array: Any, axis: str | None = None) -> Any:
        """On the mesh, with rows cut along an axis; JAX places what is not."""
        if self.mesh is None:
            return array
        return place(np.asarray(array), NamedSharding(self.mesh, P(axis) if axis else P()))

    def _state(self, layers: Any, position: NDArray) -> DeviceState:
        return DeviceState(layers, position, self.config, self.fingerprint, self.dtype)

    def _layers(self, state: State, rows: int, keep: bool) -> Any:
        """A state's layers on the device, with ``rows`` rows, for the program to change."""
        if isinstance(state, DeviceState) and self._fits(state.device, rows):
            return _copy(state.device) if keep else state.device
        missing = rows - state.batch
        layers: Any = [
            {
                name: np.pad(array, ((0, missing),) + ((0, 0),) * (array.ndim - 1))
                for name, array in vars(layer).items()
            }
            for layer in state.layers
        ]
        return place(layers, None if self.mesh is None else shardings(layers, self.mesh))

    def _fits(self, layers: Any, rows: int) -> bool:
        """Whether layers are on a device, and there as this model has them."""
        if layers is None:
            return False
        leaves = jax.tree.leaves(layers)
        same_mesh = getattr(leaves[0].sharding, "mesh", None) == self.mesh
        deleted = any(leaf.is_deleted() for leaf in leaves)
        return len(leaves[0]) == rows and same_mesh and not deleted


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


@partial(
    jax.jit,
    static_argnames=("config", "scan", "logits", "watch", "step", "gather"),
    donate_argnames=("layers",),
)
def read_text(
    params: dict,
    inputs: Array,
    positions: Array,
    layers: Any,
    *,
    config: GriffinConfig,
    scan: str,
    logits: str,
    watch: bool,
    step: bool,
    gather: bool,
) -> tuple[Array | None, Any, OrderedDict[str, Array]]:
    """Logits, the state after the tokens, and what is watched, by name in order of computation."""
    watched: OrderedDict[str, Array] = OrderedDict()
    with jax.default_matmul_precision("highest"):  # accelerators would round float32 factors
        x = embed(params, inputs, config) if inputs.ndim == 2 else inputs * config.embedding_scale
        x, after = residual_blocks(
            params, x, positions, config, layers, scan=scan,
            watch=watched.__setitem__ if watch else no_watch, step=step,
        )  # fmt: skip
        values = None
        if logits == "last":
            x = x[jnp.arange(len(x)), real_tokens(positions) - 1]
        if logits != "none":
            values = head(params, x, config)
    if gather and logits != "none":
        values, watched = lax.with_sharding_constraint((values, watched), P())
    return values, constrain_tree(after), watched
