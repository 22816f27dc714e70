"""What quantisation does to a model: weights in few bits, and what meets them rounded too.

A backend says how it rounds (:class:`Quantisation`), which weights it holds after rounding, and
which inputs share a scale. The oracle then takes those weights and rounds what meets them exactly
as told; the simulation does so in each sample with that sample's own rounding errors.

Rounding to few bits is discontinuous. Where a number lies so near to the middle between two codes
that correct programs may round it either way, a step of size 1/127 hangs on the last bit of a
float32, and everything after it differs by that much. So samples take either side there, and the
envelope is as wide as correct programs are apart: wide behind such a number, tight elsewhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.envelope import FACTOR
from griffin_conformance.oracle import Oracle
from griffin_conformance.rounding import FLOAT32, SAMPLES, Profile
from griffin_conformance.simulation import Simulation

__all__ = ["MATRICES", "ActivationRounding", "Quantisation", "QuantisedProfile",
           "QuantisedSimulation", "SymmetricWeights", "oracle_of", "simulation_of",
           "weights_of"]  # fmt: skip

MATRICES = (
    "linear_y", "linear_x", "linear_out", "query", "key", "value", "output", "gate", "up", "down",
    "embedding",
)  # fmt: skip
"""The matrices that a quantised model may hold in few bits; everything else stays as it is."""


@dataclass(frozen=True)
class SymmetricWeights:
    """Weights as ``step * code``, one step for each output and group of inputs, no zero point.

    Attributes
    ----------
    smallest, largest : int
        Codes go from one to the other; the step may be negative.
    step_bits : int
        Significant bits of a stored step.
    """

    smallest: int
    largest: int
    step_bits: int = 24


@dataclass(frozen=True)
class ActivationRounding:
    """What meets a quantised matrix, as whole numbers: one step for each token and group of inputs.

    The step puts the largest magnitude of the group on the largest code; rounding is to nearest.

    Attributes
    ----------
    bits : int
        Of a code: 8 are -127 to 127.
    exact : bool
        Products are summed as whole numbers within a group, without error. Otherwise codes are
        multiplied by their step first, and sums are those of floating-point numbers.
    """

    bits: int = 8
    exact: bool = True

    @property
    def largest(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def __call__(self, x: NDArray, groups: NDArray) -> NDArray:
        """One token x (K,), rounded; ``groups`` (K,) numbers the group of each input."""
        y = np.zeros_like(x)
        for group in sorted(set(groups.tolist())):
            members = np.flatnonzero(groups == group)
            top = max(abs(float(x[k])) for k in members)
            for k in members:
                if top > 0:
                    y[k] = round(float(x[k]) / top * self.largest) * top / self.largest
        return y


@dataclass(frozen=True)
class Quantisation:
    """How a backend rounds in one of its quantised dtypes.

    Attributes
    ----------
    weights : SymmetricWeights or None
        None: in a way that the suite has no words for; the backend's word is taken for them.
    activations : ActivationRounding or None
        None: what meets the weights is not rounded.
    group : int or None
        Inputs that share a step, one after the other; None: all of a matrix. A backend that groups
        otherwise overrides :meth:`~griffin_conformance.backends.Backend.input_groups`.
    profile : Profile
        Precision of everything else: one that is simulated as it is, which float64 is not.
    matrices : tuple of str
        Which of :data:`MATRICES` are quantised.
    """

    weights: SymmetricWeights | None = None
    activations: ActivationRounding | None = None
    group: int | None = None
    profile: Profile = FLOAT32
    matrices: tuple[str, ...] = MATRICES

    def covers(self, name: str) -> bool:
        """Whether a parameter is quantised, by its flat name."""
        base, _, leaf = name.rpartition(".")
        return (name if leaf != "weight" else base.rpartition(".")[2]) in self.matrices


@dataclass(frozen=True)
class QuantisedProfile(Profile):
    """The precision of a quantised backend: that of its other numbers, and how it quantises.

    Attributes
    ----------
    quantisation : Quantisation
    dequantised : callable
        ``dequantised(config, flat)``: the weights that the backend holds.
    input_groups : callable
        ``input_groups(config, name, inputs)``: the group of each input of a matrix.
    """

    quantisation: Quantisation = Quantisation()
    dequantised: Callable = dict
    input_groups: Callable = dict

    @classmethod
    def of(cls, backend) -> "QuantisedProfile":
        """How a backend is held that computes in one of its quantised dtypes."""
        quantisation = backend.quantised[backend.dtype]
        base = {f.name: getattr(quantisation.profile, f.name) for f in fields(Profile)}
        base["name"] = backend.dtype
        return cls(**base, quantisation=quantisation, dequantised=backend.dequantised,
                   input_groups=backend.input_groups)  # fmt: skip

    def meets(self, config) -> Callable[[str, NDArray], NDArray]:
        """What the matrices of a model are given in place of x (K,), for the oracle."""
        rounding = self.quantisation.activations

        def rounded(name: str, x: NDArray) -> NDArray:
            if rounding is None or not self.quantisation.covers(name):
                return x
            return rounding(x, self.input_groups(config, name, len(x)))

        return rounded


def weights_of(profile: Profile, config, flat: Mapping[str, NDArray]) -> Mapping[str, NDArray]:
    """The weights that a model of this precision holds when it is given these."""
    return profile.dequantised(config, flat) if isinstance(profile, QuantisedProfile) else flat


def oracle_of(profile: Profile, config, flat: Mapping[str, NDArray], start: int = 0) -> Oracle:
    """The oracle for a model of this precision that was given these weights."""
    held = weights_of(profile, config, flat)
    if isinstance(profile, QuantisedProfile):
        return Oracle(held, config, start, profile.meets(config))
    return Oracle(held, config, start)


def simulation_of(profile: Profile, config, seed: int = 0) -> Simulation:
    """The simulation of models of this precision and configuration."""
    if isinstance(profile, QuantisedProfile):
        return QuantisedSimulation(profile, config, seed=seed)
    return Simulation(profile, seed=seed)


class QuantisedSimulation(Simulation):
    """Sampled arithmetic in which what meets a quantised matrix is rounded to few bits.

    Weights that it is given are those that the model holds.

    Parameters
    ----------
    profile : QuantisedProfile
    config : object
        Of the model: it says which inputs share a step.
    samples, seed, strict
        As for :class:`~griffin_conformance.simulation.Simulation`.
    """

    def __init__(self, profile: QuantisedProfile, config, samples: int = SAMPLES, seed: int = 0,
                 strict: bool = False):  # fmt: skip
        super().__init__(profile, samples, seed, strict)
        self.quantisation, self.config = profile.quantisation, config
        self.input_groups = profile.input_groups

    def product(self, name: str, x: NDArray, weight: NDArray) -> NDArray:
        rounding = self.quantisation.activations
        if rounding is None or not self.quantisation.covers(name):
            return self.dot(x, weight)
        groups = self.input_groups(self.config, name, len(weight))
        total = np.zeros((*x.shape[:2], weight.shape[1]))
        for group in self.rng.permutation(np.unique(groups)):
            members = groups == group
            codes, step = self.codes(x[..., members], rounding.largest)
            if rounding.exact:
                # The steps of both are multiplied first, and that is rounded too. What the step of
                # the weights is nobody tells; any number that goes with it does.
                unit = np.abs(weight[members]).max(axis=0)
                unit = np.where(unit > 0, unit, 1)
                steps = self.rounded(step * unit, self.accumulators)
                part = self.rounded(codes @ (weight[members] / unit) * steps, self.accumulators)
            else:
                part = self.dot(self.rounded(codes * step), weight[members])
            total = self.rounded(total + part, self.accumulators)
        return total

    def codes(self, x: NDArray, largest: int) -> tuple[NDArray, NDArray]:
        """One group of inputs (S, T, k) as whole numbers, and their step (S, T, 1)."""
        bits = self.accumulators
        step = self.rounded(np.abs(x).max(axis=-1, keepdims=True) / largest, bits)
        z = np.divide(x, step, out=np.zeros_like(x), where=step > 0)
        nearest = np.rint(z)
        second = nearest + np.where(z >= nearest, 1, -1)
        return np.where(self.either(z, nearest, largest), second, nearest), step

    def either(self, z: NDArray, nearest: NDArray, largest: int) -> NDArray:
        """Where to take the second nearest code: at random, where correct programs may."""
        # The envelope's factor again: correct programs may be as far apart as that from samples.
        spread = np.abs(z - z.mean(axis=0)).max(axis=(0, 2), keepdims=True)
        reach = FACTOR * (spread + largest * 2.0**-self.accumulators)
        near = 0.5 - np.abs(z - nearest) < np.minimum(reach, REACH)
        return near & (self.rng.random(z.shape) < 0.5)


REACH = 0.25
"""Samples that are apart by more than this many steps go to either side by themselves."""
