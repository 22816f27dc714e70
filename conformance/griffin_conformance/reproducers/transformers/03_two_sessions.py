# STATE-7, CALL-4: two caches on one model share recurrent and convolution states, which live on
# the modules; modeling_recurrent_gemma.py:299, 338, 413, 451
import sys

import torch
from transformers import DynamicCache, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3)
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
a, at = torch.arange(2, 8)[None], torch.arange(6)[None]
alone, caches = model(a, use_cache=False).logits[0, -1], [DynamicCache(config=config) for _ in "ab"]
for t in range(6):
    for x, cache in ((a + 10, caches[0]), (a, caches[1])):
        found = model(x[:, [t]], position_ids=at[:, [t]], cache=cache, use_cache=True).logits[0, -1]
print("alone:                 ", alone[:4].tolist())
print("beside another session:", found[:4].tolist())
sys.exit(int((alone - found).abs().max() > 1e-3))
