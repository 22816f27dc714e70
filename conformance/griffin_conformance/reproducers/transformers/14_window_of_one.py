# ATTN-7: with a window of 1 the cache keeps all keys, because [-1 + 1 :] is all; cache_utils.py:246
import sys

import torch
from transformers import DynamicCache, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
small |= {"num_hidden_layers": 3, "attention_window_size": 1}
config = RecurrentGemmaConfig(**small, block_types=["attention"])
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at, cache = torch.arange(2, 10)[None], torch.arange(8)[None], DynamicCache(config=config)
whole = model(x, use_cache=False).logits[0, -1]
for t in range(8):
    found = model(x[:, [t]], position_ids=at[:, [t]], cache=cache, use_cache=True).logits[0, -1]
print("in one call:   ", whole[:4].tolist())
print("token by token:", found[:4].tolist())
sys.exit(int((whole - found).abs().max() > 1e-3))
