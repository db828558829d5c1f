"""The results as JSON and as one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from bbjax.demo.methods import Timing
from bbjax.demo.model import PRUNED
from bbjax.demo.outcome import Outcome, step_ratio
from bbjax.demo.results import Results
from bbjax.demo.statistics import paired, spread

AGAINST = "magnitude"
NONE = "–"
WIDE = 100  # columns with which the table has room between its own


def row(outcome: Outcome, dense: Outcome, timing: Timing) -> dict[str, Any]:
    """One method of the table, as JSON."""
    refreshes = timing.refreshes()
    plain = sorted(set(range(timing.steps)) - set(refreshes))
    summary = {
        "key": outcome.method.key,
        "label": outcome.method.label,
        "actuators": list(outcome.method.actuators) if outcome.metrics else [],
        "test_accuracy": spread(outcome.accuracy),
        "density_asked": outcome.density,
        "density_got": (outcome.kept / outcome.edges).tolist(),
        "kept_edges": outcome.kept.tolist(),
        "edges": outcome.edges,
        "step_time_ratio": step_ratio(outcome, dense, plain),
        "refresh_time_ratio": step_ratio(outcome, dense, refreshes),
        "step_ms": 1e3 * float(np.median(outcome.seconds)) / len(outcome.accuracy),
        "dead_units": spread(outcome.dead),
        "churn": outcome.churn.tolist(),
    }
    names = outcome.metrics[0] if outcome.metrics else ()
    summary["metrics"] = {n: _finite([m[n] for m in outcome.metrics]) for n in names}
    return summary


def _finite(values: list[float]) -> list[float | None]:
    """JSON has no NaN: a balance line that cannot be fitted is null."""
    return [v if math.isfinite(v) else None for v in values]


def report(
    results: Results,
    settings: dict[str, Any],
    seconds: dict[str, float],
    made: dict[str, Any],
) -> dict[str, Any]:
    """Everything that goes into `results.json`.

    Args:
        results: of the run.
        settings: of the run.
        seconds: wall and CPU time.
        made: commit, versions and machine.
    """
    dense, base = results.main[0], results.by_key[AGAINST]
    others = {o.method.key: o.accuracy for o in results.pruned if o is not base}
    return {
        "settings": settings,
        "seconds": seconds,
        **made,
        "methods": [row(o, dense, results.timing) for o in results.main],
        "paired": paired(others, base.accuracy, AGAINST),
        "sweep": [
            {
                "key": o.method.key,
                "density": o.density,
                "test_accuracy": spread(o.accuracy),
                "density_got": (o.kept / o.edges).tolist(),
                "dead_units": spread(o.dead),
            }
            for o in results.sweep
        ],
        "refreshes": results.timing.refreshes(),
        "edges_asked": sum(int(results.asked(p)[-1]) for p in PRUNED),
        "edges_missed": results.missed,
        "smaller": _smaller(results),
    }


def _smaller(results: Results) -> dict[str, Any]:
    *times, masked = results.times.tolist()
    return {
        "rounds": [
            {
                "widths": list(size.widths),
                "parameters": size.parameters.tolist(),
                "test_accuracy": spread(size.accuracy),
                "time_ratio_quartiles": quartiles,
            }
            for size, quartiles in zip(results.sizes, times, strict=True)
        ],
        "masked_time_ratio_quartiles": masked,
    }


# For a terminal ------------------------------------------------------------------
def table(result: dict[str, Any], width: int) -> Table:
    """The table, for a terminal that is `width` >= 80 columns wide."""
    settings = result["settings"]
    drawn = Table(
        title=f"Digits, {settings['seeds']} seeds, {settings['steps']} steps, density "
        f"{settings['density']:g}: keep {result['edges_asked']:,} of "
        f"{result['methods'][0]['edges']:,} edges",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0 if width < WIDE else 1, 0, 0),
    )
    drawn.add_column("\nmethod", min_width=19)
    for name in ("test\naccuracy (%)", "minus\nmagnitude"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("signifi-\ncance", no_wrap=True)
    for name in ("kept\nedges", "time\nratio", f"dead of\n{settings['hidden_units']}"):
        drawn.add_column(name, justify="right", no_wrap=True)
    pairs = {pair["method"]: pair for pair in result["paired"]}
    for m in result["methods"]:
        accuracy, pair = m["test_accuracy"], pairs.get(m["key"])
        drawn.add_row(
            m["label"],
            _with(f"{accuracy['mean']:.2f}", accuracy["sd"]),
            _with(f"{pair['mean']:+.2f}".replace("-", "−"), pair["se"]) if pair else "",
            (pair["significance"] or NONE) if pair else "",
            _range(m["kept_edges"]),
            _number(m["step_time_ratio"]),
            f"{m['dead_units']['mean']:.1f}",
        )
    return drawn


def _with(mean: str, spread: float | None) -> str:
    return f"{mean} ± {NONE:>4}" if spread is None else f"{mean} ± {spread:.2f}"


def _range(kept: Sequence[int]) -> str:
    low, high = min(kept), max(kept)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def notes(result: dict[str, Any]) -> list[str]:
    """What the columns mean, in two lines."""
    return [
        "accuracy: mean ± sd; minus magnitude: paired by seed, ± standard error; "
        f"t test at 5 %, Holm for {len(result['paired'])} comparisons",
        "fan-in budget: counts incoming edges (SP-in in the paper); fan-out: outgoing "
        "ones (SP-out); time: step / dense",
    ]
