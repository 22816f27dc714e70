# CONV-5, PAD-1: padding on the left stays in the convolution's cache, so that a row of one to
# three tokens is wrong from the next token on; jax/layers.py:606, 624
import sys

import jax
import jax.numpy as jnp
from recurrentgemma import jax as port

kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
params = model.init(jax.random.key(0), jnp.zeros((1, 9), int), jnp.arange(9)[None])
params = jax.tree.map(lambda p: 0.4 * jax.random.normal(jax.random.key(p.size), p.shape), params)
text, worst = jnp.array([[5, 6, 7, 8]]), 0.0
for n in (1, 2, 3):  # as the Sampler: padding at -1, and the last token in a call of its own
    alone = model.apply(params, text[:, : n + 1], jnp.arange(n + 1)[None])[0][0, -1]
    at = jnp.arange(n - 5, n)[None].clip(-1)
    _, cache = model.apply(params, jnp.pad(text[:, :n], ((0, 0), (5 - n, 0))), at)
    found = model.apply(params, text[:, n : n + 1], jnp.array([[n]]), cache)[0][0, -1]
    print(f"{n} tokens: alone {alone[:3]}, behind padding {found[:3]}")
    worst = max(worst, abs(alone - found).max())
sys.exit(int(worst > 1e-3))
