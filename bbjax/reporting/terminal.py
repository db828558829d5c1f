"""The report in a terminal, drawn with rich: the same figures and words as the page.

    headline and notes -> table of kernels -> a section on each kernel -> sizes, latency

A histogram is a line of bars, a mask a block of shades, activity against degree the
fitted line and the mean degree by on-rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich import box
from rich.columns import Columns
from rich.console import (
    Console,
    ConsoleOptions,
    Group,
    JustifyMethod,
    RenderableType,
)
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from bbjax.reporting import masks, words
from bbjax.reporting.data import KernelFacts, Report, SideFacts

DETAILED = 8  # kernels up to which each has a section of its own
_BARS = " ▁▂▃▄▅▆▇█"
_RATES = (0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
_LINES, _WIDE = 16, 44  # lines and characters of a mask, at most
_GAP = 3  # columns between two columns of a table
_DROPPED = (  # columns, in the order in which a narrow terminal goes without them
    *("density asked", "stored", "edges kept", "actuator", "churn", "R²", "slope β"),
)
_SPLIT = ("degree ", "density ", "dead ")  # words that head a column on their own line


def console() -> Console:
    """Standard output."""
    return Console()


def render(report: Report, details: bool | None = None) -> RenderableType:
    """Everything, for rich to print.

    Args:
      report: the report.
      details: whether every kernel has a section; None for up to eight kernels.
    """
    parts: list[RenderableType] = [
        Text(report.title, "bold"),
        Text(words.headline(report)),
        *(Text(f"! {note}", "yellow") for note in report.notes),
        Text(),
        _cards(report),
        _Summary(report),
    ]
    every = len(report.kernels) <= DETAILED if details is None else details
    for kernel in report if every else ():
        parts += _kernel(kernel, report.since)
    if not every:
        said = "details=True prints a section on every kernel; save(...) writes a page"
        parts.append(Text(said, "dim"))
    for name, head, rows in words.extras(report):
        parts += [Text(), _table(head, rows, name)]
    if every:
        parts += [Rule(Text("What the words mean", "bold"), align="left"), _glossary()]
    return Group(*parts)


def _cards(report: Report) -> RenderableType:
    drawn = Table.grid(padding=(0, 2))
    for name, figure, remark in words.cards(report):
        drawn.add_row(Text(name, "dim"), Text(figure, "bold"), Text(remark, "dim"))
    return drawn


def _glossary() -> RenderableType:
    drawn = Table.grid(padding=(0, 2))
    for name, text in words.GLOSSARY:
        drawn.add_row(Text(name, "dim"), Text(text))
    return drawn


class _Summary:
    """The table of kernels; where the terminal is narrow, with fewer columns."""

    def __init__(self, report: Report) -> None:
        self._rows = [row.cells for row in words.rows(report)]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        del console
        left = {i: self._width(i) for i in range(len(words.HEAD))}
        for name in _DROPPED:
            if sum(left.values()) > options.max_width:
                del left[words.HEAD.index(name)]
        head = [_headed(words.HEAD[i]) for i in left]
        right = [n for n, i in enumerate(left) if words.HEAD[i] in words.RIGHT]
        rows = [[cells[i] for i in left] for cells in self._rows]
        drawn = _table(head, rows, right=right)
        for column in drawn.columns[1:]:
            column.no_wrap = True
        yield drawn

    def _width(self, i: int) -> int:
        head = max(map(len, _headed(words.HEAD[i]).split("\n")))
        return max(head, *(len(cells[i]) for cells in self._rows)) + _GAP


def _headed(name: str) -> str:
    """The name of a column, on two lines where it has two parts."""
    first = next((word for word in _SPLIT if name.startswith(word)), "")
    return f"{first.strip()}\n{name.removeprefix(first)}" if first else name


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    right: Sequence[int] | None = None,
) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    if title:
        drawn.title, drawn.title_justify = Text(title, "bold"), "left"
    flush = range(1, len(head)) if right is None else right
    for i, name in enumerate(head):
        side: JustifyMethod = "right" if i in flush else "left"
        drawn.add_column(Text(name), justify=side, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


# One kernel ----------------------------------------------------------------------
def _kernel(kernel: KernelFacts, since: str) -> Iterator[RenderableType]:
    yield Text()
    yield Rule()
    yield Text(kernel.path, "bold", overflow="fold")
    lines = Table.grid(padding=(0, 2))
    for name, text in words.kernel_lines(kernel, since):
        lines.add_row(Text(name, "dim"), Text(text))
    for side in kernel.main:
        units, _ = words.MEANING[side.side]
        lines.add_row(Text(f"fitted line, {units}", "dim"), Text(_line(side)))
    yield lines
    tables: list[RenderableType] = [_bars(side) for side in kernel.sides]
    tables.append(_table(*words.side_table(kernel), "Units"))
    for side in kernel.main:
        hubs = words.hub_table(side)
        tables += [] if hubs is None else [_table(*hubs[1:], hubs[0])]
    tables += [_activity(side) for side in kernel.main if side.rate is not None]
    tables.append(_mask(kernel))
    yield Columns([Padding(part, (1, 2, 0, 0)) for part in tables])
    for side in kernel.main if kernel.stack_shape else ():
        name = f"Layers, {words.MEANING[side.side][0]}"
        yield Text()
        yield _table(words.LAYER_HEAD, words.layer_rows(kernel, side), name)


def _line(side: SideFacts) -> str:
    if side.rate is None:
        return f"none: {side.why_no_activity}"
    return words.line(side.whole)


def _bars(side: SideFacts) -> RenderableType:
    """A histogram as one line: every bin that has units shows something."""
    bins = side.histogram
    most = max(bins.counts)
    heights = (-(-8 * count // most) for count in bins.counts)
    end = side.whole.degree_max
    drawn = Text(f"{bins.start:,} ", no_wrap=True)
    drawn.append("".join(_BARS[height] for height in heights), "blue").append(
        f" {end:,}"
    )
    units, edges = words.MEANING[side.side]
    said = f"from least to largest degree k ({edges}); highest bar: "
    said += words.counted(most, "units")
    return Group(Text(f"Degrees of {units}", "bold"), drawn, Text(said, "dim"))


def _activity(side: SideFacts) -> RenderableType:
    """Mean degree of the units by on-rate: the scatter of the page in numbers."""
    assert side.rate is not None
    rate, degree = side.rate.ravel(), side.degree.ravel()
    which = np.digitize(rate, _RATES[1:-1], right=True)
    rows = []
    for i, (low, high) in enumerate(zip(_RATES[:-1], _RATES[1:], strict=True)):
        inside = degree[which == i]
        if inside.size:
            mean = words.number(float(inside.mean()))
            rows.append((f"{low:g} to {high:g}", words.count(inside.size), mean))
    units, _ = words.MEANING[side.side]
    head = ("on-rate a", "units", "mean degree k")
    return _table(head, rows, f"Degree against on-rate, {units}")


def _mask(kernel: KernelFacts) -> RenderableType:
    """The mask of the first layer, with its axes, its density and its shades."""
    picture = kernel.pictures[0]
    rows, columns = picture.edges
    tall = min(max(rows / columns, 1 / 3), 3 / 2)
    lines = min(_LINES, round(_WIDE / 2 * tall))
    across = min(_WIDE, round(2 * lines / tall))
    seen = masks.coarser(picture, lines, across)
    times = 2 if 2 * seen.share.shape[1] <= across else 1
    shades = ["".join(s * times for s in line) for line in masks.shading(seen)]
    drawn = Table(box=box.SQUARE, show_header=False, padding=0)
    drawn.add_row(Text("\n".join(shades), "blue", no_wrap=True))
    keys = masks.ramp(seen)
    legend = Columns([Text(f"[{s}] {said}", no_wrap=True) for s, said in keys])
    said = f"{masks.caption(picture)}; {masks.scale(seen.block, 'cell')}"
    title = Text(masks.title(picture), "bold")
    head = Text("shades: kept share of the edges of a cell", "dim")
    return Group(title, drawn, Text(said, "dim"), head, legend)
