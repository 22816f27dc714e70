# GEN-4, GEN-5: a batch is never seen to end: its tokens are held against the end's by torch.equal,
# which is false for other shapes; torch/sampler.py:175
import sys
from types import SimpleNamespace

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at = torch.arange(2, 14)[None], torch.arange(12)[None]
names = {"pad_id": lambda: 0, "bos_id": lambda: 2, "EncodeAsIds": lambda text: [7, 3]}
words = SimpleNamespace(**names, DecodeIds=str, eos_id=lambda: -1)
free = port.Sampler(model, words)(["a"], 6).tokens[0].tolist()
words.eos_id = lambda: next(t for t in free if t != free[0])
alone, twice = (port.Sampler(model, words)(["a"] * n, 6).tokens[0].tolist() for n in (1, 2))
print("the end is", words.eos_id(), "alone:", alone, "beside itself:", twice)
sys.exit(int(alone != twice))
