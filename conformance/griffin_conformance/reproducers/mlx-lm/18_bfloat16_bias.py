# CONV-1: in bfloat16 the convolution is rounded before its bias is added, as in DeepMind's own
# bfloat16 code; models/recurrent_gemma.py:98-99
import sys

import mlx.core as mx
from mlx_lm.models.recurrent_gemma import Conv1d

conv = Conv1d(1, 4)
conv.weight, conv.bias = mx.array([[[0.0], [0.0], [1.0], [1.0]]]), mx.array([-256.0])
conv.set_dtype(mx.bfloat16)
x = mx.array([[[256.0], [1.0]]]).astype(mx.bfloat16)
found = conv(x)[0][0, 1, 0].item()
print("256 + 1 - 256 =", found, "expected: 1")
sys.exit(int(found != 1))
