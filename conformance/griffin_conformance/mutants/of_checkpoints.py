"""Wrong loaders, tokenizers and ends of generation, as :mod:`griffin_conformance.mutants`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from griffin_conformance.mutants import loaders
from griffin_conformance.mutants.mutant import Mutant

__all__ = ["MUTANTS"]


# -- tokenizers


def reads_texts(**methods: Callable) -> Callable:
    """A tokenizer some of whose methods are ``method(right one, argument)``."""

    def wrong(right: Any) -> type:
        class Wrong(right):
            def tokenizer(self, folder):
                vocabulary = super().tokenizer(folder)

                class Text:
                    encode = staticmethod(vocabulary.encode)
                    decode = staticmethod(vocabulary.decode)
                    encode_dialogue = staticmethod(vocabulary.encode_dialogue)

                for name, method in methods.items():
                    setattr(Text, name, staticmethod(bound(method, vocabulary)))
                return Text()

        return Wrong

    return wrong


def bound(method: Callable, vocabulary: Any) -> Callable:
    """The method with the right tokenizer as its first argument."""
    return lambda *args, **options: method(vocabulary, *args, **options)


def two_bos(right, text, bos=True):
    ids = right.encode(text, bos=False)
    rendered = text.startswith("<bos>")
    return [2, 2, *right.encode(text[5:], bos=False)] if bos and rendered else [2] * bos + ids


def rendered(right, messages):
    text = "".join(
        f"<start_of_turn>{m['role']}\n{m['content']}<end_of_turn>\n" for m in messages
    )  # fmt: skip
    return right.encode(text + "<start_of_turn>model\n")


def without_the_header(right, messages):
    ids = right.encode_dialogue(messages)
    return ids[: len(ids) - ids[::-1].index(right.piece_to_id("<start_of_turn>")) - 1]


# -- ends of generation


def generating(answer: Callable) -> Callable:
    """A model whose ``generate`` is ``answer(right one, ends, prompts, options)``."""

    def wrong(right: Any) -> type:
        class Wrong(right):
            def generate(self, prompts, **options):
                listed = set(self.generation.eos_ids) or {self.config.eos_id}
                if options.pop("ignore_eos", False):
                    return super().generate(prompts, ignore_eos=True, **options)
                return answer(super().generate, listed, prompts, options)

        return Wrong

    return wrong


def cut(generation, count: int):
    """The first tokens of a continuation."""
    return replace(generation, tokens=generation.tokens[:count])


def end_of(generation, ends: set[int]) -> int:
    """Where a continuation ends."""
    tokens = generation.tokens
    return next((t for t, token in enumerate(tokens) if token in ends), len(tokens))


def all_stop_together(generate, ends, prompts, options):
    found = generate(prompts, ignore_eos=True, **options)
    return [cut(g, min(end_of(other, ends) for other in found)) for g in found]


def never_in_batches(generate, ends, prompts, options):
    return generate(prompts, ignore_eos=len(prompts) > 1, **options)


def runs_on_with_the_batch(generate, ends, prompts, options):
    found = generate(prompts, ignore_eos=True, **options)
    return [cut(g, max(end_of(other, ends) for other in found)) for g in found]


def first_row_decides(generate, ends, prompts, options):
    found = generate(prompts, ignore_eos=True, **options)
    return [cut(g, end_of(found[0], ends)) for g in found]


def prompts_end_too(generate, ends, prompts, options):
    found = generate(prompts, **options)
    return [
        cut(g, 0 if ends & set(p) else len(g.tokens)) for g, p in zip(found, prompts, strict=True)
    ]


def turns_go_on(right: Any) -> type:
    """Only listed ends are ends."""

    class Wrong(right):
        def attach_tokenizer(self, tokenizer):
            """The model never sees its vocabulary."""

    return Wrong


_PLACES = ("every-tensor-has-its-place",)
_CONFIG = ("configurations-are-read",)
_ENDS = ("rows-stop-by-themselves",)


def loader(name: str, fault: str, clause: str, caught_by: tuple[str, ...], *changes: Callable,
           trap: str = "") -> Mutant:  # fmt: skip
    """A loader with a fault."""
    return Mutant(
        name, fault, caught_by, trap=trap, clause=clause, backend=loaders.misreads(*changes)
    )


MUTANTS: tuple[Mutant, ...] = (
    loader("loader: convolution flipped", "conv_1d.weight is reversed in time", "CKPT-1", _PLACES,
           loaders.every("conv_1d.weight", lambda w: w[..., ::-1].copy()), trap="T13"),
    loader("loader: gates transposed", "both gates' blocks are read as (out, in)", "CKPT-2",
           _PLACES, loaders.every("gate_weight", loaders.turned), trap="T13"),
    loader("loader: input gate transposed", "one gate's blocks are read as (out, in)", "CKPT-2",
           _PLACES, loaders.every("input_gate_weight", loaders.turned), trap="T13"),
    loader("loader: gates exchanged", "input and recurrent gate change places", "CKPT-2", _PLACES,
           loaders.exchanged("recurrent_gate", "input_gate"), trap="T13"),
    loader("loader: square weights turned", "square linear weights are not transposed", "CKPT-3",
           _PLACES, *(loaders.every(f"{n}.weight", loaders.turned) for n in (
               "linear_x", "linear_y", "linear_out", "q_proj", "k_proj", "v_proj", "o_proj",
               "gate_proj", "up_proj", "down_proj")), trap="T13"),
    loader("loader: o_proj turned", "the output matrix of attention is not transposed", "CKPT-3",
           _PLACES, loaders.every("o_proj.weight", loaders.turned), trap="T13"),
    loader("loader: linear_x turned", "a square matrix of the recurrent block is not transposed",
           "CKPT-3", _PLACES, loaders.every("linear_x.weight", loaders.turned), trap="T13"),
    loader("loader: gate and up exchanged", "GeLU acts on up_proj", "CKPT-4", _PLACES,
           loaders.exchanged("gate_proj", "up_proj"), trap="T13"),
    loader("loader: x and y exchanged", "GeLU acts on linear_x", "CKPT-4", _PLACES,
           loaders.exchanged("linear_x", "linear_y"), trap="T13"),
    loader("loader: norms exchanged", "the two norms of a block change places", "CKPT-14", _PLACES,
           loaders.exchanged("temporal_pre_norm", "channel_pre_norm"), trap="T13"),
    loader("loader: biases not read", "biases of the MLP are zero", "CKPT-14", _PLACES,
           *(loaders.every(f"{n}_proj.bias", np.zeros_like) for n in ("gate", "up", "down"))),
    loader("loader: sign of Lambda", "recurrent_param is read with the paper's sign", "CKPT-14",
           _PLACES, loaders.every("recurrent_param", np.negative)),
    loader("loader: not halved", "intermediate_size is taken for the MLP's width", "CKPT-5",
           (*_CONFIG, *_PLACES), loaders.does_not_halve, trap="T25"),
    loader("loader: _block_types ignored", "only block_types is read", "CKPT-6", _CONFIG,
           loaders.without("_block_types"), trap="T26"),
    loader("loader: block_types ignored", "only _block_types is read", "CKPT-6", _CONFIG,
           loaders.without("block_types"), trap="T26"),
    loader("loader: rope_parameters ignored", "rotary settings are read from the top level only",
           "CKPT-7", _CONFIG, loaders.without("rope_parameters"), trap="T26"),
    loader("loader: rope_theta ignored", "rotary settings are read from rope_parameters only",
           "CKPT-7", _CONFIG, loaders.without("rope_theta", "partial_rotary_factor"), trap="T26"),
    loader("loader: scales where told", "a missing embeddings_scale_by_sqrt_dim means no scale",
           "CKPT-8", _CONFIG, loaders.scales_where_told, trap="T26"),
    loader("loader: one key-value head", "num_key_value_heads of null means one", "CKPT-15",
           _CONFIG, loaders.one_key_value_head),
    loader("loader: strict keys", "keys without a meaning are an error", "CKPT-15", _CONFIG,
           loaders.refuses_what_it_does_not_know),
    loader("loader: vocabulary not cut", "the vocabulary is as large as the embedding", "CKPT-9",
           ("larger-vocabularies-are-cut",), loaders.keeps_all_rows, trap="T32"),
    loader("loader: needs a head", "a checkpoint without lm_head.weight is refused", "CKPT-10",
           ("checkpoints-come-in-many-forms",), loaders.needs_a_head),
    loader("loader: 16 bits are bfloat16", "float16 is read as bfloat16", "CKPT-11",
           ("checkpoints-come-in-many-forms",), loaders.halves_are_bfloat16),
    loader("loader: whole rounds", "the pattern is not cut: depth // 3 rounds, and nothing more",
           "BLOCK-3", ("patterns-end-with-the-depth",), loaders.whole_rounds, trap="T27"),
    loader("loader: unknown tensors ignored", "tensors that the model has no place for are "
           "passed over", "CKPT-12", ("broken-checkpoints-are-refused",),
           loaders.ignores_unknown_tensors),
    loader("loader: missing tensors are zero", "norms and biases that are missing are zero",
           "CKPT-12", ("broken-checkpoints-are-refused",), loaders.invents_missing_tensors),
    loader("loader: vocabulary filled up", "rows that the embedding lacks are zero", "CKPT-12",
           ("broken-checkpoints-are-refused",), loaders.pads_the_vocabulary),
    Mutant("loader: cut files", "what a cut file lacks is zero",
           ("broken-checkpoints-are-refused",), clause="CKPT-12", backend=loaders.trusts_lengths),
    Mutant("loader: says little", "no refusal names what is wrong",
           ("refused-checkpoints-are-explained",), clause="CKPT-16", backend=loaders.says_little),
    Mutant("nf4: low nibble first", "the even element is read from the low nibble",
           ("nf4-tensors",), trap="T28", clause="CKPT-13",
           backend=loaders.dequantises(loaders.low_nibble_first)),
    Mutant("nf4: blocks of 128", "the block size is not read",
           ("nf4-tensors",), trap="T28", clause="CKPT-13",
           backend=loaders.dequantises(loaders.retold(blocksize=128))),
    Mutant("nf4: offset forgotten", "quantised scales miss their offset",
           ("nf4-tensors",), trap="T28", clause="CKPT-13",
           backend=loaders.dequantises(loaders.retold(nested_offset=0.0))),
    Mutant("nf4: one scale of scales", "blocks beyond the 256th have the first one's scale",
           ("nf4-tensors",), trap="T28", clause="CKPT-13",
           backend=loaders.dequantises(loaders.one_span)),
    Mutant("tokenizer: two beginnings", "a rendered template gets a second <bos>",
           ("one-bos",), trap="T31", clause="TOK-3",
           backend=reads_texts(encode=two_bos)),
    Mutant("tokenizer: stripped", "white space around a text is lost",
           ("texts-encode",), clause="TOK-1",
           backend=reads_texts(encode=lambda right, text, bos=True: right.encode(
               text.strip(), bos=bos))),
    Mutant("tokenizer: no bytes", "what the vocabulary lacks is unknown",
           ("texts-encode",), clause="TOK-1",
           backend=reads_texts(encode=lambda right, text, bos=True: [
               3 if i in right.byte_values else i for i in right.encode(text, bos=bos)])),
    Mutant("tokenizer: control tokens spelled out", "decoding writes <bos> and <eos>",
           ("texts-decode",), clause="TOK-2",
           backend=reads_texts(decode=lambda right, ids: "".join(
               right.id_to_piece(i) if i in (0, 1, 2) else "" for i in ids) + right.decode(ids))),
    Mutant("tokenizer: spaces cleaned up", "decoding removes spaces before punctuation",
           ("texts-decode",), clause="TOK-2",
           backend=reads_texts(decode=lambda right, ids: right.decode(ids).replace(
               " .", ".").replace(" ,", ",").replace("  ", " "))),
    Mutant("dialogue: no header", "the model's turn is not begun", ("dialogues-are-written",),
           clause="CHAT-1", backend=reads_texts(encode_dialogue=without_the_header)),
    Mutant("dialogue: two beginnings", "a dialogue gets a second <bos>",
           ("dialogues-are-written",), trap="T31", clause="TOK-3",
           backend=reads_texts(encode_dialogue=lambda right, messages: [
               2, *right.encode_dialogue(messages)])),
    Mutant("dialogue: rendered", "markers inside a message become tokens",
           ("messages-end-no-turn",), clause="CHAT-2",
           backend=reads_texts(encode_dialogue=rendered)),
    Mutant("end: all together", "the first row that ends stops the batch", _ENDS, trap="T29",
           clause="GEN-4", model=generating(all_stop_together)),
    Mutant("end: never in batches", "ends are compared with the whole batch, and never seen",
           _ENDS, trap="T29", clause="GEN-4", model=generating(never_in_batches)),
    Mutant("end: first row decides", "the batch goes on until its first row ends", _ENDS,
           trap="T29", clause="GEN-4", model=generating(first_row_decides)),
    Mutant("end: seen in prompts", "a prompt with an end in it has no continuation", _ENDS,
           clause="GEN-4", model=generating(prompts_end_too)),
    Mutant("end: runs on", "rows that have ended get tokens until the last row ends", _ENDS,
           trap="T29", clause="GEN-5", model=generating(runs_on_with_the_batch)),
    Mutant("end: turns go on", "<end_of_turn> ends nothing unless it is listed", ("turns-end",),
           trap="T29", clause="GEN-6", model=turns_go_on),
)  # fmt: skip
"""Faults of loaders, tokenizers and generation's ends."""
