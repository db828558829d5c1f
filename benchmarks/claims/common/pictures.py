"""What all pictures of the claims look like; drawn without a display."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.claims.common.methods import METHODS

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


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    made = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(made)
    return made


def style(name: str, **more: Any) -> dict[str, Any]:
    """How a method is drawn."""
    color, marker, line = METHODS[name].style
    marks = {"markersize": 5, "markeredgecolor": "black", "markeredgewidth": 0.4}
    if marker == "x":
        marks["markeredgecolor"] = color
    drawn = {"color": color, "marker": marker, "linestyle": line, "linewidth": 1.5}
    return drawn | marks | {"label": METHODS[name].label} | more


def tidy(ax: Axes, title: str, x: str, y: str) -> None:
    """Title and labels of an axis, with a light grid."""
    ax.set_title(title, fontsize=TEXT + 1, loc="left")
    ax.set_xlabel(x, fontsize=TEXT)
    ax.set_ylabel(y, fontsize=TEXT)
    ax.tick_params(labelsize=TEXT - 1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#e4e4e4", linewidth=0.6)
    ax.set_axisbelow(True)


def with_spread(ax: Axes, x: Any, lanes: Any, drawn: dict[str, Any], at: float = 1.0):
    """Mean and sd over the last axis, at x moved by a factor so that bars part."""
    lanes = np.asarray(lanes, float)
    few = lanes.shape[-1] < 2
    sd = None if few else np.nanstd(lanes, axis=-1, ddof=1)
    x = np.asarray(x, float) * at
    ax.errorbar(x, np.nanmean(lanes, -1), sd, capsize=2.5, elinewidth=0.9, **drawn)


def band(ax: Axes, x: Any, lanes: Any, drawn: dict[str, Any], marks: int = 8) -> None:
    """Mean over the last axis as a line with few marks, sd as a band."""
    lanes = np.asarray(lanes, float)
    mean = np.nanmean(lanes, -1)
    ax.plot(x, mean, markevery=max(len(mean) // marks, 1), **drawn)
    if lanes.shape[-1] > 1:
        sd = np.nanstd(lanes, axis=-1, ddof=1)
        ax.fill_between(x, mean - sd, mean + sd, color=drawn["color"], alpha=0.15, lw=0)


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
