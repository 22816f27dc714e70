# RGLRU-7, STATE-10: in a bfloat16 model the recurrence's state, decays and gates are bfloat16;
# models/recurrent_gemma.py:52, 69
import sys

import mlx.core as mx
from mlx_lm.models.recurrent_gemma import RGLRU

mx.random.seed(0)
x, states = mx.random.uniform(shape=(1, 4096, 64)), {}
for dtype in (mx.float32, mx.bfloat16):
    layer = RGLRU(64, 1)
    layer.recurrent_param = mx.full((64,), -5.0)  # of the released models' range
    layer.set_dtype(dtype)
    _, states[dtype] = layer(x.astype(dtype))
wide, narrow = (h.astype(mx.float32) for h in states.values())
wrong = (mx.linalg.norm(narrow - wide) / mx.linalg.norm(wide)).item()
print("dtype of the state:", states[mx.bfloat16].dtype, "relative error:", wrong)
sys.exit(int(states[mx.bfloat16].dtype != mx.float32 or wrong > 2**-7))
