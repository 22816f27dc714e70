# DOC-1, CONV-3, ATTN-6: position 0 starts no document where there is a cache: convolution and
# attention go on with the one before; torch/layers.py:499, torch/modules.py:441
import sys

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at = torch.arange(2, 14)[None], torch.arange(12)[None]
_, cache = model(x[:, :4], at[:, :4])
alone = model(x[:, :1], at[:, :1])[0][0, -1]
found = model(x[:, :1], at[:, :1], cache)[0][0, -1]
print("alone:        ", alone[:4].tolist())
print("after another:", found[:4].tolist())
sys.exit(int((alone - found).abs().max() > 1e-3))
