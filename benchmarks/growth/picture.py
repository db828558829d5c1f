"""The report as one picture: log-log, fitted lines, and a line of slope 1 beside."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Colours of Okabe and Ito; markers and lines tell the same in greyscale.
STYLES: dict[str, dict[str, Any]] = {
    "refresh": {"color": "#d55e00", "marker": "^", "linestyle": "-"},
    "plain": {"color": "#0072b2", "marker": "o", "linestyle": "-"},
    "adam": {"color": "#009e73", "marker": "D", "linestyle": "--"},
    "sgd": {"color": "#555555", "marker": "s", "linestyle": "-."},
    "dense": {"color": "#555555", "marker": "s", "linestyle": "-."},
    "read": {"color": "#999999", "marker": "x", "linestyle": ":"},
    "temp_bytes": {"color": "#d55e00", "marker": "^", "linestyle": "-"},
    "state_bytes": {"color": "#0072b2", "marker": "o", "linestyle": "-"},
    "flops": {"color": "#009e73", "marker": "D", "linestyle": "--"},
    "bytes_accessed": {"color": "#555555", "marker": "s", "linestyle": "-."},
}
LABELS = {
    "state_bytes": "state",
    "temp_bytes": "temporaries",
    "flops": "operations",
    "bytes_accessed": "accessed",
}
TEXT = 8


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(13, 8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    figure.suptitle(
        "numbers are fitted exponents of cost ~ size ** exponent", fontsize=9
    )
    parts = report["parts"]
    _times(axes[0, 0], parts["one kernel"], "update alone, one square kernel")
    side = report["plan"]["side"]
    _times(
        axes[0, 1], parts["many kernels"], f"update alone, kernels of {side} x {side}"
    )
    _times(axes[0, 2], parts["train step"], "whole train step")
    _counts(axes[1, 0], parts["one kernel"])
    _units(axes[1, 1], parts)
    _periods(axes[1, 2], report["period"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _times(ax: Axes, part: dict[str, Any], title: str) -> None:
    x = np.array(part["weights"], float)
    for name in [n for n in STYLES if n in part["ms"]]:
        _points(ax, x, part["ms"][name], STYLES[name])
        _fitted(ax, x, part["fits"][name], name, STYLES[name])
    middle = part["ms"]["plain"][-1]["median"]
    _slope_one(ax, x, middle / x[-1] * 0.25)
    _finish(ax, title, "weights", "milliseconds")


def _points(
    ax: Axes, x: np.ndarray, spreads: list[dict[str, float]], style: dict[str, Any]
) -> None:
    middle, low, high = (
        np.array([s[n] for s in spreads]) for n in ("median", "low", "high")
    )
    kind = {"color": style["color"], "marker": style["marker"]}
    ax.errorbar(
        x, middle, (middle - low, high - middle), linestyle="", markersize=5, **kind
    )


def _fitted(
    ax: Axes, x: np.ndarray, fit: dict[str, Any], name: str, style: dict[str, Any]
) -> None:
    span = np.array([fit["from"], x[-1]])
    line = fit["at_end"] * (span / x[-1]) ** fit["exponent"]
    label = f"{LABELS.get(name, name)}: {fit['exponent']:.2f} ± {fit['error']:.2f}"
    ax.plot(span, line, **style, markersize=0, linewidth=1.4)
    ax.plot([], [], **style, markersize=5, linewidth=1.4, label=label)


def _slope_one(ax: Axes, x: np.ndarray, scale: float) -> None:
    ax.plot(x, scale * x, color="black", linewidth=0.8, dashes=(1, 2), label="slope 1")


def _counts(ax: Axes, part: dict[str, Any]) -> None:
    x = np.array(part["weights"], float)
    for name in LABELS:
        style = STYLES[name]
        kind = {"color": style["color"], "marker": style["marker"]}
        ax.plot(x, part["facts"][name], linestyle="", markersize=5, **kind)
        _fitted(ax, x, part["fits"][name], name, style)
    _slope_one(ax, x, 1.0)
    _finish(ax, "what the compiler counts, one kernel", "weights", "bytes, operations")


def _units(ax: Axes, parts: dict[str, Any]) -> None:
    for actuator, fill in (("in", "full"), ("out", "none")):
        part = parts[f"units, {actuator}"]
        x = np.array(part["units"], float)
        for name in ("refresh", "plain", "sgd"):
            y = [s["median"] for s in part["ms"][name]]
            label = f"{name}, {actuator}: {part['fits'][name]['exponent']:.2f}"
            ax.plot(x, y, **STYLES[name], fillstyle=fill, markersize=5, label=label)
    weights = parts["units, in"]["weights"][0]
    _finish(
        ax, f"update alone, {weights:.2g} weights", "budgeted units", "milliseconds"
    )


def _periods(ax: Axes, part: dict[str, Any]) -> None:
    x = np.array(part["periods"], float)
    _points(ax, x, part["run_ms"], STYLES["refresh"])
    ax.plot([], [], **STYLES["refresh"] | {"linestyle": ""}, label="run")
    ax.plot(x, part["computed_ms"], color="#0072b2", label="computed from single steps")
    dense = part["dense_ms"]["median"]
    ax.axhline(dense, color="#555555", linestyle="-.", label="dense SGD")
    title = f"update alone, {part['weights']:.2g} weights"
    _finish(ax, title, "refresh period (updates)", "milliseconds per update")


def _finish(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_title(title, fontsize=TEXT + 2, loc="left")
    ax.set_xlabel(x, fontsize=TEXT + 1)
    ax.set_ylabel(y, fontsize=TEXT + 1)
    ax.tick_params(labelsize=TEXT, which="both")
    ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    low, high = ax.get_ylim()  # room for the legend above everything
    ax.set_ylim(low, high * (high / low) ** 0.35)
    ax.legend(fontsize=TEXT - 1, frameon=False, loc="upper left", ncols=2)
