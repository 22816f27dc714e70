"""The CPU kernels of this project: so far the recurrence."""

import numpy as np

from griffin_conformance.backends import Backend, versions_of
from griffin_kernels.cpu import scan

__all__ = ["NumbaBackend"]


def single(array):
    """A float32 array."""
    return np.asarray(array, np.float32)


class NumbaBackend(Backend):
    """``griffin_kernels.cpu`` in float32."""

    name = "numba"
    dtypes = ("float32",)

    def versions(self):
        return super().versions() | versions_of("numba", "llvmlite")

    def decay(self, r, a_param):
        return scan.decay(single(r), scan.softplus_8(a_param))

    def scan(self, a, x, h):
        return scan.scan(single(a), single(x), single(h))

    def rg_lru(self, x, p, positions, h):
        p = {name: single(array) for name, array in p.items()}
        x, (H, G) = single(x), p["b_a"].shape

        def before_the_gate(w, b):
            return (np.einsum("thi,hij->thj", x.reshape(-1, H, G), w) + b).reshape(x.shape)

        z_r = before_the_gate(p["w_a"], p["b_a"])
        z_i = before_the_gate(p["w_x"], p["b_x"])
        return scan.rg_lru(x, z_r, z_i, scan.softplus_8(p["a_param"]), positions, single(h))[0]
