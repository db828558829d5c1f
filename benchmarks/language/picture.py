"""Perplexity over dense against density, and what additions buy."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from benchmarks.language.page import NAMED, RARE, REFERENCE

LINES = {  # what is drawn, if it was measured
    "magnitude": {"color": "#888888", "marker": "x"},
    "Wanda": {"color": "black", "marker": "o"},
    "BB, gate > 0": {"color": "#c2452d", "marker": "v"},
    "law alone, gate > 0": {"color": "#e39b4f", "marker": "v"},
    "reversed, gate > 0": {"color": "#2a6fb8", "marker": "^"},
    "SparseGPT": {"color": "#7a4fa3", "marker": "s"},
}
TEXT = 9


def draw(report: dict[str, Any], path: Path, scope: str = "ffn") -> bool:
    """Writes the picture of one scope; False if there is too little to draw."""
    setting = max(report["settings"], key=lambda s: len(s["rows"]), default=None)
    if setting is None:
        return False
    rows = [r for r in setting["rows"] if r["scope"] == scope and not r["pattern"]]
    dense = [r for r in setting["rows"] if r["scope"] == "none"]
    added = [r for r in rows if r.get("nats_over_plain") and r["density"] in (0.5, 0.3)]
    if not dense or len({r["density"] for r in rows}) < 2:
        return False
    figure = Figure(figsize=(12, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    for ax, column, title in zip(
        panels,
        ("all", RARE),
        ("all tokens", "tokens unseen in validation"),
        strict=False,
    ):
        _lines(ax, rows, dense[0], column)
        ax.set_title(f"{NAMED[scope]}: {title}", fontsize=TEXT + 1, loc="left")
    panels[0].legend(fontsize=TEXT - 1, frameon=False)
    _added(panels[2], [r for r in added if r["method"].startswith(REFERENCE)])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True


def _lines(
    ax: Axes, rows: list[dict[str, Any]], dense: dict[str, Any], column: str
) -> None:
    base = dense["perplexity"][column]["mean"]
    for name, style in LINES.items():
        mine = sorted(
            (row["density"], row["perplexity"][column])
            for row in rows
            if row["method"] == name
        )
        if mine:
            x = [density for density, _ in mine]
            y = [value["mean"] / base for _, value in mine]
            error = [value["sd"] / base for _, value in mine]
            ax.errorbar(x, y, error, **style, markersize=5, capsize=2, label=name)
    densities = sorted({row["density"] for row in rows})
    ax.set(xlabel="density", ylabel="perplexity / dense", yscale="log")
    ax.invert_xaxis()
    ax.xaxis.set_major_locator(FixedLocator(densities))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.axhline(1, color="#888888", linewidth=0.8, linestyle=":")
    ax.grid(True, linewidth=0.4, alpha=0.5)
    ax.spines[["top", "right"]].set_visible(False)


def _added(ax: Axes, rows: list[dict[str, Any]]) -> None:
    """Nats that additions to the reference change, one bar for each density."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    colors = {0.5: "#2a6fb8", 0.3: "#7fb2e5"}
    for density, color in colors.items():
        mine = {
            r["method"]: r["nats_over_plain"]["all"]
            for r in rows
            if r["density"] == density
        }
        shown = [name for name in names if name in mine]
        shift = 0.2 if density == 0.5 else -0.2
        ax.barh(
            [-names.index(name) + shift for name in shown],
            [mine[name]["mean"] for name in shown],
            0.38,
            xerr=[mine[name]["sd"] for name in shown],
            color=color,
            label=f"density {density:g}",
        )
    ax.set_yticks([-i for i in range(len(names))], names, fontsize=TEXT - 1)
    ax.axvline(0, color="#888888", linewidth=0.8)
    ax.set_xlabel(f"nats over {REFERENCE} alone")
    ax.set_title("What additions buy", fontsize=TEXT + 1, loc="left")
    ax.legend(fontsize=TEXT - 1, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
