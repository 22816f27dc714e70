"""Wrong readings of a checkpoint, each of which fits all shapes, and finding the one that was made.

A loader that exchanges or turns weights of equal shapes loads without a word. The oracle computes
what each such mistake comes to; the one whose logits a backend gives is the one it makes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.checkpoint_files import ROLES, FolderCase, stored
from griffin_conformance.envelope import Envelope, norms
from griffin_conformance.oracle import Oracle
from griffin_conformance.rounding import Profile

__all__ = ["MISREADINGS", "Misreading", "misreading_of"]

Flat = Mapping[str, NDArray]
BEGIN = Oracle.__init__
EXPLAINS, CERTAIN = 1e-2, 1e-4
"""A reading explains a result that it leaves nearer than this share of its distance to the truth;
with the smaller share no other need be tried."""


@dataclass(frozen=True)
class Misreading:
    """A mistake, the clause that it violates, and the weights that it comes to."""

    title: str
    clause: str
    read: Callable[[Flat], dict[str, NDArray]]


def change(title: str, clause: str, function: Callable, *leaves: str) -> Misreading:
    """Every array whose name ends so is changed, where its shape stays."""

    def read(flat: Flat) -> dict[str, NDArray]:
        found = dict(flat)
        for name, array in flat.items():
            turned = function(array) if name.endswith(leaves) else array
            found[name] = turned if turned.shape == array.shape else array
        return found

    return Misreading(title, clause, read)


def exchange(title: str, clause: str, one: str, other: str) -> Misreading:
    """Arrays whose names differ in one part change places, where their shapes agree."""

    def read(flat: Flat) -> dict[str, NDArray]:
        found = dict(flat)
        for name in flat:
            twin = name.replace(one, other)
            if twin != name and twin in flat and flat[name].shape == flat[twin].shape:
                found[name], found[twin] = flat[twin], flat[name]
        return found

    return Misreading(title, clause, read)


def both(title: str, first: Misreading, second: Misreading) -> Misreading:
    """Two mistakes at once."""
    return Misreading(title, first.clause, lambda flat: second.read(first.read(flat)))


def transposed(array: NDArray) -> NDArray:
    """The transpose of the last two axes; vectors stay."""
    return array if array.ndim < 2 else np.swapaxes(array, -1, -2)


def without_the_last_blocks(flat: Flat) -> dict[str, NDArray]:
    """Nothing comes out of the blocks behind the last one of attention."""
    numbers = [int(name.split(".")[1]) for name in flat if ".attention." in name]
    found = dict(flat)
    for name, array in flat.items():
        out = any(part in name for part in ("linear_out", "attention.output", "mlp.down"))
        if numbers and out and int(name.split(".")[1]) > max(numbers):
            found[name] = np.zeros_like(array)
    return found


LINEAR = {
    "linear_x": "recurrent.linear_x", "linear_y": "recurrent.linear_y",
    "linear_out": "recurrent.linear_out", "q_proj": "attention.query", "k_proj": "attention.key",
    "v_proj": "attention.value", "o_proj": "attention.output", "gate_proj": "mlp.gate",
    "up_proj": "mlp.up", "down_proj": "mlp.down",
}  # fmt: skip

MISREADINGS: tuple[Misreading, ...] = (
    Misreading("the blocks behind the last whole round of the pattern are left out", "BLOCK-3",
               without_the_last_blocks),
    change("conv_1d.weight is reversed in time", "CKPT-1",
           lambda w: w[::-1], "recurrent.conv.weight"),
    change("recurrent_gate_weight and input_gate_weight are transposed", "CKPT-2",
           transposed, ".w_a", ".w_x"),
    change("recurrent_gate_weight is transposed", "CKPT-2", transposed, ".w_a"),
    change("input_gate_weight is transposed", "CKPT-2", transposed, ".w_x"),
    both("recurrent gate and input gate are exchanged",
         exchange("", "CKPT-2", ".w_a", ".w_x"), exchange("", "CKPT-2", ".b_a", ".b_x")),
    exchange("the weights of recurrent gate and input gate are exchanged", "CKPT-2",
             ".w_a", ".w_x"),
    exchange("the biases of recurrent gate and input gate are exchanged", "CKPT-2",
             ".b_a", ".b_x"),
    change("square linear weights are not transposed", "CKPT-3", transposed,
           *(f"{ours}.weight" for ours in LINEAR.values())),
    *(change(f"{theirs}.weight is not transposed", "CKPT-3", transposed, f"{ours}.weight")
      for theirs, ours in LINEAR.items()),
    exchange("gate_proj and up_proj are exchanged: GeLU acts on the other branch", "CKPT-4",
             "mlp.gate", "mlp.up"),
    exchange("linear_x and linear_y are exchanged: GeLU acts on the other branch", "CKPT-4",
             "linear_x", "linear_y"),
    exchange("temporal_pre_norm and channel_pre_norm are exchanged", "CKPT-14",
             "temporal_norm", "mlp_norm"),
    exchange("k_proj and v_proj are exchanged", "CKPT-14", "attention.key", "attention.value"),
    exchange("q_proj and o_proj are exchanged", "CKPT-14",
             "attention.query.weight", "attention.output.weight"),
    change("recurrent_param has the other sign", "CKPT-14", np.negative, "a_param"),
    change("norm weights are taken for the factor itself", "CKPT-14", lambda s: s - 1,
           "temporal_norm", "mlp_norm", "final_norm"),
    *(change(f"{theirs} is not read", "CKPT-14", np.zeros_like, ours)
      for ours, (theirs, _) in ROLES.items()),
    change("biases of linear layers are not read", "CKPT-14", np.zeros_like,
           *(f"{ours}.bias" for ours in LINEAR.values())),
    change("biases of the MLP are not read", "CKPT-14", np.zeros_like,
           "mlp.gate.bias", "mlp.up.bias", "mlp.down.bias"),
    change("biases of the recurrent block are not read", "CKPT-14", np.zeros_like,
           "linear_x.bias", "linear_y.bias", "linear_out.bias"),
    change("model.final_norm.weight is not read", "CKPT-14", np.zeros_like, "final_norm"),
)  # fmt: skip
"""Mistakes that no check of shapes can see."""


@lru_cache(maxsize=2048)
def logits_of(case: FolderCase, profile: Profile, mistake: Misreading) -> NDArray | None:
    """The oracle's logits for a misreading, or None where it comes to the right weights."""
    flat = stored(case.world, profile, case.form.dtype)
    wrong = mistake.read(flat)
    if all(np.array_equal(wrong[name], flat[name]) for name in flat):
        return None
    tokens = case.world.tokens(0)
    with np.errstate(all="ignore"):
        return Oracle(wrong, case.world.config).read(tokens, range(len(tokens)))


def misreading_of(
    case: FolderCase, profile: Profile, found: NDArray, truth: Envelope
) -> Misreading | None:
    """The misreading that gives these logits, if one does."""
    if Oracle.__init__ is not BEGIN:
        return None  # readings of another kind are being tried in the oracle's place
    distance = float(norms(found - truth.truth).max())
    nearest, best = None, EXPLAINS * distance
    for mistake in MISREADINGS:
        wrong = logits_of(case, profile, mistake)
        if wrong is None or wrong.shape != found.shape:
            continue
        left = float(norms(found - wrong).max())
        if left < best:
            nearest, best = mistake, left
        if best < CERTAIN * distance:
            break
    return nearest
