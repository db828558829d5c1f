"""What a cut costs, by its size, and how nets come back from the largest."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.claims.common import pictures

TITLES = {"pruned": "sudden pruning", "lesioned": "random lesions"}


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the picture: a row for each kind of shock."""
    made = pictures.blank(13, 7)
    axes = made.subplots(2, 3)
    for row, kind in zip(axes, TITLES, strict=True):
        _by_cut(row[0], report, kind, "jump", "loss added right after (nats)")
        _by_cut(row[1], report, kind, "steps", "steps until loss is back within 10 %")
        _recovery(row[2], report, kind)
    pictures.below(made, axes.ravel(), 6)
    pictures.save(made, path)


def _by_cut(ax: Axes, report: dict[str, Any], kind: str, what: str, label: str) -> None:
    cuts = 100 * np.array(report["cuts"])
    of = report["outcomes"][kind]
    for i, (name, seen) in enumerate(of.items()):
        lanes = np.array(seen[what], float)
        at = cuts + 1.2 * (i - (len(of) - 1) / 2)
        pictures.with_spread(ax, at, np.maximum(lanes, 1e-4), pictures.style(name))
    if what == "jump":
        ax.set_yscale("symlog", linthresh=0.01)
    ax.set_ylim(0)
    ax.set_xticks(cuts, [f"{c:g}" for c in cuts])
    pictures.tidy(ax, f"{TITLES[kind]}", "edges cut at once (%)", label)


def _recovery(ax: Axes, report: dict[str, Any], kind: str) -> None:
    times = np.array(report["times"])
    shown = slice(0, 52)
    for name, curves in report["curves"][kind].items():
        curve = np.array(curves[-1], float)
        drawn = pictures.style(name, markersize=4)
        ax.plot(times[shown], curve[shown], markevery=7, **drawn)
    uncut = np.array(report["uncut"], float)
    ax.plot(
        times[shown], uncut[shown], color="black", lw=0.9, ls=":", label="never cut"
    )
    ax.set_yscale("log")
    cut = 100 * report["cuts"][-1]
    pictures.tidy(
        ax,
        f"{TITLES[kind]}: back from a cut of {cut:g} %",
        "steps after the cut",
        "test loss (nats), mean over seeds",
    )
