"""What the envelope's factor was chosen from: ``python -m griffin_conformance.calibration``.

No backend takes part. Right programs are made by the simulation itself, with other seeds than the
envelope's samples: some that round to nearest, as real hardware does, and keep their digits; and
some that round in directions of their own, as no hardware does, by algorithms that lose digits
among others. Wrong ones are the same programs with a few bits less.
Each is told as its worst distance from the oracle over the largest deviation among the samples,
that is, with a factor of 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from griffin_conformance.envelope import FACTOR, norms
from griffin_conformance.quantisation import weights_of
from griffin_conformance.rounding import PROFILES, Profile
from griffin_conformance.simulation import Simulation
from griffin_conformance.strategies import POOL
from griffin_conformance.worlds import World

__all__ = ["Separation", "calibrate"]

BITS_LESS = 6
PROGRAMS = 16


class Nearest(Simulation):
    """Rounds everything to nearest."""

    def draw(self, *shape: int) -> NDArray:
        return np.zeros(shape, np.int64)


@dataclass(frozen=True)
class Separation:
    """How far right and wrong programs are from the oracle, in largest deviations of the samples.

    Attributes
    ----------
    profile : str
    nearest : float
        Worst right program that rounds to nearest, by algorithms that keep their digits.
    directed : float
        Worst right program that rounds in directions of its own, by any admitted algorithm.
    coarse : float
        Best wrong program: one whose every result has six bits less.
    """

    profile: str
    nearest: float
    directed: float
    coarse: float


def distances(
    simulation: Simulation, world: World, profile: Profile
) -> Iterator[tuple[str, NDArray]]:
    """Distance from the truth over the envelope at factor 1: (name, (S, T))."""
    history = world.history(profile, 0)
    at = np.arange(world.lengths[0])
    flat = weights_of(profile, world.config, world.parameters(profile))
    found = simulation.run(flat, world.config, world.tokens(0), at)
    for name, envelope in history.items():
        samples = found[name].reshape(simulation.S, *envelope.truth.shape)
        shrink = simulation.profile.shrink
        yield name, norms(samples - envelope.truth) * shrink / (envelope.allowed / FACTOR)


def calibrate(profile: Profile, worlds: tuple[World, ...] = POOL) -> Separation:
    """Measure right and wrong programs of a precision on some worlds."""
    worst = {"nearest": 0.0, "directed": 0.0}
    coarse = np.inf
    lost = replace(
        profile,
        activations=profile.activations - BITS_LESS,
        accumulators=profile.accumulators - BITS_LESS,
        state=profile.state - BITS_LESS,
    )
    for world in worlds:
        # Seeds that no envelope has.
        seed = 10**6 + world.seed
        for kind, simulation in (
            ("nearest", Nearest(profile, PROGRAMS, seed, strict=True)),
            ("directed", Simulation(profile, PROGRAMS, seed)),
        ):
            for _, ratios in distances(simulation, world, profile):
                worst[kind] = max(worst[kind], float(ratios.max()))
        parts = [r.max(axis=1) for _, r in distances(Nearest(lost, PROGRAMS, seed), world, profile)]
        coarse = min(coarse, float(np.max(parts, axis=0).min()))
    return Separation(profile.name, worst["nearest"], worst["directed"], coarse)


def main() -> None:
    """Print the table."""
    print(f"distance from the oracle, in largest deviations of the samples; factor {FACTOR:g}\n")
    print("| precision | right, to nearest | right, in any way | wrong: 6 bits less |")
    print("|---|---|---|---|")
    for profile in PROFILES.values():
        s = calibrate(profile)
        print(f"| {s.profile} | {s.nearest:.2f} | {s.directed:.2f} | {s.coarse:.1f} |")


if __name__ == "__main__":
    main()
