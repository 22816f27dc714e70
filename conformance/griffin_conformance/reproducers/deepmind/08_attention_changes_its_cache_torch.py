# CALL-5, CALL-6, STATE-6: attention writes into the cache that it is given, so that a prompt cannot
# be continued twice; the recurrent cache is a new one; torch/modules.py:212-216
import sys

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
prompt, at = torch.tensor([[5, 6, 7]]), torch.tensor([[0, 1, 2]])
_, cache = model(prompt, at)
once, again = (model(torch.tensor([[8]]), torch.tensor([[3]]), cache)[0][0, -1] for _ in range(2))
print("once: ", once[:4].tolist())
print("again:", again[:4].tolist())
sys.exit(int((once - again).abs().max() > 1e-3))
