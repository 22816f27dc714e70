# CALL-1, ATTN-7: where there is no recurrence a later call of several tokens is taken, and throws
# away what the cache held before it; jax/modules.py:215, 236-246
import sys

import jax
import numpy as np
from recurrentgemma import jax as port

kinds = (port.TemporalBlockType.ATTENTION,)
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
x, at, read = np.arange(2, 14)[None], np.arange(12)[None], jax.jit(model.apply)
shapes, rng = jax.eval_shape(model.init, jax.random.key(0), x, at), np.random.default_rng(0)
weights = jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(p.dtype), shapes)
whole, cache = read(weights, x, at)[0][0, -1], None
for part in (slice(0, 5), slice(5, 8), slice(8, 12)):
    logits, cache = read(weights, x[:, part], at[:, part], cache)
found = logits[0, -1]
print("in one call:   ", whole[:4])
print("in three calls:", found[:4])
sys.exit(int(abs(whole - found).max() > 1e-3))
