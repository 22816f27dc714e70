# CALL-5, CALL-6, STATE-6: attention writes into the cache that it is given, so that a prompt cannot
# be continued twice; what the recurrent blocks give is new; torch/modules.py:212-216
import sys

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at = torch.arange(2, 14)[None], torch.arange(12)[None]
_, cache = model(x[:, :3], at[:, :3])
once, again = (model(x[:, 3:4], at[:, 3:4], cache)[0][0, -1] for _ in range(2))
print("once: ", once[:4].tolist())
print("again:", again[:4].tolist())
sys.exit(int((once - again).abs().max() > 1e-3))
