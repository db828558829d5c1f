"""Responses against the size of the shock, and the matrices."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.claims.common import pictures

SIDES, KINDS = ("in", "out"), ("a", "k")
LABELS = {
    "a": "change of on-rate, mean |Δa|",
    "k": "relative change of degree, mean |Δk| / k",
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the picture: curves, and a matrix for each time."""
    made = pictures.blank(12, 7)
    rows = made.subplots(2, 3)
    for row, kind in zip(rows[:, :2], KINDS, strict=True):
        for ax, side in zip(row, SIDES, strict=True):
            _curves(ax, report, kind, side)
    for ax, time in zip(rows[:, 2], report["times"][1:], strict=True):
        _matrix(ax, report["matrix"][time], time)
    for row in rows[:, :2]:
        top = max(ax.get_ylim()[1] for ax in row)
        for ax in row:
            ax.set_ylim(0, top)
    pictures.below(made, [rows[0, 0]], 4)
    pictures.save(made, path)


def _curves(ax: Axes, report: dict[str, Any], kind: str, side: str) -> None:
    x = 100 * np.array(report["shares"])
    halves = report["curves"][side][kind]
    for i, time in enumerate(report["times"]):
        lanes = np.array(halves["shocked"], float)[..., i]
        pictures.with_spread(ax, x, lanes, dict(pictures.SERIES[i], label=time))
    spared = np.array(halves["spared"], float)[..., -1]
    drawn = {"color": "#8a8a8a", "marker": "x", "linestyle": ":"}
    pictures.with_spread(ax, x, spared, drawn | {"label": "in the end, spared units"})
    lost = {"in": "incoming", "out": "outgoing"}[side]
    title = f"{kind} after SP-{side} shocks"
    pictures.tidy(
        ax, title, f"{lost} edges lost by half of the units (%)", LABELS[kind]
    )


def _matrix(ax: Axes, matrix: dict[str, Any], time: str) -> None:
    values = np.array(
        [[matrix[f"{kind} to {side}"]["shocked"] for side in SIDES] for kind in KINDS]
    )  # (kinds, sides, mean and error)
    means = values[..., 0]
    ax.imshow(means, cmap="Greys", vmin=0, vmax=max(means.max() * 2.5, 1e-6))
    for row in range(2):
        for column in range(2):
            mean, error = values[row, column]
            text = f"{mean:.3f}\n± {error:.3f}"
            ax.text(column, row, text, ha="center", va="center", fontsize=pictures.TEXT)
    pictures.tidy(ax, f"Response {time}", "shock", "of")
    ax.grid(False)
    ax.set_xticks((0, 1), ["SP-in", "SP-out"])
    ax.set_yticks((0, 1), ["a", "k (relative)"])
