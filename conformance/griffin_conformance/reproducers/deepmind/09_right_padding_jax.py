# PAD-2, STATE-3: after a row that ends in padding attention's cache counts no tokens, and the other
# caches have read the padding; jax/modules.py:238, jax/layers.py:624
import sys

import jax
import jax.numpy as jnp
from recurrentgemma import jax as port

kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
params = model.init(jax.random.key(0), jnp.zeros((1, 9), int), jnp.arange(9)[None])
params = jax.tree.map(lambda p: 0.4 * jax.random.normal(jax.random.key(p.size), p.shape), params)
text, at = jnp.array([[5, 6, 7, 8, 9, 4]]), jnp.arange(6)[None]
alone = model.apply(params, text, at)[0][0, -1]
padded = text[:, :5], at[:, :5]
_, cache = model.apply(params, jnp.pad(padded[0], ((0, 0), (0, 2))),
                       jnp.pad(padded[1], ((0, 0), (0, 2)), constant_values=-1))  # fmt: skip
found = model.apply(params, text[:, 5:], at[:, 5:], cache)[0][0, -1]
print(f"alone {alone[:3]}, after padding {found[:3]}")
sys.exit(int(abs(alone - found).max() > 1e-3))
