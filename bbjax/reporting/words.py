"""The names, sentences and tables of a report, the same on the page and in a terminal.

Every `Table` is described here, once; page, terminal and plain text draw it. To add a
column to the table of kernels, add an entry to `COLUMNS`. Captions and legends of
drawings are beside the drawings, in `charts` and `masks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bbjax.model import text as plain
from bbjax.reporting.data import (
    Facts,
    Given,
    Hub,
    KernelFacts,
    LossFacts,
    Measures,
    SideFacts,
)
from bbjax.reporting.formats import (
    NONE,
    at,
    count,
    counted,
    exact,
    number,
    percent,
    shape,
    signed,
    size,
)

MEANING = {  # of the sides of a kernel: its units, and their edges
    "outputs": ("output units", "incoming edges"),
    "inputs": ("input units", "outgoing edges"),
}
GLOSSARY = (
    (
        "edge",
        "one pair of an input and an output unit; of a convolution, its whole window",
    ),
    ("degree k", "number of edges that a unit keeps, on the side that is named"),
    ("full degree", "number of edges of a unit without pruning"),
    ("on-rate a", "share of inputs on which a unit is on, averaged while training"),
    ("traffic", "on-rate times degree, a k"),
    (
        "actuator",
        "the side that the budget counts: in = edges into output units (SP-in), "
        "out = edges out of input units (SP-out)",
    ),
    (
        "density asked",
        "the density that the last refresh was to reach; – if the rule decides it",
    ),
    ("density got", "kept share of the edges"),
    (
        "dead",
        "a unit without edges on the side that the budget counts, or with an on-rate "
        "of at most 0.001",
    ),
    (
        "no path to the output",
        "an output unit that keeps incoming edges, but no path over kept edges leads "
        "from it to the output of the model",
    ),
    ("hub", "one of the five units with the highest traffic, or the highest degree"),
    (
        "bound",
        "a unit is on a bound if its degree is the least allowed or full, or its "
        "on-rate is not between 0.01 and 0.99",
    ),
    (
        "fitted line",
        "log((1 - a) / a) = β (k - d0), fitted to the units on no bound; β is the "
        "slope, R² the share of the variance that the line explains. The table of "
        "kernels fits one line to all layers of a stack",
    ),
    ("refresh", "an update that chooses the masks anew"),
    ("churn", "share of the edges, kept or not, that changed"),
    ("stored", "one bit per edge and the values of the kept weights"),
    (
        "increase of the loss",
        "loss with one row (a kernel, a layer, a slice of a stack) pruned to a density "
        "and the others dense, minus the dense loss",
    ),
)


class Table(NamedTuple):
    """A table as text.

    Attributes:
      title: above it.
      head: names of the columns.
      rows: cells of each row.
      left: number of first columns that are set flush left; the rest is flush right.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


# Sentences -----------------------------------------------------------------------
def headline(facts: Facts) -> str:
    """The source and the kept edges, in one sentence."""
    kernels = counted(len(facts.kernels), "kernels")
    return (
        f"From {facts.origin}: {kernels}, {count(facts.kept)} of "
        f"{count(facts.edges)} edges kept."
    )


def cards(facts: Facts) -> list[tuple[str, str, str]]:
    """Name, value and remark of the figures that come first."""
    dense, stored = facts.bytes
    units = sum(side.whole.units for kernel in facts for side in kernel.main)
    asked = "asked: not known"
    if facts.asked is not None:
        asked = f"asked: {percent(facts.asked)}"
    found = [
        ("density", percent(facts.got), asked),
        ("edges kept", count(facts.kept), f"of {count(facts.edges)}"),
        ("dead units", count(facts.dead), f"of {count(units)}"),
        ("size of masked kernels", size(stored), f"dense: {size(dense)}"),
    ]
    if facts.churn is not None:
        remark = f"of the edges, since {facts.since}"
        found.insert(3, ("churn", percent(facts.churn), remark))
    if facts.model is not None:
        model = facts.model
        remark = f"{count(model.kept)} of {count(model.params)} parameters left"
        found.append(("size of whole model", size(model.sparse_bytes), remark))
    return found


