"""Wrong quantised models, one fault each, that level 5 has to catch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from griffin_conformance.backends.quantised import GROUP, Matrix, QuantisedNumPy
from griffin_conformance.mutants import bookkeeping, states
from griffin_conformance.mutants.functions import (
    ORIGINAL,
    attention_variant,
    conv_variant,
    rg_lru_variant,
    short_ring,
    to_bfloat16,
)
from griffin_conformance.mutants.mutant import Mutant

__all__ = ["QUANTISED_MUTANTS", "QuantisedMutant", "mutate_quantised", "right_model"]


@dataclass(frozen=True)
class QuantisedMutant(Mutant):
    """A fault of a quantised model.

    Attributes
    ----------
    methods : dict
        Methods of :class:`~griffin_conformance.backends.quantised.QuantisedNumPy` by name, and what
        takes their place: a function of the right method and its arguments.
    dtypes : tuple of str
        Dtypes in which it is a fault.
    """

    methods: tuple[tuple[str, Callable], ...] = ()
    dtypes: tuple[str, ...] = ("int8", "int4")


@lru_cache(maxsize=8)
def right_model(dtype: str) -> QuantisedNumPy:
    """The model without a fault."""
    return QuantisedNumPy(dtype)


def mutate_quantised(mutant: Mutant, dtype: str = "int8") -> QuantisedNumPy:
    """The quantised NumPy model as a backend, with the fault in it."""
    assert isinstance(mutant, QuantisedMutant)

    def replaced(name: str, wrong: Callable) -> Callable:
        right = getattr(QuantisedNumPy, name)
        return lambda self, *args: wrong(self, right, *args)

    changed: dict[str, Any] = {name: replaced(name, wrong) for name, wrong in mutant.methods}
    if not mutant.methods:
        # Weights are right, so the truth about them is that of the right model, made once.
        changed["profile"] = property(lambda self: right_model(dtype).profile)
    right = QuantisedNumPy.functions
    changed["functions"] = lambda self, of: right(self, of) | mutant.functions
    if (wrong_model := mutant.model) is not None:
        changed["answering"] = lambda self, model_class: wrong_model(model_class)
    backend = type("Wrong", (QuantisedNumPy,), changed)(dtype)
    backend.name = f"the quantised reference, mutant: {mutant.name}"
    return backend


def of_whole_rows(self, right, weights):
    """One step for all inputs of an output, in place of one for each group."""
    steps = np.abs(weights).max(axis=0) / np.float32(self.largest)
    codes = np.rint(weights / np.where(steps > 0, steps, 1)).astype(np.int32)
    return Matrix(codes, np.repeat(steps[None], self.groups(len(weights)).max() + 1, axis=0))


def of_all_outputs(self, right, weights):
    """One step for all outputs of a group."""
    matrix = right(self, weights)
    steps = np.broadcast_to(matrix.steps.max(axis=1, keepdims=True), matrix.steps.shape)
    whole = np.where(steps > 0, steps, 1)[self.groups(len(weights))]
    return Matrix(np.rint(weights / whole).astype(np.int32), steps)


def with_codes(change: Callable) -> Callable:
    """Products with other codes than those of the weights that are held."""

    def wrong(self, right, x, matrix):
        return right(self, x, Matrix(change(matrix.codes.copy()), matrix.steps))

    return wrong


def swapped_in_pairs(codes):
    """Neighbours exchanged, as low and high halves of bytes are."""
    even = len(codes) // 2 * 2
    codes[:even] = codes[:even].reshape(-1, 2, codes.shape[1])[:, ::-1].reshape(even, -1)
    return codes


def sixteenth_missing(codes):
    """The last input of a group is left out."""
    codes[GROUP - 1 :: GROUP] = 0
    return codes


def in_groups_of(size: int) -> Callable:
    """Activations grouped otherwise than told."""

    def wrong(self, right, x):
        codes, steps = np.empty(x.shape, np.int32), []
        for start in range(0, x.shape[1], size):
            top = np.abs(x[:, start : start + size]).max(axis=1, keepdims=True) / np.float32(127)
            codes[:, start : start + size] = np.rint(
                x[:, start : start + size] / np.where(top > 0, top, 1)
            )
            steps.append(top)
        wide = np.repeat(np.concatenate(steps, axis=1), size // GROUP, axis=1)
        return codes, wide[:, : self.groups(x.shape[1]).max() + 1]

    return wrong


def of_all_tokens(self, right, x):
    """One step for a group of all tokens of a call."""
    steps = np.broadcast_to(right(self, x)[1].max(axis=0, initial=0), right(self, x)[1].shape)
    whole = np.where(steps > 0, steps, 1)[:, self.groups(x.shape[1])]
    return np.rint(x / whole).astype(np.int32), steps


def of_the_row_before(self, right, x):
    """Each token's codes are multiplied by the steps of the one before."""
    codes, steps = right(self, x)
    return codes, np.roll(steps, 1, axis=0)


