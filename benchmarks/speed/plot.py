"""The report at a glance: four panels, dense = 1, budgets as lines.

    steps without refresh, and amortised      a refresh, and JaxPruner's if measured
    selecting k per unit, by size             state, temporaries and compile time

Points are medians, bars quartiles. Markers and line styles differ, so the picture reads
without colours. A panel whose part was not measured says so. Budgets are drawn where
they hold: on a CPU, on the model that they name.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt

from benchmarks.speed.table import BUDGETS, COMPILE, kinds

KINDS = ("observe", "plain", "every 10", "every 100", "every 1000")
MARKERS = "osD^vPX*"
SHADES = ("#0072b2", "#d55e00", "#7a7a7a", "#009e73", "#222222", "#cc79a7")
METHODS = {"count": "counting", "top_k": "sorting", "read": "one read pass"}
STYLES = {"float32": "-", "bfloat16": "--"}


def _points(axes: Any, at: Any, values: list[Any], i: int, label: str) -> None:
    """Medians with quartiles, none where a value is none."""
    pairs = [(x, v) for x, v in zip(at, values, strict=True) if v is not None]
    if not pairs:
        return
    middle = np.array([v["median"] for _, v in pairs])
    low = middle - [v["low"] for _, v in pairs]
    high = [v["high"] for _, v in pairs] - middle
    axes.errorbar(
        [x for x, _ in pairs],
        middle,
        yerr=[low, high],
        fmt=MARKERS[i],
        color=SHADES[i],
        capsize=3,
        label=label,
    )


def _names(axes: Any, names: list[str]) -> None:
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set_xlim(-0.6, len(names) - 0.4)


def _budget(axes: Any, at: float, value: float, width: float) -> None:
    """A short line with the budget written on it."""
    axes.hlines(value, at - width, at + width, colors="k", linestyles=":", zorder=0)
    axes.annotate(
        f"≤ {value}",
        (at - width, value),
        ha="left",
        va="bottom",
        fontsize=8,
    )


def _budgets(axes: Any, part: Any, names: list[str], wanted: tuple[str, ...]) -> None:
    if part["machine"]["backend"] != "cpu" or part["small"]:
        return
    for (model, kind), value in BUDGETS.items():
        if model in names and kind in wanted:
            _budget(axes, names.index(model), value, 0.4)


def _plain(axes: Any, parts: Mapping[str, Any]) -> None:
    """Steps without a refresh, and amortised."""
    rows = parts["step"]["rows"]
    for i, kind in enumerate(KINDS):
        values = [
            row["others"]["observe"]["ratio"]
            if kind == "observe"
            else kinds(row["pruned"]["bb"])[kind][1]
            for row in rows.values()
        ]
        at = np.arange(len(rows)) + 0.14 * (i - 2)
        label = kind if i < 2 else f"amortised, one refresh in {kind.split()[1]}"
        _points(axes, at, values, i, label)
    axes.axhline(1, color="0.6", lw=1, zorder=0)
    _names(axes, list(rows))
    _budgets(axes, parts["step"], list(rows), ("plain", "every 100"))
    axes.set_ylabel("time of a step / dense step")
    axes.set_title("Steps without refresh, and on average")
    axes.legend(fontsize=8)


def _refresh(axes: Any, parts: Mapping[str, Any]) -> None:
    """Steps with a refresh, and the peer's."""
    rows = parts["step"]["rows"]
    names = list(rows)
    values = [row["pruned"]["bb"]["ratio"]["refresh"] for row in rows.values()]
    _points(axes, range(len(names)), values, 0, "refresh of all kernels")
    for row in parts.get("jaxpruner", {"rows": {}})["rows"].values():
        for i, (name, one) in enumerate(row["pruned"].items()):
            if name.startswith("JaxPruner"):
                where = [len(names) + 0.2 * (i - 2.5)]
                _points(axes, where, [one["ratio"]["refresh"]], i, f"{name}: update")
        names = [*names, "JaxPruner\n(ffn-256)"]
    axes.axhline(1, color="0.6", lw=1, zorder=0)
    axes.set_yscale("log")
    _names(axes, names)
    _budgets(axes, parts["step"], names, ("refresh",))
    _plain_log_ticks(axes)
    axes.set_ylabel("time of a step / dense step")
    axes.set_title("The step that refreshes")
    axes.legend(fontsize=8)


