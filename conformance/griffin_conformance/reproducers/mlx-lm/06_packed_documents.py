# DOC-1, DOC-2: the model is told neither positions nor where a document begins, so that packed
# documents run into each other; models/recurrent_gemma.py:391, 421
import sys

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.recurrent_gemma import Model, ModelArgs

# type, bias, conv, width, 2 mlp, cap, heads, layers, kv heads, eps, theta, window, vocab, scale
args = ["recurrent_gemma", False, 4, 16, 32, 30.0, 2, 2, 1, 1e-6, 1e4, 9, 30, True]
model = Model(ModelArgs(*args, ["recurrent", "attention"]))
mx.random.seed(0)
model.update(tree_map(lambda p: 0.4 * mx.random.normal(p.shape), model.parameters()))
first, second = mx.arange(3, 10)[None], mx.arange(12, 20)[None]
alone, packed = model(second), model(mx.concatenate([first, second], axis=1))[:, 7:]
print("a document alone:", alone[0, -1, :4].tolist())
print("behind another:  ", packed[0, -1, :4].tolist())
sys.exit(int(mx.abs(alone - packed).max().item() > 1e-3))
