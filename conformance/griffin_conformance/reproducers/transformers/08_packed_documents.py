# CONV-3, DOC-2: the convolution runs over the border of packed documents that position_ids tell;
# modeling_recurrent_gemma.py:446, 455
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3)
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at = torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.tensor([[0, 1, 2, 0, 1, 2]])
alone = model(x[:, 3:], use_cache=False).logits[0, -1]
found = model(x, position_ids=at, use_cache=False).logits[0, -1]
print("alone: ", alone[:4].tolist())
print("packed:", found[:4].tolist())
sys.exit(int((alone - found).abs().max() > 1e-3))
