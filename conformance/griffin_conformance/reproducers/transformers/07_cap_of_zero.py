# HEAD-2: a cap of 0, DeepMind's way to switch it off, divides by 0 and multiplies by 0; None is
# refused (configuration); modeling_recurrent_gemma.py:745-746
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3, logits_soft_cap=0.0)
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x = torch.tensor([[5, 6, 7]])
expected = model.lm_head(model.model(x).last_hidden_state)[0, -1]
found = model(x).logits[0, -1]
print("the head gives:", expected[:4].tolist())
print("logits:        ", found[:4].tolist())
sys.exit(int(not torch.allclose(expected, found, atol=1e-3)))
