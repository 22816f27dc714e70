# GEN-3: a batch draws from one generator, so that a seed's text depends on the rows beside it;
# generation/utils.py:3277
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3)
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
given, texts = {"do_sample": True, "max_new_tokens": 8, "eos_token_id": None}, []
for rows in (1, 3):
    torch.manual_seed(0)
    texts.append(model.generate(torch.tensor([[5, 6, 7]] * rows), **given)[-1].tolist())
print("alone:     ", texts[0])
print("in a batch:", texts[1])
sys.exit(int(texts[0] != texts[1]))
