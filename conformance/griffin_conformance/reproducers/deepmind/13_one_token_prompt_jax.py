# GEN-2: the Sampler cannot take a batch of prompts of one token, such as BOS alone: it asks for no
# logits there, and cuts them; jax/sampler.py:293-304
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from recurrentgemma import jax as port

kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
params = model.init(jax.random.key(0), jnp.zeros((1, 9), int), jnp.arange(9)[None])
params = jax.tree.map(lambda p: 0.4 * jax.random.normal(jax.random.key(p.size), p.shape), params)
names = {"pad_id": lambda: 0, "eos_id": lambda: 1, "bos_id": lambda: 2, "DecodeIds": str}
vocabulary = SimpleNamespace(**names, EncodeAsIds=lambda text: [])
try:
    port.Sampler(model, vocabulary, params["params"])([""], 4)
except TypeError as error:
    sys.exit(f"four tokens after BOS: TypeError: {error}")
