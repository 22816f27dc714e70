# CONV-4, DOC-3: after packed documents the convolution's cache holds inputs of the last but one,
# if the last has one or two tokens; jax/layers.py:606, 624
import sys

import jax
import jax.numpy as jnp
from recurrentgemma import jax as port

kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
params = model.init(jax.random.key(0), jnp.zeros((1, 9), int), jnp.arange(9)[None])
params = jax.tree.map(lambda p: 0.4 * jax.random.normal(jax.random.key(p.size), p.shape), params)
packed, at, after = jnp.array([[9, 8, 7, 6, 5]]), jnp.array([[0, 1, 2, 3, 0]]), jnp.array([[4]])
alone = model.apply(params, jnp.array([[5, 4]]), jnp.array([[0, 1]]))[0][0, -1]
_, cache = model.apply(params, packed, at)
found = model.apply(params, after, jnp.array([[1]]), cache)[0][0, -1]
print("alone:          ", alone[:4])
print("behind another: ", found[:4])
sys.exit(int(abs(alone - found).max() > 1e-3))
