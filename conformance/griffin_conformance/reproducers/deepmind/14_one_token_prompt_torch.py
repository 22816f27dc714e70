# GEN-2: the Sampler cannot take prompts of one token, such as BOS alone: it asks for no logits, and
# cuts them; torch/sampler.py:251-261
import sys
from types import SimpleNamespace

import torch
from recurrentgemma import torch as port

torch.manual_seed(0), torch.set_grad_enabled(False)
kinds = tuple(port.TemporalBlockType)  # attention, recurrent
model = port.Griffin(port.GriffinConfig(30, 16, 32, 2, kinds, True, 9, 30.0))
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at = torch.arange(2, 14)[None], torch.arange(12)[None]
names = {"pad_id": lambda: 0, "eos_id": lambda: 1, "bos_id": lambda: 2, "DecodeIds": str}
words = SimpleNamespace(**names, EncodeAsIds=lambda text: [])
try:
    print(port.Sampler(model, words)([""], 4).tokens)
except TypeError as error:
    sys.exit(f"four tokens after BOS: TypeError: {error}")
