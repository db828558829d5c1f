"""The four panels of the overview.

    accuracy   test accuracy against density
    budget     kept edges at each refresh, asked for and got
    balance    degree against on-rate: the law alone, and with competition
    smaller    accuracy against the parameters and the time that are left

The balance log((1 - a) / a) = beta k is a straight line where on-rates `a` are drawn on
a scale of log-odds. Reference: arXiv 2510.01263.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

import bbjax as bb
from bbjax.demo.drawing import GREY, TEXT, headed, line, many, plain_log
from bbjax.demo.model import PRUNED
from bbjax.demo.outcome import Outcome
from bbjax.demo.results import Results
from bbjax.training.metrics import DEAD, SATURATED

# What is no method has no colour of one.
_MARK: dict[str, Any] = {"linewidth": 1.8, "markersize": 6, "markeredgecolor": "white"}
MARKS: dict[str, dict[str, Any]] = {
    "budget": _MARK | {"color": GREY, "marker": "o"},
    "parameters": _MARK | {"color": "#56b4e9", "marker": "o", "linestyle": "-"},
    "time": _MARK | {"color": "#882255", "marker": "s", "linestyle": "--"},
}
CLOSE = 1.0  # points of accuracy that the title of `smaller` accepts to lose


def spread_of(count: int) -> str:
    """What points and bars are."""
    return f"mean ± sd of {count} seeds" if count > 1 else "one seed"


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=min(1, len(values) - 1)))


# Accuracy against density --------------------------------------------------------
def accuracy(ax: Axes, results: Results, size: float = TEXT) -> None:
    """Mean and standard deviation of the test accuracy by density."""
    sweep = results.sweep
    seeds = len(sweep[0].accuracy) if sweep else len(results.main[0].accuracy)
    swept = [o for o in results.main if o.method.key in {s.method.key for s in sweep}]
    points = sorted([*sweep, *swept], key=lambda o: o.density)
    dense = results.main[0].accuracy[:seeds]
    ax.axhline(dense.mean(), label="dense", **line("dense"))
    around = _sd(dense)
    ax.axhspan(
        dense.mean() - around, dense.mean() + around, color="#ececec", zorder=0.5
    )
    for i, one in enumerate(swept):
        mine = [o for o in points if o.method.key == one.method.key]
        shift = 1.02 ** (i - (len(swept) - 1) / 2)  # error bars side by side
        ax.errorbar(
            [100 * o.density * shift for o in mine],
            [o.accuracy[:seeds].mean() for o in mine],
            yerr=[_sd(o.accuracy[:seeds]) for o in mine],
            label=one.method.label,
            **line(one.method.key),
            elinewidth=1.2,
            capsize=2.5,
        )
    ax.set_xscale("log")
    ticks = sorted({100 * o.density for o in points})
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.legend(fontsize=size - 2, loc="lower right", frameon=False, handlelength=2.6)
    headed(
        ax,
        "Accuracy against density",
        spread_of(seeds),
        "kept edges (%)",
        "test accuracy (%)",
        size,
    )


# Asked for and got ---------------------------------------------------------------
def budget(ax: Axes, results: Results, size: float = TEXT) -> None:
    """Kept edges of all budgeted kernels, by step, beside what the ramp asks for."""
    timing, pruned = results.timing, results.pruned
    steps = np.arange(timing.steps)
    edges = pruned[0].edges
    asked = edges * timing.densities(pruned[0].density)
    ax.plot(steps, asked, color="black", linewidth=1.6, label="asked for")
    at = timing.refreshes()
    kept = np.concatenate([sum(o.kept_at.values()) for o in pruned], axis=1)
    marks: dict[str, Any] = MARKS["budget"] | {"linestyle": "", "markersize": 7}
    for net in kept.T[:-1]:
        ax.plot(at, net, **marks)
    ax.plot(at, kept[:, -1], **marks, label="kept after a refresh")
    plain_log(ax, "y")
    ax.set_xlim(0, timing.steps)
    ax.set_ylim(0.7 * asked.min(), 1.4 * edges)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.legend(fontsize=size - 2, frameon=False)
    title = (
        "Budgets are met exactly"
        if results.missed == 0
        else f"Budgets are missed by up to {many(results.missed, 'edge')}"
    )
    nets, seeds = kept.shape[1], many(kept.shape[1] // len(pruned), "seed")
    often = "1 refresh" if len(at) == 1 else f"{len(at)} refreshes"
    headed(
        ax,
        title,
        f"{nets} nets ({len(pruned)} methods, {seeds}), {often} each",
        "training step",
        "kept edges",
        size,
    )


# Degree against on-rate ----------------------------------------------------------
RATES = {
    0.01: "≤1",
    0.05: "5",
    0.2: "20",
    0.5: "50",
    0.8: "80",
    0.95: "95",
    0.99: "≥99",
}
NEVER = -5.6  # where units that are never on are drawn, left of the scale


def _logit(rate: Any) -> np.ndarray:
    a = np.clip(rate, SATURATED, 1 - SATURATED)
    return np.log(a / (1 - a))


def _expected(law: Outcome, results: Results, path: str) -> np.ndarray:
    """The degrees that the law says for the on-rates of its net."""
    rate, fan = law.on_rates[path], results.units[path].fan("in")
    found = bb.degrees(rate, fan, law.density, law=bb.laws.log_odds(), k_min=law.k_min)
    return np.asarray(found)


def balance(ax: Axes, results: Results, path: str, size: float = TEXT) -> None:
    """Degree of the units of a kernel against their on-rate."""
    law, both = results.law, results.by_key["bb_in"]
    for outcome, key, label in (
        (both, "bb_in", "law and competition (default)"),
        (law, "law", "the law alone (never on: mean degree)"),
    ):
        rate, degree = outcome.on_rates[path], outcome.degrees[path][0]
        x = np.where(rate > DEAD, _logit(rate), NEVER)
        ax.plot(x, degree, label=label, **line(key, linestyle=""))
    expected, rate = _expected(law, results, path), law.on_rates[path]
    order = np.argsort(rate)
    order = order[rate[order] > 4 * DEAD]  # below, the law fades to the mean
    ax.plot(
        _logit(rate[order]),
        expected[order],
        color="black",
        linewidth=1.4,
        label="balance line, within 2 nats of the mean",
        zorder=3,
    )
    off = np.abs(expected - law.degrees[path][0]).max()
    ax.set_ylim(0, 1.45 * max(ax.get_ylim()))  # room for the legend
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    ticks = [NEVER, *_logit(np.array(list(RATES)))]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.set_xticklabels(["0", *RATES.values()])
    ax.legend(fontsize=size - 2, frameon=False, loc="upper right")
    headed(
        ax,
        "The law alone lies on the balance line"
        if off <= 1
        else "Degree against on-rate",
        f"{len(rate)} units of {path.split('/')[0]}, 1 seed; 0: never on",
        "on-rate (%), on a scale of log-odds",
        "degree (kept incoming edges)",
        size,
    )


# Smaller nets --------------------------------------------------------------------
def smaller(ax: Axes, results: Results, size: float = TEXT) -> None:
    """Test accuracy against the parameters and the time per call that are left."""
    sizes, times = results.sizes, 100 * results.times
    score = np.array([s.accuracy.mean() for s in sizes])
    parameters = np.array([s.parameters.mean() for s in sizes])
    parameters = 100 * parameters / parameters[0]
    sd = [_sd(s.accuracy) for s in sizes]
    bars: dict[str, Any] = {"elinewidth": 1.2, "capsize": 2.5}
    ax.errorbar(
        parameters, score, yerr=sd, label="parameters", **MARKS["parameters"], **bars
    )
    ax.errorbar(
        times[:-1, 1], score, label="time per call (1 seed)", **MARKS["time"], **bars
    )
    masked = results.by_key["bb_in"]
    ax.plot(
        times[-1:, 1],
        masked.accuracy[: len(sizes[0].accuracy)].mean(),
        "*",
        color="black",
        markersize=11,
        label=f"time, masks alone ({100 * masked.density:g} %)",
    )
    ax.set_xlim(0, 108)
    ax.xaxis.set_major_locator(FixedLocator(range(0, 101, 20)))
    ax.legend(fontsize=size - 2, frameon=False, loc="lower right")
    close = np.flatnonzero(score >= score[0] - CLOSE)[-1]
    title = "Really smaller nets"
    if close:
        title = (
            f"{parameters[close]:.2g} % of the parameters: "
            f"{score[close] - score[0]:+.1f} points"
        ).replace("-", "−")
    seeds = len(sizes[0].accuracy)
    headed(
        ax,
        title,
        f"units removed in {many(len(sizes) - 1, 'round')}; {spread_of(seeds)}",
        "left of the dense net (%)",
        "test accuracy (%)",
        size,
    )


def widest() -> str:
    """The kernel that the overview shows."""
    return PRUNED[1]
