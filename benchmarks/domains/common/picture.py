"""The first metric of an experiment, method by method, a panel for each density."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bbjax.demo.drawing import blank, tidy
from benchmarks.domains.common.experiment import Experiment, Runs

MARKS = "os^vDP*Xdphs<>"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a")
MANY = 3  # more densities than these are an axis


def draw(experiment: Experiment, runs: Runs, path: Path) -> None:
    """Panels of points, or lines over density where there are many densities."""
    many = len(experiment.densities) > MANY
    made = (_lines if many else _points)(experiment, runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)


def _points(experiment: Experiment, runs: Runs) -> Figure:
    name, first, methods = experiment.first, *_named(experiment)
    shown = [d for d in experiment.densities if any(runs.of(m, d) for m in methods)]
    shown = shown or list(experiment.densities[:1])
    made = blank(width=3.6 * len(shown) + 1.6, height=0.32 * len(methods) + 1.3)
    axes = np.atleast_1d(made.subplots(1, len(shown), sharey=True, sharex=True))
    for ax, density in zip(axes, shown, strict=True):
        _reference(ax.axvline, ax.axvspan, runs.values(name, first))
        for row, method in enumerate(methods):
            # What prunes nothing stands in every panel.
            values = runs.values(name, method, density)
            values = values if len(values) else runs.values(name, method)
            if not len(values):
                continue
            ax.plot(
                values,
                [row] * len(values),
                "o",
                markersize=4,
                color="#56b4e9",
                markeredgecolor="#0072b2",
                markeredgewidth=0.6,
            )
            ax.plot([np.nanmean(values)], [row], "|", markersize=14, color="black")
        tidy(ax, f"density {density:g}", experiment.metrics[name].label, "")
    axes[0].set_yticks(range(len(methods)), methods, fontsize=8)
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    made.suptitle(f"points: seeds; bar: mean; dashed: {first}", fontsize=8)
    return made


def _named(experiment: Experiment) -> tuple[str, list[str]]:
    """The method of the first case, which is the reference, and the others."""
    first, *others = experiment.methods
    return first, others


def _reference(line: Callable[..., Any], span: Callable[..., Any], values: Any) -> None:
    """Mean and range of the reference."""
    if len(values):
        line(values.mean(), color="black", linestyle=(0, (6, 2)), linewidth=1)
        span(values.min(), values.max(), color="black", alpha=0.08, linewidth=0)


def _lines(experiment: Experiment, runs: Runs) -> Figure:
    name, first, methods = experiment.first, *_named(experiment)
    made = blank(width=7.2, height=4.2)
    ax: Axes = made.subplots()
    _reference(ax.axhline, ax.axhspan, runs.values(name, first))
    ax.plot([], [], color="black", linestyle=(0, (6, 2)), label=first)
    for number, method in enumerate(methods):
        at = [d for d in experiment.densities if runs.of(method, d)]
        if not at:
            continue
        values = [runs.values(name, method, d) for d in at]
        sd = [v.std(ddof=1) if len(v) > 1 else 0 for v in values]
        colour = COLOURS[number % len(COLOURS)]
        # Moved a little, so that bars part.
        x = np.array(at) * 1.02 ** (number - len(methods) / 2)
        ax.errorbar(x, [v.mean() for v in values], sd, capsize=2, linewidth=1.2,
                    elinewidth=0.8, color=colour, marker=MARKS[number % len(MARKS)],
                    markersize=4, linestyle="-" if number < len(COLOURS) else ":",
                    label=method)  # fmt: skip
    ax.set_xscale("log")
    ticks = experiment.densities
    ax.set_xticks(ticks, [f"{d:g}" for d in ticks])
    ax.minorticks_off()
    ax.set_xlim(min(ticks) / 1.2, max(ticks) * 1.2)
    tidy(ax, "", "density", experiment.metrics[name].label)
    made.legend(loc="outside right center", fontsize=8, frameon=False)
    return made
