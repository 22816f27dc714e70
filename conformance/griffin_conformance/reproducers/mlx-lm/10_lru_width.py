# BLOCK-4: lru_width is not read, the recurrence is always as wide as the model;
# models/recurrent_gemma.py:13-31, 383
import sys

from mlx_lm.models.recurrent_gemma import Model, ModelArgs

names = {"model_type": "recurrent_gemma", "attention_bias": False, "conv1d_width": 4}
sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 30, "num_attention_heads": 2}
more = {"num_hidden_layers": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
last = {"logits_soft_cap": 30.0, "attention_window_size": 4, "lru_width": 24}
told = names | sizes | more | last | {"block_types": ["recurrent", "attention"]}
width = Model(ModelArgs.from_dict(told)).layers[0].temporal_block.lru_width
print("width of the recurrence:", width, "expected: 24")
sys.exit(int(width != 24))
