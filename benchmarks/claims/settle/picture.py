"""Churn, what is undone, overlap with the final mask; and what settings do."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.claims.common import pictures
from benchmarks.claims.common.methods import METHODS
from benchmarks.claims.settle import judge
from benchmarks.claims.settle.churn import last_quarter


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the picture."""
    made = pictures.blank(12.5, 7.6)
    axes = made.subplots(2, 2)
    found = report["found"]
    names = [name for name in found if name in METHODS]
    labels = {
        "churn": "kept edges replaced per refresh (%)",
        "undone": "flips that undo the last refresh (%)",
        "overlap": "edges that are in the final mask, too (%)",
    }
    titles = ("Churn", "Going back and forth", "Which edges last")
    for ax, what, title in zip(axes.ravel(), labels, titles, strict=False):
        for name in names:
            _curve(ax, found[name], what, name)
        if what == "churn":
            ax.set_yscale("symlog", linthresh=0.1)
            ax.set_ylim(0)
        pictures.tidy(ax, title, "training step", labels[what])
    _settings(axes[1, 1], found)
    pictures.below(made, [axes[0, 0]], 4)
    pictures.save(made, path)


def _curve(ax: Axes, of: dict[str, Any], what: str, name: str) -> None:
    lanes = 100 * np.array(of[what], float)
    every = of["every"]
    steps = every * np.arange(1, lanes.shape[1] + 1)
    seen = np.isfinite(lanes).any(0)
    mean = np.nanmean(lanes[:, seen], 0)
    width = 4  # refreshes that are averaged, for the eye
    keep = len(mean) // width * width
    smooth = mean[:keep].reshape(-1, width).mean(1)
    at = steps[seen][:keep].reshape(-1, width).mean(1)
    drawn = pictures.style(name, markersize=4)
    ax.plot(at, smooth, markevery=max(len(at) // 7, 1), **drawn)


def _settings(ax: Axes, found: dict[str, Any]) -> None:
    shown = ["bb", *(n for n in found if n not in METHODS)]
    at = np.arange(len(shown))[::-1]
    lanes = [100 * last_quarter(found[name]["churn"]) for name in shown]
    mean, sd = [v.mean() for v in lanes], [v.std(ddof=1) for v in lanes]
    ax.barh(at, mean, 0.6, xerr=sd, capsize=2, color="#9ecae1", ec="black", lw=0.5)
    names = [
        n.replace("rate annealed, magnitude", "magnitude, annealed") for n in shown
    ]
    ax.set_yticks(at, [judge.label_of(n) if n == "bb" else n for n in names])
    pictures.tidy(
        ax,
        "Settings of Budgeted Broadcast",
        "kept edges replaced per refresh, last quarter of training (%)",
        "",
    )
