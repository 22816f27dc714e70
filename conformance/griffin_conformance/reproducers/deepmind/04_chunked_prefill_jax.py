# CALL-1, CONV-2: a later call of several tokens is refused; jax/layers.py:647
import sys

import jax
import numpy as np
from recurrentgemma import jax as port

kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
x, at, read = np.arange(2, 14)[None], np.arange(12)[None], jax.jit(model.apply)
shapes, rng = jax.eval_shape(model.init, jax.random.key(0), x, at), np.random.default_rng(0)
weights = jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(p.dtype), shapes)
_, cache = read(weights, x[:, :5], at[:, :5])
try:
    found = read(weights, x[:, 5:], at[:, 5:], cache)[0]
except AssertionError:
    sys.exit("seven tokens after five: AssertionError")
sys.exit(int(abs(found - read(weights, x, at)[0][:, 5:]).max() > 1e-3))
