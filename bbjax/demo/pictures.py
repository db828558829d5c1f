"""An overview of four panels and three more pictures, drawn without a display."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bbjax.demo import panels
from bbjax.demo.drawing import blank, headed, line, many, plain_log
from bbjax.demo.results import Results

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


def benefit(results: Results) -> Figure:
    """What pruning gives: smaller nets, and a budget that is met."""
    figure = blank(10, 4.3, pad=0.12)
    left, right = figure.subplots(1, 2)
    panels.smaller(left, results, SIZE)
    panels.budget(right, results, SIZE)
    return figure


# Degrees -------------------------------------------------------------------------
def degrees(results: Results) -> Figure:
    """Fan-in of the units of the widest kernel, sorted, by method."""
    figure, path = blank(8, 5.6), panels.widest()
    ax = figure.subplots()
    for outcome in results.pruned:
        values = np.sort(outcome.degrees[path][0])
        x = 100 * (np.arange(len(values)) + 0.5) / len(values)
        label, every = outcome.method.label, max(1, len(values) // 8)
        ax.plot(x, values, label=label, markevery=every, **line(outcome.method.key))
    ax.set_xlim(0, 100)
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=SIZE - 3, frameon=False, loc="upper left")
    low, most = (results.by_key[k].degrees[path][0] for k in ("magnitude", "bb_in"))
    headed(
        ax,
        f"{low.min()} to {low.max()} edges a unit by magnitude, "
        f"{most.min()} to {most.max()} by Budgeted Broadcast",
        f"title: magnitude per unit, fan-in budget; {len(most)} units of "
        f"{path.split('/')[0]}; 1 seed",
        "units, sorted by degree (%)",
        "degree (kept incoming edges)",
        SIZE - 1,
    )
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
    ax.fill_between(
        steps[ramp], least, needed[ramp], **shade, label="needed by the ramp"
    )
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
        f"Fan-in budget: {last['bb_in']:.2g} % of the edges change at the last refresh",
        f"mean of {many(len(results.main[0].accuracy), 'seed')}; "
        "share of all edges, kept or not",
        "training step",
        "edges that change at a refresh (%)",
        SIZE - 1,
    )
    return figure


DRAWN = {
    "overview.png": overview,
    "benefit.png": benefit,
    "degrees.png": degrees,
    "churn.png": churn,
}
NAMES = tuple(DRAWN)
