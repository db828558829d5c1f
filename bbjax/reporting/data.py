"""What a report says: frozen facts, and how they become a page or text.

    Report                         all kernels together
      KernelFacts                  one kernel: budget, edges, bytes, mask pictures
        SideFacts                  its output or its input units: degrees, on-rates
          Measures                 of all units, and of each layer of a stack

Arrays per unit have shape `(layers, units)`: stack axes and unit axes, each made one;
a kernel without a stack has one layer. Numbers that are not known are None, never 0.
The figures of `Measures` are those of `bb.metrics`, to the same definitions.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bbjax.model.kernel import Actuator, Side

Ints = tuple[int, ...]


class Measures(NamedTuple):
    """Figures of a set of units.

    Attributes:
      units: how many there are.
      degree_min: least degree.
      degree_mean: mean degree.
      degree_max: largest degree.
      no_edges: units without an edge on this side.
      silent: units with edges and an on-rate of at most 0.001; None if not observed.
      dead: units without edges or with such an on-rate.
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
    silent: int | None
    dead: int
    traffic: float | None
    entropy: float | None
    slope: float | None
    d0: float | None
    r2: float | None


class Unit(NamedTuple):
    """One unit, pointed at.

    Attributes:
      layer: index of its stack slice; empty without a stack.
      place: of the unit, one number per unit axis.
      degree: kept edges on its side.
      rate: on-rate, None if not observed.
      traffic: on-rate times degree, None likewise.
    """

    layer: Ints
    place: Ints
    degree: int
    rate: float | None
    traffic: float | None


class Histogram(NamedTuple):
    """How many units have which degree: bins of equal width over whole numbers.

    Attributes:
      start: least degree of the first bin.
      width: degrees in a bin.
      counts: units in each bin.
    """

    start: int
    width: int
    counts: Ints


class Picture(NamedTuple):
    """A mask, one entry per block of edges.

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


@dataclasses.dataclass(frozen=True, eq=False)
class SideFacts:
    """The units on one side of a kernel.

    Attributes:
      side: "outputs" (their incoming edges are counted) or "inputs" (outgoing ones).
      actuator: the actuator that counts these edges, "in" or "out".
      counted: whether the budget does.
      fan: edges of an unpruned unit.
      degree: int64 `(layers, units)`.
      rate: on-rates, float32 `(layers, units)`, 0.5 where a unit was never observed;
        None if none was.
      unobserved: units never observed.
      free: bool `(layers, units)`, units off their bounds, which the line is fitted to.
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
    busiest: tuple[Unit, ...]
    widest: tuple[Unit, ...]
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
      kept_weights: kept entries of the array; of a convolution, whole windows.
      asked: density asked for; None if not known, or an outcome of the rule.
      flipped: edges that changed; None if not known.
      unheard: output units with incoming edges that no reader hears, directly or
        through others; None where the graph does not say.
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
    asked: float | None
    flipped: int | None
    unheard: int | None
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


class Model(NamedTuple):
    """All parameters, masked or not.

    Attributes:
      params: how many.
      kept: how many are left.
      dense_bytes: of all.
      sparse_bytes: of the masked ones as bits and kept values, and of the rest.
    """

    params: int
    kept: int
    dense_bytes: int
    sparse_bytes: int


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What `bb.report` found out: a page, text, or numbers.

    `print(report)` is the table of kernels, `report.show()` everything in a terminal,
    `report.save("report.html")` a page; a notebook shows the page by itself.

    Attributes:
      title: of the page.
      origin: what was read, in words.
      updates: updates that the state has seen; None for masks.
      kernels: in the order of the source.
      others: path, number and kept number of masked entries that are no kernel's.
      since: what churn is counted from.
      model: all parameters, where they were given.
      latency: milliseconds by name.
      shrunk: before and after by name.
      notes: what a reader must know first.
    """

    title: str
    origin: str
    updates: int | None
    kernels: tuple[KernelFacts, ...]
    others: tuple[tuple[str, int, int], ...] = ()
    since: str = "the last refresh"
    model: Model | None = None
    latency: Mapping[str, float] = dataclasses.field(default_factory=dict)
    shrunk: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

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

    # What becomes of it ----------------------------------------------------------
    def html(self) -> str:
        """One page: no script, nothing fetched, light and dark."""
        from bbjax.reporting import page

        return page.page(self)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the page, or its numbers where the name ends in `.json`.

        Args:
          file: a path; what is there is replaced.

        Raises:
          ValueError: a name that ends neither in `.html` (`.htm`) nor in `.json`.
        """
        path = page_or_numbers(file)
        if path.suffix.lower() == ".json":
            text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        else:
            text = self.html()
        path.write_bytes(text.encode("utf-8"))

    def show(self, console: Any = None, *, details: bool | None = None) -> None:
        """Prints everything to a terminal.

        Args:
          console: a `rich.console.Console`; None for standard output.
          details: whether to print a section on every kernel; None for up to eight.

        Raises:
          ImportError: rich is missing.
        """
        terminal = _terminal()
        (terminal.console() if console is None else console).print(
            terminal.render(self, details), highlight=False
        )

    def to_dict(self) -> dict[str, Any]:
        """The numbers, of Python's own kinds, as JSON takes them."""
        from bbjax.reporting import numbers

        return numbers.to_dict(self)

    def _repr_html_(self) -> str:
        from bbjax.reporting import page

        return page.notebook(self)

    def __rich__(self) -> Any:
        return _terminal().render(self)

    def __str__(self) -> str:
        from bbjax.reporting import words

        return words.text(self)

    def __repr__(self) -> str:
        kernels = f"{len(self.kernels)} kernel{'s' * (len(self.kernels) != 1)}"
        return f"<Report {self.title!r}: {kernels}, density {self.got:.4g}>"


def page_or_numbers(file: str | os.PathLike[str]) -> Path:
    """The path of a report's file, refused if it is of another kind."""
    path = Path(file)
    if path.suffix.lower() not in (".html", ".htm", ".json"):
        raise ValueError(
            f"expected a file of a report to end in .html or .json, got {str(path)!r}; "
            "print(report) is the text"
        )
    return path


def _terminal() -> Any:
    try:
        from bbjax.reporting import terminal
    except ImportError as error:
        if (error.name or "").split(".")[0] != "rich":
            raise
        raise ImportError(
            "expected the package rich, which draws reports in a terminal, got none; "
            'pip install "bbjax[report]", or report.save("report.html")'
        ) from error
    return terminal
