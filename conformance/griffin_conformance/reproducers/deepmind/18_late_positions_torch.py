# ROPE-4: rotary angles are products of float32 numbers; torch/modules.py:72-77
import sys

import numpy as np
import torch
from recurrentgemma.torch import modules

x, worst = torch.ones(1, 1, 1, 8), 0.0
for position in (255, 5001, 123_457, 2**24 + 1):
    cos, sin = np.cos(position * 0.01), np.sin(position * 0.01)  # of the second pair of channels
    found = modules._apply_rope(x, torch.tensor([[position]]))[0, 0, 0].numpy()
    error = abs(np.arctan2(found[3] - found[1], found[3] + found[1]) - np.arctan2(sin, cos))
    print(f"position {position}: angle off by {error:.1e}")
    worst = max(worst, min(error, 2 * np.pi - error))
sys.exit(int(worst > 1e-6))