def line(side: SideFacts, m: Measures) -> str:
    """The line fitted to some of the units of a side, solved for the degree."""
    if side.rate is None:
        return f"none: {side.why_no_activity}"
    if m.slope is None or m.d0 is None:
        return "no line fitted: too few units on no bound, or all alike"
    sign = "+" if m.slope > 0 else "-"
    return (
        f"k = {number(m.d0)} {sign} {number(abs(1 / m.slope))} log((1-a)/a), "
        f"slope β = {number(m.slope)}, R² = {number(m.r2)}"
    )


def degrees(m: Measures) -> str:
    """Least, mean and largest degree."""
    return f"{count(m.degree_min)} / {number(m.degree_mean)} / {count(m.degree_max)}"


def kernel_lines(kernel: KernelFacts, since: str) -> list[tuple[str, str]]:
    """Names and texts of the figures of a kernel as a whole."""
    sides = [(*MEANING[s.side], s.actuator) for s in kernel.sides if s.counted]
    budget = " and ".join(f"{edges} of {units} (SP-{a})" for units, edges, a in sides)
    edges = f"{count(kernel.kept)} of {count(kernel.edges)} edges"
    asked = "" if kernel.asked is None else f"asked {percent(kernel.asked)}, "
    dense, stored = size(kernel.dense_bytes), size(kernel.sparse_bytes)
    lines = [
        ("shape", f"{shape(kernel.shape)} ({kernel.kind})"),
        ("budget", budget or "not known: the source names no actuator for this kernel"),
        ("density", f"{asked}got {percent(kernel.got)}, {edges}"),
        ("stored", f"{stored} as bits and kept values, {dense} dense"),
    ]
    if kernel.churn is not None:
        flips = f"{percent(kernel.churn)}, {count(kernel.flipped)} edges since {since}"
        lines.append(("churn", flips))
    if kernel.no_path is not None:
        lines.append(("no path to the output", counted(kernel.no_path, "output units")))
    return lines


# Tables --------------------------------------------------------------------------
COLUMNS: dict[str, Callable[[KernelFacts, SideFacts], str]] = {
    "kernel": lambda kernel, _: kernel.path,
    "actuator": lambda _, side: side.actuator if side.counted else NONE,
    "density asked": lambda kernel, _: percent(kernel.asked),
    "density got": lambda kernel, _: percent(kernel.got),
    "edges kept": lambda kernel, _: f"{count(kernel.kept)} / {count(kernel.edges)}",
    "degree min / mean / max": lambda _, side: degrees(side.whole),
    "dead units": lambda _, side: count(side.whole.dead),
    "churn": lambda kernel, _: percent(kernel.churn),
    "slope β": lambda _, side: number(side.whole.slope),
    "R²": lambda _, side: number(side.whole.r2),
    "stored": lambda kernel, _: size(kernel.sparse_bytes),
}


def kernels_table(facts: Facts) -> Table:
    """The table of kernels, one row for each side that a budget counts."""
    rows = [
        [cell(kernel, side) for cell in COLUMNS.values()]
        for kernel in facts
        for side in kernel.main
    ]
    return Table("Kernels", tuple(COLUMNS), rows, left=2)


UNITS: dict[str, Callable[[SideFacts], str]] = {
    "units": lambda side: count(side.whole.units),
    "edges counted": lambda side: MEANING[side.side][1].split()[0],
    "full degree": lambda side: count(side.fan),
    "degree min / mean / max": lambda side: degrees(side.whole),
    "without edges": lambda side: count(side.whole.no_edges),
    "with edges, on-rate at most 0.001": lambda side: count(side.whole.inactive),
    "dead": lambda side: count(side.whole.dead),
    "traffic, sum of a k": lambda side: number(side.whole.traffic),
    "coding entropy, bits a unit": lambda side: number(side.whole.entropy),
    "slope β": lambda side: number(side.whole.slope),
    "R²": lambda side: number(side.whole.r2),
    "never observed": lambda side: count(side.unobserved or None),
}


def units_table(kernel: KernelFacts) -> Table:
    """Figures of both sides, one column a side. Rows without any are left out."""
    head = ("figure", *(MEANING[side.side][0] for side in kernel.sides))
    rows = [[name, *map(cell, kernel.sides)] for name, cell in UNITS.items()]
    return Table("Units", head, [row for row in rows if set(row[1:]) != {NONE}])


