# GEN-2: the Sampler cannot take prompts of one token, such as BOS alone: it asks for no logits, and
# cuts them; jax/sampler.py:293-304
import sys
from types import SimpleNamespace

import jax
import numpy as np
from recurrentgemma import jax as port

kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
x, at, read = np.arange(2, 14)[None], np.arange(12)[None], jax.jit(model.apply)
shapes, rng = jax.eval_shape(model.init, jax.random.key(0), x, at), np.random.default_rng(0)
weights = jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(p.dtype), shapes)
names = {"pad_id": lambda: 0, "eos_id": lambda: 1, "bos_id": lambda: 2, "DecodeIds": str}
words = SimpleNamespace(**names, EncodeAsIds=lambda text: [])
try:
    print(port.Sampler(model, words, weights["params"])([""], 4).tokens)
except TypeError as error:
    sys.exit(f"four tokens after BOS: TypeError: {error}")
