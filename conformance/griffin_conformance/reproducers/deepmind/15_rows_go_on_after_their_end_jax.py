# GEN-5: a row that has ended goes on as long as another does; jax/sampler.py:206, 227
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
names = {"pad_id": lambda: 0, "bos_id": lambda: 2, "EncodeAsIds": lambda text: [len(text)]}
words = SimpleNamespace(**names, DecodeIds=str, eos_id=lambda: -1)
free = port.Sampler(model, words, weights["params"])(["a", "bcd"], 6).tokens[0].tolist()
words.eos_id = lambda: next(t for t in free if t != free[0])
ended = port.Sampler(model, words, weights["params"])(["a", "bcd"], 6).tokens[0].tolist()
print("the end is", words.eos_id(), "in", ended)
sys.exit(int(any(ended[ended.index(words.eos_id()) + 1 :])))
