"""The results as JSON, as one table and as one sentence.

Seeds are paired: a method and magnitude start from the same weights and see the same
batches, so the difference `d_s` of each seed is what counts,

    mean(d) +- se,   se = sd(d) / sqrt(seeds)

and a difference is called resolved when it is beyond `t` standard errors, the two-sided
5 % point of Student's t for one comparison.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from typing import Any

import jax
import numpy as np
from rich import box
from rich.table import Table

from bbjax.demo.methods import Timing
from bbjax.demo.outcome import Outcome, step_ratio

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "matplotlib")
AGAINST = "magnitude"
# 97.5 % points of Student's t by degrees of freedom; beyond the table the last.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16)
_T_LATER = 2.14


def spread(values: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation (null for one seed) and the values.

    Example:
        >>> spread(np.array([1.0, 3.0]))["mean"]
        2.0
    """
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "per_seed": values.tolist()}


def paired(outcome: Outcome, against: Outcome) -> dict[str, Any]:
    """Difference in test accuracy, in points, seed by seed.

    Returns:
        Mean, standard error (null for one seed), the differences, and whether the mean
        is beyond the two-sided 5 % point of Student's t.
    """
    difference = outcome.accuracy - against.accuracy
    count = len(difference)
    result: dict[str, Any] = {
        "method": outcome.method.key,
        "against": against.method.key,
        "mean": float(np.mean(difference)),
        "se": None,
        "resolved": False,
        "per_seed": difference.tolist(),
    }
    if count > 1:
        result["se"] = float(np.std(difference, ddof=1) / math.sqrt(count))
        result["resolved"] = abs(result["mean"]) > t_point(count) * result["se"]
    return result


def t_point(count: int) -> float:
    """The 97.5 % point of Student's t for a mean of `count` values.

    Example:
        >>> t_point(5)
        2.78
    """
    return _T[count - 2] if count - 2 < len(_T) else _T_LATER


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
    main: list[Outcome],
    sweep: list[Outcome],
    timing: Timing,
    settings: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Everything that goes into `results.json`.

    Args:
        main: outcomes at the density asked for, dense first.
        sweep: outcomes at further densities.
        timing: when pruning happened.
        settings: of the run.
        seconds: wall and CPU time.
    """
    dense, by_key = main[0], {o.method.key: o for o in main}
    others = [o for o in main if o.metrics and o.method.key != AGAINST]
    result = {
        "settings": settings,
        "seconds": seconds,
        "versions": {n: _version(n) for n in ("bbjax", *PACKAGES)},
        "machine": {
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "device": jax.devices()[0].device_kind,
        },
        "methods": [row(o, dense, timing) for o in main],
        "paired": [paired(o, by_key[AGAINST]) for o in [*others, dense]],
        "sweep": [
            {
                "key": o.method.key,
                "density": o.density,
                "test_accuracy": spread(o.accuracy),
                "density_got": (o.kept / o.edges).tolist(),
                "dead_units": spread(o.dead),
            }
            for o in sweep
        ],
        "refreshes": timing.refreshes(),
    }
    result["conclusion"] = conclude(result)
    return result


def _version(package: str) -> str:
    if package == "bbjax":  # its source may be on the path without being installed
        from bbjax import __version__

        return __version__
    return importlib.metadata.version(package)


def conclude(result: dict[str, Any]) -> str:
    """What the numbers allow to say, and what they do not: one sentence."""
    seeds = result["settings"]["seeds"]
    density = result["settings"]["density"]
    scope = "this net, these images and this length of training only"
    if seeds == 1:
        return (
            f"One seed at density {density:g}: no difference between methods can be "
            "told from noise, run more (--seeds 5)."
        )
    labels = {m["key"]: m["label"] for m in result["methods"]}
    pairs = [p for p in result["paired"] if p["method"] != "dense"]
    said = ", ".join(
        f"{labels[p['method']]} {p['mean']:+.2f} ± {p['se']:.2f}"
        + (" (resolved)" if p["resolved"] else " (noise)")
        for p in pairs
    )
    return (
        f"Test accuracy against magnitude at density {density:g}, in points, mean ± "
        f"standard error of {seeds} paired seeds: {said}; beyond {t_point(seeds):.2f} "
        "standard errors a difference is called resolved (two-sided 5 % for each of "
        f"{len(pairs)} comparisons), below it is noise, and either holds for {scope}."
    )


def table(result: dict[str, Any]) -> Table:
    """The table, for a terminal."""
    settings = result["settings"]
    drawn = Table(
        title=f"Digits; seeds: {settings['seeds']}; steps: {settings['steps']}",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption=(
            "accuracy: mean ± sd over seeds; density: kept share of the "
            f"{result['methods'][0]['edges']} budgeted edges; times: medians of ratios "
            "to the dense net's, step by step; dead: mean number of the "
            f"{settings['hidden_units']} hidden units; at least {settings['k_min']} "
            "kept per budgeted unit"
        ),
    )
    drawn.add_column("method", no_wrap=True)
    for name in (
        "test\naccuracy (%)",
        "density\nasked",
        "density\ngot",
        "step\n/ dense",
        "refresh\n/ dense",
        "dead\nunits",
    ):
        drawn.add_column(name, justify="right", no_wrap=True)
    for m in result["methods"]:
        accuracy = m["test_accuracy"]
        sd = "" if accuracy["sd"] is None else f" ± {accuracy['sd']:.2f}"
        drawn.add_row(
            m["label"],
            f"{accuracy['mean']:.2f}{sd}",
            f"{m['density_asked']:g}",
            f"{np.mean(m['density_got']):.5f}",
            f"{m['step_time_ratio']:.2f}",
            f"{m['refresh_time_ratio']:.2f}" if m["actuators"] else "-",
            f"{m['dead_units']['mean']:.1f}",
        )
    return drawn
