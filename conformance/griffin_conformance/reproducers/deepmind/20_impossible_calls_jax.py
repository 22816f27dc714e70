# CALL-8: what the vocabulary lacks is read as its last token, gaps pass; jax/modules.py:926
import sys

import jax
import numpy as np
from recurrentgemma import jax as port

kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
x, at, read = np.arange(2, 14)[None], np.arange(12)[None], jax.jit(model.apply)
shapes, rng = jax.eval_shape(model.init, jax.random.key(0), x, at), np.random.default_rng(0)
weights = jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(p.dtype), shapes)
wrong = {f"token {t} of 30": (np.where(at < 11, x, t), at) for t in (30, -1)}
wrong["position 19 after 10"] = x, np.where(at < 11, at, 19)
try:
    for name, call in wrong.items():
        print(f"{name}: {read(weights, *call)[0][0, -1, :3]}")
except ValueError:
    sys.exit(0)
sys.exit(1)
