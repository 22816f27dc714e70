# CALL-5: the convolution writes zeros into the tensor that it is given, before another document:
# x_window is a view of x; torch/layers.py:508
import sys

import torch
from recurrentgemma import torch as port

torch.set_grad_enabled(False)
x, at = torch.ones(1, 5, 2), torch.tensor([[0, 1, 2, 0, 1]])
port.Conv1D(width=2, temporal_width=4)(x, at)
print("ones before the call, after it:", x[0, :, 0].tolist())
sys.exit(int((x != 1).any()))
