"""Units with their line, before and after freezing; slopes; which law fits."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bbjax.training.metrics import off_bounds
from benchmarks.claims.common import pictures
from benchmarks.claims.xor.fits import K_MIN
from benchmarks.claims.xor.task import FAN
from benchmarks.common import stats

NETS = {
    "bb, live": "BB, masks follow",
    "bb, early": "BB, frozen at the\nfirst refresh",
    "threshold, live": "threshold law,\nmasks follow",
    "layer, live": "magnitude\nper layer",
    "dense, frozen": "dense, cut\nby size",
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the picture."""
    made = pictures.blank(11.5, 6.4)
    axes = made.subplots(2, 3).ravel()
    shown = [("bb, live", 1), ("bb, early", 1), ("threshold, live", 0)]
    for ax, (name, at) in zip(axes, [*shown, ("dense, frozen", 0)], strict=False):
        beta = report["betas"].index(0.5) if at else 0
        _units(ax, report, name, beta)
    _slopes(axes[4], report)
    _laws(axes[5], report)
    pictures.save(made, path)


def _units(ax: Axes, report: dict[str, Any], name: str, beta: int) -> None:
    found = report["units"][name]
    first = "first refresh" if name.endswith("early") else "half of training"
    for look, drawn in ((0, "none"), (-1, "full")):
        rate, degree = (np.array(found[k][beta][look]) for k in ("rate", "degree"))
        free = off_bounds(degree, rate, K_MIN, FAN)
        k, odds = degree[free], np.log((1 - rate[free]) / rate[free])
        color, marker = (
            ("#e69f00", "D") if drawn == "none" else (pictures.SERIES[1]["color"], "o")
        )
        when = f"at {first}" if drawn == "none" else "end of training"
        ax.plot(k, odds, marker, fillstyle=drawn, color=color, ms=4, label=when)
        line = stats.line(k, odds)
        if drawn == "full" and np.isfinite(line.slope):
            ends = np.array([k.min(), k.max()])
            ax.plot(ends, odds.mean() + line.slope * (ends - k.mean()), "k-", lw=1.2)
            text = f"slope {line.slope:.3f}, $R^2$ = {line.r2:.2f}, seed 0"
    title = NETS[name].replace("\n", " ")
    pictures.tidy(
        ax,
        f"{title}\n{text}",
        "degree $k$ (edges to the next layer)",
        r"log-odds of being off, $\log\frac{1-a}{a}$",
    )
    pictures.legend(ax, loc="best")


def _slopes(ax: Axes, report: dict[str, Any]) -> None:
    betas = np.array(report["betas"])
    found = report["nets"]["bb, live"]
    ax.plot(betas, betas, color="#8a8a8a", lw=1, label="slope = beta")
    for i, (name, label) in enumerate(
        (("beta", "fitted, k on log-odds"), ("slope", "fitted, log-odds on k"))
    ):
        lanes = np.array(found[name], float)[:, -1]
        drawn = dict(pictures.SERIES[i + 1], label=label)
        pictures.with_spread(ax, betas, lanes, drawn, 1.03 ** (2 * i - 1))
    ax.set(
        xscale="log", yscale="log", xticks=betas, xticklabels=[f"{b:g}" for b in betas]
    )
    ax.minorticks_off()
    ax.set_yticks(betas, [f"{b:g}" for b in betas])
    pictures.tidy(
        ax,
        "The slope against the beta asked for",
        "beta of the controller (log-odds per edge)",
        "slope of the units (log-odds per edge)",
    )
    pictures.legend(ax)


def _laws(ax: Axes, report: dict[str, Any]) -> None:
    at = np.arange(len(NETS))[::-1]
    for i, (name, label, hatch, color) in enumerate(
        (
            ("r2", "k on log-odds", "", pictures.SERIES[1]["color"]),
            ("r2_tau", "k on 1/a", "///", "#d9d9d9"),
        )
    ):
        lanes = []
        for net in NETS:
            fits = report["nets"][net][name]
            beta = report["betas"].index(0.5) if net.startswith("bb") else 0
            lanes.append(np.array(fits[beta][-1], float))
        mean = [np.nanmean(r) for r in lanes]
        sd = [np.nanstd(r, ddof=1) for r in lanes]
        bars = {"color": color, "hatch": hatch, "edgecolor": "black", "lw": 0.5}
        ax.barh(at + 0.2 - 0.4 * i, mean, 0.38, xerr=sd, capsize=2, label=label, **bars)
    ax.set(xlim=(0, 1.05), ylim=(-0.6, len(NETS) + 0.1))
    pictures.tidy(ax, "Which line fits, end of training", "$R^2$ over units", "")
    ax.set_yticks(at, NETS.values(), fontsize=pictures.TEXT - 1)
    pictures.legend(ax, loc="upper center", ncols=2)
