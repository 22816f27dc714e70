# NORM-3: norms of blocks always add 1e-5, only the last heeds rms_norm_eps;
# models/recurrent_gemma.py:40, 320, 336
import sys

import mlx.core as mx
from mlx_lm.models.recurrent_gemma import Model, ModelArgs

names = {"model_type": "recurrent_gemma", "attention_bias": False, "conv1d_width": 4}
sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 30, "num_attention_heads": 2}
more = {"num_hidden_layers": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
last = {"logits_soft_cap": 30.0, "attention_window_size": 4, "block_types": ["attention"]}
model, x = Model(ModelArgs(**names, **sizes, **more, **last)), mx.full((16,), 1e-3)
block = model.layers[0]
norms = {"temporal": block.temporal_pre_norm, "channel": block.channel_pre_norm}
sizes = {k: norm(x)[0].item() for k, norm in (norms | {"final": model.model.final_norm}).items()}
print("norms of 0.001 under rms_norm_eps 1e-6 and the same weights:", sizes)
sys.exit(int(max(sizes.values()) - min(sizes.values()) > 1e-3))
