"""What all pictures of the claims look like; drawn without a display."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bbjax.demo.drawing import blank, tidy
from benchmarks.claims.common.methods import METHODS

__all__ = ["below", "blank", "legend", "save", "style", "tidy", "with_spread"]

TEXT = 9
# For series that are no methods: dark to light, each with a mark and a line.
SERIES = (
    {"color": "#000000", "marker": "o", "linestyle": "-"},
    {"color": "#0072b2", "marker": "s", "linestyle": "--"},
    {"color": "#d55e00", "marker": "^", "linestyle": "-."},
    {"color": "#009e73", "marker": "D", "linestyle": ":"},
    {"color": "#cc79a7", "marker": "v", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#e69f00", "marker": "P", "linestyle": (0, (1, 3))},
)


def style(name: str, **more: Any) -> dict[str, Any]:
    """How a method is drawn."""
    color, marker, line = METHODS[name].style
    marks = {"markersize": 5, "markeredgecolor": "black", "markeredgewidth": 0.4}
    if marker == "x":
        marks["markeredgecolor"] = color
    drawn = {"color": color, "marker": marker, "linestyle": line, "linewidth": 1.5}
    return drawn | marks | {"label": METHODS[name].label} | more


def with_spread(ax: Axes, x: Any, lanes: Any, drawn: dict[str, Any], at: float = 1.0):
    """Mean and sd over the last axis, at x moved by a factor so that bars part."""
    lanes = np.asarray(lanes, float)
    few = lanes.shape[-1] < 2
    sd = None if few else np.nanstd(lanes, axis=-1, ddof=1)
    x = np.asarray(x, float) * at
    ax.errorbar(x, np.nanmean(lanes, -1), sd, capsize=2.5, elinewidth=0.9, **drawn)


def legend(ax: Axes, **where: Any) -> None:
    """A legend without a frame."""
    ax.legend(fontsize=TEXT - 1, frameon=False, handlelength=3, **where)


def below(made: Figure, axes: Iterable[Axes], columns: int) -> None:
    """One legend under the picture for what several axes show."""
    found = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    made.legend(
        handles=list(found.values()),
        labels=list(found),
        loc="outside lower center",
        ncols=columns,
        fontsize=TEXT,
        frameon=False,
        handlelength=3,
    )


def save(made: Figure, path: Path) -> None:
    """Writes the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)
