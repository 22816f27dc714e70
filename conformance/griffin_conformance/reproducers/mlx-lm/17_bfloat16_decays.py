# RGLRU-3, GATE-2: in bfloat16 a slow decay is 1 and what enters is multiplied by 0, so that nothing
# is ever read, as in DeepMind's own bfloat16 code; models/recurrent_gemma.py:148-156
import sys

import mlx.core as mx
from mlx_lm.models.recurrent_gemma import RGLRU

x, found = mx.ones((1, 8, 4)), {}
for dtype in (mx.float32, mx.bfloat16):
    layer = RGLRU(4, 1)
    layer.recurrent_param = mx.full((4,), -6.9)  # the slowest decay of the released models
    layer.recurrent_gate_bias = mx.full((1, 4), -2.0)
    layer.set_dtype(dtype)
    found[str(dtype)] = layer(x.astype(dtype), cache=mx.zeros((1, 4), dtype))[1][0, 0].item()
print("state after 8 tokens:", found)
sys.exit(int(found["mlx.core.bfloat16"] == 0))
