# CONV-1, ATTN-5, ROPE-1: conv1d_width, num_key_value_heads and partial_rotary_factor are not used;
# models/recurrent_gemma.py:236-242, 268, 375-384
import sys

from mlx_lm.models.recurrent_gemma import Model, ModelArgs

names = {"model_type": "recurrent_gemma", "attention_bias": False, "conv1d_width": 2}
sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 30, "num_attention_heads": 2}
more = {"num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
last = {"logits_soft_cap": 30.0, "attention_window_size": 4, "partial_rotary_factor": 1.0}
told = names | sizes | more | last | {"block_types": ["recurrent", "attention"]}
recurrent, attention = (b.temporal_block for b in Model(ModelArgs.from_dict(told)).layers)
found = recurrent.conv_1d.weight.shape[1], attention.k_proj.weight.shape[0], attention.rope.dims
print("convolution, keys and turned channels:", found, "expected:", (2, 16, 8))
sys.exit(int(found != (2, 16, 8)))
