# CALL-1: generate cannot read a prompt in chunks, because the model's output has no cache;
# generation/utils.py:4408, modeling_recurrent_gemma.py:752
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3)
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
x, given = torch.arange(2, 14)[None], {"max_new_tokens": 6, "do_sample": False}
whole = model.generate(x, **given)[0, 12:].tolist()
try:
    chunks = model.generate(x, prefill_chunk_size=5, **given)[0, 12:].tolist()
except AttributeError as error:
    sys.exit(f"in chunks: {error}")
print("whole:", whole, "in chunks:", chunks)
sys.exit(int(whole != chunks))
