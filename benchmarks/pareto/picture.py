"""Accuracy against density, as trained in one program, and what the three ways took."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from bbjax.demo.drawing import STYLES

WAYS = {
    "vmap": "vmap, 1 program",
    "loop": "loop, 1 program",
    "anew": "loop, 1 program\nper density",
}
TEXT = 9


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(11, 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    _front(left, report)
    _times(right, report)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _front(ax: Axes, report: dict[str, Any]) -> None:
    x = np.array(report["densities"])
    count = len(report["methods"])
    for i, (key, found) in enumerate(report["methods"].items()):
        lanes = np.array(found["ways"]["vmap"]["accuracy"])  # (densities, seeds)
        style, at = STYLES[key], x * 1.02 ** (i - (count - 1) / 2)
        sd = lanes.std(axis=1, ddof=1) if lanes.shape[1] > 1 else None
        label = report["labels"][key]
        mean = lanes.mean(axis=1)
        ax.errorbar(at, mean, sd, **style, markersize=5, capsize=3, label=label)
        beside = np.repeat(at[:, None] * 1.03, lanes.shape[1], 1)
        ax.plot(beside, lanes, ".", color=style["color"], markersize=3, alpha=0.5)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(list(x)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([f"{d:g}" for d in x])
    what = f"{report['seeds']} seeds, {report['steps']} steps; mean, sd, each seed"
    ax.set_title(f"Digits, {what}", fontsize=TEXT + 1, loc="left")
    ax.set_xlabel("density (kept share of the edges)", fontsize=TEXT)
    ax.set_ylabel("test accuracy (%)", fontsize=TEXT)
    ax.tick_params(labelsize=TEXT - 1)
    ax.grid(True, linewidth=0.4, alpha=0.5)
    ax.legend(fontsize=TEXT, frameon=False, loc="lower right")


def _times(ax: Axes, report: dict[str, Any]) -> None:
    names, at = [], []
    for i, (key, found) in enumerate(report["methods"].items()):
        for j, (way, label) in enumerate(WAYS.items()):
            row, y = found["ways"][way], -(i * (len(WAYS) + 1) + j)
            first = i == j == 0
            _bar(ax, y, row, STYLES[key]["color"], labelled=first)
            ax.text(
                row["seconds"],
                y,
                f" {row['seconds']:.0f} s",
                va="center",
                fontsize=TEXT - 1,
            )
            names.append(label if j else f"{report['labels'][key]}:\n{label}")
            at.append(y)
    ax.set_yticks(at, names, fontsize=TEXT - 1)
    ax.margins(x=0.15)
    ax.set_xlim(left=0)
    lanes = next(iter(report["methods"].values()))["lanes"]
    ax.set_title(f"Time of {lanes} lanes", fontsize=TEXT + 1, loc="left")
    ax.set_xlabel("seconds", fontsize=TEXT)
    ax.tick_params(labelsize=TEXT - 1)
    ax.legend(
        fontsize=TEXT - 1,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),
        ncols=2,
    )


def _bar(
    ax: Axes, y: float, row: dict[str, Any], colour: str, *, labelled: bool
) -> None:
    compiling, run = row["compile_seconds"], row["run_seconds"]
    kind = {"height": 0.7, "edgecolor": "black", "linewidth": 0.6}
    names = ("compilation", "training") if labelled else (None, None)
    ax.barh(y, compiling, color="white", hatch="////", label=names[0], **kind)
    ax.barh(y, run, left=compiling, color=colour, label=names[1], **kind)
