# CALL-4: a prompt of one token goes on from the convolution's state that the prompt before left;
# modeling_recurrent_gemma.py:434, 448 (generate brings a cache, so that :650 clears nothing)
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3)
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
prompt, other = torch.tensor([[5]]), torch.tensor([[7, 8, 9, 10]])
given = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
first, _, second = (model.generate(x, **given)[0].tolist() for x in (prompt, other, prompt))
print("first: ", first)
print("second:", second)
sys.exit(int(first != second))
