# PAD-2, STATE-3: after a row that ends in padding attention's cache counts no tokens, and the other
# caches have read the padding; torch/modules.py:275, torch/layers.py:526
import sys

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at = torch.arange(2, 14)[None], torch.arange(12)[None]
alone = model(x[:, :6], at[:, :6])[0][0, -1]
padded = torch.where(at < 5, x, 0)[:, :7], torch.where(at < 5, at, -1)[:, :7]
found = model(x[:, 5:6], at[:, 5:6], model(*padded)[1])[0][0, -1]
print("alone:        ", alone[:4].tolist())
print("after padding:", found[:4].tolist())
sys.exit(int((alone - found).abs().max() > 1e-3))
