"""Success and cycles against W, success against hidden units per clause."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.claims.common import pictures
from benchmarks.claims.dnf_witness import judge
from benchmarks.common import stats

STYLES = {
    "sgd": dict(pictures.SERIES[0], linestyle="--"),
    "random": dict(pictures.SERIES[2]),
    "bb": dict(pictures.SERIES[1], linestyle="-"),
    "bb_shipped": dict(pictures.SERIES[3]),
    "rich": {"color": "#8a8a8a", "marker": "x", "linestyle": "-"},
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the picture."""
    made = pictures.blank(12.5, 4.6)
    left, middle, right = made.subplots(1, 3)
    _success(left, report)
    _cycles(middle, report)
    _ratios(right, report)
    pictures.below(made, [left], 6)
    pictures.save(made, path)


def _log_w(ax: Axes, w: np.ndarray) -> None:
    ax.set_xscale("log")
    ax.minorticks_off()
    ax.set_xticks(w, [f"{v:g}" for v in w])


def _with_interval(ax: Axes, x: Any, hits: Any, **drawn: Any) -> None:
    hits = np.asarray(hits)
    share = hits.mean(1)
    bounds = np.array([stats.wilson(int(h.sum()), h.size) for h in hits])
    sizes = np.abs(bounds.T - share)
    ax.errorbar(x, share, sizes, capsize=2.5, elinewidth=0.9, **drawn)


def _success(ax: Axes, report: dict[str, Any]) -> None:
    w = np.array(report["clauses"], float)
    for i, (name, label) in enumerate(judge.LABELS.items()):
        done = np.array(report["solved"][name]) <= report["cycles"]
        _with_interval(ax, w * 1.04 ** (i - 2), done, label=label, **STYLES[name])
    parted = report["separable"]["DNF labels"]
    drawn = {"color": "black", "marker": "*", "linestyle": "", "markersize": 9}
    _with_interval(ax, w * 1.12, parted, label="separable before any cycle", **drawn)
    ax.axhline(0.5, color="black", lw=0.8, ls=":")
    ax.set_ylim(-0.03, 1.05)
    _log_w(ax, w)
    pictures.tidy(
        ax,
        f"Every point right within {report['cycles']} cycles",
        "clauses W (= hidden units)",
        "share of seeds, 95 % interval",
    )


def _cycles(ax: Axes, report: dict[str, Any]) -> None:
    w, limit = np.array(report["clauses"], float), report["cycles"]
    for name in ("random", "bb", "bb_shipped"):
        first = np.array(report["solved"][name], float)
        low, middle, high = np.percentile(first, (25, 50, 75), axis=1)
        at = w * {"random": 0.94, "bb": 1.0, "bb_shipped": 1.06}[name]
        seen = middle <= limit
        spread = np.array([middle - low, np.minimum(high, limit) - middle])[:, seen]
        spread = np.maximum(spread, 0)
        ax.errorbar(at[seen], middle[seen], spread, capsize=2.5, **STYLES[name])
        if not seen.all():
            ax.plot(at[~seen], [limit] * int((~seen).sum()), "^", mfc="none", mec="k")
    first = np.median(np.array(report["solved"]["bb"], float), 1)
    usable = first <= limit
    lines = {"W": ":", "W log W": "-.", "W²": "--"}
    for label, dashes in lines.items():
        grown = judge.GROWTHS[label](w)
        if usable.any():
            level = np.exp(np.mean(np.log(first[usable]) - np.log(grown[usable])))
            ax.plot(w, level * grown, dashes, color="#8a8a8a", lw=1.1, label=label)
    ax.set_yscale("log")
    ax.set_ylim(0.8, limit * 1.4)
    _log_w(ax, w)
    pictures.tidy(
        ax,
        "Cycles to success (open triangle: median never)",
        "clauses W (= hidden units)",
        "cycles, median and quartiles over seeds",
    )
    pictures.legend(ax, title="fits to BB, random regrowth", title_fontsize=8)


def _ratios(ax: Axes, report: dict[str, Any]) -> None:
    ratios = np.array([float(r) for r in report["by_ratio"]])
    names = {
        "sgd": "SGD alone",
        "DNF labels": "separable, DNF labels",
        "random labels": "separable, random labels",
    }
    for i, (name, label) in enumerate(names.items()):
        hits = [of[name] for of in report["by_ratio"].values()]
        _with_interval(
            ax, ratios * 1.015 ** (i - 1), hits, label=label, **pictures.SERIES[i]
        )
    ax.axhline(0.5, color="black", lw=0.8, ls=":")
    ax.set_ylim(-0.03, 1.05)
    pictures.tidy(
        ax,
        "SGD alone, W = 16: Cover's half is at H / W = 1",
        "hidden units per clause, H / W",
        "share of seeds, 95 % interval",
    )
    pictures.legend(ax, loc="lower right")
