# RGLRU-7: in bfloat16 a decay near 1 becomes 1 and its multiplier 0, so that nothing enters the
# state; modeling_recurrent_gemma.py:319-330
import sys

import torch
from transformers import RecurrentGemmaConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

torch.set_grad_enabled(False)
module = RecurrentGemmaRglru(RecurrentGemmaConfig(hidden_size=4, num_attention_heads=1))
[torch.nn.init.zeros_(p) for p in module.parameters()]
module.recurrent_param.fill_(-9.0)  # r is 1/2 and a = exp(-4 softplus(-9)) = 0.9995
found = []
for dtype in (torch.float32, torch.bfloat16):
    module.to(dtype).recurrent_states = None
    module(torch.ones(1, 200, 4, dtype=dtype), torch.arange(1, 201)[None])
    found.append(module.recurrent_states[0, 0].item())
print("state after 200 steps: float32", found[0], "bfloat16", found[1])
sys.exit(int(abs(found[0] - found[1]) > 0.1 * found[0]))