def cut_off(self, right, x):
    """Activations rounded toward zero."""
    _, steps = right(self, x)
    whole = np.where(steps > 0, steps, 1)[:, self.groups(x.shape[1])]
    return np.trunc(x / whole).astype(np.int32), steps


def to_7_bits(self, right, x):
    """Activations with 63 as the largest code."""
    _, steps = right(self, x)
    steps = steps * np.float32(127 / 63)
    whole = np.where(steps > 0, steps, 1)[:, self.groups(x.shape[1])]
    return np.rint(x / whole).astype(np.int32), steps


def from_0_to_255(self, right, x):
    """Activations with a zero point, which is forgotten in the products."""
    codes, steps = right(self, x)
    return codes + 1, steps


def boundary_off(self, right, inputs):
    """Groups of the activations and weights begin one input late."""
    return np.maximum(np.arange(inputs) - 1, 0) // GROUP


def also(*leaves: str) -> Callable:
    """Parameters of these names are quantised as well."""
    return lambda self, right, name: right(self, name) or name.rpartition(".")[2] in leaves


def as_given(self, right, config, flat):
    """What is shown are the weights before they were rounded."""
    return {name: np.asarray(array, np.float64) for name, array in flat.items()}


_M = QuantisedMutant
_PRODUCT = ("quantised-products", "quantised-blocks")

