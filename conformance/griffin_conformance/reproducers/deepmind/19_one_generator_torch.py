# GEN-3: one generator draws for the whole batch, and no seed can be passed: a row's text depends on
# how many rows there are; torch/sampler.py:133
import sys
from types import SimpleNamespace

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at = torch.arange(2, 14)[None], torch.arange(12)[None]
names = {"pad_id": lambda: 0, "bos_id": lambda: 2, "EncodeAsIds": lambda text: [5]}
sampler = port.Sampler(model, SimpleNamespace(**names, DecodeIds=str, eos_id=lambda: -1), False)
found = {}
for n in (1, 2):
    found[n] = torch.manual_seed(1) and sampler(["a"] * n, 9).tokens[0].tolist()
print("alone:", found[1], "beside another:", found[2])
sys.exit(int(found[1] != found[2]))
