# PAD-1: a mask without position_ids leaves the text at positions 2, 3: no reset, and a damped first
# token; modeling_recurrent_gemma.py:654-657, 307
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3, block_types=["recurrent"])
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
[layer.temporal_block.conv_1d.weight[..., :-1].zero_() for layer in model.model.layers]  # not 05
padded, mask = torch.tensor([[0, 0, 5, 6]]), torch.tensor([[0, 0, 1, 1]])
alone = model(torch.tensor([[5, 6]]), use_cache=False).logits[0, -1]
found = model(padded, attention_mask=mask, use_cache=False).logits[0, -1]
print("alone: ", alone[:4].tolist())
print("padded:", found[:4].tolist())
sys.exit(int((alone - found).abs().max() > 1e-3))
