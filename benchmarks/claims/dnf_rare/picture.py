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
    made = pictures.blank(15, 7)
    axes = made.subplots(2, 4)
    for row, placement in zip(axes, report["ends"], strict=True):
        _over_time(row[0], report, placement, "fan-out", "mean fan-out (edges)")
        _over_time(row[1], report, placement, "traffic", "mean traffic $a k$")
        _auc(row[2], report, placement, "densities")
        _auc(row[3], report, placement, "rarities")
    pictures.below(made, [axes[0, 2]], 6)
    pictures.save(made, path)


def _over_time(
    ax: Axes, report: dict[str, Any], placement: str, what: str, label: str
) -> None:
    """Means over units and seeds, from the first refresh on."""
    seen = report["units"][placement]
    steps = np.array(report["looks"])[1:]
    for i, kind in enumerate(CLASSES):
        drawn = dict(pictures.SERIES[i], markersize=4, markevery=8)
        for name in ("bb", "layer"):
            lanes = np.array(seen[name][f"{what}, {kind}"], float).T[1:]
            if name == "layer":
                drawn |= {"fillstyle": "none", "lw": 0.7, "label": "_"}
            ax.plot(steps, np.nanmean(lanes, -1), **{"label": kind} | drawn)
    title = f"{placement}: filled BB, open magnitude (layer)"
    pictures.tidy(ax, title, "training step", label)
    ax.set_ylim(0, ax.get_ylim()[1] * 1.25)
    pictures.legend(ax, ncols=3, loc="upper center", columnspacing=1)


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
