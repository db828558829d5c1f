"""The words and tables of a report, the same on the page and in the terminal.

Figures become text here and nowhere else, so that page and terminal cannot disagree:
counts as 12,345, shares in percent with two digits, other numbers with three, bytes in
powers of 1000, and an en dash for what is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bbjax.model.text import table
from bbjax.reporting.data import Ints, KernelFacts, Measures, Report, SideFacts, Unit

NONE = "–"
MEANING = {
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
    ("density asked", "what the last refresh was to reach; – if the rule decides it"),
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
)


Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


class Row(NamedTuple):
    """A row of the table of kernels: which kernel and side, and its cells."""

    kernel: KernelFacts
    side: SideFacts
    cells: tuple[str, ...]


HEAD = (
    *("kernel", "actuator", "density asked", "density got", "edges kept"),
    *("degree min / mean / max", "dead units", "churn", "slope β", "R²", "stored"),
)
RIGHT = frozenset(HEAD) - {"kernel", "actuator"}  # columns of numbers


# Numbers -------------------------------------------------------------------------
def count(number: int | None) -> str:
    """A whole number.

    Example:
      >>> count(12345), count(None)
      ('12,345', '–')
    """
    return NONE if number is None else f"{number:,}"


def counted(number: int, name: str) -> str:
    """A number of things.

    Example:
      >>> counted(1, "output units"), counted(1200, "output units")
      ('1 output unit', '1,200 output units')
    """
    return f"{count(number)} {name.removesuffix('s') if number == 1 else name}"


def percent(share: float | None, digits: int = 2) -> str:
    """A share; more digits where so few would show nothing.

    Example:
      >>> percent(0.05), percent(0.00012), percent(None), percent(0.05, digits=0)
      ('5.00 %', '0.012 %', '–', '5 %')
    """
    if share is None:
        return NONE
    few = 0 < share < 5 * 10.0 ** (-2 - digits)
    return f"{100 * share:.2g} %" if few else f"{100 * share:.{digits}f} %"


def number(value: float | None) -> str:
    """Any number, with three digits.

    Example:
      >>> number(0.058413), number(1489.16), number(float("nan"))
      ('0.0584', '1,490', '–')
    """
    if value is None or not math.isfinite(value):
        return NONE
    if abs(value) >= 999.5:
        digits = 2 - math.floor(math.log10(abs(value)))
        return f"{round(value, digits):,.0f}"
    return f"{value:.3g}"


def size(bytes_: float) -> str:
    """Bytes.

    Example:
      >>> size(999), size(54096), size(2.5e9)
      ('999 B', '54.1 kB', '2.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if bytes_ < 999.5 or unit == "GB":
            break
        bytes_ /= 1000
    return f"{number(bytes_)} {unit}"


def at(index: Ints) -> str:
    """An index, `3` or `3, 5`."""
    return ", ".join(map(str, index))


def shape(sizes: Ints) -> str:
    """A shape, `3 x 3 x 8`."""
    return " x ".join(map(str, sizes)) or "1"


# Sentences -----------------------------------------------------------------------
def headline(report: Report) -> str:
    """What the report is on, in one sentence."""
    kernels = counted(len(report.kernels), "kernels")
    return (
        f"From {report.origin}: {kernels}, {count(report.kept)} of "
        f"{count(report.edges)} edges kept."
    )


def cards(report: Report) -> list[tuple[str, str, str]]:
    """Name, figure and remark of what is shown first."""
    dense, stored = report.bytes
    units = sum(side.whole.units for kernel in report for side in kernel.main)
    asked = "not known what was asked"
    if report.asked is not None:
        asked = f"asked: {percent(report.asked)}"
    found = [
        ("density", percent(report.got), asked),
        ("edges kept", count(report.kept), f"of {count(report.edges)}"),
        ("dead units", count(report.dead), f"of {count(units)}"),
        ("size of masked kernels", size(stored), f"dense: {size(dense)}"),
    ]
    if report.churn is not None:
        remark = f"of the edges, since {report.since}"
        found.insert(3, ("churn", percent(report.churn), remark))
    if report.model is not None:
        model = report.model
        remark = f"{count(model.kept)} of {count(model.params)} parameters left"
        found.append(("size of whole model", size(model.sparse_bytes), remark))
    return found


def line(m: Measures) -> str:
    """The fitted line, solved for the degree."""
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


def budget_sentence(kernel: KernelFacts) -> str:
    """The same in words."""
    words = {
        "in": "incoming edges of output units (SP-in)",
        "out": "outgoing edges of input units (SP-out)",
    }
    counted = " and ".join(words[actuator] for actuator in kernel.actuators)
    return counted or "not known: the source names no actuator for this kernel"


def kernel_lines(kernel: KernelFacts, since: str) -> list[tuple[str, str]]:
    """Name and text of what holds for a kernel as a whole."""
    edges = f"{count(kernel.kept)} of {count(kernel.edges)} edges"
    asked = "" if kernel.asked is None else f"asked {percent(kernel.asked)}, "
    got = f"{asked}got {percent(kernel.got)}, {edges}"
    dense, stored = size(kernel.dense_bytes), size(kernel.sparse_bytes)
    lines = [
        ("shape", f"{shape(kernel.shape)} ({kernel.kind})"),
        ("budget", budget_sentence(kernel)),
        ("density", got),
        ("stored", f"{stored} as bits and kept values, {dense} dense"),
    ]
    if kernel.churn is not None:
        flips = f"{percent(kernel.churn)}, {count(kernel.flipped)} edges since {since}"
        lines.append(("churn", flips))
    if kernel.unheard is not None:
        lines.append(("no path to the output", counted(kernel.unheard, "output units")))
    return lines


# Tables --------------------------------------------------------------------------
def rows(report: Report) -> list[Row]:
    """The table of kernels, one row for each side that a budget counts."""
    found = []
    for kernel in report:
        for side in kernel.main:
            cells = (
                kernel.path,
                side.actuator if side.counted else NONE,
                percent(kernel.asked),
                percent(kernel.got),
                f"{count(kernel.kept)} / {count(kernel.edges)}",
                degrees(side.whole),
                count(side.whole.dead),
                percent(kernel.churn),
                number(side.whole.slope),
                number(side.whole.r2),
                size(kernel.sparse_bytes),
            )
            found.append(Row(kernel, side, cells))
    return found


def side_table(kernel: KernelFacts) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the figures of both sides, one column a side."""
    sides = kernel.sides
    head = ["figure", *(MEANING[side.side][0] for side in sides)]
    every = [side.whole for side in sides]
    columns = [
        ("units", [count(m.units) for m in every]),
        ("edges counted", [MEANING[side.side][1].split()[0] for side in sides]),
        ("full degree", [count(side.fan) for side in sides]),
        ("degree min / mean / max", [degrees(m) for m in every]),
        ("without edges", [count(m.no_edges) for m in every]),
        ("with edges, on-rate at most 0.001", [count(m.silent) for m in every]),
        ("dead", [count(m.dead) for m in every]),
        ("traffic, sum of a k", [number(m.traffic) for m in every]),
        ("coding entropy, bits a unit", [number(m.entropy) for m in every]),
        ("slope β", [number(m.slope) for m in every]),
        ("R²", [number(m.r2) for m in every]),
        ("never observed", [_unobserved(side) for side in sides]),
    ]
    known = [(name, cells) for name, cells in columns if set(cells) != {NONE}]
    return head, [[name, *cells] for name, cells in known]


def _unobserved(side: SideFacts) -> str:
    """Units without an on-rate, where some have one."""
    return count(side.unobserved or None)


LAYER_HEAD = (
    *("layer", "edges kept", "density got", "degree min / mean / max", "dead units"),
    *("slope β", "R²"),
)


def hub_table(side: SideFacts) -> Table | None:
    """Title, head and rows of the hubs of a side: by traffic first, then by degree.

    A unit that is a hub for both reasons has one row; one without edges is no hub.
    Columns of activity are left out where it is unknown.

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
    return f"Hubs among the {MEANING[side.side][0]}", head, rows


def _rank(unit: Unit, best: Sequence[Unit]) -> str:
    return str(best.index(unit) + 1) if unit in best else NONE


def layer_rows(kernel: KernelFacts, side: SideFacts) -> list[tuple[str, ...]]:
    """Figures of each layer of a stack."""
    edges = kernel.edges // max(len(side.layers), 1)
    return [
        (
            at(tuple(int(n) for n in np.unravel_index(i, kernel.stack_shape))),
            count(kept),
            percent(kept / edges),
            degrees(m),
            count(m.dead),
            number(m.slope),
            number(m.r2),
        )
        for i, (m, kept) in enumerate(
            zip(side.layers, kernel.kept_by_layer, strict=True)
        )
    ]


def text(report: Report) -> str:
    """The table of kernels as plain text, without any foreign library."""
    notes = [f"note: {note}" for note in report.notes]
    body = table(HEAD, [row.cells for row in rows(report)])
    return "\n".join([report.title, headline(report), *notes, "", body])


def extras(report: Report) -> list[Table]:
    """Name, head and rows of the tables of what else is known."""
    found: list[Table] = []
    if report.latency:
        timed = [(name, number(ms)) for name, ms in report.latency.items()]
        found.append(("Latency", ("measured", "milliseconds"), timed))
    if report.shrunk:
        shrunk = [
            (name, _figure(a), _figure(b), percent(b / a if a else None))
            for name, (a, b) in report.shrunk.items()
        ]
        head = ("figure", "before", "after", "after / before")
        found.append(("Shrunk model", head, shrunk))
    if report.others:
        others = [(path, count(kept), count(n)) for path, n, kept in report.others]
        found.append(("Masks of other parameters", ("parameter", "kept", "of"), others))
    return found


def _figure(value: float) -> str:
    """All digits of a whole number, three of another."""
    return count(int(value)) if value.is_integer() else number(value)
