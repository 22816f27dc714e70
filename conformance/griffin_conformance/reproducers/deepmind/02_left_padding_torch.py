# CONV-5, PAD-1: what is read of a row of one token before that token is padding alone, and no
# position 0 in it masks the convolution's cache; torch/layers.py:499-508, torch/sampler.py:266-271
import sys

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
text = torch.tensor([[5]])
alone = model(text, torch.tensor([[0]]))[0][0, -1]
# As the Sampler for a batch whose longest prompt has four tokens: the last in a call of its own.
_, cache = model(torch.zeros(1, 3, dtype=torch.int32), torch.full((1, 3), -1))
found = model(text, torch.tensor([[0]]), cache)[0][0, -1]
print("alone:         ", alone[:4].tolist())
print("behind padding:", found[:4].tolist())
sys.exit(int((alone - found).abs().max() > 1e-3))
