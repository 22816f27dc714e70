# ATTN-1: a token sees W keys, DeepMind's and the specification's W + 1; models/base.py:37
import sys

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.recurrent_gemma import Model, ModelArgs

# type, bias, conv, width, 2 mlp, cap, heads, layers, kv heads, eps, theta, window, vocab, scale
args = ["recurrent_gemma", False, 4, 16, 32, 30.0, 2, 1, 1, 1e-6, 1e4, 4, 30, True]
model = Model(ModelArgs(*args, ["attention"]))
mx.random.seed(0)
model.update(tree_map(lambda p: 0.4 * mx.random.normal(p.shape), model.parameters()))
x, seen = mx.arange(2, 14)[None], 0
last = model(x)[0, -1]
for t in range(12):
    changed = model(mx.where(mx.arange(12) == t, 1, x))[0, -1]
    seen += int(mx.abs(changed - last).max().item() > 1e-4)
print("keys that the last token sees:", seen, "expected: 5")
sys.exit(int(seen != 5))
