# CONV-5, PAD-1: padding on the left stays in the convolution's cache; jax/layers.py:606, 624
import sys

import jax
import numpy as np
from recurrentgemma import jax as port

kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
x, at, read = np.arange(2, 14)[None], np.arange(12)[None], jax.jit(model.apply)
shapes, rng = jax.eval_shape(model.init, jax.random.key(0), x, at), np.random.default_rng(0)
weights = jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(p.dtype), shapes)
worst = 0.0
for n in (1, 2):  # as the Sampler does it: padding is at -1
    alone = read(weights, x[:, : n + 1], at[:, : n + 1])[0][0, -1]
    padded = np.pad(x[:, :n], ((0, 0), (4, 0))), np.arange(-4, n)[None].clip(-1)
    found = read(weights, x[:, n : n + 1], at[:, n : n + 1], read(weights, *padded)[1])[0][0, -1]
    print(f"{n} tokens and one more: alone {alone[:3]}, behind padding {found[:3]}")
    worst = max(worst, abs(alone - found).max())
sys.exit(int(worst > 1e-3))
