# STATE-6: beams reorder the cache, but not the states on the modules, so that each goes on from
# another's; generation/utils.py:3845, modeling_recurrent_gemma.py:338
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3)
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
kept = {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
kept |= {"num_beams": 4, "max_new_tokens": 12, "eos_token_id": None}
best = model.generate(torch.tensor([[3, 4, 5]]), **kept)
text, found = best.sequences, best.sequences_scores.item()
told = model(text, use_cache=False).logits.log_softmax(-1)[:, 2:-1]
told = told.gather(2, text[:, 3:, None]).sum().item()
print("log-probability of the best beam, by the search:", found, "by the model:", told)
sys.exit(int(abs(found - told) > 1e-2))
