# PAD-2, STATE-3: after a row that ends in padding attention's cache counts no tokens, and the other
# caches have read the padding; jax/modules.py:238, jax/layers.py:624
import sys

import jax
import numpy as np
from recurrentgemma import jax as port

kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
x, at, read = np.arange(2, 14)[None], np.arange(12)[None], jax.jit(model.apply)
shapes, rng = jax.eval_shape(model.init, jax.random.key(0), x, at), np.random.default_rng(0)
weights = jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(p.dtype), shapes)
alone = read(weights, x[:, :6], at[:, :6])[0][0, -1]
padded = np.where(at < 5, x, 0)[:, :7], np.where(at < 5, at, -1)[:, :7]
found = read(weights, x[:, 5:6], at[:, 5:6], read(weights, *padded)[1])[0][0, -1]
print("alone:        ", alone[:4])
print("after padding:", found[:4])
sys.exit(int(abs(alone - found).max() > 1e-3))
