"""A panel for each setting: accuracy where it alone leaves the middle."""

from pathlib import Path

import numpy as np

from bbjax.demo.drawing import blank, tidy

STYLE = (("#0072b2", "o", "-"), ("#d55e00", "s", "--"))


def draw(panels: dict[str, dict[str, dict[float, np.ndarray]]], path: Path) -> None:
    """Differences to the middle by setting, task and value, with standard errors."""
    made = blank(width=9.6, height=5.2)
    axes = made.subplots(2, 3, sharey=True).ravel()
    for ax, (what, tasks) in zip(axes, panels.items(), strict=True):
        for (task, at), (colour, mark, line) in zip(tasks.items(), STYLE, strict=True):
            x = sorted(at)
            mean = [at[v].mean() for v in x]
            error = [at[v].std(ddof=1) / len(at[v]) ** 0.5 for v in x]
            ax.errorbar(
                range(len(x)),
                mean,
                error,
                color=colour,
                marker=mark,
                linestyle=line,
                markersize=4,
                capsize=2,
                label=task,
            )
            ax.set_xticks(range(len(x)), [f"{v:g}" for v in x])
        ax.axhline(0, color="black", linewidth=0.6)
        tidy(ax, what, "", "points" if ax in axes[::3] else "")
    axes[0].legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)