def hub_table(side: SideFacts) -> Table | None:
    """The hubs of a side: by traffic first, then by degree.

    A unit that is a hub for both reasons has one row; one without edges is no hub.
    Columns of activity are left out where on-rates are unknown.

    Returns:
      None where no unit stands out.
    """
    both = dict.fromkeys((*side.busiest, *side.widest))
    hubs = [unit for unit in both if unit.degree]
    if not hubs:
        return None
    rows = []
    for unit in hubs:
        layer = f"layer {at(unit.layer)}, " if unit.layer else ""
        cells = [f"{layer}unit {at(unit.place)}", count(unit.degree)]
        if unit.rate is not None:
            cells += [number(unit.rate), number(unit.traffic)]
            cells.append(_rank(unit, side.busiest))
        rows.append([*cells, _rank(unit, side.widest)])
    head = ["unit", "degree k", "on-rate a", "traffic a k", "traffic rank"]
    head = head[: len(rows[0]) - 1] + ["degree rank"]
    return Table(f"Hubs among the {MEANING[side.side][0]}", head, rows)


def _rank(unit: Hub, best: Sequence[Hub]) -> str:
    return str(best.index(unit) + 1) if unit in best else NONE


def layer_tables(kernel: KernelFacts) -> Iterator[Table]:
    """Figures of each layer of a stack, a table for each side that a budget counts."""
    head = (
        *("layer", "edges kept", "density got", "degree min / mean / max"),
        *("dead units", "slope β", "R²"),
    )
    for side in kernel.main if kernel.stack_shape else ():
        rows = []
        for i, m in enumerate(side.layers):
            kept, edges = kernel.kept_by_layer[i], kernel.edges // len(side.layers)
            layer = at([int(n) for n in np.unravel_index(i, kernel.stack_shape)])
            shares = (layer, count(kept), percent(kept / edges))
            line = (number(m.slope), number(m.r2))
            rows.append([*shares, degrees(m), count(m.dead), *line])
        yield Table(f"Layers, {MEANING[side.side][0]}", head, rows)


def losses_line(losses: LossFacts) -> str:
    """What was measured, in a sentence."""
    levels = ", ".join(f"{density:.4g}" for density in losses.densities)
    rows = counted(len(losses.rows), "rows")
    return (
        f"{rows}, one at a time pruned to density {levels}; dense loss "
        f"{number(losses.dense)}, largest increase {number(losses.most)}"
    )


def losses_table(losses: LossFacts) -> Table:
    """Increases of the loss, one row for each row and one column a density."""
    head = ("row", "edges", *(f"at {d:.4g}" for d in losses.densities))
    rows = [
        (row.name, count(row.edges), *(signed(x) for x in row.increases))
        for row in losses.rows
    ]
    return Table("Increase of the loss", head, rows)


GIVEN = {  # title and head of the tables of what the caller gave, by their JSON keys
    "latency_ms": ("Latency", ("measured", "milliseconds")),
    "shrunk": ("Shrunk model", ("figure", "before", "after", "after / before")),
}


def other_tables(facts: Facts) -> Iterator[Table]:
    """Tables besides those of the kernels; empty ones are left out."""
    for key, (title, head) in GIVEN.items():
        if given := facts.given[key]:
            rows = [(name, *_cells(value)) for name, value in given.items()]
            yield Table(title, head, rows)
    if facts.others:
        others = [(path, count(kept), count(n)) for path, n, kept in facts.others]
        yield Table("Masks of other parameters", ("parameter", "kept", "of"), others)


def _cells(value: Given) -> tuple[str, ...]:
    """One number, or a pair with its ratio."""
    if not isinstance(value, tuple):
        return (exact(value),)
    before, after = value
    return exact(before), exact(after), percent(after / before if before else None)


def text(facts: Facts) -> str:
    """The table of kernels as plain text, without any foreign library."""
    notes = [f"note: {note}" for note in facts.notes]
    table = kernels_table(facts)
    body = plain.table(table.head, table.rows)
    lines = map(plain.printable, (facts.title, headline(facts), *notes, ""))
    return "\n".join([*lines, body])
