"""Four pictures and an overview of them, from outcomes; drawn without a display.

One colour, marker and line style per method, the same in every picture and told apart
in greyscale. Balance pictures show log((1 - a) / a) against the degree k: the
selectivity-audience balance says that units lie on a line of slope beta through the
units that are off their bounds. Reference: arXiv 2510.01263.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

import bbjax as bb
from bbjax.demo.methods import Timing
from bbjax.demo.model import PRUNED
from bbjax.demo.outcome import Outcome
from bbjax.metrics import SATURATED, off_bounds

# Colours of Okabe and Ito, told apart by most colour-blind readers.
STYLES: dict[str, dict[str, Any]] = {
    "dense": {"color": "#000000", "marker": "", "linestyle": (0, (6, 2))},
    "magnitude": {"color": "#8a8a8a", "marker": "s", "linestyle": "-"},
    "activity_only": {"color": "#e69f00", "marker": "^", "linestyle": "-."},
    "bb_in": {"color": "#0072b2", "marker": "o", "linestyle": "-"},
    "bb_out": {"color": "#009e73", "marker": "D", "linestyle": "--"},
    "bb_both": {"color": "#d55e00", "marker": "v", "linestyle": ":"},
}
WIDE = "Dense_0/kernel"  # the kernel that the overview shows
DPI = 150
TEXT = 9


def draw_all(
    main: Sequence[Outcome],
    sweep: Sequence[Outcome],
    units: bb.Units,
    timing: Timing,
    out: Path,
) -> None:
    """Writes the five pictures into a folder.

    Args:
        main: outcomes at the density asked for, dense first.
        sweep: outcomes at further densities.
        units: from the trace.
        timing: when pruning happened.
        out: folder, which exists.
    """
    by_key = {outcome.method.key: outcome for outcome in main}
    draw_balance(by_key["bb_in"], units, out / "activity_degree.png")
    draw_degrees(main, out / "degrees.png")
    draw_accuracy(main, sweep, out / "accuracy_density.png")
    draw_churn(main, timing, out / "churn.png")
    draw_overview(main, sweep, units, timing, out / "overview.png")


def _layer(path: str) -> str:
    return path.split("/")[0]


def blank(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, drawn without a display."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(ax: Axes, title: str, x: str, y: str) -> None:
    """Title and labels of an axis, with a light grid."""
    ax.set_title(title, fontsize=TEXT + 1, loc="left")
    ax.set_xlabel(x, fontsize=TEXT)
    ax.set_ylabel(y, fontsize=TEXT)
    ax.tick_params(labelsize=TEXT - 1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#e4e4e4", linewidth=0.6)
    ax.set_axisbelow(True)


def _line(key: str, **other: Any) -> dict[str, Any]:
    common = {"linewidth": 1.5, "markersize": 4.5, "markeredgecolor": "white"}
    return STYLES[key] | common | {"markeredgewidth": 0.5} | other


def _legend(figure: Figure, outcomes: Sequence[Outcome], columns: int = 6) -> None:
    handles = [
        Line2D([], [], label=o.method.label, **_line(o.method.key)) for o in outcomes
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        fontsize=TEXT,
        frameon=False,
        handlelength=3,
    )


# Activity against degree ---------------------------------------------------------
def balance(ax: Axes, outcome: Outcome, units: bb.Units, path: str) -> None:
    """log((1 - a) / a) of the units of a kernel against their degree, and the line."""
    degree, rate = outcome.degrees[path][0], outcome.on_rates[path]
    a = np.clip(rate, SATURATED, 1 - SATURATED)
    odds = np.log((1 - a) / a)
    free = off_bounds(degree, rate, outcome.k_min, units[path].fan("in"))
    dots: dict[str, Any] = {"linestyle": "", "markersize": 4.5, "alpha": 0.75}
    dots |= {"marker": STYLES["bb_in"]["marker"], "color": STYLES["bb_in"]["color"]}
    ax.plot(degree[free], odds[free], **dots, markeredgecolor="white", mew=0.4)
    ax.plot(degree[~free], odds[~free], **dots, markerfacecolor="none", mew=0.9)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    slope = outcome.metrics[0][f"{path}/balance_slope"]
    r2 = outcome.metrics[0][f"{path}/balance_r2"]
    name, count = _layer(path), len(degree)
    if np.isfinite(slope) and free.any():
        x = np.array([degree.min(), degree.max()], float)
        y = odds[free].mean() + slope * (x - degree[free].mean())
        ax.plot(x, y, color="black", linewidth=1.3)
        fit = f"slope {slope:.2g} per edge, $R^2$ = {r2:.2f}"
    else:
        fit = "no line: too few units off their bounds"
    tidy(
        ax,
        f"BB, SP-in, {name}, {count} units\n{fit}",
        "degree $k$ (kept incoming edges)",
        r"log-odds of being off, $\log\frac{1-a}{a}$",
    )


def draw_balance(outcome: Outcome, units: bb.Units, file: Path) -> None:
    """`balance` of each budgeted kernel."""
    figure = blank(11, 3.9)
    for ax, path in zip(figure.subplots(1, len(PRUNED)), PRUNED, strict=True):
        balance(ax, outcome, units, path)
    color = STYLES["bb_in"]["color"]
    dot = {"linestyle": "", "marker": "o", "color": color, "markersize": 5}
    handles = [
        Line2D([], [], label="unit (seed 0)", **dot),
        Line2D(
            [],
            [],
            label="unit on a bound of degree or on-rate",
            markerfacecolor="none",
            **dot,
        ),
        Line2D([], [], label="fitted balance line", color="black"),
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=3,
        fontsize=TEXT,
        frameon=False,
    )
    figure.savefig(file)


# Degrees -------------------------------------------------------------------------
def degrees(ax: Axes, main: Sequence[Outcome], path: str, end: int) -> None:
    """Degrees of the units of a kernel, sorted, by method.

    Args:
        ax: to draw on.
        main: outcomes; the dense net is left out.
        path: of the kernel.
        end: 0 for fan-in, 1 for fan-out.
    """
    count = 0
    for outcome in main:
        if not outcome.metrics:
            continue
        values = np.sort(outcome.degrees[path][end])
        count = len(values)
        x = 100 * (np.arange(count) + 0.5) / count
        every = max(1, count // 8)
        ax.plot(x, values, **_line(outcome.method.key), markevery=every)
    ax.set_xlim(0, 100)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(bottom=0)
    kind, side = (("output", "incoming"), ("input", "outgoing"))[end]
    tidy(
        ax,
        f"{_layer(path)}, {count} {kind} units, seed 0",
        f"{kind} units, sorted (%)",
        f"kept {side} edges",
    )


def draw_degrees(main: Sequence[Outcome], file: Path) -> None:
    """`degrees` of each budgeted kernel, from both ends."""
    figure = blank(11, 6.6)
    grid = figure.subplots(2, len(PRUNED))
    for end in (0, 1):
        for ax, path in zip(grid[end], PRUNED, strict=True):
            degrees(ax, main, path, end)
    _legend(figure, main[1:], columns=5)
    figure.savefig(file)


# Accuracy against density --------------------------------------------------------
def accuracy(
    ax: Axes, main: Sequence[Outcome], sweep: Sequence[Outcome], title: str
) -> None:
    """Mean and standard deviation of the test accuracy by density."""
    seeds = min([len(o.accuracy) for o in sweep] or [len(main[0].accuracy)])
    swept = [o for o in main if o.method.key in {s.method.key for s in sweep}]
    points = sorted([*sweep, *swept], key=lambda o: o.density)
    dense = main[0].accuracy[:seeds]
    ax.axhline(dense.mean(), **_line("dense"))
    around = dense.std(ddof=min(1, seeds - 1))
    ax.axhspan(
        dense.mean() - around, dense.mean() + around, color="#ececec", zorder=0.5
    )
    keys = [o.method.key for o in swept]
    for i, key in enumerate(keys):
        mine = [o for o in points if o.method.key == key]
        shift = 1.015 ** (i - (len(keys) - 1) / 2)  # error bars side by side
        ax.errorbar(
            [o.density * shift for o in mine],
            [o.accuracy[:seeds].mean() for o in mine],
            yerr=[o.accuracy[:seeds].std(ddof=min(1, seeds - 1)) for o in mine],
            **_line(key),
            elinewidth=0.9,
            capsize=2,
        )
    ax.set_xscale("log")
    ticks = sorted({o.density for o in points})
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    tidy(ax, title, "density (kept share of the budgeted edges)", "test accuracy (%)")


def draw_accuracy(
    main: Sequence[Outcome], sweep: Sequence[Outcome], file: Path
) -> None:
    """`accuracy` with a legend."""
    figure = blank(6.4, 4.6)
    seeds = min([len(o.accuracy) for o in sweep])
    spread = f"mean ± sd of {seeds} seeds" if seeds > 1 else "one seed"
    accuracy(figure.subplots(), main, sweep, f"Accuracy against density, {spread}")
    shown = {o.method.key for o in sweep} | {"dense"}
    _legend(figure, [o for o in main if o.method.key in shown], columns=3)
    figure.savefig(file)


# Churn ---------------------------------------------------------------------------
def churn(ax: Axes, main: Sequence[Outcome], timing: Timing) -> None:
    """Share of edges flipped at each refresh, and how much the ramp asks for."""
    steps = np.array(timing.refreshes())
    pruned = [o for o in main if o.metrics]
    asked = timing.densities(pruned[0].density)[steps]
    needed = -np.diff(asked, prepend=1.0)
    ramp = needed > 0
    least = 1 / pruned[0].edges
    ax.fill_between(
        steps[ramp],
        100 * least,
        100 * np.maximum(needed[ramp], least),
        color="#d9d9d9",
        linewidth=0,
        zorder=0,
    )
    for outcome in pruned:
        share = 100 * outcome.churn.mean(axis=1)
        share = np.where(share > 0, share, np.nan)
        every = max(1, len(steps) // 8)
        ax.plot(steps, share, **_line(outcome.method.key), markevery=every)
    ax.axvline(timing.stop, color="black", linewidth=0.8, linestyle=":")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlim(0, max(timing.steps, 1))
    ax.set_ylim(bottom=100 * least)
    tidy(
        ax,
        "Mask churn; shaded: the ramp,\ndotted: masks frozen",
        "training step",
        "edges flipped per refresh (%)",
    )


def draw_churn(main: Sequence[Outcome], timing: Timing, file: Path) -> None:
    """`churn` with a legend."""
    figure = blank(6.4, 4.6)
    churn(figure.subplots(), main, timing)
    _legend(figure, main[1:], columns=3)
    figure.savefig(file)


# Overview ------------------------------------------------------------------------
def draw_overview(
    main: Sequence[Outcome],
    sweep: Sequence[Outcome],
    units: bb.Units,
    timing: Timing,
    file: Path,
) -> None:
    """One panel of each picture, side by side."""
    by_key = {o.method.key: o for o in main}
    figure = blank(14, 3.9)
    axes = figure.subplots(1, 4)
    balance(axes[0], by_key["bb_in"], units, WIDE)
    degrees(axes[1], main, WIDE, 0)
    accuracy(axes[2], main, sweep, "Accuracy against density")
    churn(axes[3], main, timing)
    axes[2].set_xlabel("density", fontsize=TEXT)
    _legend(figure, main)
    figure.savefig(file)
