# ROPE-4: rotary angles are computed in float32, and drift with the position; MLX's fast.rope, which
# models/recurrent_gemma.py:239-242 makes
import math
import sys

import mlx.core as mx
from mlx import nn

wrong = {}
for position in (100, 8191, 1000000):
    turned = nn.RoPE(128)(mx.ones((1, 1, 1, 128)), offset=position)[0, 0, 0].tolist()
    angles = [position * 10000 ** (-j / 64) for j in range(64)]
    right = [math.cos(a) - math.sin(a) for a in angles]
    wrong[position] = max(abs(a - b) for a, b in zip(turned[:64], right, strict=True))
print("largest error of a turned pair (1, 1), by position:", wrong)
sys.exit(int(max(wrong.values()) > 1e-5))
