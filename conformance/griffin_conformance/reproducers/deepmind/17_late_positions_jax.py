# ROPE-4: rotary angles are products of float32 numbers; jax/modules.py:73-78
import sys

import jax.numpy as jnp
import numpy as np
from recurrentgemma.jax import modules

x, worst = jnp.ones((1, 1, 1, 8)), 0.0
for position in (255, 5001, 123_457, 2**24 + 1):
    cos, sin = np.cos(position * 0.01), np.sin(position * 0.01)  # of the second pair of channels
    found = modules._apply_rope(x, jnp.array([[position]]))[0, 0, 0]
    error = abs(np.arctan2(found[3] - found[1], found[3] + found[1]) - np.arctan2(sin, cos))
    print(f"position {position}: angle off by {error:.1e}")
    worst = max(worst, min(error, 2 * np.pi - error))
sys.exit(int(worst > 1e-6))