QUANTISED_MUTANTS: tuple[QuantisedMutant, ...] = (
    _M("steps of whole rows", "one step for an output in place of one for each group",
       ("quantised-weights",), clause="QUANT-3", methods=(("quantise", of_whole_rows),)),
    _M("steps of all outputs", "the outputs of a group share a step",
       ("quantised-weights",), clause="QUANT-3", methods=(("quantise", of_all_outputs),)),
    _M("weights cut off", "weights are rounded toward zero",
       ("quantised-weights",), clause="QUANT-3",
       methods=(("nearest", lambda self, right, x: np.trunc(x)),)),
    _M("weights rounded down", "weights are rounded down",
       ("quantised-weights",), clause="QUANT-3",
       methods=(("nearest", lambda self, right, x: np.floor(x)),)),
    _M("steps off by one code", "the step puts the largest weight on one code more",
       ("quantised-weights",), clause="QUANT-3",
       methods=(("stored", lambda self, right, steps: steps * np.float32(
           self.largest / (self.largest + 1))),), dtypes=("int4",)),
    _M("groups begin late", "groups of inputs begin one input late",
       ("quantised-weights", *_PRODUCT), clause="QUANT-3", methods=(("groups", boundary_off),)),
    _M("steps in bfloat16", "products use steps that are rounded to bfloat16",
       _PRODUCT, clause="QUANT-1",
       methods=(("step_at_use", lambda self, right, steps: to_bfloat16(steps)),)),
    _M("steps off by one in 127", "products use steps of the largest on one code more",
       _PRODUCT, clause="QUANT-1",
       methods=(("step_at_use", lambda self, right, steps: steps * np.float32(127 / 128)),)),
    _M("steps of the next group", "each group is multiplied by its neighbour's steps",
       _PRODUCT, clause="QUANT-1",
       methods=(("multiply", lambda self, right, x, matrix: right(
           self, x, replace(matrix, steps=np.roll(matrix.steps, 1, axis=0)))),)),
    _M("halves of bytes swapped", "neighbouring codes are exchanged",
       _PRODUCT, clause="QUANT-1", methods=(("multiply", with_codes(swapped_in_pairs)),)),
    _M("zero point", "codes of weights are one too large in products",
       _PRODUCT, clause="QUANT-1", methods=(("multiply", with_codes(lambda q: q + 1)),)),
    _M("last of a group lost", "the last input of a group is left out",
       _PRODUCT, clause="QUANT-1", methods=(("multiply", with_codes(sixteenth_missing)),)),
    _M("smallest code lost", "the largest magnitudes are one code too small in products",
       _PRODUCT, clause="QUANT-1",
       methods=(("multiply", with_codes(lambda q: np.clip(q, 1 - q.max(initial=1),
                                                          q.max(initial=1) - 1))),)),
    _M("wide groups of activations", "activations have one step for twice as many inputs",
       _PRODUCT, clause="QUANT-1", methods=(("round_inputs", in_groups_of(2 * GROUP)),)),
    _M("activations of all tokens", "activations share a step over the tokens of a call",
       ("quantised-any-chunking", *_PRODUCT), clause="QUANT-1",
       methods=(("round_inputs", of_all_tokens),)),
    _M("steps of the token before", "activations are multiplied by another token's steps",
       _PRODUCT, clause="QUANT-1", methods=(("round_inputs", of_the_row_before),)),
    _M("activations cut off", "activations are rounded toward zero",
       _PRODUCT, clause="QUANT-1", methods=(("round_inputs", cut_off),)),
    _M("activations of 7 bits", "activations have half as many codes",
       _PRODUCT, clause="QUANT-1", methods=(("round_inputs", to_7_bits),)),
    _M("activations' zero point", "codes of activations are one too large",
       _PRODUCT, clause="QUANT-1", methods=(("round_inputs", from_0_to_255),)),
    _M("Lambda quantised", "the decays' parameters are quantised",
       ("parameters-that-stay",), clause="QUANT-2", methods=(("is_quantised", also("a_param")),)),
    _M("gates quantised", "the gates' matrices are quantised",
       ("parameters-that-stay",), clause="QUANT-2",
       methods=(("is_quantised", also("w_a", "w_x")),)),
    _M("biases and norms quantised", "biases and the norms' scales are quantised",
       ("parameters-that-stay",), clause="QUANT-2",
       methods=(("is_quantised", also("bias", "temporal_norm", "mlp_norm", "final_norm")),)),
    _M("original weights shown", "the weights that are shown are not those that are held",
       ("quantised-weights",), clause="QUANT-3",
       methods=(("dequantised", as_given),)),
    _M("steps with room to spare", "steps grow whenever weights are quantised again",
       ("quantised-again",), clause="QUANT-5",
       methods=(("stored", lambda self, right, steps: steps * np.float32(1.003)),)),
    _M("epsilon of 1e-5", "RMSNorm adds 1e-5", ("quantised-whole-texts", "quantised-blocks"),
       {"rms_norm": lambda x, scale, eps: ORIGINAL["rms_norm"](x, scale, 1e-5)}, clause="QUANT-1"),
    _M("ring too short", "the ring drops its oldest key one token too early",
       ("quantised-state-values",), {"roll": short_ring}, clause="QUANT-1"),
    _M("second best token", "the best token is excluded", ("quantised-best-tokens",),
       model=bookkeeping.takes_the_second_best, clause="QUANT-1"),
    _M("chunks overwrite the convolution cache", "a call of some tokens does not read the cache",
       ("quantised-any-chunking",), {"causal_conv": conv_variant(reads_cache=False)},
       clause="QUANT-4"),
    _M("recurrence not reset", "position 0 does not reset the recurrence",
       ("quantised-packed-documents", "quantised-position-0-forgets"),
       {"rg_lru": rg_lru_variant(forgets=False)}, clause="QUANT-4"),
    _M("convolution cache not cleared", "after packing, the cache holds the document before",
       ("quantised-decoding-continues-packed-documents",),
       {"causal_conv": conv_variant(trusts_cache=True)}, clause="QUANT-4"),
    _M("padding in the convolution", "padding on the left enters the convolution's cache",
       ("quantised-decoding-continues-padded-rows",),
       {"causal_conv": conv_variant(trusts_cache=True)},
       model=bookkeeping.pads_reach_the_convolution, clause="QUANT-4"),
    _M("sees the future", "a token sees the one after it", ("quantised-nothing-sees-the-future",),
       {"local_attention": attention_variant(future=1)}, clause="QUANT-4"),
    *(_M(name, fault, (f"quantised-{caught}",), model=wrong, clause="QUANT-4")
      for name, fault, caught, wrong in (
          ("padding has logits", "logits of padding are not 0", "padding-anywhere",
           bookkeeping.padding_has_logits),
          ("no positions, new document", "a call without positions does not continue the state",
           "decoding-continues-a-prompt", bookkeeping.starts_anew),
          ("rows leak", "a row of a batch gets another row's state", "rows-are-independent",
           bookkeeping.rows_leak),
          ("stale state", "a fresh one-token prompt continues what was read before",
           "nothing-stays-in-the-model", bookkeeping.stale_state),
          ("writes into its input", "the caller's state is updated in place", "calls-are-pure",
           bookkeeping.writes_into_its_input),
          ("logits of the last column", "the last logits are not those of the last token",
           "last-logits", bookkeeping.last_column),
          ("lossy state files", "states are saved in half precision", "saved-states-continue",
           states.returns(states.LossyState)),
          ("rows selected out of order", "select sorts its rows", "forks-are-independent",
           states.returns(states.SortedState)),
          ("shared state", "two sessions share one recurrent state", "sessions-do-not-mix",
           bookkeeping.shares_its_state),
          ("anything goes", "states of other models are taken", "foreign-states-are-refused",
           bookkeeping.anything_goes),
      )),
)  # fmt: skip
"""All faults of quantised models; in every dtype that it is a fault in, each is caught by all of
its checks."""
