# CALL-1, CONV-2: a later call of several tokens is refused; jax/layers.py:647
import sys

import jax
import jax.numpy as jnp
from recurrentgemma import jax as port

kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
params = model.init(jax.random.key(0), jnp.zeros((1, 9), int), jnp.arange(9)[None])
params = jax.tree.map(lambda p: 0.4 * jax.random.normal(jax.random.key(p.size), p.shape), params)
x, at = jnp.arange(2, 14)[None], jnp.arange(12)[None]
_, cache = model.apply(params, x[:, :5], at[:, :5])
try:
    found = model.apply(params, x[:, 5:], at[:, 5:], cache)[0]
except AssertionError:
    sys.exit("seven tokens after five: AssertionError")
sys.exit(int(abs(found - model.apply(params, x, at)[0][:, 5:]).max() > 1e-3))
