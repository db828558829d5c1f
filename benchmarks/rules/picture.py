"""Gains of the main methods over equal degrees, a panel for each task."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.claims.common.pictures import SERIES, save, tidy

SHOWN = (
    "BB",
    "BB, law alone",
    "BB, scaled",
    "magnitude, layer",
    "magnitude, layer, scaled",
    "RigL, ERK",
)
UNITS = {"nats": "nats saved"}
SIZE, COLUMNS = (8.0, 5.6), 3  # 800 pixels wide at 100 dpi


def draw(saved: dict[str, Any], path: Path) -> None:
    """Means with 95 % intervals over seeds, at each density."""
    metric = saved["families"]["trained"]["metrics"][0]
    tasks = metric["names"]
    rows = -(-(len(tasks) + 1) // COLUMNS)
    size = (SIZE[0], SIZE[1] * rows / 2)
    made = Figure(figsize=size, dpi=200, layout="constrained")
    axes = made.subplots(rows, COLUMNS, squeeze=False).ravel()
    for ax, (task, name) in zip(axes, tasks.items(), strict=False):
        cells = [c for c in metric["cells"].values() if c["task"] == task]
        tidy(ax, task, "density", UNITS.get(name, f"points of {name}"))
        _panel(ax, sorted(cells, key=lambda c: -c["density"]))
    found = {}
    for ax in axes[: len(tasks)]:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    for ax in axes[len(tasks) :]:
        ax.axis("off")
    axes[len(tasks)].legend(
        found.values(),
        found.keys(),
        loc="center",
        fontsize=9,
        frameon=False,
        handlelength=2.6,
        labelspacing=0.8,
        title="gain over equal degrees,\n95 % intervals; up is better",
        title_fontsize=9,
    )
    save(made, path)


def _panel(ax: Any, cells: list[Any]) -> None:
    """One task: densities from left to right, methods beside each other."""
    ax.axhline(0, color="#555555", linewidth=0.9)
    width = 0.7 / (len(SHOWN) - 1)
    for place, (name, style) in enumerate(zip(SHOWN, SERIES, strict=True)):
        at = [
            (x, one)
            for x, cell in enumerate(cells)
            if "gain" in (one := cell["methods"].get(name, {}))
        ]
        if not at:
            continue
        shift = width * (place - (len(SHOWN) - 1) / 2)
        ax.errorbar(
            [x + shift for x, _ in at],
            [gap["gain"] for _, gap in at],
            [_interval(gap) for _, gap in at],
            label=name,
            color=style["color"],
            marker=style["marker"],
            markersize=4.5,
            markeredgecolor="black",
            markeredgewidth=0.4,
            linestyle="none",
            elinewidth=1.1,
            capsize=2,
        )
    for x in range(len(cells) - 1):
        ax.axvline(x + 0.5, color="#dddddd", linewidth=0.6)
    ax.set_xticks(range(len(cells)), [f"{c['density']:g}" for c in cells])
    ax.set_xlim(-0.5, len(cells) - 0.5)
    ax.grid(False, axis="x")


def _interval(gap: dict[str, Any]) -> float:
    """Half of the 95 % interval of a mean, after Student."""
    if gap["error"] is None:
        return float(np.nan)
    return float(gap["error"] * stats.t.ppf(0.975, gap["seeds"] - 1))
