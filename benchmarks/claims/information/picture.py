"""Codes by method, and information against traffic."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from benchmarks.claims.common import pictures
from benchmarks.claims.common.methods import METHODS


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the picture: a row for each task."""
    found = report["found"]
    made = pictures.blank(14, 3.3 * len(found) + 0.5)
    rows = made.subplots(len(found), 4)
    for row, (task, of) in zip(rows, found.items(), strict=True):
        _codes(row[0], of, task)
        _units(row[1], report["units"][task], task)
        _checkpoints(row[2], of, task)
        _nets(row[3], of, task)
    pictures.below(made, [rows[0, 3]], 5)
    pictures.save(made, path)


def _dots(name: str) -> dict[str, Any]:
    """A method's marks without a line; dense ones are crosses."""
    style = pictures.style(name, linestyle="", markersize=4.5)
    return style | ({"marker": "x", "markeredgewidth": 1} if name == "dense" else {})


def _codes(ax: Axes, of: dict[str, Any], task: str) -> None:
    for name, seen in of.items():
        x, y = (
            np.array(seen["code"][k], float)[:, -1] for k in ("entropy", "correlation")
        )
        ax.plot(x, y, **_dots(name))
    label = "coding entropy, mean H(a) (bits)"
    pictures.tidy(ax, f"{task}: codes of the nets", label, "mean abs. correlation")


def _units(ax: Axes, of: dict[str, Any], task: str) -> None:
    for name in ("magnitude", "bb"):
        units = of[name]
        ax.plot(units["traffic"], units["information"], **_dots(name))
    pictures.tidy(
        ax, f"{task}: units, seed 0", "traffic of a unit $a k$", "I of a unit (nats)"
    )


def _middle(seen: dict[str, Any]) -> np.ndarray:
    low, high = (np.array(seen["channel"][k], float)[..., 0] for k in ("low", "high"))
    return (low + high) / 2


def _checkpoints(ax: Axes, of: dict[str, Any], task: str) -> None:
    for name in ("magnitude", "activity_only", "bb"):
        traffic = np.array(of[name]["channel"]["traffic"], float)[..., 0].mean(0)
        info = _middle(of[name]).mean(0)
        ax.plot(traffic, info, **pictures.style(name, markersize=4))
        ax.plot(traffic[-1], info[-1], "o", ms=9, mfc="none", mec="black")
    title = f"{task}: checkpoints (ring: the last)"
    pictures.tidy(ax, title, "total traffic", "I(Z; Y) (nats), mean of seeds")


def _nets(ax: Axes, of: dict[str, Any], task: str) -> None:
    for name, seen in of.items():
        traffic = np.array(seen["channel"]["traffic"], float)[:, -1, 0]
        dots = _dots(name) | {"label": METHODS[name].label}
        ax.plot(traffic, _middle(seen)[:, -1], **dots)
    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter(NullFormatter())
    pictures.tidy(ax, f"{task}: trained nets", "total traffic", "I(Z; Y) (nats)")
