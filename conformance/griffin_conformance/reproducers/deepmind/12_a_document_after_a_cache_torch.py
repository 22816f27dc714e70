# DOC-1, CONV-3, ATTN-6: position 0 starts no document where there is a cache: convolution and
# attention go on with the one before; torch/layers.py:499, torch/modules.py:441
import sys

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
_, cache = model(torch.tensor([[9, 8, 7, 6]]), torch.arange(4)[None])
text, start = torch.tensor([[5]]), torch.tensor([[0]])
alone = model(text, start)[0][0, -1]
found = model(text, start, cache)[0][0, -1]
print("alone:        ", alone[:4].tolist())
print("after another:", found[:4].tolist())
sys.exit(int((alone - found).abs().max() > 1e-3))
