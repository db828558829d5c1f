"""Three pictures and an overview of four panels, drawn without a display."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bbjax.demo import panels
from bbjax.demo.drawing import (
    STYLES,
    blank,
    headed,
    legend,
    line,
    many,
    plain_log,
    tidy,
)
from bbjax.demo.model import PRUNED
from bbjax.demo.results import Results

__all__ = ["NAMES", "STYLES", "blank", "draw_all", "tidy"]

SIZE = 12  # of text in the overview, which READMEs show at half its width


def draw_all(results: Results) -> dict[str, Figure]:
    """All pictures, by the name of their file."""
    return {name: draw(results) for name, draw in DRAWN.items()}


def overview(results: Results) -> Figure:
    """Accuracy, budget, balance and smaller nets."""
    figure = blank(10, 8.6, pad=0.12)
    (a, b), (c, d) = figure.subplots(2, 2)
    panels.accuracy(a, results, SIZE)
    panels.budget(b, results, SIZE)
    panels.balance(c, results, panels.widest(), SIZE)
    panels.smaller(d, results, SIZE)
    return figure


def activity_degree(results: Results) -> Figure:
    """Degree against on-rate, layer by layer."""
    figure = blank(13, 4.6, pad=0.1)
    for ax, path in zip(figure.subplots(1, len(PRUNED)), PRUNED, strict=True):
        panels.balance(ax, results, path, SIZE - 1)
    return figure


# Degrees -------------------------------------------------------------------------
def _degrees(ax: Axes, results: Results, path: str, end: int) -> None:
    """Degrees of the units of a kernel, sorted; `end` is 0 for fan-in, else 1."""
    for outcome in results.pruned:
        values = np.sort(outcome.degrees[path][end])
        x = 100 * (np.arange(len(values)) + 0.5) / len(values)
        every = max(1, len(values) // 8)
        ax.plot(x, values, **line(outcome.method.key), markevery=every)
    ax.set_xlim(0, 100)
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_ylim(bottom=0)
    kind, side, budget = (
        ("output", "incoming", "in"),
        ("input", "outgoing", "out"),
    )[end]
    count = results.units[path].unit_count("in" if end == 0 else "out")
    headed(
        ax,
        f"{path.split('/')[0]}: fan-{budget}",
        f"{count} {kind} units, 1 seed",
        f"{kind} units, sorted (%)",
        f"kept {side} edges",
        SIZE - 1,
    )


def degrees(results: Results) -> Figure:
    """Degrees of each budgeted kernel, from both ends, by method."""
    figure = blank(13, 8.4, pad=0.1)
    grid = figure.subplots(2, len(PRUNED))
    for end in (0, 1):
        for ax, path in zip(grid[end], PRUNED, strict=True):
            _degrees(ax, results, path, end)
    legend(figure, results.pruned, 3, SIZE - 1)
    return figure


# Churn ---------------------------------------------------------------------------
def churn(results: Results) -> Figure:
    """Share of edges that change at each refresh, and how much the ramp asks for."""
    figure, timing = blank(8, 5.6), results.timing
    ax = figure.subplots()
    steps, edges = np.array(timing.refreshes()), results.pruned[0].edges
    asked = timing.densities(results.pruned[0].density)[steps]
    needed, least = 100 * -np.diff(asked, prepend=1.0), 100 / edges
    ramp = needed > least
    shade: dict[str, Any] = {"color": "#d9d9d9", "linewidth": 0, "zorder": 0}
    ax.fill_between(steps[ramp], least, needed[ramp], **shade, label="the ramp alone")
    last = {}
    for outcome in results.pruned:
        share = 100 * outcome.churn.mean(axis=1)
        last[outcome.method.key] = share[-1]
        share = np.where(share > 0, share, np.nan)
        every = max(1, len(steps) // 8)
        ax.plot(
            steps,
            share,
            label=outcome.method.label,
            markevery=every,
            **line(outcome.method.key),
        )
    ax.axvline(
        timing.stop, color="black", linewidth=1, linestyle=":", label="masks freeze"
    )
    plain_log(ax, "y", "g")
    ax.set_xlim(0, timing.steps)
    ax.set_ylim(bottom=least)
    ax.legend(fontsize=SIZE - 3, frameon=False, loc="lower left")
    headed(
        ax,
        f"At the last refresh {last['bb_in']:.2g} % of the edges change "
        f"(fan-in; magnitude {last['magnitude']:.2g} %)",
        f"mean of {many(len(results.main[0].accuracy), 'seed')}; share of all edges, "
        "kept or not",
        "training step",
        "edges that change at a refresh (%)",
        SIZE - 1,
    )
    return figure


DRAWN = {
    "overview.png": overview,
    "activity_degree.png": activity_degree,
    "degrees.png": degrees,
    "churn.png": churn,
}
NAMES = tuple(DRAWN)
