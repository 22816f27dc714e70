# ATTN-1: a token sees W keys, DeepMind's and the specification's W + 1; masking_utils.py:97
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
small |= {"num_hidden_layers": 1, "attention_window_size": 4}
config = RecurrentGemmaConfig(**small, block_types=["attention"])
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, seen = torch.arange(2, 14)[None], 0
last = model(x).logits[0, -1]
for t in range(12):
    changed = x.index_fill(1, torch.tensor(t), 1)
    seen += int((model(changed).logits[0, -1] - last).abs().max() > 1e-4)
print("keys that the last token sees:", seen, "expected:", config.attention_window_size + 1)
sys.exit(int(seen != config.attention_window_size + 1))
