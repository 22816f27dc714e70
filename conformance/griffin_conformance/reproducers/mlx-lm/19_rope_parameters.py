# CKPT-7: rope_theta is taken from the top level alone, where transformers 5 no longer writes it;
# models/recurrent_gemma.py:25
import sys

from mlx_lm.models.recurrent_gemma import ModelArgs

names = {"model_type": "recurrent_gemma", "attention_bias": False, "conv1d_width": 4}
sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 30, "num_attention_heads": 2}
more = {"num_hidden_layers": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6}
rope = {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}
last = {"logits_soft_cap": 30.0, "attention_window_size": 4, "block_types": ["attention"]}
try:
    ModelArgs.from_dict(names | sizes | more | rope | last)
except TypeError as error:
    sys.exit(f"a config.json of transformers 5: {error}")
print("a config.json of transformers 5 is read")
