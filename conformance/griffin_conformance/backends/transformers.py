"""RecurrentGemma in transformers 5, on the CPU in float32: two adapters, for two questions.

``transformers`` shows it as it is, with its own window: ``attention_window_size`` is W, as in the
released checkpoints, and it is asked for every configuration that has a field there. A fault that
many configurations share, such as the window, then stands before all others.

``transformers-w1`` shows what else is wrong. It gives the window W + 1, because transformers counts
the token itself, and does not ask for what the first adapter fails anyway: a recurrence of another
width than the model, logits without a cap. It calls the model as one who knows it would; see
:class:`~griffin_conformance.backends.transformers_model.CarefulModel`.

Both call transformers' own modules and functions, and repair nothing.
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.activations import ACT2FN
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from griffin_conformance.backends import Backend, versions_of
from griffin_conformance.backends.transformers_model import (
    CarefulModel,
    Session,
    TransformersModel,
    build,
    our_config,
    quiet,
    quietly,
    tensor,
    their_config,
    theirs,
)
from griffin_np.checkpoints.hf_names import tensor_names
from griffin_np.config import ATTENTION, RECURRENT, GriffinConfig

__all__ = [
    "Session",
    "TransformersBackend",
    "TransformersModel",
    "TransformersW1",
    "build",
    "quiet",
]


def mask_of(config, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
    """The attention mask that transformers' model hands to its layers for x (1, T, D)."""
    return create_sliding_window_causal_mask(config, x, None, None, position_ids=positions)


def row(array) -> torch.Tensor:
    """One row as a batch."""
    return tensor(array)[None]


def small(width: int, heads: int = 1, kind: str = RECURRENT, **fields) -> GriffinConfig:
    """A configuration of one block, for a single operation."""
    return GriffinConfig(
        width=width, depth=1, num_heads=heads, vocab_size=3, block_pattern=(kind,), **fields
    )


class GivenStream(torch.nn.Module):
    """In place of a model: a residual stream that has gone through the final norm."""

    def __init__(self, x: torch.Tensor):
        super().__init__()
        self.x = x

    def forward(self, **_):
        return BaseModelOutput(last_hidden_state=self.x)


