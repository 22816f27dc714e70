# CONV-5, PAD-1: the convolution runs over padding; modeling_recurrent_gemma.py:446, 455
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3)
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
text, padded = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 0, 5, 6, 7, 8]])
mask, at = (padded != 0).long(), torch.tensor([[0, 0, 0, 1, 2, 3]])
alone = model(text, use_cache=False).logits[0, -1]
found = model(padded, attention_mask=mask, position_ids=at, use_cache=False).logits[0, -1]
print("alone: ", alone[:4].tolist())
print("padded:", found[:4].tolist())
sys.exit(int((alone - found).abs().max() > 1e-3))
