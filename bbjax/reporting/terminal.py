"""The report in a terminal, drawn with rich: the same figures and words as the page.

    headline and notes -> table of kernels -> a section on each kernel -> losses with
    one row pruned -> what the caller gave, other masks -> what the words mean

A histogram is a line of bars, a mask a block of shades, and activity against degree is
given by the fitted line and the mean degree by on-rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rich import box
from rich.columns import Columns
from rich.console import (
    Console,
    ConsoleOptions,
    Group,
    JustifyMethod,
    OverflowMethod,
    RenderableType,
)
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from bbjax.model.text import printable
from bbjax.reporting import masks, words
from bbjax.reporting.data import Facts, KernelFacts, LossFacts, SideFacts
from bbjax.reporting.formats import count, counted, number
from bbjax.reporting.words import MEANING

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


def _text(text: str, style: str = "", overflow: OverflowMethod | None = None) -> Text:
    """Text whose control characters are shown; a terminal would obey them."""
    return Text(printable(text), style, overflow=overflow)


def render(facts: Facts, details: bool | None = None) -> RenderableType:
    """Everything, for rich to print.

    Args:
      facts: the report.
      details: whether every kernel has a section; None for up to eight kernels.
    """
    parts: list[RenderableType] = [
        _text(facts.title, "bold"),
        _text(words.headline(facts)),
        *(_text(f"! {note}", "yellow") for note in facts.notes),
        Text(),
        _grid(words.cards(facts), "bold"),
        _KernelsTable(words.kernels_table(facts)),
    ]
    every = len(facts.kernels) <= DETAILED if details is None else details
    for kernel in facts if every else ():
        parts += _kernel(kernel, facts.since)
    if not every:
        hint = "details=True prints a section on every kernel; save(...) writes a page"
        parts.append(Text(hint, "dim"))
    if facts.losses is not None:
        parts += _losses(facts.losses)
    for table in words.other_tables(facts):
        parts += [Text(), _table(table)]
    if every:
        title = Text("What the words mean", "bold")
        parts += [Rule(title, align="left"), _grid(words.GLOSSARY)]
    return Group(*parts)


def _grid(rows: Iterable[Sequence[str]], style: str = "") -> Table:
    """Names, texts in a style of their own, and remarks."""
    drawn = Table.grid(padding=(0, 2))
    for name, text, *remarks in rows:
        rest = (_text(remark, "dim") for remark in remarks)
        drawn.add_row(_text(name, "dim"), _text(text, style), *rest)
    return drawn


class _KernelsTable:
    """The table of kernels; where the terminal is narrow, with fewer columns."""

    def __init__(self, table: words.Table) -> None:
        rows = [[printable(cell) for cell in row] for row in table.rows]
        self._table = table._replace(rows=rows)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        del console
        head, rows = self._table.head, self._table.rows
        widths = {name: self._width(i) for i, name in enumerate(head)}
        for name in _DROPPED:
            if sum(widths.values()) > options.max_width:
                del widths[name]
        shown = [i for i, name in enumerate(head) if name in widths]
        left = sum(i < self._table.left for i in shown)
        names = [_headed(head[i]) for i in shown]
        cells = [[row[i] for i in shown] for row in rows]
        drawn = _table(words.Table("", names, cells, left))
        for column in drawn.columns[1:]:
            column.no_wrap = True
        yield drawn

    def _width(self, i: int) -> int:
        head = max(map(len, _headed(self._table.head[i]).split("\n")))
        return max(head, *(len(row[i]) for row in self._table.rows)) + _GAP


def _headed(name: str) -> str:
    """The name of a column, on two lines where it has two parts."""
    first = next((word for word in _SPLIT if name.startswith(word)), "")
    return f"{first.strip()}\n{name.removeprefix(first)}" if first else name


def _table(table: words.Table) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    if table.title:
        drawn.title, drawn.title_justify = _text(table.title, "bold"), "left"
    for i, name in enumerate(table.head):
        side: JustifyMethod = "left" if i < table.left else "right"
        drawn.add_column(Text(name), justify=side, overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(_text, row))
    return drawn


# One kernel ----------------------------------------------------------------------
def _kernel(kernel: KernelFacts, since: str) -> Iterator[RenderableType]:
    yield Text()
    yield Rule()
    yield _text(kernel.path, "bold", overflow="fold")
    lines = words.kernel_lines(kernel, since)
    for side in kernel.main:
        name = f"fitted line, {MEANING[side.side][0]}"
        lines.append((name, words.line(side, side.whole)))
    yield _grid(lines)
    hubs = [words.hub_table(side) for side in kernel.main]
    parts: list[RenderableType] = [_bars(side) for side in kernel.sides]
    parts += map(_table, [words.units_table(kernel), *filter(None, hubs)])
    parts += [_activity(side) for side in kernel.main if side.rate is not None]
    parts.append(_mask(kernel))
    yield Columns([Padding(part, (1, 2, 0, 0)) for part in parts])
    for table in words.layer_tables(kernel):
        yield Text()
        yield _table(table)


# Losses --------------------------------------------------------------------------
def _losses(losses: LossFacts) -> Iterator[RenderableType]:
    """Increases of the loss as numbers, and as bars from high to low density."""
    table = words.losses_table(losses)
    most = losses.most or 1.0
    bars = [
        "".join(_BARS[math.ceil(8 * max(x, 0.0) / most)] for x in row.increases)
        for row in losses.rows
    ]
    rows = [(*cells, f"|{bar}|") for cells, bar in zip(table.rows, bars, strict=True)]
    yield Text()
    yield Rule()
    yield _text(words.losses_line(losses), "dim")
    yield _table(table._replace(head=(*table.head, "bars"), rows=rows))
    yield Text(f"full bar: {number(losses.most)}", "dim")


def _bars(side: SideFacts) -> RenderableType:
    """A histogram as one line, in which a bin with units is never empty."""
    bins = side.histogram
    most = max(bins.counts)
    bars = "".join(_BARS[-(-8 * units // most)] for units in bins.counts)
    drawn = Text(f"{count(bins.start)} ", no_wrap=True)
    drawn.append(bars, "blue").append(f" {count(side.whole.degree_max)}")
    units, edges = MEANING[side.side]
    axis = f"from least to largest degree k ({edges}); highest bar: "
    axis += counted(most, "units")
    return Group(Text(f"Degrees of {units}", "bold"), drawn, Text(axis, "dim"))


def _activity(side: SideFacts) -> RenderableType:
    """Mean degree of the units by on-rate: the scatter of the page in numbers."""
    assert side.rate is not None
    rate, degree = side.rate.ravel(), side.degree.ravel()
    which = np.digitize(rate, _RATES[1:-1], right=True)
    rows = []
    for i, (low, high) in enumerate(zip(_RATES[:-1], _RATES[1:], strict=True)):
        inside = degree[which == i]
        if inside.size:
            mean = number(float(inside.mean()))
            rows.append((f"{low:g} to {high:g}", count(inside.size), mean))
    head = ("on-rate a", "units", "mean degree k")
    title = f"Degree against on-rate, {MEANING[side.side][0]}"
    return _table(words.Table(title, head, rows))


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
    legend = Columns([Text(f"[{s}] {text}", no_wrap=True) for s, text in keys])
    caption = f"{masks.caption(picture)}; {masks.scale(seen.block, 'cell')}"
    title = Text(masks.title(picture), "bold")
    head = Text("shades: kept share of the edges of a cell", "dim")
    return Group(title, drawn, Text(caption, "dim"), head, legend)
