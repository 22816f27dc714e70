# GEN-2: beside longer prompts the first new tokens are cut off, as many as there was padding;
# jax/sampler.py:462
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
names = {"pad_id": lambda: 0, "bos_id": lambda: 2, "EncodeAsIds": lambda text: [5] * len(text)}
words = SimpleNamespace(**names, DecodeIds=str, eos_id=lambda: -1)
sampler = port.Sampler(model, words, weights["params"])
alone, beside = (sampler(prompts, 9).tokens[0].tolist() for prompts in (["abc"], ["abc", "abcdef"]))
print("nine steps alone:", alone, "beside a prompt of three tokens more:", beside)
sys.exit(int(len(alone) != len(beside)))
