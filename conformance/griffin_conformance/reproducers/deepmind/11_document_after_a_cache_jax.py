# DOC-1, CONV-3, ATTN-6: position 0 starts no document where there is a cache: convolution and
# attention go on with the one before; jax/layers.py:597, jax/modules.py:392
import sys

import jax
import numpy as np
from recurrentgemma import jax as port

kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
x, at, read = np.arange(2, 14)[None], np.arange(12)[None], jax.jit(model.apply)
shapes, rng = jax.eval_shape(model.init, jax.random.key(0), x, at), np.random.default_rng(0)
weights = jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(p.dtype), shapes)
_, cache = read(weights, x[:, :4], at[:, :4])
alone = read(weights, x[:, :1], at[:, :1])[0][0, -1]
found = read(weights, x[:, :1], at[:, :1], cache)[0][0, -1]
print("alone:        ", alone[:4])
print("after another:", found[:4])
sys.exit(int(abs(alone - found).max() > 1e-3))
