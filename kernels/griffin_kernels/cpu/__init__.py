"""Griffin on a CPU: kernels in Numba over explicit vectors."""
