# STATE-8: a cache of another model, with another window, is continued without an error;
# models/recurrent_gemma.py:391-407
import sys

import mlx.core as mx
from mlx_lm.models.recurrent_gemma import Model, ModelArgs

# type, bias, conv, width, 2 mlp, cap, heads, layers, kv heads, eps, theta, window, vocab, scale
one = ["recurrent_gemma", False, 4, 16, 32, 30.0, 2, 2, 1, 1e-6, 1e4, 9, 30, True]
other = [*one[:11], 4, *one[12:]]
one, other = (Model(ModelArgs(*args, ["recurrent", "attention"])) for args in (one, other))
cache = one.make_cache()
one(mx.array([[3, 4, 5]]), cache=cache)
try:
    other(mx.array([[6]]), cache=cache)
except ValueError as error:
    sys.exit(print("the other model's cache is refused:", error))
sys.exit("the other model's cache is continued")
