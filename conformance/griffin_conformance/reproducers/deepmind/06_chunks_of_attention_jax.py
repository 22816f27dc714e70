# CALL-1, ATTN-7: without a recurrence a later call of several tokens is taken, and throws away what
# the cache held before it; jax/modules.py:215, 233-246
import sys

import jax
import jax.numpy as jnp
from recurrentgemma import jax as port

kinds = (port.TemporalBlockType.ATTENTION,)
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
params = model.init(jax.random.key(0), jnp.zeros((1, 9), int), jnp.arange(9)[None])
params = jax.tree.map(lambda p: 0.4 * jax.random.normal(jax.random.key(p.size), p.shape), params)
x, at, cache = jnp.arange(2, 14)[None], jnp.arange(12)[None], None
whole = model.apply(params, x, at)[0][0, -1]
for part in (slice(0, 5), slice(5, 8), slice(8, 12)):
    logits, cache = model.apply(params, x[:, part], at[:, part], cache)
found = logits[0, -1]
print("in one call:   ", whole[:4])
print("in three calls:", found[:4])
sys.exit(int(abs(whole - found).max() > 1e-3))
