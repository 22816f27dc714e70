# ROPE-4: angles are products of float32 numbers, for which neighbours beyond 2^24 are one position;
# modeling_recurrent_gemma.py:105
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3, block_types=["attention"])
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, at = torch.arange(2, 10)[None], torch.arange(8)[None]
early = model(x, position_ids=at, use_cache=False).logits[0, -1]
late = model(x, position_ids=at + 2**25, use_cache=False).logits[0, -1]
print("from position 0:   ", early[:4].tolist())
print("from position 2^25:", late[:4].tolist())  # attention depends on distances only
sys.exit(int((early - late).abs().max() > 1e-3))
