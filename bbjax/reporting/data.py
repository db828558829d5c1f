"""The figures of a report, as frozen data.

    Facts                          all kernels together
      KernelFacts                  one kernel: budget, edges, bytes, mask pictures
        SideFacts                  its output or its input units: degrees, on-rates
          Measures                 of all units, and of each layer of a stack
      LossFacts                    losses with one row pruned at a time
        LossRow                    of one kernel, layer, or slice of a stack

Arrays per unit have shape `(layers, units)`: stack axes are flattened into one axis,
and unit axes into another. A kernel without a stack has one layer. Unknown figures are
None, never 0. Those of `Measures` are defined as in `bb.metrics`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from bbjax.model.kernel import Actuator, Side

Ints = tuple[int, ...]
Given = float | tuple[float, ...]  # a figure that the caller gave


class Measures(NamedTuple):
    """Figures of a set of units.

    Attributes:
      units: how many there are.
      degree_min: least degree.
      degree_mean: mean degree.
      degree_max: largest degree.
      no_edges: units without an edge on this side.
      dead: units without edges, or with an on-rate of at most 0.001.
      inactive: units with edges and such an on-rate; None if not observed.
      traffic: sum of a k; None if not observed.
      entropy: mean of H(a) in bits; None if not observed.
      slope: beta of the line log((1 - a) / a) = beta (k - d0); None without a line.
      d0: degree at on-rate 1/2 on that line.
      r2: its R squared, in [0, 1].
    """

    units: int
    degree_min: int
    degree_mean: float
    degree_max: int
    no_edges: int
    dead: int
    inactive: int | None = None
    traffic: float | None = None
    entropy: float | None = None
    slope: float | None = None
    d0: float | None = None
    r2: float | None = None


class Hub(NamedTuple):
    """One unit of high degree or traffic.

    Attributes:
      layer: index of its stack slice; empty without a stack.
      place: of the unit, one number per unit axis.
      degree: kept edges on its side.
      rate: on-rate; None if not observed.
      traffic: on-rate times degree; None if not observed.
    """

    layer: Ints
    place: Ints
    degree: int
    rate: float | None
    traffic: float | None


class Histogram(NamedTuple):
    """Numbers of units by degree, in bins of equal width.

    Attributes:
      start: least degree of the first bin.
      width: degrees in a bin.
      counts: units in each bin.
    """

    start: int
    width: int
    counts: Ints


class Picture(NamedTuple):
    """A mask as a matrix of blocks of edges.

    Attributes:
      layer: index of its stack slice; empty without a stack.
      share: float32 `(rows, columns)`, the kept share of each block of edges; rows are
        input units, columns output units (of the same group).
      block: edges of a block, down and across.
      edges: edges of the slice, down and across.
      groups: of a grouped convolution; they lie one below the other.
    """

    layer: Ints
    share: np.ndarray
    block: tuple[int, int]
    edges: tuple[int, int]
    groups: int = 1


class ModelSize(NamedTuple):
    """Sizes of all parameters, masked or not.

    Attributes:
      params: number of parameters.
      kept: number of parameters that are left.
      dense_bytes: bytes of all parameters.
      sparse_bytes: bytes of the masked ones as bits and kept values, and of the rest.
    """

    params: int
    kept: int
    dense_bytes: int
    sparse_bytes: int


class LossRow(NamedTuple):
    """Increases of the loss with one kernel, layer or slice of a stack pruned.

    Attributes:
      name: of the row.
      group: the name without the slice.
      layer: index of the slice; empty without a stack.
      edges: number of edges.
      increases: loss at each density, minus the dense loss.
    """

    name: str
    group: str
    layer: Ints
    edges: int
    increases: tuple[float, ...]


class LossFacts(NamedTuple):
    """What `bb.sensitivity` measured.

    Attributes:
      dense: loss of the dense model.
      densities: that were measured, from high to low.
      rows: in the order of the model.
    """

    dense: float
    densities: tuple[float, ...]
    rows: tuple[LossRow, ...]

    @property
    def most(self) -> float:
        """The largest increase; 0 if the loss never rises."""
        return max(0.0, *(x for row in self.rows for x in row.increases))

    @property
    def stacks(self) -> dict[str, tuple[LossRow, ...]]:
        """The rows of each stack with several slices, by their group."""
        found: dict[str, tuple[LossRow, ...]] = {}
        for row in self.rows:
            if row.layer:
                found[row.group] = (*found.get(row.group, ()), row)
        return {group: rows for group, rows in found.items() if len(rows) > 1}


@dataclasses.dataclass(frozen=True, eq=False)
class SideFacts:
    """The units on one side of a kernel.

    Attributes:
      side: "outputs" (their incoming edges are counted) or "inputs" (outgoing ones).
      actuator: the actuator that counts these edges, "in" or "out".
      counted: whether the budget counts them.
      fan: edges of an unpruned unit.
      degree: int64 `(layers, units)`.
      rate: on-rates, float32 `(layers, units)`, 0.5 where a unit was never observed;
        None if none was.
      unobserved: units never observed.
      free: bool `(layers, units)`, units on no bound, to which the line is fitted.
      whole: figures of all units.
      layers: figures of each stack slice; empty without a stack.
      histogram: of the degrees.
      busiest: units with the highest traffic; empty if not observed.
      widest: units with the highest degree; empty where all are equal.
      why_no_activity: empty if on-rates are known.
    """

    side: Side
    actuator: Actuator
    counted: bool
    fan: int
    degree: np.ndarray
    rate: np.ndarray | None
    unobserved: int
    free: np.ndarray
    whole: Measures
    layers: tuple[Measures, ...]
    histogram: Histogram
    busiest: tuple[Hub, ...]
    widest: tuple[Hub, ...]
    why_no_activity: str


@dataclasses.dataclass(frozen=True, eq=False)
class KernelFacts:
    """One kernel.

    Attributes:
      path: of the kernel.
      shape: of the array.
      kind: what it is, in words.
      stack_shape: sizes of its stack axes.
      actuators: sides that the budget counts; empty if not known.
      edges: number of edges, of all layers.
      kept: kept edges.
      kept_by_layer: kept edges of each stack slice.
      kept_weights: kept entries of the array: in a convolution, one for each position
        of the window.
      stray: share of the edges that were pruned and yet not 0 in the parameters of an
        update, as the optimizer state counted them; None for masks alone.
      asked: density asked for; None if not known, or an outcome of the rule.
      flipped: edges that changed; None if not known.
      no_path: output units with incoming edges but no path to the output; None where
        the readers of the units are not all known and masked.
      dense_bytes: of the whole array.
      sparse_bytes: of one bit per edge and the kept values.
      sides: outputs and inputs, those that the budget counts first.
      pictures: of the mask; of some layers of a stack.
    """

    path: str
    shape: Ints
    kind: str
    stack_shape: Ints
    actuators: tuple[Actuator, ...]
    edges: int
    kept: int
    kept_by_layer: Ints
    kept_weights: int
    stray: float | None
    asked: float | None
    flipped: int | None
    no_path: int | None
    dense_bytes: int
    sparse_bytes: int
    sides: tuple[SideFacts, ...]
    pictures: tuple[Picture, ...]

    @property
    def got(self) -> float:
        """Density: kept share of the edges."""
        return self.kept / self.edges

    @property
    def churn(self) -> float | None:
        """Share of the edges that changed."""
        return None if self.flipped is None else self.flipped / self.edges

    @property
    def main(self) -> tuple[SideFacts, ...]:
        """The sides that the budget counts; the outputs if that is not known."""
        return tuple(s for s in self.sides if s.counted) or self.sides[:1]

    @property
    def dead(self) -> int:
        """Dead units on the sides that the budget counts."""
        return sum(side.whole.dead for side in self.main)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Facts:
    """All figures of a report.

    Attributes:
      title: of the page.
      origin: what was read, in words.
      updates: updates that the optimizer state has counted; None for masks.
      kernels: in the order of the source.
      others: masks of parameters that are no kernels: path, entries, kept entries.
      since: what churn is counted from.
      model: sizes of all parameters, where they were given.
      given: figures that the caller gave to be printed: by the key of their table in
        JSON, then by name, one number or a pair.
      notes: what a reader must know first.
      losses: with one row pruned at a time, where they were given.
    """

    title: str
    origin: str
    updates: int | None
    kernels: tuple[KernelFacts, ...]
    others: tuple[tuple[str, int, int], ...]
    since: str
    model: ModelSize | None
    given: Mapping[str, Mapping[str, Given]]
    notes: tuple[str, ...]
    losses: LossFacts | None = None

    def __iter__(self) -> Iterator[KernelFacts]:
        return iter(self.kernels)

    def __getitem__(self, path: str) -> KernelFacts:
        for kernel in self.kernels:
            if kernel.path == path:
                return kernel
        raise KeyError(
            f"expected the path of a kernel, got {path!r}; the report is on "
            f"{[kernel.path for kernel in self.kernels][:8]}"
        )

    # All kernels together --------------------------------------------------------
    @property
    def edges(self) -> int:
        """Edges of all kernels, each counted once."""
        return sum(kernel.edges for kernel in self.kernels)

    @property
    def kept(self) -> int:
        """Kept edges of all kernels."""
        return sum(kernel.kept for kernel in self.kernels)

    @property
    def got(self) -> float:
        """Density of all kernels together."""
        return self.kept / self.edges

    @property
    def asked(self) -> float | None:
        """Density asked for; None if not known for every kernel."""
        asked = [(k.asked, k.edges) for k in self.kernels]
        known = [a * edges for a, edges in asked if a is not None]
        return sum(known) / self.edges if len(known) == len(asked) else None

    @property
    def churn(self) -> float | None:
        """Share of the edges that changed; None if not known for every kernel."""
        known = [k.flipped for k in self.kernels if k.flipped is not None]
        return sum(known) / self.edges if len(known) == len(self.kernels) else None

    @property
    def dead(self) -> int:
        """Dead units on the sides that budgets count."""
        return sum(kernel.dead for kernel in self.kernels)

    @property
    def bytes(self) -> tuple[int, int]:
        """Of the kernels: dense, and as one bit per edge and the kept values."""
        dense = sum(kernel.dense_bytes for kernel in self.kernels)
        return dense, sum(kernel.sparse_bytes for kernel in self.kernels)
