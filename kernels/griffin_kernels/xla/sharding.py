"""One model on many devices: a mesh of three axes, and what each array is cut along.

``data`` cuts the batch, ``model`` the heads, channels and vocabulary, ``sequence`` the tokens of a
text that is read. Matrix products are left to XLA, which follows the layouts of weights and states
in :data:`RULES`. What goes along the text is done by hand, on each device for its own part of it:
the convolution and attention fetch what they need of the tokens before from the left
(:func:`halo`), the recurrence is combined across parts (``recurrent.py``). A decoding step has no
text to cut; there ``sequence`` is idle.

The mesh is the one that ``jax.set_mesh`` has set while a program is traced. Without one,
nothing here does anything.

Shapes: B rows, T tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from griffin_np.errors import ConfigError

__all__ = [
    "AXES",
    "RULES",
    "axis_size",
    "by_hand",
    "constrain",
    "constrain_tree",
    "cut",
    "fetch",
    "from_owner",
    "halo",
    "make_mesh",
    "mesh_shape",
    "on_mesh",
    "owner",
    "partitions",
    "place",
    "shardings",
    "spec",
]

AXES = ("data", "sequence", "model")

RULES: dict[str, tuple[str | None, ...]] = {
    "embedding": ("model", None),
    "linear_y.weight": (None, "model"),
    "linear_y.bias": ("model",),
    "linear_x.weight": (None, "model"),
    "linear_x.bias": ("model",),
    "conv.weight": (None, "model"),
    "conv.bias": ("model",),
    "rg_lru.w_a": ("model", None, None),
    "rg_lru.b_a": ("model", None),
    "rg_lru.w_x": ("model", None, None),
    "rg_lru.b_x": ("model", None),
    "rg_lru.a_param": ("model",),
    "linear_out.weight": ("model", None),
    "query.weight": (None, "model"),
    "output.weight": ("model", None),
    "gate.weight": (None, "model"),
    "gate.bias": ("model",),
    "up.weight": (None, "model"),
    "up.bias": ("model",),
    "down.weight": ("model", None),
    # State, by name too. Keys and values of a multi-query model are the same for all heads.
    "conv": ("data", None, "model"),
    "rg_lru": ("data", "model"),
    "keys": ("data", None, None, None),
    "values": ("data", None, None, None),
}
"""Along which axis of the mesh each dimension is cut, by the end of an array's name.

