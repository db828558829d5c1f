"""Points over equal degrees, corruption by corruption: a panel for each net."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from scipy import stats

from bbjax.demo.drawing import blank
from benchmarks.corruptions.corrupt import CELLS, CLEAN
from benchmarks.corruptions.methods import (
    COMPETITION,
    EQUAL,
    EQUAL_OUT,
    LAW,
    LAYER,
    METHODS,
    MIXED,
    STANDARDIZED,
)
from benchmarks.corruptions.nets import NETS

TEXT = 10
# Colours of Okabe and Ito. Marks tell the same in greyscale: what reads activity is
# filled, what does not is hollow.
STYLES: dict[str, dict[str, Any]] = {
    STANDARDIZED: {"color": "#000000", "marker": "o"},
    MIXED: {"color": "#0072b2", "marker": "D"},
    LAW: {"color": "#d55e00", "marker": "^"},
    EQUAL_OUT: {"color": "#009e73", "marker": "s", "fillstyle": "none"},
    COMPETITION: {"color": "#cc79a7", "marker": "v", "fillstyle": "none"},
    LAYER: {"color": "#777777", "marker": "x"},
}
SHORT = {
    "gaussian": "noise",
    "salt_pepper": "salt,\npepper",
    "blur": "blur",
    "contrast": "contrast",
    "occlusion": "occlusion",
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the picture, 1600 pixels wide: readable at half of that."""
    nets = report["nets"]
    made = blank(8, 1.2 + 2.7 * len(nets))
    axes = made.subplots(len(nets), 1, squeeze=False)[:, 0]
    for ax, (net, of) in zip(axes, nets.items(), strict=True):
        _panel(ax, of)
        count = len(of["seeds"])
        ax.set_title(f"{NETS[net].title}: {count} seeds", fontsize=TEXT, loc="left")
    handles, labels = axes[0].get_legend_handles_labels()
    made.legend(
        handles=handles,
        labels=labels,
        loc="outside lower center",
        ncols=3,
        fontsize=TEXT,
        frameon=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=200)


def _panel(ax: Axes, of: dict[str, Any]) -> None:
    cells = (CLEAN, *CELLS)
    count = len(of["seeds"])
    times = float(stats.t.ppf(0.975, count - 1)) if count > 1 else 0.0
    for i in range(0, len(cells), 2):  # bands part the cells
        ax.axvspan(i - 0.5, i + 0.5, color="#eeeeee", linewidth=0, zorder=0)
    ax.axhline(0, color="black", linewidth=1)
    for i, (method, style) in enumerate(STYLES.items()):
        found = [of["differences"][method][EQUAL][c] for c in cells]
        at = [x + 0.14 * (i - (len(STYLES) - 1) / 2) for x in range(len(cells))]
        mean = [gap[0] for gap in found]
        error = [times * (gap[1] or 0.0) for gap in found]
        ax.errorbar(
            at,
            mean,
            error,
            linestyle="",
            markersize=4.5,
            elinewidth=1,
            label=METHODS[method].label,
            **style,
        )
    ax.set_xticks(range(len(cells)), [_tick(c) for c in cells], fontsize=TEXT - 1.5)
    ax.set_xlim(-0.5, len(cells) - 0.5)
    ax.set_ylabel("points over equal degrees\n(mean, 95 % interval)", fontsize=TEXT)
    ax.tick_params(axis="y", labelsize=TEXT - 1)
    ax.grid(True, axis="y", linewidth=0.4, alpha=0.5)


def _tick(cell: str) -> str:
    if cell == CLEAN:
        return CLEAN
    kind, strength = cell.split()
    return f"{SHORT[kind]}\n{strength}"
