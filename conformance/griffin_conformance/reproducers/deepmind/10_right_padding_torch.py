# PAD-2, STATE-3: after a row that ends in padding attention's cache counts no tokens, and the other
# caches have read the padding; torch/modules.py:275, torch/layers.py:526
import sys

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
text, at = torch.tensor([[5, 6, 7, 8, 9, 4]]), torch.arange(6)[None]
alone = model(text, at)[0][0, -1]
pad = torch.nn.functional.pad
_, cache = model(pad(text[:, :5], (0, 2)), pad(at[:, :5], (0, 2), value=-1))
found = model(text[:, 5:], at[:, 5:], cache)[0][0, -1]
print("alone:        ", alone[:4].tolist())
print("after padding:", found[:4].tolist())
sys.exit(int((alone - found).abs().max() > 1e-3))
