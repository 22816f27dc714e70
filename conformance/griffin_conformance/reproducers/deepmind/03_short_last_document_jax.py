# CONV-4, DOC-3: after packed documents the convolution's cache holds inputs of the last but one,
# if the last has one or two tokens; jax/layers.py:606, 624
import sys

import jax
import numpy as np
from recurrentgemma import jax as port

kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
x, at, read = np.arange(2, 14)[None], np.arange(12)[None], jax.jit(model.apply)
shapes, rng = jax.eval_shape(model.init, jax.random.key(0), x, at), np.random.default_rng(0)
weights = jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(p.dtype), shapes)
alone = read(weights, x[:, 4:6], at[:, :2])[0][0, -1]
_, cache = read(weights, x[:, :5], np.array([[0, 1, 2, 3, 0]]))
found = read(weights, x[:, 5:6], at[:, 1:2], cache)[0][0, -1]
print("alone:         ", alone[:4])
print("behind another:", found[:4])
sys.exit(int(abs(alone - found).max() > 1e-3))