def _plain_log_ticks(axes: Any) -> None:
    """Numbers as they are said, not as powers of ten."""
    low, high = axes.get_ylim()
    low, high = min(low, 0.95), max(high, 1.55)
    wide = [1, 2, 5, 10, 20, 50, 100]
    narrow = [0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5]
    ticks = [t for t in (narrow if high < 5 else wide) if low <= t <= high]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_ylim(low, high)


def _series(rows: Mapping[str, Any], method: str, dtype: str) -> Iterator[Any]:
    """(entries, median ms over shapes and axes with so many entries)."""
    found: dict[int, list[float]] = {}
    for row in rows.values():
        if row["dtype"] == dtype:
            entries = int(np.prod(row["shape"]))
            found.setdefault(entries, []).append(row["ms"][method]["median"])
    for entries in sorted(found):
        yield entries, found[entries]


def _topk(axes: Any, parts: Mapping[str, Any]) -> None:
    """Time to choose k entries per unit, against the number of scores."""
    rows = parts["topk"]["rows"]
    for i, (method, label) in enumerate(METHODS.items()):
        for dtype, style in STYLES.items():
            series = list(_series(rows, method, dtype))
            middle = np.array([np.median(t) for _, t in series])
            low = middle - [min(t) for _, t in series]
            high = [max(t) for _, t in series] - middle
            axes.errorbar(
                [n for n, _ in series],
                middle,
                yerr=[low, high],
                fmt=MARKERS[i] + style,
                color=SHADES[i],
                mfc=SHADES[i] if style == "-" else "none",
                capsize=3,
                label=f"{label}, {dtype}",
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("scores (entries of the kernel)")
    axes.set_ylabel("time / ms (bars: over shapes and axes)")
    axes.set_title("k largest per unit: top_k_mask by method")
    low, high = axes.get_ylim()
    axes.set_ylim(low, 8 * high)  # room for the legend
    axes.legend(fontsize=8, loc="upper left", ncol=len(METHODS))


def _shares(parts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What is compared with dense once per model, by kind and model."""
    state, temporary, compiled = {}, {}, {}
    for model, row in parts.get("bytes", {"rows": {}})["rows"].items():
        state[model] = _exact(row["state"]["bb"], row["state"]["dense"])
        programs = row["programs"]
        ours, dense = (programs[name]["temporary"] for name in ("bb", "dense"))
        temporary[model] = _exact(ours, dense)
    for model, row in parts.get("compile", {"rows": {}})["rows"].items():
        compiled[model] = row["ratio"]["bb"]
    return {
        "optimizer state, bytes": state,
        "temporaries of a step, bytes": temporary,
        "compile time": compiled,
    }


def _exact(ours: float | None, dense: float | None) -> dict[str, float] | None:
    """A ratio without spread."""
    if not ours or not dense:
        return None
    return dict.fromkeys(("median", "low", "high"), ours / dense)


def _once(axes: Any, parts: Mapping[str, Any]) -> None:
    """Bytes and compile time against dense."""
    shares = _shares(parts)
    names = list(dict.fromkeys(model for by in shares.values() for model in by))
    for i, (kind, by) in enumerate(shares.items()):
        values = [by.get(name) for name in names]
        _points(axes, np.arange(len(names)) + 0.2 * (i - 1), values, i, kind)
    axes.axhline(1, color="0.6", lw=1, zorder=0)
    _names(axes, names)
    if "gpt-24" in names:
        _budget(axes, names.index("gpt-24"), COMPILE, 0.4)
    axes.set_yscale("log")
    _plain_log_ticks(axes)
    axes.set_ylabel("pruned / dense")
    axes.set_title("Paid once: memory and compile time")
    axes.legend(fontsize=8)


PANELS = {_plain: ("step",), _refresh: ("step",), _topk: ("topk",)}


def draw(parts: Mapping[str, Any], path: Path) -> None:
    """Draws what was measured."""
    figure, grid = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    panels = PANELS | {_once: tuple({"bytes", "compile"} & set(parts)) or ("bytes",)}
    for axes, (panel, needs) in zip(grid.flat, panels.items(), strict=True):
        if all(need in parts for need in needs):
            panel(axes, parts)
        else:
            axes.text(0.5, 0.5, f"not measured: {', '.join(needs)}", ha="center")
            axes.set_axis_off()
    where = next(iter(parts.values()))["machine"]
    figure.suptitle(
        f"Cost of bbjax on {where['cpu']}, {where['cores']} cores"
        + (f", {where['device']}" if where["backend"] != "cpu" else "")
        + f" (jax {where['jax']}); points: medians, bars: quartiles"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
