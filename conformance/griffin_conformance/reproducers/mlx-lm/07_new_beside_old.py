# RGLRU-6, BATCH-1: a new row that joins a batch gets a state of zeros in place of none, so that its
# first token is damped; models/cache.py:712, models/recurrent_gemma.py:157
import sys

import mlx.core as mx
from mlx_lm.generate import PromptProcessingBatch
from mlx_lm.models.recurrent_gemma import Model, ModelArgs

args = ["recurrent_gemma", False, 4, 16, 32, 30.0, 2, 2, 1, 1e-6, 1e4, 9, 30, True]
model, old, states = Model(ModelArgs(*args, ["recurrent", "attention"])), None, []
block = model.layers[0].temporal_block
block.conv_1d.weight, block.rg_lru.recurrent_param = mx.ones((16, 4, 1)), mx.full((16,), -6.0)
model(mx.array([[3, 4, 5, 6]]), cache=(old := model.make_cache()))
for caches in ([model.make_cache()], [model.make_cache(), old]):
    batch = PromptProcessingBatch(model, list(range(len(caches))), caches)
    batch.prompt([[7, 8, 9]] * len(caches))
    states.append(mx.linalg.norm(batch.extract_cache(0)[0][1]).item())
print("size of a new row's state alone:", states[0], "beside an old row:", states[1])
sys.exit(int(abs(states[1] / states[0] - 1) > 1e-3))
