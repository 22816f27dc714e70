# DOC-1, CONV-3, ATTN-6: position 0 starts no document where there is a cache: convolution and
# attention go on with the one before; jax/layers.py:597, jax/modules.py:392
import sys

import jax
import jax.numpy as jnp
from recurrentgemma import jax as port

kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
params = model.init(jax.random.key(0), jnp.zeros((1, 9), int), jnp.arange(9)[None])
params = jax.tree.map(lambda p: 0.4 * jax.random.normal(jax.random.key(p.size), p.shape), params)
_, cache = model.apply(params, jnp.array([[9, 8, 7, 6]]), jnp.arange(4)[None])
text, start = jnp.array([[5]]), jnp.array([[0]])
alone = model.apply(params, text, start)[0][0, -1]
found = model.apply(params, text, start, cache)[0][0, -1]
print("alone:         ", alone[:4])
print("after another: ", found[:4])
sys.exit(int(abs(alone - found).max() > 1e-3))
