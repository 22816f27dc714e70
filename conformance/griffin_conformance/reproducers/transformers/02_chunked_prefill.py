# CONV-2, CALL-1: a later call of several tokens overwrites the convolution's state and does not
# read it; modeling_recurrent_gemma.py:444-446
import sys

import torch
from transformers import DynamicCache, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3)
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at, cache = torch.arange(2, 14)[None], torch.arange(12)[None], DynamicCache(config=config)
whole = model(x, use_cache=False).logits[0, -1]
for part in (slice(0, 5), slice(5, 12)):
    found = model(x[:, part], position_ids=at[:, part], cache=cache, use_cache=True).logits[0, -1]
print("in one call: ", whole[:4].tolist())
print("in two calls:", found[:4].tolist())
sys.exit(int((whole - found).abs().max() > 1e-3))
