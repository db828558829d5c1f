"""Which differences are resolved: paired tests, Holm's correction, ranks.

Gains are differences turned so that more is better on every task. In a cell (a task at
a density) methods are compared with the best of them by paired t-tests over the seeds,
corrected for their number (Holm). A method is compared with equal degrees in all of its
cells, corrected for the number of cells. Ranks are taken within a seed of a cell, among
methods that have every one of them, and averaged.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.05
VERDICTS = ("better", "worse", "not told apart")

# Of one method: its values by cell, each by seed.
Values = Mapping[Any, Mapping[int, float]]


def paired(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p of a paired t-test; 1 if there is no difference at all.

    Where all seeds differ by as much but for rounding, the t-test has no variance to go
    by; p is then that of the sign test.
    """
    if len(first) < 2 or np.allclose(first, second):
        return 1.0
    gap = first - second
    if np.ptp(gap) <= 1e-9 * np.abs(gap).max():
        return float(2.0 ** (1 - len(gap)))
    return float(stats.ttest_rel(first, second).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction for several tests."""
    order = np.argsort(p)
    corrected, most = np.zeros(len(p)), 0.0
    for step, i in enumerate(order):
        most = max(most, min(1.0, (len(p) - step) * p[i]))
        corrected[i] = most
    return corrected.tolist()


def both(one: Mapping[int, float], other: Mapping[int, float]) -> np.ndarray:
    """Values of the seeds that two methods have, (2, seeds), without NaN."""
    seeds = sorted(one.keys() & other.keys())
    pairs = np.array([[m[s] for s in seeds] for m in (one, other)], float)
    return pairs[:, np.isfinite(pairs).all(0)]


def gains(method: Values, equal: Values, higher: Mapping[Any, bool]) -> dict[Any, Any]:
    """By cell: mean gain over equal degrees, its standard error, p after Holm.

    Args:
      method: values of a method.
      equal: values of equal degrees.
      higher: by cell, whether higher values are better.
    """
    found, raw = {}, []
    for cell in method.keys() & equal.keys():
        mine, others = both(method[cell], equal[cell])
        if not len(mine):
            continue
        gap = (mine - others) * (1 if higher[cell] else -1)
        count = len(gap)
        error = float(gap.std(ddof=1) / count**0.5) if count > 1 else float("nan")
        found[cell] = {"gain": float(gap.mean()), "error": error, "seeds": count}
        raw.append(paired(mine, others))
    for one, p in zip(found.values(), holm(raw), strict=True):
        one["p"] = p
        one["verdict"] = verdict(one["gain"], p)
    return found


def verdict(gain: float, p: float) -> str:
    """Better, worse or not told apart, at the level of the tests."""
    if p >= LEVEL:
        return VERDICTS[2]
    return VERDICTS[0] if gain > 0 else VERDICTS[1]


def counts(found: Mapping[Any, Any]) -> dict[str, int]:
    """How many cells came to each verdict."""
    verdicts = [one["verdict"] for one in found.values()]
    return {name: verdicts.count(name) for name in VERDICTS}


def against_best(rows: Mapping[str, Mapping[int, float]], higher: bool) -> Any:
    """The best of a cell by its mean, and everyone's p against it (Holm)."""
    means = {name: _mean(values) for name, values in rows.items()}
    order = sorted(means, key=means.__getitem__, reverse=higher)
    best = next((name for name in order if np.isfinite(means[name])), order[0])
    others = [name for name in rows if name != best]
    raw = [paired(*both(rows[name], rows[best])) for name in others]
    return best, {best: 1.0} | dict(zip(others, holm(raw), strict=True))


def _mean(values: Mapping[int, float]) -> float:
    """Over the seeds; a seed without a number leaves none."""
    return float(np.mean(list(values.values())))


def spread(values: Mapping[int, float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds."""
    sd = np.std(list(values.values()), ddof=1) if len(values) > 1 else float("nan")
    return _mean(values), float(sd)


def ranks(
    methods: Mapping[str, Values], higher: Mapping[Any, bool], reference: str
) -> dict[str, Any]:
    """Mean rank of every method that has all runs of the reference; Friedman's p.

    Args:
      methods: values by method.
      higher: by cell, whether higher values are better.
      reference: the method whose cells and seeds are those that count.

    Returns:
      "mean": ranks by method, 1 is best; "friedman_p": by cell, over its seeds;
      "friedman_p_overall": over the means of the cells; "missing": runs that a method
      lacks, by name.
    """
    wanted = [(c, s) for c, values in methods[reference].items() for s in values]
    lacking = {
        name: sum(s not in values.get(c, {}) for c, s in wanted)
        for name, values in methods.items()
    }
    names = [name for name, count in lacking.items() if not count]
    goods = {
        (c, s): [_good(methods[name][c][s], higher[c]) for name in names]
        for c, s in wanted
    }
    table = np.array(list(goods.values()))  # (runs, methods)
    mean = stats.rankdata(-table, axis=1).mean(0)
    cells = {
        cell: np.array([v for (c, _), v in goods.items() if c == cell])
        for cell in dict.fromkeys(c for c, _ in wanted)
    }
    return {
        "mean": {name: float(r) for name, r in zip(names, mean, strict=True)},
        "friedman_p": {cell: friedman(rows) for cell, rows in cells.items()},
        "friedman_p_overall": friedman(np.array([r.mean(0) for r in cells.values()])),
        "missing": {name: count for name, count in lacking.items() if count},
    }


def _good(value: float, higher: bool) -> float:
    """More is better, and no number is worse than all; finite, so that means are."""
    if not np.isfinite(value):
        return -1e9
    return value if higher else -value


def friedman(rows: np.ndarray) -> float | None:
    """p of the ranking of columns over rows; None where it is not defined."""
    if rows.shape[0] < 2 or rows.shape[1] < 3 or np.ptp(rows) == 0:
        return None
    return float(stats.friedmanchisquare(*rows.T).pvalue)
