# STATE-6, CALL-4: a copied cache leaves the recurrent states behind, so that a prefix can be reused
# once only; modeling_recurrent_gemma.py:299, 338, 413, 451
import copy
import sys

import torch
from transformers import DynamicCache, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0), torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = RecurrentGemmaConfig(**small, num_hidden_layers=3)
model = RecurrentGemmaForCausalLM(config).eval()
[torch.nn.init.normal_(p, std=0.4) for p in model.parameters()]
prefix, cache = torch.arange(2, 8)[None], DynamicCache(config=config)
model(prefix, position_ids=torch.arange(6)[None], cache=cache, use_cache=True)
copies = [copy.deepcopy(cache), copy.deepcopy(cache)]
x, given = torch.tensor([[9]]), {"position_ids": torch.tensor([[6]]), "use_cache": True}
first, second = (model(x, cache=kept, **given).logits[0, -1] for kept in copies)
print("first: ", first[:4].tolist(), "second:", second[:4].tolist())
sys.exit(int((first - second).abs().max() > 1e-3))
