# CALL-8: tokens that the vocabulary does not have are read from wherever they point to: -1 is taken
# for the last, and large ones end the process; models/recurrent_gemma.py:395
import sys

import mlx.core as mx
from mlx_lm.models.recurrent_gemma import Model, ModelArgs

# type, bias, conv, width, 2 mlp, cap, heads, layers, kv heads, eps, theta, window, vocab, scale
args = ["recurrent_gemma", False, 4, 16, 32, 30.0, 2, 2, 1, 1e-6, 1e4, 9, 30, True]
model = Model(ModelArgs(*args, ["recurrent", "attention"]))
try:
    same = mx.array_equal(model(mx.array([[-1]])), model(mx.array([[29]]))).item()
except (ValueError, IndexError) as error:
    sys.exit(print("token -1 is refused:", error))
print("token -1 is taken for token 29:", same)
sys.exit(1)
