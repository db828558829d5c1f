"""Fan-out over training, recall and AUC of rare clauses, for both placements."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from benchmarks.claims.common import pictures
from benchmarks.claims.dnf_rare import judge
from benchmarks.claims.dnf_rare.task import CLASSES

SHOWN = ("magnitude", "layer", "activity_only", "bb", "threshold")


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the picture: a row for each placement."""
    made = pictures.figure(12.5, 7)
    axes = made.subplots(2, 3)
    for row, placement in zip(axes, report["ends"], strict=True):
        _fan_out(row[0], report, placement)
        _auc(row[1], report, placement, "densities")
        _auc(row[2], report, placement, "rarities")
    pictures.below(made, [axes[0, 1]], 6)
    pictures.save(made, path)


def _fan_out(ax: Axes, report: dict[str, Any], placement: str) -> None:
    seen = report["units"][placement]
    for i, kind in enumerate(CLASSES):
        for name, look in (("bb", {}), ("layer", {"alpha": 0.45})):
            lanes = np.array(seen[name][f"fan-out, {kind}"], float).T
            label = f"{kind}, {'BB' if name == 'bb' else 'magnitude per layer'}"
            drawn = dict(pictures.SERIES[i], label=label, markersize=4, **look)
            if name == "layer":
                drawn["fillstyle"] = "none"
            mean = np.nanmean(lanes, -1)
            ax.plot(report["looks"], mean, markevery=8, **drawn)
    pictures.tidy(
        ax,
        f"{placement}: fan-out (density 0.1, on-rate 0.02)",
        "training step",
        "mean fan-out of a feature (edges)",
    )
    ax.set_ylim(0, ax.get_ylim()[1] * 1.45)
    pictures.legend(ax, ncols=2, loc="upper center")


def _auc(ax: Axes, report: dict[str, Any], placement: str, over: str) -> None:
    x = report[over]
    for i, name in enumerate(("dense", *SHOWN)):
        lanes = []
        if name not in report["ends"][placement][judge.key()]:
            continue  # of a trial
        for value in x:
            setting = judge.key(**{"density" if over == "densities" else "rare": value})
            lanes.append(report["ends"][placement][setting][name]["AUC rare"])
        pictures.with_spread(ax, x, lanes, pictures.style(name), 1.03 ** (i - 2.5))
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(x))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([f"{v:g}" for v in x])
    label = (
        "density (kept share of the edges)"
        if over == "densities"
        else "on-rate of the rare features"
    )
    pictures.tidy(
        ax, f"{placement}: telling rare clauses", label, "AUC of rare clauses (%)"
    )
