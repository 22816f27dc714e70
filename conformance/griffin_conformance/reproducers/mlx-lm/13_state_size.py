# STATE-4: caches of keys grow, and keep a whole prompt until the next token;
# models/cache.py:458-479
import sys

import mlx.core as mx
from mlx_lm.models.recurrent_gemma import Model, ModelArgs

# type, bias, conv, width, 2 mlp, cap, heads, layers, kv heads, eps, theta, window, vocab, scale
args = ["recurrent_gemma", False, 4, 16, 32, 30.0, 2, 2, 1, 1e-6, 1e4, 9, 30, True]
model, sizes = Model(ModelArgs(*args, ["recurrent", "attention"])), {}
for tokens in (1, 9, 400):
    cache = model.make_cache()
    model(mx.full((1, tokens), 5), cache=cache)
    sizes[tokens] = sum(layer.nbytes for layer in cache)
print("bytes of the caches after a prompt of so many tokens:", sizes)
sys.exit(int(len(set(sizes.values())) > 1))
