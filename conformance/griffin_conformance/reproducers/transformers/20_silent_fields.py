# CKPT-6, EMBED-2: two fields of the released config.json are taken in silence and never read;
# configuration_recurrent_gemma.py:75, modeling_recurrent_gemma.py:671
import sys

import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaModel

torch.set_grad_enabled(False)
small = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
told = {"_block_types": ["attention"], "embeddings_scale_by_sqrt_dim": False}
config = RecurrentGemmaConfig.from_dict(small | told)
model, x = RecurrentGemmaModel(config).eval(), torch.tensor([[5]])
streams = model(x, output_hidden_states=True, use_cache=False).hidden_states
scale = (streams[0].norm() / model.embed_tokens(x).norm()).item()
print("block types:", list(config.block_types), "expected:", told["_block_types"])
print("embeddings are multiplied by:", round(scale, 3), "expected: 1.0")
sys.exit(int(list(config.block_types) != told["_block_types"] or abs(scale - 1) > 1e-3))
