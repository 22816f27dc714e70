# ROPE-3: rope_theta is read and not used, its place is always taken by 10000;
# models/recurrent_gemma.py:239-242
import sys

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.recurrent_gemma import Model, ModelArgs

found = []
for theta in (1e4, 500.0):
    # type, bias, conv, width, 2 mlp, cap, heads, layers, kv heads, eps, ... vocab, scale
    args = ["recurrent_gemma", False, 4, 16, 32, 30.0, 2, 1, 1, 1e-6, theta, 9, 30, True]
    model = Model(ModelArgs(*args, ["attention"]))
    mx.random.seed(0)
    model.update(tree_map(lambda p: 0.4 * mx.random.normal(p.shape), model.parameters()))
    found.append(model(mx.arange(2, 10)[None]))
moved = mx.abs(found[0] - found[1]).max().item()
print("change of the logits from rope_theta 10000 to 500:", moved)
sys.exit(int(moved == 0))
