# GEN-4, GEN-5: whether the first new token is the end is not looked at; torch/sampler.py:334
import sys
from types import SimpleNamespace

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at = torch.arange(2, 14)[None], torch.arange(12)[None]
names = {"pad_id": lambda: 0, "bos_id": lambda: 2, "EncodeAsIds": lambda text: [4]}
words = SimpleNamespace(**names, DecodeIds=str, eos_id=lambda: -1)
free = port.Sampler(model, words)(["a"], 6).tokens[0].tolist()
words.eos_id = lambda: free[0]
ended = port.Sampler(model, words)(["a"], 6).tokens[0].tolist()
print("the end is", free[0], "in", ended)
sys.exit(int(any(ended[1:])))
