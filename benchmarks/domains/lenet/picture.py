"""Accuracy against the share of weights that is kept, a panel for each net."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bbjax.demo.drawing import blank, tidy
from benchmarks.domains.common.experiment import Runs

STYLE = (("#0072b2", "o", "-"), ("#8a8a8a", "s", "--"))


def draw(runs: Runs, path: Path, nets: Iterable[str], ways: Sequence[str]) -> None:
    """Means over seeds with their range, of the nets that have runs."""
    nets = [net for net in nets if any(runs.of(f"{net}, {way}") for way in ways)]
    made = blank(width=3.8 * len(nets), height=3.4)
    for ax, net in zip(np.atleast_1d(made.subplots(1, len(nets))), nets, strict=True):
        for way, (colour, mark, line) in zip(ways, STYLE, strict=True):
            curves = [of["curve"] for of in runs.of(f"{net}, {way}").values()]
            if not curves:
                continue
            length = min(map(len, curves))
            kept, accuracy = (
                np.array([[p[name] for p in c[:length]] for c in curves])
                for name in ("kept", "accuracy")
            )
            x, y = 100 * kept.mean(0), accuracy.mean(0)
            spread = np.abs(np.stack([accuracy.min(0), accuracy.max(0)]) - y)
            ax.errorbar(x, y, spread, color=colour, marker=mark, linestyle=line,
                        markersize=4, linewidth=1.3, capsize=2, label=way)  # fmt: skip
        ax.set_xscale("log")
        ax.invert_xaxis()
        tidy(ax, net, "weights kept, %", "test accuracy, %")
        ax.legend(fontsize=8, frameon=False, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)
