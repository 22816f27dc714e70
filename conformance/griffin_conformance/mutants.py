"""Wrong on purpose: variants of the reference that the suite has to catch.

Each mutant is the reference with one fault that some implementation was seen to have, or could
have. ``caught_by`` names checks that must fail for it: the suite has to say where the fault is,
and not only that there is one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import griffin_np
from griffin_conformance import bookkeeping, faults
from griffin_conformance.backends.reference import NumPyBackend
from griffin_conformance.faults import (
    ORIGINAL,
    attention_variant,
    conv_variant,
    in_place,
    rg_lru_variant,
    rope_variant,
    scan_in,
    to_bfloat16,
)
from griffin_np import model
from griffin_np.params import flatten

__all__ = ["MUTANTS", "Mutant", "mutate"]

PASSES_ON = ("linear", "rms_norm", "gelu", "causal_conv", "rope", "local_attention", "embed")
"""Functions whose results are activations."""


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes
    ----------
    name : str
    fault : str
        What is wrong.
    caught_by : tuple of str
        Checks that fail.
    functions : dict
        Functions of the reference by name, and what takes their place.
    parameters : callable, optional
        From flat parameters to wrong ones.
    model : callable, optional
        From the model class to a wrong subclass.
    rounding : tuple of str
        Precisions in which it is a fault of rounding only, and need not stand far outside the
        envelope, nor outside at all.
    trap : str
        Number of the known fault of public implementations that it stands for, if any.
    clause : str
        Clause of the specification that it violates: the suite has to name it.
    base : callable, optional
        Makes the right backend that it is a variant of, for a dtype; the reference by default.
    backend : callable, optional
        From the backend class to a wrong subclass.
    """

    name: str
    fault: str
    caught_by: tuple[str, ...]
    functions: dict[str, Callable] = field(default_factory=dict)
    parameters: Callable | None = None
    model: Callable | None = None
    rounding: tuple[str, ...] = ()
    trap: str = ""
    clause: str = ""
    compiled: bool = False
    backend: Callable | None = None


NO_FAULT = Mutant("none", "nothing is wrong", ())


def mutate(mutant: Mutant = NO_FAULT, dtype: str = "float32") -> NumPyBackend:
    """The reference as a backend, with the fault in it.

    In bfloat16, where the reference has no such dtype, everything that passes between operations is
    rounded to it: a right program of that precision, but for the fault.
    """
    functions = dict(mutant.functions)
    if dtype == "bfloat16":
        for name in PASSES_ON:
            functions[name] = faults.then_rounded(functions.get(name, ORIGINAL[name]))

    class Wrong(model.NumPyModel):
        def _forward(self, *args):
            with in_place(functions):
                return super()._forward(*args)

    wrong_model = mutant.model(Wrong) if mutant.model else Wrong

    class WrongBackend(NumPyBackend):
        dtypes = (*NumPyBackend.dtypes, "bfloat16")

        def cast(self, array):
            single = array is not None and self.dtype == "bfloat16"
            return np.asarray(array, np.float32) if single else super().cast(array)

        def tree(self, flat):
            return super().tree(mutant.parameters(dict(flat)) if mutant.parameters else flat)

        def model(self, config, flat):
            kind = model.NumPyModel if mutant.compiled else wrong_model
            return kind(config, self.tree(flat))

        def compiled(self, config, flat):
            if not mutant.compiled:
                return super().compiled(config, flat)
            return wrong_model(config, self.tree(flat))

        def load(self, folder):
            found = griffin_np.load(folder, "numpy", np.dtype(self.cast(0.0).dtype).name)
            loaded = self.model(found.config, flatten(found.parameters))
            loaded.attach_tokenizer(found.tokenizer)
            loaded.generation = found.generation
            return loaded

    def with_fault(operation):
        def call(self, *args):
            with in_place({} if mutant.compiled else functions):
                return operation(self, *args)

        return call

    for operation in (
        "block", "embed", "rms_norm", "linear", "gelu", "causal_conv", "gate", "decay", "scan",
        "rg_lru", "rope", "attention", "logits",
    ):  # fmt: skip
        setattr(WrongBackend, operation, with_fault(getattr(NumPyBackend, operation)))
    backend = (mutant.backend(WrongBackend) if mutant.backend else WrongBackend)(dtype)
    backend.name = f"the reference, mutant: {mutant.name}"
    return backend


# -- wrong parameters: faults of loaders


def each(leaf: str, change: Callable) -> Callable:
    """Change every array whose name ends so."""
    return lambda flat: {n: change(a) if n.endswith(leaf) else a for n, a in flat.items()}