class Vocabulary:
    """``AutoTokenizer``, called as its documentation does."""

    @quietly
    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @quietly
    def encode(self, text, bos=True):
        """Token ids of a text."""
        return self.tokenizer.encode(text, add_special_tokens=bos)

    @quietly
    def decode(self, ids):
        """Text of token ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    @quietly
    def encode_dialogue(self, messages):
        """Token ids of a dialogue, by the template of the folder."""
        given = {"add_generation_prompt": True, "return_dict": False}
        return self.tokenizer.apply_chat_template(messages, **given)


class TransformersBackend(Backend):
    """``RecurrentGemmaForCausalLM`` of transformers as it is."""

    name = "transformers"
    dtypes = ("float32",)
    more_keys = 0
    """Added to the window to get ``attention_window_size``."""

    models: type[TransformersModel] = TransformersModel

    def adapt(self, config):
        """Scaled embeddings: there is no field that would switch the scaling off."""
        return config.replace(scale_embeddings=True)

    def versions(self):
        return super().versions() | versions_of("torch", "transformers")

    @quietly
    def model(self, config, flat):
        return self.models(config, build(config, flat, config.window + self.more_keys))

    @quietly
    def load(self, folder):
        config = self.read_config(folder)
        ours = our_config(config, config.attention_window_size)
        config.attention_window_size += self.more_keys
        model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
        return self.models(ours, model)

    def read_config(self, folder):
        """What transformers makes of a ``config.json``."""
        return AutoConfig.from_pretrained(folder)

    def tokenizer(self, folder):
        return Vocabulary(folder)

    @quietly
    def compiled(self, config, flat):
        """The model after ``torch.compile``, which traces it anew for every shape of call.

        The traced operations are run as they are, so that nothing but tracing can change a result.
        """
        torch._dynamo.reset()
        model = self.model(config, flat)
        model.model = torch.compile(model.model, backend="eager")
        return model

    @quietly
    def block(self, config, flat, i, x, positions):
        model = build(config, flat, config.window + self.more_keys)
        x, places = row(x), torch.tensor(positions)[None]
        mask = mask_of(model.config, x, places)
        return model.model.layers[i](x, places, mask, use_cache=False)[0].numpy()

    # -- operations

    @quietly
    def embed(self, rows):
        model = theirs.RecurrentGemmaModel(their_config(small(rows.shape[1])))
        found = model(inputs_embeds=row(rows), output_hidden_states=True, use_cache=False)
        return found.hidden_states[0][0].numpy()

    @quietly
    def rms_norm(self, x, scale, eps):
        norm = theirs.RecurrentGemmaRMSNorm(len(scale), eps)
        norm.weight.copy_(tensor(scale))
        return norm(tensor(x)).numpy()

    @quietly
    def linear(self, x, weight, bias):
        bias = None if bias is None else tensor(bias)
        return torch.nn.functional.linear(tensor(x), tensor(weight.T), bias).numpy()

    @quietly
    def gelu(self, x):
        return ACT2FN["gelu_pytorch_tanh"](tensor(x)).numpy()

    @quietly
    def causal_conv(self, x, weight, bias, positions, past):
        # The recurrent block, with all but its convolution made to pass its input on.
        K, R = weight.shape
        block = theirs.RecurrentGemmaRecurrentBlock(their_config(small(R, conv_width=K)), 0)
        for layer in (block.linear_x, block.linear_out):
            layer.weight.copy_(torch.eye(R))
            layer.bias.zero_()
        block.linear_y.weight.zero_()
        block.linear_y.bias.fill_(1)
        block.act_fn = torch.nn.Identity()
        block.rg_lru.forward = lambda x, position_ids: x
        block.conv_1d.weight.copy_(tensor(weight.T[:, None]))
        block.conv_1d.bias.copy_(tensor(bias))
        block.conv1d_state = row(past.T)
        y, _ = block(row(x), torch.tensor(positions)[None], None, use_cache=True)
        return y[0].numpy(), block.conv1d_state[0].numpy().T

    def _rg_lru(self, width: int, heads: int):
        return theirs.RecurrentGemmaRglru(their_config(small(width, heads)))

    @quietly
    def scan(self, a, x, h):
        reset = torch.zeros(1, len(x), 1, dtype=torch.bool)
        states, _ = self._rg_lru(x.shape[1], 1)._rnn_scan(row(x), row(a), reset, row(h))
        return states[0].numpy()

    @quietly
    def rg_lru(self, x, p, positions, h):
        module = self._rg_lru(x.shape[1], len(p["b_a"]))
        names = tensor_names(small(x.shape[1]))
        for name, array in p.items():
            their_name = names[f"blocks.0.recurrent.rg_lru.{name}"][0].rpartition(".")[2]
            getattr(module, their_name).copy_(tensor(array))
        module.recurrent_states = row(h)
        return module(row(x), torch.tensor(positions)[None])[0].numpy()

    @quietly
    def rope(self, x, positions, base, rotary_dim):
        _, H, d = x.shape
        fraction = min((rotary_dim + 0.25) / d, 1.0)  # transformers rounds down
        config = small(H * d, H, ATTENTION, rope_base=base, rope_fraction=fraction)
        x = row(x)
        places = torch.tensor(positions)[None]
        cos, sin = theirs.RecurrentGemmaRotaryEmbedding(their_config(config))(x, places)
        turned, _ = theirs.apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
        return turned[0].numpy()

    @quietly
    def attention(self, q, k, v, positions, window):
        (T, H, d), Q = q.shape, k.shape[1]
        config = small(H * d, H, ATTENTION, num_kv_heads=Q, window=window, rope_fraction=0.0)
        config = their_config(config, window + self.more_keys)
        module = theirs.RecurrentGemmaAttention(config, 0).eval()
        mask = mask_of(config, torch.zeros(1, T, H * d), torch.tensor(positions)[None])
        attend = ALL_ATTENTION_FUNCTIONS[config._attn_implementation]
        heads_first = (row(array).transpose(1, 2) for array in (q, k, v))
        y, _ = attend(module, *heads_first, mask, scaling=module.scaling,
                      sliding_window=module.sliding_window)  # fmt: skip
        return y[0].numpy()

    @quietly
    def logits(self, x, embedding, cap):
        V, D = embedding.shape
        config = their_config(small(D, logits_soft_cap=cap).replace(vocab_size=max(V, 3)))
        model = theirs.RecurrentGemmaForCausalLM(config)
        model.model = GivenStream(row(x))
        model.lm_head.weight = torch.nn.Parameter(tensor(embedding))
        return model().logits[0].numpy()


class TransformersW1(TransformersBackend):
    """The same with the window W + 1, and without what :class:`TransformersBackend` fails."""

    name = "transformers-w1"
    cannot = frozenset({"no soft cap", "lru_width is not width"})
    more_keys = 1
    models = CarefulModel

    def adapt(self, config):
        """Capped logits too, and a recurrence as wide as the model.

        A cap of 0 gives logits of 0 and NaN. There is a field for another ``lru_width``, but states
        are made ``hidden_size`` wide, so that a first call of one token ends in an error.
        """
        return (
            super()
            .adapt(config)
            .replace(lru_width=config.width, logits_soft_cap=config.logits_soft_cap or 30.0)
        )

    def read_config(self, folder):
        """The same with the block pattern, which transformers does not look for under this name."""
        config = super().read_config(folder)
        config.block_types = list(getattr(config, "_block_types", config.block_types))
        return config
