# PAD-1, CONV-5, BATCH-1: shorter prompts' filling is read; models/recurrent_gemma.py:212-213
import sys
from types import SimpleNamespace

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm import batch_generate
from mlx_lm.models.recurrent_gemma import Model, ModelArgs

args = ["recurrent_gemma", False, 4, 16, 32, 30.0, 2, 2, 1, 1e-6, 1e4, 9, 30, True]
model = Model(ModelArgs(*args, ["recurrent", "attention"]))
mx.random.seed(0)
model.update(tree_map(lambda p: 0.4 * mx.random.normal(p.shape), model.parameters()))
end, asked = SimpleNamespace(eos_token_ids=[], decode=str), {"max_tokens": 4}
alone, beside = (
    batch_generate(model, end, prompts, return_logprobs=True, **asked).logprobs[0]
    for prompts in ([[3, 4]], [[3, 4], [5, 6, 7, 8, 9]])
)
print("log-probabilities alone:", alone, "beside a longer prompt:", beside)
sys.exit(int(max(abs(a - b) for a, b in zip(alone, beside, strict=True)) > 1e-3))
