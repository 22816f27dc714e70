# EMBED-1: sqrt(width) is not rounded to bfloat16 as in training: 50.596 in place of 50.5 for the
# released 2B model in float32; models/recurrent_gemma.py:398
import sys

import mlx.core as mx
from mlx_lm.models.recurrent_gemma import Model, ModelArgs

names = {"model_type": "recurrent_gemma", "attention_bias": False, "conv1d_width": 4}
sizes = {"hidden_size": 2560, "intermediate_size": 2, "vocab_size": 3, "num_attention_heads": 10}
more = {"num_hidden_layers": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
last = {"logits_soft_cap": 30.0, "attention_window_size": 4, "block_types": ["attention"]}
model, entered = Model(ModelArgs(**names, **sizes, **more, **last)), []
model.model.embed_tokens.weight = mx.ones((3, 2560))
model.model.layers = [lambda x, **given: entered.append(x) or x]
model(mx.array([[0]]))
print("1 in the embedding enters the first block as", entered[0][0, 0, 0].item(), "expected 50.5")
sys.exit(int(entered[0][0, 0, 0].item() != 50.5))
