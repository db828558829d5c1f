"""What the demo compares, and when pruning happens.

    density(n) = 1 until `start`, then a cubic ramp to the final density, then constant
    refreshes  at n = start, start + every, ... < stop; after `stop` masks are frozen

The ramp ends on a refresh before `stop`, so that the last masks have exactly the final
density whatever the number of steps. Reference of the ramp: arXiv 1710.01878.
"""

from __future__ import annotations

import dataclasses

import numpy as np

import bbjax as bb
from bbjax.demo.model import PATTERN
from bbjax.model.units import Actuator
from bbjax.rules import Rule


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        key: name in the JSON file.
        label: name in the table and in the pictures.
        rule: from `bb.rules`; None is the dense net, without any of bbjax.
        actuators: ends from which the edges are counted.
    """

    key: str
    label: str
    rule: Rule | None = None
    actuators: tuple[Actuator, ...] = ("in",)

    def select(self, units: bb.Units) -> bb.Units:
        """The selection of the budgeted kernels, joined over the actuators."""
        first, *rest = [units.select(PATTERN, actuator=a) for a in self.actuators]
        for other in rest:
            first = first + other
        return first


_BB = bb.rules.budgeted_broadcast()
# The score "scaled" differs from |w| only where a kernel reads raw inputs. None of the
# budgeted kernels does, so it would give the rows below once more.
METHODS = (
    Method("dense", "dense"),
    Method("magnitude", "magnitude, per unit", bb.rules.magnitude()),
    Method(
        "magnitude_layer", "magnitude, layer-wide", bb.rules.magnitude(scope="layer")
    ),
    Method("activity_only", "activity-only", bb.rules.activity_only()),
    Method("bb_in", "Budgeted Broadcast, fan-in", _BB),
    Method("bb_out", "Budgeted Broadcast, fan-out", _BB, ("out",)),
    Method("bb_both", "Budgeted Broadcast, both", _BB, ("in", "out")),
)
BY_KEY = {method.key: method for method in METHODS}

# For the picture of activity and degree alone: the balance without competition.
LAW = Method("law", "the law alone", bb.rules.budgeted_broadcast(competition=0))


@dataclasses.dataclass(frozen=True)
class Timing:
    """When to prune, from the number of steps.

    Example:
        >>> Timing(400)
        Timing(steps=400, start=40, every=10, ramp=180, stop=300)
        >>> Timing(1).densities(0.25).tolist()
        [0.25]
    """

    steps: int
    start: int = dataclasses.field(init=False)
    every: int = dataclasses.field(init=False)
    ramp: int = dataclasses.field(init=False)
    stop: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Derives the rest."""
        start, every = self.steps // 10, max(1, self.steps // 40)
        ramp = self.steps * 45 // 100 // every * every
        stop = max(start + ramp + 1, self.steps * 3 // 4)
        for name, value in (
            ("start", start),
            ("every", every),
            ("ramp", ramp),
            ("stop", stop),
        ):
            object.__setattr__(self, name, value)

    def densities(self, density: float) -> np.ndarray:
        """Density asked for at each step: float32 (steps,)."""
        schedule = bb.ramp(density, self.start, self.ramp, power=3)
        return np.asarray(schedule(np.arange(self.steps)))

    def refreshes(self) -> list[int]:
        """Steps at which masks are chosen anew."""
        return list(range(self.start, min(self.stop, self.steps), self.every))


def least_degree(units: bb.Units, density: float) -> int:
    """The `k_min` of every method: 1, or 0 where the density cannot pay for that."""
    both = BY_KEY["bb_both"].select(units).budgeted
    for path, actuators in both.items():
        kernel = units[path]
        ends = sum(kernel.unit_count(a) for a in actuators)
        if round(density * kernel.edge_count) < ends:
            return 0
    return 1
