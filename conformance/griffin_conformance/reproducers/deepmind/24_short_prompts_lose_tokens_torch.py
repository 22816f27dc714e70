# GEN-2: beside longer prompts the first new tokens are cut off, as many as there was padding;
# torch/sampler.py:418
import sys
from types import SimpleNamespace

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at = torch.arange(2, 14)[None], torch.arange(12)[None]
names = {"pad_id": lambda: 0, "bos_id": lambda: 2, "EncodeAsIds": lambda text: [5] * len(text)}
sampler = port.Sampler(model, SimpleNamespace(**names, DecodeIds=str, eos_id=lambda: -1))
alone, beside = (sampler(prompts, 9).tokens[0].tolist() for prompts in (["abc"], ["abc", "abcdef"]))
print("nine steps alone:", alone, "beside a prompt of three tokens more:", beside)
sys.exit(int(len(alone) != len(beside)))
