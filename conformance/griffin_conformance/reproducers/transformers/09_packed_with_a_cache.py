# ATTN-6: packed documents attend to each other as soon as there is a cache; masking_utils.py:865
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3, block_types=["attention"])
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at = torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.tensor([[0, 1, 2, 0, 1, 2]])
apart = model(x, position_ids=at, use_cache=False).logits[0, -1]
found = model(x, position_ids=at, use_cache=True).logits[0, -1]
print("without a cache:", apart[:4].tolist())
print("with a cache:   ", found[:4].tolist())
sys.exit(int((apart - found).abs().max() > 1e-3))
