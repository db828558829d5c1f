"""Colours, fonts and axes that the pictures share.

One colour, marker and line style per method, the same in every picture and told apart
in greyscale.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Colours of Okabe and Ito, told apart by most colour-blind readers.
STYLES: dict[str, dict[str, Any]] = {
    "dense": {"color": "#000000", "marker": "", "linestyle": (0, (6, 2))},
    "magnitude": {"color": "#8a8a8a", "marker": "s", "linestyle": "-"},
    "magnitude_layer": {"color": "#555555", "marker": "P", "linestyle": (0, (4, 1))},
    "activity_only": {"color": "#e69f00", "marker": "^", "linestyle": "-."},
    "bb_in": {"color": "#0072b2", "marker": "o", "linestyle": "-"},
    "bb_out": {"color": "#009e73", "marker": "D", "linestyle": "--"},
    "bb_both": {"color": "#d55e00", "marker": "v", "linestyle": ":"},
    "law": {"color": "#cc79a7", "marker": "o", "linestyle": ""},
}
DPI = 150
TEXT = 9
GREY = "#555555"


def blank(width: float, height: float, pad: float = 0.04) -> Figure:
    """An empty figure, sizes and padding in inches, drawn without a display."""
    layout = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def tidy(ax: Axes, title: str, x: str, y: str, size: float = TEXT) -> None:
    """Title and labels of an axis, with a light grid."""
    ax.set_title(title, fontsize=size + 1, loc="left")
    ax.set_xlabel(x, fontsize=size)
    ax.set_ylabel(y, fontsize=size)
    ax.tick_params(labelsize=size - 1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#e4e4e4", linewidth=0.6)
    ax.set_axisbelow(True)


def headed(
    ax: Axes, title: str, below: str, x: str, y: str, size: float = TEXT
) -> None:
    """As `tidy`, with what one sees in bold and a grey line below it."""
    tidy(ax, "", x, y, size)
    ax.set_title(
        title, fontsize=size + 0.5, loc="left", pad=1.8 * size, fontweight="bold"
    )
    ax.annotate(
        below,
        (0, 1),
        xytext=(0, 0.5 * size),
        textcoords="offset points",
        xycoords="axes fraction",
        fontsize=size - 1,
        color=GREY,
        va="bottom",
    )


def line(key: str, **other: Any) -> dict[str, Any]:
    """Keywords to plot a method with."""
    common = {"linewidth": 1.8, "markersize": 6, "markeredgecolor": "white"}
    return STYLES[key] | common | {"markeredgewidth": 0.6} | other


def plain_log(ax: Axes, axis: str, format: str = ",.0f") -> None:
    """A logarithmic axis with ticks at 1, 2 and 5, as plain numbers."""
    (ax.set_xscale if axis == "x" else ax.set_yscale)("log")
    chosen = ax.xaxis if axis == "x" else ax.yaxis
    chosen.set_major_locator(LogLocator(subs=(1, 2, 5)))
    chosen.set_major_formatter(FuncFormatter(lambda value, _: f"{value:{format}}"))
    chosen.set_minor_locator(NullLocator())


def many(count: int, thing: str) -> str:
    """A number of things.

    Example:
        >>> many(1, "seed"), many(3, "seed")
        ('1 seed', '3 seeds')
    """
    return f"{count} {thing}" + ("" if count == 1 else "s")
