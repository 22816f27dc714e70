# CALL-1, CONV-2, ATTN-7: a later call of several tokens is refused, by attention if it is shorter
# than the window, and by the convolution; torch/modules.py:223, torch/layers.py:549
import sys

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at = torch.arange(2, 14)[None], torch.arange(12)[None]
_, cache = model(x[:, :5], at[:, :5])
try:
    found = model(x[:, 5:], at[:, 5:], cache)[0]
except (AssertionError, NotImplementedError) as error:
    print("seven tokens after five:", type(error).__name__)
    sys.exit(1)
sys.exit(int((found - model(x, at)[0][:, 5:]).abs().max() > 1e-3))
