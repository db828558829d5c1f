"""From the runs that are there to one report: means, differences, ranks, factors.

Methods that prune while or before the net trains are one family, those that prune a
trained net once another; each is compared with equal degrees of its own kind.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from benchmarks.rules import table
from benchmarks.rules.data import METRICS
from benchmarks.rules.methods import EQUAL, EQUAL_ONCE, FACTOR_METHODS, METHODS
from benchmarks.rules.plan import (
    DENSE,
    FACTOR_DENSITIES,
    FACTOR_K_MIN,
    FACTOR_STEPS,
    FACTOR_TASKS,
)
from benchmarks.rules.store import Run

FAMILIES = {
    "trained": (("train", "init"), EQUAL),
    "once": (("after",), EQUAL_ONCE),
}

Cell = tuple[str, float]


class Setting(NamedTuple):
    """Least number of edges of a unit, and steps of training."""

    k_min: int
    steps: int


def report(runs: Iterable[Run], setting: Setting, seeds: int) -> dict[str, Any]:
    """Everything that README and picture show."""
    runs = [run for run in runs if run.key.seed < seeds]
    at_setting = [r for r in runs if (r.key.k_min, r.key.steps) == setting]
    dense = [r for r in runs if r.key.method == DENSE and r.key.steps == setting.steps]
    return {
        "seeds": len({run.key.seed for run in at_setting}),
        "k_min": setting.k_min,
        "steps": setting.steps,
        "runs": len(runs),
        "seconds": round(sum(run.seconds for run in runs), 1),
        "commits": _commits(runs),
        "seconds_per_run": _by(at_setting, lambda r: r.key.task, _mean_seconds),
        "dense": _by(dense, lambda r: r.key.task, _dense),
        "families": {
            name: family(at_setting, reference, whens)
            for name, (whens, reference) in FAMILIES.items()
        },
        "factors": factors(runs),
    }


def family(runs: Iterable[Run], reference: str, whens: tuple[str, ...]) -> Any:
    """The comparison of the methods that prune at certain times, or None."""
    runs = [r for r in runs if _when(r.key.method) in whens]
    if not any(run.key.method == reference for run in runs):
        return None
    tasks = [task for task in METRICS if any(r.key.task == task for r in runs)]
    most = max(len(METRICS[task]) for task in tasks)
    metrics = []  # first what decides, then what is told beside it, if anything
    for place in range(most):
        names = {t: list(METRICS[t])[place] for t in tasks if len(METRICS[t]) > place}
        values, higher = by_method(runs, names)
        metrics.append(comparison(values, higher, names, reference))
    order = by_method(runs, {t: next(iter(METRICS[t])) for t in tasks})
    ranks = table.ranks(*order, reference)
    ranks["friedman_p"] = {_text(c): p for c, p in ranks["friedman_p"].items()}
    got = _by(runs, lambda r: _text((r.key.task, r.key.density)), _kept)
    return {"reference": reference, "metrics": metrics, "ranks": ranks, "got": got}


def by_method(runs: Iterable[Run], names: Mapping[str, str]) -> Any:
    """Of a metric for each task: values by method, cell and seed, and its sense."""
    values: dict[str, dict[Cell, dict[int, float]]] = {}
    for run in runs:
        key = run.key
        if key.task in names:
            cells = values.setdefault(key.method, {})
            seeds = cells.setdefault((key.task, key.density), {})
            seeds[key.seed] = run.metrics[names[key.task]]
    cells = dict.fromkeys(cell for found in values.values() for cell in found)
    return values, {cell: METRICS[cell[0]][names[cell[0]]] for cell in cells}


def comparison(values: Any, higher: Any, names: Any, reference: str) -> dict[str, Any]:
    """Of one metric: every cell's means and tests, and verdicts by method."""
    gains = {
        name: table.gains(cells, values.get(reference, {}), higher)
        for name, cells in values.items()
        if name != reference
    }
    cells = {}
    for cell in sorted(higher, key=lambda c: (list(METRICS).index(c[0]), -c[1])):
        rows = {name: found[cell] for name, found in values.items() if cell in found}
        best, p = table.against_best(rows, higher[cell])
        methods = {}
        for name, seeds in rows.items():
            mean, sd = table.spread(seeds)
            one = {"mean": mean, "sd": sd, "seeds": len(seeds)}
            one |= {"p_against_best": p[name]}
            methods[name] = one | gains.get(name, {}).get(cell, {})
        cells[_text(cell)] = {"task": cell[0], "density": cell[1], "best": best}
        cells[_text(cell)]["methods"] = methods
    verdicts = {name: table.counts(found) for name, found in gains.items()}
    return {"names": names, "cells": cells, "verdicts": verdicts}


def factors(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The handful of methods at every floor and length of training that is there."""
    cells = {
        (task, density)
        for task in FACTOR_TASKS
        for densities in FACTOR_DENSITIES.values()
        for density in densities
    }
    runs = [
        run
        for run in runs
        if run.key.method in FACTOR_METHODS and (run.key.task, run.key.density) in cells
    ]
    found = []
    for steps in FACTOR_STEPS:
        for k_min in FACTOR_K_MIN:
            some = [r for r in runs if (r.key.k_min, r.key.steps) == (k_min, steps)]
            if compared := family(some, EQUAL, ("train",)):
                found.append(
                    {"k_min": k_min, "steps": steps, "cells": compared["metrics"][0]}
                )
    return found if len(found) > 1 else []


def _when(method: str) -> str | None:
    return METHODS[method].when if method in METHODS else None


def _text(cell: Cell) -> str:
    return f"{cell[0]} {cell[1]:g}"


def _by(runs: Iterable[Run], name: Callable[[Run], str], made: Callable) -> dict:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(name(run), []).append(run)
    return {key: made(group) for key, group in groups.items()}


def _commits(runs: Iterable[Run]) -> dict[str, int]:
    return _by(runs, lambda run: run.commit or "unknown", len)


def _mean_seconds(runs: list[Run]) -> float:
    return round(statistics.fmean(run.seconds for run in runs), 2)


def _dense(runs: list[Run]) -> dict[str, Any]:
    found = {}
    for name in METRICS[runs[0].key.task]:
        mean, sd = table.spread({run.key.seed: run.metrics[name] for run in runs})
        found[name] = {"mean": mean, "sd": sd}
    return found


def _kept(runs: list[Run]) -> dict[str, float]:
    """Mean density got, by method."""
    return _by(
        runs, lambda r: r.key.method, lambda g: statistics.fmean(r.kept for r in g)
    )
