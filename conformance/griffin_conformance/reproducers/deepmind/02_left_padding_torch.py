# CONV-5, PAD-1: of a row of one token the Sampler reads padding alone before that token, and no
# position 0 in it clears the convolution's cache; torch/layers.py:508, torch/sampler.py:266
import sys

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at = torch.arange(2, 14)[None], torch.arange(12)[None]
alone = model(x[:, :1], at[:, :1])[0][0, -1]
# In a batch whose longest prompt has four tokens; the last token is a call of its own.
_, cache = model(torch.zeros(1, 3, dtype=torch.int32), torch.full((1, 3), -1))
found = model(x[:, :1], at[:, :1], cache)[0][0, -1]
print("alone:         ", alone[:4].tolist())
print("behind padding:", found[:4].tolist())
sys.exit(int((alone - found).abs().max() > 1e-3))