What is not named is the same on every device: norms, biases of what leaves a block, and the single
key-value head. A dimension that its axis does not divide is not cut either.
"""


def make_mesh(
    data: int = 1, sequence: int = 1, model: int = 1, devices: Sequence | None = None
) -> Mesh:
    """A mesh of ``data * sequence * model`` devices, by default the first ones of all processes.

    Raises
    ------
    ConfigError
        If an axis is empty, there are fewer devices than that, or a process has none of them.
    """
    shape = (data, sequence, model)
    if min(shape) < 1:
        raise ConfigError(f"every axis of a mesh needs at least 1 device, got {shape}")
    devices = jax.devices() if devices is None else list(devices)
    count = math.prod(shape)
    if len(devices) < count:
        raise ConfigError(
            f"a mesh of data {data} x sequence {sequence} x model {model} needs {count} devices, "
            f"there are {len(devices)}"
        )
    found = devices[:count]
    idle = {device.process_index for device in devices} - {d.process_index for d in found}
    if idle:
        raise ConfigError(
            f"a mesh of {count} devices leaves process {min(idle)} without one: use all "
            f"{len(devices)}"
        )
    return Mesh(np.array(found).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_shape() -> dict[str, int]:
    """Devices along each axis of the current mesh; empty without one, or with a foreign one."""
    shape = dict(jax.sharding.get_abstract_mesh().shape)
    return shape if set(shape) == set(AXES) else {}


def axis_size(axis: str) -> int:
    """Devices along an axis of the current mesh, 1 without one."""
    return mesh_shape().get(axis, 1)


def spec(names: Sequence[str | None], shape: Sequence[int], sizes: Mapping[str, int]) -> P:
    """A partition that leaves out what does not divide."""
    return P(*(
        axis if axis and n % sizes.get(axis, 1) == 0 else None
        for axis, n in zip(names, shape, strict=True)
    ))  # fmt: skip


def cut(axis: str, n: int) -> str | None:
    """``axis`` if the current mesh has several devices along it and they divide n."""
    size = axis_size(axis)
    return axis if size > 1 and n % size == 0 else None


def constrain(x: Array, *names: str | None) -> Array:
    """Tell XLA how an intermediate result is cut; nothing without a mesh."""
    sizes = mesh_shape()
    return lax.with_sharding_constraint(x, spec(names, x.shape, sizes)) if sizes else x


def partitions(tree: Any, sizes: Mapping[str, int], *, spread: bool = False) -> Any:
    """How each array of a tree is cut, by :data:`RULES`.

    Parameters
    ----------
    tree : tree of arrays or shapes
        Parameters, optimiser states, or layers' states, stacked or not.
    sizes : mapping of str to int
        Devices along each axis of the mesh.
    spread : bool
        Cut every array along ``data`` too, on its first free dimension that divides: optimiser
        states and master weights of a training run need not exist once per row of the batch.

    Returns
    -------
    tree of PartitionSpec
    """

    def one(path, leaf):
        keys = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        names = RULES.get(".".join(keys[-2:])) or RULES.get(keys[-1] if keys else "") or ()
        stacked = leaf.ndim - len(names)
        if stacked < 0:  # something else of that name, such as one number for a whole array
            names, stacked = (), leaf.ndim
        found = list(spec((None,) * stacked + tuple(names), leaf.shape, sizes))
        if spread and sizes["data"] > 1 and "data" not in found:
            for i, n in enumerate(leaf.shape):
                if found[i] is None and n >= sizes["data"] and n % sizes["data"] == 0:
                    found[i] = "data"
                    break
        return P(*found)

    return jax.tree_util.tree_map_with_path(one, tree)


def shardings(tree: Any, mesh: Mesh, *, spread: bool = False) -> Any:
    """The same as :func:`partitions` on a mesh: a tree of NamedSharding."""
    cuts = partitions(tree, dict(mesh.shape), spread=spread)
    return jax.tree.map(lambda p: NamedSharding(mesh, p), cuts, is_leaf=lambda p: isinstance(p, P))


def constrain_tree(tree: Any, *, spread: bool = False) -> Any:
    """Keep results cut as :func:`partitions` says; nothing without a mesh."""
    sizes = mesh_shape()
    if not sizes:
        return tree
    return lax.with_sharding_constraint(tree, partitions(tree, sizes, spread=spread))


def on_mesh(mesh: Mesh | None) -> AbstractContextManager:
    """Where programs for a mesh are traced and called; None is one device."""
    return jax.set_mesh(mesh) if mesh is not None else nullcontext()


def place(tree: Any, where: Any) -> Any:
    """Arrays that every process holds, on the devices of a mesh that may span processes.

    ``where`` is a sharding, or a tree of them like ``tree``; None is JAX's default device. Never
    aliases the memory it was given.
    """
    if where is None:
        return jax.device_put(tree, may_alias=False)

    def one(array, sharding):
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding, may_alias=False)
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index].copy())

    if isinstance(where, NamedSharding):
        return jax.tree.map(lambda array: one(array, where), tree)
    return jax.tree.map(one, tree, where)


def fetch(tree: Any) -> Any:
    """Whole NumPy arrays from devices; with several processes all of them must call it."""
    leaves = jax.tree.leaves(tree)
    if all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in leaves):
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def halo(x: Array, earlier: Array) -> Array:
    """What stands before this device's part of a text: ``earlier`` (B, N, ...) for the first one.

    Called on each device of ``sequence``, for its part x (B, T, ...). Parts shorter than N take
    several hops.

    Returns
    -------
    Array of shape (B, N, ...)
    """
    parts, index = axis_size("sequence"), lax.axis_index("sequence")
    N, T = earlier.shape[1], x.shape[1]
    if not N or parts == 1:
        return earlier
    hops = min(parts - 1, -(-N // T))
    tail = x[:, -min(N, T) :]
    size = tail.shape[1]
    received = []
    for hop in range(hops, 0, -1):
        pairs = [(i, i + hop) for i in range(parts - hop)]
        received.append(lax.ppermute(tail, "sequence", pairs))
    # A device near the start has received less than that: there `earlier` comes before it.
    line = jnp.concatenate([jnp.zeros_like(earlier), *received], axis=1)
    start = jnp.maximum(hops - index, 0) * size
    line = jnp.where(
        index <= hops, lax.dynamic_update_slice_in_dim(line, earlier, start, axis=1), line
    )
    return line[:, -N:]


def owner(positions: Array) -> Array:
    """Which device of ``sequence`` has the row's last token, (B,), or -1 in a row of padding."""
    return lax.psum((positions[:, 0] >= 0).astype(jnp.int32), "sequence") - 1


def from_owner(tree: Any, last: Array) -> Any:
    """What the device with the row's last token has, on all of ``sequence``."""
    mine = lax.axis_index("sequence") == last

    def one(x):
        # Only one device adds anything but 0, so every dtype survives.
        kept = jnp.where(mine.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
        return lax.psum(kept, "sequence")

    return jax.tree.map(one, tree)


def by_hand(f: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """``f`` on each device of the current mesh for its parts of the arguments."""
    # That results are the same on some axes follows from sums over these, and cannot be proven
    # through a custom derivative.
    return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)
