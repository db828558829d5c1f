"""Charts of a sensitivity analysis: the loss with one row pruned at a time.

    curves      increase of the loss against density, one line a row; those that rise
                most are named, the others grey
    heat map    layers of a stack against densities; the darker, the larger the increase

Lines end at density 1 with an increase of 0: the dense model. All heat maps of a report
have one scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from bbjax.reporting.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    Axes,
    Chart,
    frame,
    tag,
    ticks,
    wide,
)
from bbjax.reporting.data import LossFacts, LossRow
from bbjax.reporting.formats import counted, escape, number, signed

NAMED = ("first", "second", "third", "fourth")  # classes of the lines with a name
_ROOM = 0.03  # of the width, left of the lowest density and right of 1


def curves(losses: LossFacts) -> Chart:
    """Increases of the loss against the density of one row."""
    low, high = losses.densities[-1], 1.0
    room = _ROOM * (high - low)
    rising = [x for row in losses.rows for x in row.increases]
    bottom, top, marked = _scale(min(0.0, *rising), losses.most)
    left = max(LEFT, 24 + max(wide(text) for _, text in marked))
    axes = Axes((low - room, high + room), (bottom, top), left)
    order = sorted(losses.rows, key=lambda row: -max(row.increases))  # stable
    named = dict(zip((row.name for row in order), NAMED, strict=False))
    others = [row for row in losses.rows if row.name not in named]
    marks = [_line(axes, losses, row, "other") for row in others]
    marks += [
        _line(axes, losses, row, named[row.name]) for row in order[len(NAMED) - 1 :: -1]
    ]
    summary = (
        f"Increase of the loss against the density of one of "
        f"{counted(len(losses.rows), 'rows')}: at most {number(losses.most)}"
    )
    at = [(d, f"{d:.4g}") for d in sorted({*losses.densities, 1.0})]
    names = ("density of one row, the others dense", "increase of the loss")
    legend = [(f"curve {kind}", name) for name, kind in named.items()]
    if others:
        legend.append(("curve other", counted(len(others), "other rows")))
    svg = frame(axes, marks, at, names, summary, marked)
    return Chart(svg, tuple(legend))


def _line(axes: Axes, losses: LossFacts, row: LossRow, kind: str) -> str:
    points = [*zip(losses.densities, row.increases, strict=True)][::-1]
    steps = [
        f"{'L' if n else 'M'}{axes.px(d):.1f} {axes.py(x):.1f}"
        for n, (d, x) in enumerate([*points, (1.0, 0.0)])
    ]
    at = ", ".join(f"{signed(x)} at {d:.4g}" for d, x in points)
    title = tag("title", escape(f"{row.name}: {at}"))
    return tag("path", title, class_=f"curve {kind}", d="".join(steps))


def _scale(low: float, high: float) -> tuple[float, float, list[tuple[float, str]]]:
    """Ends of an axis around a range, a round one above, and its labels."""
    span = high - low or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = unit * next(m for m in (1, 2, 5, 10) if span <= 4 * m * unit * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    marked = [(n * step, number(n * step)) for n in range(first, last + 1)]
    return min(low, first * step), last * step, marked


def heat_map(losses: LossFacts, group: str) -> Chart:
    """Increases of the loss, layer by layer and density by density.

    Args:
      losses: all of them, for the scale.
      group: the stack that is drawn.
    """
    rows = losses.stacks[group]
    levels = losses.densities
    texts = [f"{density:.4g}" for density in levels]
    left = max(LEFT, 24 + max(map(wide, texts)))
    axes = Axes((-0.5, len(rows) - 0.5), (len(levels) - 0.5, -0.5), left)
    marks = list(_cells(axes, losses, rows))
    summary = (
        f"Increase of the loss with one of {len(rows)} layers of {group} pruned, by "
        "density"
    )
    at = [(float(t), str(t)) for t in ticks(0, len(rows) - 1, most=8)]
    down = [(float(n), text) for n, text in enumerate(texts)]
    svg = frame(axes, marks, at, ("layer", "density"), summary, down, grid=False)
    legend = f"the darker, the larger the increase: none to {number(losses.most)}"
    return Chart(svg, (("cell", legend),))


def _cells(axes: Axes, losses: LossFacts, rows: tuple[LossRow, ...]) -> Iterator[str]:
    for i, row in enumerate(rows):
        for n, (density, x) in enumerate(
            zip(losses.densities, row.increases, strict=True)
        ):
            left, right = axes.px(i - 0.5), axes.px(i + 0.5)
            top, bottom = axes.py(n - 0.5), axes.py(n + 0.5)
            gap = min(1.0, (right - left) / 8)
            share = max(x, 0.0) / (losses.most or 1.0)  # shown as in masks
            yield tag(
                "rect",
                tag("title", escape(f"{row.name} at {density:.4g}: {signed(x)}")),
                class_="cell",
                fill_opacity=round(math.sqrt(share), 3),
                x=round(left + gap / 2, 1),
                y=round(top + 0.5, 1),
                width=round(max(right - left - gap, 0.5), 1),
                height=round(min(bottom, HEIGHT - BOTTOM) - top - 1, 1),
            )
