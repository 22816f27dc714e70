# BLOCK-3: without a block of attention no model can be made; models/recurrent_gemma.py:389
import sys

from mlx_lm.models.recurrent_gemma import Model, ModelArgs

names = {"model_type": "recurrent_gemma", "attention_bias": False, "conv1d_width": 4}
sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 30, "num_attention_heads": 2}
more = {"num_hidden_layers": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
last = {"logits_soft_cap": 30.0, "attention_window_size": 4, "block_types": ["recurrent"]}
try:
    Model(ModelArgs(**names, **sizes, **more, **last))
except ValueError as error:
    sys.exit(f"a model of recurrences alone: {error}")
print("a model of recurrences alone is made")
