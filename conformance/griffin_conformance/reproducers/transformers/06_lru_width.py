# BLOCK-4: the convolution's state is made hidden_size wide, not lru_width, and a prompt of one
# token raises; modeling_recurrent_gemma.py:436, 466
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3, lru_width=24)
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
expected = model(torch.tensor([[5]]), use_cache=False).logits[0, -1]
print("without a cache:", expected[:4].tolist())
try:
    found = model(torch.tensor([[5]]), use_cache=True).logits[0, -1]
except RuntimeError as error:
    sys.exit(f"with a cache: {error}")
print("with a cache:   ", found[:4].tolist())
sys.exit(int((expected - found).abs().max() > 1e-3))
