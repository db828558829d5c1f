"""The parts of the report: costs against a size, and against the refresh period.

The size is the number of weights, or that of units at a fixed number of weights. The
period is run, as many steps as it is long, and computed from single steps:

    cost(every) = (refresh + after + (every - 2) plain) / every

Sizes are taken in turns, so that a drift of the machine meets all of them alike.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.common.measure import interleaved, spread
from benchmarks.growth import cases
from benchmarks.growth.cases import Case
from benchmarks.growth.fit import exponent

SINGLE = ("refresh", "after", "settle", "plain")  # steps of a period of four
LEAST_STEPS = 20  # in a window of the refresh period
PERIODS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def in_turns(found: Sequence[Case], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of every call of every case, (cases, rounds) by name."""
    names = list(found[0].calls)
    calls = {f"{i} {n}": case.calls[n] for i, case in enumerate(found) for n in names}
    times = interleaved(calls, rounds)
    return {n: np.stack([times[f"{i} {n}"] for i in range(len(found))]) for n in names}


def against_size(
    make: Callable[[Any], Case],
    sizes: Sequence[Any],
    rounds: int,
    *,
    dense: str,
    by: str = "weights",
    start: float = 0.0,
) -> dict[str, Any]:
    """Costs against a size, with exponents.

    Args:
        make: the case of a size.
        sizes: what `make` takes, rising.
        rounds: of all cases in turns.
        dense: name of the call that the others are compared with.
        by: attribute of a case that is the size.
        start: least size that a fit takes.
    """
    found = [make(size) for size in sizes]
    times = in_turns(found, rounds)
    x = [getattr(case, by) for case in found]
    ratios = {n: times[n] / times[dense] for n in ("plain", "after", "refresh")}
    # Against weights a ratio may not grow; what units cost has no dense counterpart.
    most = 0.0 if by == "weights" else 1.0
    facts = {n: [case.facts[n] for case in found] for n in found[0].facts}
    # A constant beside bytes: a temporary of none at all has a logarithm, too.
    counted = {n: np.maximum(v, 1.0) for n, v in facts.items() if "seconds" not in n}
    return {
        "by": by,
        "dense": dense,
        "weights": [case.weights for case in found],
        "units": [case.units for case in found],
        "kernels": [case.kernels for case in found],
        "ms": _spreads(times),
        "ratio": _spreads(ratios),
        "amortised": {str(e): amortised(ratios, e) for e in PERIODS},
        "facts": facts,
        "fits": {n: exponent(x, t, start) for n, t in (times | counted).items()},
        "ratio_fits": {n: exponent(x, r, start, most) for n, r in ratios.items()},
    }


def faster(parts: Mapping[str, dict[str, Any]]) -> dict[str, list[str]]:
    """What grows faster than linearly in the weights, and faster than dense."""
    found: dict[str, list[str]] = {"than_linear": [], "than_dense": []}
    for title, part in parts.items():
        if part["by"] != "weights":
            continue
        for kind, fits in (("linear", "fits"), ("dense", "ratio_fits")):
            names = [n for n, fit in part[fits].items() if not fit["within"]]
            found[f"than_{kind}"] += [f"{title}: {n}" for n in names]
    return found


def _spreads(table: Mapping[str, np.ndarray]) -> dict[str, list[dict[str, float]]]:
    return {n: [spread(row) for row in rows] for n, rows in table.items()}


def amortised(costs: Mapping[str, np.ndarray], every: int) -> list[float]:
    """Cost per step at a refresh period, of each case, from medians over rounds."""
    middle = {n: np.median(costs[n], axis=-1) for n in ("refresh", "after", "plain")}
    if every == 1:
        return np.atleast_1d(middle["refresh"]).tolist()
    total = middle["refresh"] + middle["after"] + (every - 2) * middle["plain"]
    return np.atleast_1d(total / every).tolist()


def against_period(side: int, periods: Sequence[int], rounds: int) -> dict[str, Any]:
    """Cost per step against the refresh period, really run and computed."""
    made = cases.kernels((side, side))
    params, *given = jax.jit(lambda: cases.arguments(made))()

    def pruned(every: int) -> cases.Stepper:
        tx = cases.transformation(made, "in", every)
        return cases.stepper(tx, params, *given)[0]

    # Steps one by one, with nothing else in between as there is nothing in a window.
    calls: dict[str, Callable[[], Any]] = dict.fromkeys(SINGLE, pruned(len(SINGLE)))
    steps = {e: e * math.ceil(LEAST_STEPS / e) for e in periods}
    for every, count in steps.items():
        calls[f"every {every}"] = _window(pruned(every), count)
    sgd = cases.stepper(optax.sgd(cases.RATE), params, *given)[0]
    calls["dense"] = _window(sgd, max(steps.values()))
    times = interleaved(calls, rounds)
    dense = times["dense"] / max(steps.values())
    run = {e: times[f"every {e}"] / count for e, count in steps.items()}
    return {
        "weights": side * side,
        "periods": list(periods),
        "steps": list(steps.values()),
        "ms": {n: spread(times[n]) for n in SINGLE},
        "dense_ms": spread(dense),
        "run_ms": [spread(t) for t in run.values()],
        "computed_ms": [amortised(times, e)[0] for e in periods],
        "run_ratio": [spread(t / dense) for t in run.values()],
    }


def _window(step: Callable[[], Any], count: int) -> Callable[[], Any]:
    def run() -> Any:
        for _ in range(count - 1):
            step()
        return step()

    return run