def swapped(one: str, other: str) -> Callable:
    """Exchange arrays whose names differ in one part, where their shapes allow it."""

    def swap(flat):
        result = dict(flat)
        for name, array in flat.items():
            twin = name.replace(one, other) if one in name else name.replace(other, one)
            if twin in flat and flat[twin].shape == array.shape:
                result[name] = flat[twin]
        return result

    return swap


def transposed(array):
    """The transpose of square matrices, which no shape check can see."""
    return array.swapaxes(-1, -2).copy() if array.shape[-1] == array.shape[-2] else array


_bf16 = to_bfloat16
_T13 = ("recurrent-blocks", "whole-texts")

MUTANTS: tuple[Mutant, ...] = (
    Mutant("window of W keys", "a token sees W keys, its own among them",
           ("the-window-shows-w-past-tokens", "attentions", "attention-blocks"),
           {"local_attention": attention_variant(window=lambda w: w - 1)}, trap="T01",
           clause="ATTN-1"),
    Mutant("no window", "a token sees everything before it",
           ("the-window-shows-w-past-tokens", "attentions", "any-chunking"),
           {"local_attention": attention_variant(window=lambda w: 10**9)}, trap="T02",
           clause="ATTN-2"),
    Mutant("ring too short", "the ring drops its oldest key one token too early",
           ("decoding-continues-a-prompt", "state-values"), {"roll": faults.short_ring},
           trap="T03", clause="ATTN-7"),
    Mutant("ring lost after three rounds", "entries of the ring move once it went round thrice",
           ("states-evolve",), {"roll": faults.late_ring}, clause="ATTN-7"),
    Mutant("multiplier lost when compiled", "a compiled model leaves sqrt(1 - a^2) out",
           ("compiled-as-written",), {"multiplier": np.ones_like}, trap="T23", clause="CALL-10",
           compiled=True),
    Mutant("long prompts masked by columns",
           "a prompt beyond the window keeps its last keys, and masks them as the first",
           ("nothing-sees-the-future", "attentions"),
           {"local_attention": faults.masked_by_columns}, trap="T04", clause="ATTN-3"),
    Mutant("stale keys", "a fresh document attends to what the model has read before",
           ("nothing-stays-in-the-model",), model=bookkeeping.stale_keys, trap="T07",
           clause="CALL-4"),
    Mutant("state as wide as the stream", "single tokens fail where lru_width is not width",
           ("decoding-continues-a-prompt", "greedy-text"),
           model=bookkeeping.state_as_wide_as_the_stream, trap="T24", clause="BLOCK-4"),
    Mutant("scaled against the configuration", "embeddings are scaled also where they must not be",
           ("whole-texts",),
           {"embed": lambda p, c, t: ORIGINAL["embed"](p, c.replace(scale_embeddings=True), t)},
           clause="EMBED-2"),
    Mutant("epsilon outside the root", "RMSNorm divides by sqrt(mean(x^2)) + eps",
           ("rms-norms",),
           {"rms_norm": lambda x, scale, eps: x / (
               np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + eps) * (1 + scale)},
           clause="NORM-1"),
    Mutant("gates by tanh", "gates are (1 + tanh(z / 2)) / 2, which is 0 for small ones",
           ("gates",), {"sigmoid": lambda z: (1 + np.tanh(z / 2)) / 2}, clause="GATE-2",
           rounding=("float64", "float32", "bfloat16")),
    Mutant("sign of Lambda", "a_param enters with the other sign", ("decays", "recurrences"),
           {"softplus": lambda z: ORIGINAL["softplus"](-z)}, clause="RGLRU-1"),
    Mutant("slots keep documents", "entries outside the current document are not zero",
           ("state-values",), model=bookkeeping.remembers_documents, clause="STATE-2"),
    Mutant("padding counted", "the state's position counts padding",
           ("padding-on-the-left",), model=bookkeeping.counts_padding, clause="STATE-3"),
    Mutant("wavering model", "the same call does not give the same", ("calls-are-pure",),
           model=bookkeeping.wavers, clause="CALL-6"),
    Mutant("early end", "positions beyond 2^24 are refused", ("late-positions",),
           model=bookkeeping.ends_early, clause="STATE-9"),
    Mutant("nameless refusals", "refusals do not say where", ("refusals-name-the-place",),
           model=bookkeeping.says_little, clause="CALL-9"),
    Mutant("sees the future", "a token sees the one after it",
           ("nothing-sees-the-future", "attentions"),
           {"local_attention": attention_variant(future=1)}, trap="T05", clause="ATTN-3"),
    Mutant("damped start", "a document's first input is multiplied by sqrt(1 - a^2)",
           ("recurrences", "recurrent-blocks"), {"rg_lru": rg_lru_variant(undamped_start=False)},
           trap="T06", clause="RGLRU-6"),
    Mutant("stale state", "a fresh one-token prompt continues what was read before",
           ("nothing-stays-in-the-model",), model=bookkeeping.stale_state, trap="T10",
           clause="CALL-4"),
    Mutant("recurrence not reset", "position 0 does not reset the recurrence",
           ("packed-documents", "position-0-forgets", "recurrences"),
           {"rg_lru": rg_lru_variant(forgets=False)}, trap="T08", clause="RGLRU-5"),
    Mutant("short documents not reset", "a call of one token at position 0 keeps the state",
           ("recurrences", "padding-anywhere"),
           {"rg_lru": rg_lru_variant(long_only=True)}, trap="T08", clause="RGLRU-5"),
    Mutant("convolution not reset", "the convolution sees the document before",
           ("packed-documents", "padding-anywhere"),
           {"causal_conv": conv_variant(masks_documents=False)}, trap="T08", clause="CONV-3"),
    Mutant("attention not reset", "attention sees the document before",
           ("packed-documents", "rows-are-independent"),
           {"local_attention": attention_variant(documents=False)}, trap="T08", clause="ATTN-6"),
    Mutant("convolution cache not cleared",
           "after packing, the cache of a document of one or two tokens holds the one before",
           ("decoding-continues-packed-documents",),
           {"causal_conv": conv_variant(trusts_cache=True)}, trap="T09", clause="CONV-4"),
    Mutant("padding in the convolution", "padding on the left enters the convolution's cache",
           ("padding-on-the-left", "decoding-continues-padded-rows"),
           {"causal_conv": conv_variant(trusts_cache=True)},
           model=bookkeeping.pads_reach_the_convolution,
           trap="T11", clause="CONV-5"),
    Mutant("chunks overwrite the convolution cache",
           "a call of more than one token does not read the convolution's cache",
           ("any-chunking", "convolutions"), {"causal_conv": conv_variant(reads_cache=False)},
           trap="T12", clause="CONV-2"),
    Mutant("convolution flipped", "the first row of the weights meets the current token",
           _T13, parameters=each("conv.weight", lambda w: w[::-1].copy()), trap="T13",
           clause="CONV-1"),
    Mutant("gates transposed", "the gates' blocks are (out, in)",
           _T13, parameters=lambda flat: each("w_a", transposed)(each("w_x", transposed)(flat)),
           trap="T13", clause="GATE-1"),
    Mutant("gate matrix transposed at use", "the gates multiply from the left",
           ("gates", "recurrences"),
           {"block_diagonal": lambda x, w, b: ORIGINAL["block_diagonal"](x, transposed(w), b)},
           trap="T13", clause="GATE-1"),
    Mutant("MLP branches swapped", "GeLU acts on the other branch",
           (*_T13, "attention-blocks"), parameters=swapped("mlp.gate", "mlp.up"), trap="T13",
           clause="MLP-2"),
    Mutant("recurrent branches swapped", "the convolution is in the GeLU branch",
           _T13, parameters=swapped("linear_x", "linear_y"), trap="T13", clause="BLOCK-2"),
    Mutant("gates swapped", "input gate and recurrence gate are exchanged",
           _T13, parameters=lambda flat: swapped("w_a", "w_x")(swapped("b_a", "b_x")(flat)),
           trap="T13", clause="GATE-3"),
    Mutant("queries transposed", "the square query matrix is (out, in)",
           ("attention-blocks", "whole-texts"), parameters=each("query.weight", transposed),
           trap="T13", clause="ATTN-9"),
    Mutant("attention output transposed", "the square output matrix is (out, in)",
           ("attention-blocks", "whole-texts"), parameters=each("output.weight", transposed),
           trap="T13", clause="ATTN-9"),
    Mutant("norms swapped", "temporal and MLP norm scales are exchanged",
           (*_T13, "attention-blocks"), parameters=swapped("temporal_norm", "mlp_norm"),
           trap="T13", clause="BLOCK-1"),
    Mutant("exact embedding scale", "embeddings are multiplied by sqrt(width), not rounded",
           ("embeddings-are-scaled", "whole-texts"),
           {"embed": lambda p, c, t: p["embedding"][t] * (
               math.sqrt(c.width) if c.scale_embeddings else 1)}, rounding=("bfloat16",),
           trap="T14", clause="EMBED-1"),
    Mutant("no embedding scale", "embeddings are not multiplied",
           ("embeddings-are-scaled", "whole-texts"),
           {"embed": lambda p, c, t: p["embedding"][t]}, trap="T14", clause="EMBED-1"),
    Mutant("no soft cap", "logits are not capped", ("logits-and-soft-caps", "whole-texts"),
           {"head": lambda p, c, x: x @ p["embedding"].T}, trap="T15", clause="HEAD-1"),
    Mutant("a cap of 0 is a cap", "logits are 0 where there should be no cap",
           ("logits-and-soft-caps", "whole-texts"),
           {"head": lambda p, c, x: ORIGINAL["head"](p, c, x) * (c.logits_soft_cap > 0)},
           trap="T15", clause="HEAD-2"),
    Mutant("epsilon of 1e-5", "RMSNorm adds 1e-5", ("rms-norms", "recurrent-blocks"),
           {"rms_norm": lambda x, scale, eps: ORIGINAL["rms_norm"](x, scale, 1e-5)}, trap="T16",
           clause="NORM-3"),
    Mutant("norm scale without one", "RMSNorm multiplies by scale, not 1 + scale",
           ("rms-norms", "whole-texts"),
           {"rms_norm": lambda x, scale, eps: ORIGINAL["rms_norm"](x, scale - 1, eps)}, trap="T17",
           clause="NORM-2"),
    Mutant("rotary angles in bfloat16", "positions above 256 cannot be told apart",
           ("rotary-embeddings", "late-positions"),
           {"rope": rope_variant(angle=lambda p, f: _bf16(_bf16(p * 1.0) * _bf16(f)))}, trap="T18",
           clause="ROPE-4"),
    Mutant("rotary angles in float32", "angles drift at late positions",
           ("rotary-embeddings", "late-positions"),
           {"rope": rope_variant(angle=lambda p, f: np.float32(p) * np.float32(f))}, trap="T18",
           clause="ROPE-4"),
    Mutant("rotation of the whole head", "RoPE turns all channels",
           ("rotary-embeddings", "attention-blocks"),
           {"rope": rope_variant(share=lambda turned, d: d // 2 * 2)}, trap="T19", clause="ROPE-1"),
    Mutant("interleaved rotation", "RoPE turns neighbouring channels",
           ("rotary-embeddings", "attention-blocks"), {"rope": rope_variant(interleaved=True)},
           trap="T19", clause="ROPE-2"),
    Mutant("naive softplus", "log(1 + exp(z)) as written",
           ("decays", "multipliers-keep-their-digits"),
           {"softplus": lambda z: np.log(1 + np.exp(z))}, trap="T20", clause="RGLRU-2"),
    Mutant("cancelling multiplier", "sqrt(1 - exp(2 log a)), which loses digits near a = 1",
           ("multipliers-keep-their-digits",),
           {"multiplier": lambda log_a: np.sqrt(np.maximum(1 - np.exp(2 * log_a), 0))},
           rounding=("float64", "float32", "bfloat16"), trap="T21", clause="RGLRU-3"),
    Mutant("multiplier in bfloat16", "sqrt(1 - a^2) with a rounded to bfloat16",
           ("decays", "recurrences"),
           {"multiplier": lambda log_a: np.sqrt(np.maximum(1 - _bf16(np.exp(log_a)) ** 2, 0))},
           trap="T21", clause="RGLRU-4"),
    Mutant("no multiplier", "sqrt(1 - a^2) is left out", ("decays", "recurrences"),
           {"multiplier": np.ones_like}, trap="T23", clause="RGLRU-4"),
    Mutant("state in bfloat16", "the recurrent state has 8 bits", ("scans", "long-scans"),
           {"scan": scan_in(_bf16)}, trap="T22", clause="RGLRU-7"),
    Mutant("state in float16", "the recurrent state has 11 bits", ("scans", "long-scans"),
           {"scan": scan_in(np.float16)}, trap="T22", clause="RGLRU-7"),
    Mutant("drifting state", "the state grows by one unit in its last place with every step",
           ("scans", "long-scans"),
           {"scan": scan_in(lambda h: np.nextafter(h, np.array(np.inf, h.dtype)))},
           clause="RGLRU-8"),
    Mutant("shared state", "two sessions share one recurrent state",
           ("sessions-do-not-mix", "calls-are-pure"), model=bookkeeping.shares_its_state,
           trap="T10", clause="STATE-7"),
    Mutant("writes into its input", "the caller's state is updated in place",
           ("calls-are-pure",), model=bookkeeping.writes_into_its_input, trap="T30",
           clause="CALL-5"),
    Mutant("rows leak", "a row of a batch gets another row's state",
           ("rows-are-independent", "state-values"), model=bookkeeping.rows_leak, clause="BATCH-1"),
    Mutant("padding has logits", "logits of padding are not 0",
           ("padding-anywhere",), model=bookkeeping.padding_has_logits, clause="PAD-4"),
    Mutant("logits of the last column", "the last logits are not those of the last token",
           ("last-logits",), model=bookkeeping.last_column, clause="CALL-7"),
    Mutant("GeLU by erf", "GeLU in its exact form", ("gelu-by-tanh", "recurrent-blocks"),
           {"gelu": faults.gelu_by_erf}, rounding=("bfloat16",), clause="MLP-1"),
    Mutant("attention scaled by width", "scores are divided by sqrt(heads times head size)",
           ("attentions", "attention-blocks"),
           {"local_attention": attention_variant(scale=lambda d, H: math.sqrt(d * H))},
           clause="ATTN-4"),
    Mutant("key-value heads in turn", "query head h uses key-value head h mod Q",
           ("attentions",), {"local_attention": attention_variant(shared=lambda h, H, Q: h % Q)},
           clause="ATTN-5"),
    Mutant("biases left out", "linear layers add no bias", ("linear-layers", "recurrent-blocks"),
           {"linear": lambda p, x: x @ p["weight"]}, clause="LIN-1"),
    Mutant("growing state", "the state takes more bytes the longer the text was",
           ("state-size",), model=bookkeeping.returns(bookkeeping.GrowingState), clause="STATE-4"),
    Mutant("lossy state files", "states are saved in half precision",
           ("saved-states-continue",), model=bookkeeping.returns(bookkeeping.LossyState),
           clause="STATE-5"),
    Mutant("rows selected out of order", "select sorts its rows",
           ("forks-are-independent",), model=bookkeeping.returns(bookkeeping.SortedState),
           clause="STATE-6"),
    Mutant("no positions, new document", "a call without positions does not continue the state",
           ("decoding-continues-a-prompt", "sessions-do-not-mix"), model=bookkeeping.starts_anew,
           clause="CALL-3"),
    Mutant("none forgets", "a call without logits leaves the state where it was",
           ("last-logits",), model=bookkeeping.none_forgets, clause="CALL-7"),
    Mutant("eight rows", "rows of a batch beyond the eighth are not computed",
           ("rows-are-independent",), model=bookkeeping.eight_rows, clause="BATCH-2"),
    Mutant("positions trusted", "positions are not checked against the state",
           ("impossible-calls-are-refused", "refusals-name-the-place"),
           model=bookkeeping.trusts_positions, clause="CALL-8"),
    Mutant("caller's position moved", "the position of the caller's state is updated in place",
           ("calls-are-pure",), model=bookkeeping.moves_the_callers_position, clause="CALL-5"),
    Mutant("state shows nothing", "the arrays of the state are missing",
           ("state-values",), model=bookkeeping.returns(bookkeeping.BareState), clause="STATE-1"),
    Mutant("scan in tiles", "the state is lost after every 128 steps",
           ("whole-texts", "recurrent-blocks", "scans"), {"scan": faults.scan_in_tiles(128)},
           clause="RGLRU-9"),
    Mutant("softmax as written", "the maximum is not taken out, and large scores overflow",
           ("attentions",), {"softmax": faults.softmax_as_written}, rounding=("float64",),
           clause="ATTN-4"),
    Mutant("fixed base of rotation", "RoPE always has base 10000",
           ("rotary-embeddings", "whole-texts"),
           {"rope": lambda x, at, base, turned: ORIGINAL["rope"](x, at, 10000.0, turned)},
           clause="ROPE-3"),
    Mutant("fixed epsilon", "RMSNorm always adds 1e-6", ("rms-norms", "whole-texts"),
           {"rms_norm": lambda x, scale, eps: ORIGINAL["rms_norm"](x, scale, 1e-6)}, trap="T16",
           clause="NORM-3"),
    Mutant("anything goes", "positions, tokens and states are not checked",
           ("impossible-calls-are-refused", "foreign-states-are-refused"),
           model=bookkeeping.anything_goes, clause="CALL-8"),
    Mutant("seed depends on the batch", "a row draws other tokens in a larger batch",
           ("seeds-repeat",), model=bookkeeping.forgets_its_seed, clause="GEN-3"),
    Mutant("second best token", "the best token is excluded", ("best-tokens", "greedy-text"),
           model=bookkeeping.takes_the_second_best, clause="GEN-1"),
)  # fmt: skip
"""All faults; every check of the suite is failed by one of them at least."""
