# GEN-2: a model without attention blocks cannot generate; cache_utils.py:1773, utils.py:789
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3, block_types=["recurrent"])
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
prompt = torch.tensor([[5, 6, 7]])
best = model(prompt, use_cache=False).logits[0, -1].argmax().item()
print("best next token:", best)
try:
    found = model.generate(prompt, max_new_tokens=1, do_sample=False)[0, -1].item()
except ValueError as error:
    sys.exit(f"generate: {error}")
print("generate:", found)
sys.exit(int(best != found))
