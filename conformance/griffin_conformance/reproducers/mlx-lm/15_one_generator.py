# GEN-3: one random generator for all rows: what a row draws depends on the others;
# sample_utils.py:271-273
import sys
from types import SimpleNamespace

import mlx.core as mx
from mlx_lm import batch_generate
from mlx_lm.models.recurrent_gemma import Model, ModelArgs
from mlx_lm.sample_utils import make_sampler

args = ["recurrent_gemma", False, 4, 16, 32, 30.0, 2, 2, 1, 1e-6, 1e4, 9, 30, True]
model, found = Model(ModelArgs(*args, ["recurrent", "attention"])), []
end, asked = SimpleNamespace(eos_token_ids=[], decode=str), {"max_tokens": 8}
for prompts in ([[3, 4]], [[3, 4], [5, 6]]):
    mx.random.seed(0)
    asked |= {"sampler": make_sampler(temp=1.0), "return_token_ids": True}
    found.append(batch_generate(model, end, prompts, **asked).token_ids[0])
print("alone:", found[0], "beside another row:", found[1])
sys.exit(int(found[0] != found[1]))
