"""Numbers to tables: mean and spread over seeds, and which differences are resolved.

At every density the methods of a family are compared with the best of them by paired
t-tests over the seeds, corrected for their number (Holm). A method whose difference
from the best is not resolved at 5 % carries a mark. Friedman's test says whether the
ranking as a whole is more than chance.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

UNRESOLVED = "="


def summary(results: Mapping[str, np.ndarray], densities: Sequence[float]) -> Any:
    """Of each density: mean, sd, p against the best (Holm), mean rank; Friedman's p.

    Args:
      results: accuracies by method, (densities, seeds).
      densities: the densities.
    """
    report = {}
    for d, density in enumerate(densities):
        rows = {name: values[d] for name, values in results.items()}
        report[f"{density:g}"] = _at_one_density(rows)
    return report


def _at_one_density(rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    names = list(rows)
    table = np.array([rows[name] for name in names])  # (methods, seeds)
    best = int(np.argmax(table.mean(1)))
    raw = [paired(table[best], row) for i, row in enumerate(table) if i != best]
    corrected = iter(holm(raw))
    ranks = stats.rankdata(-table, axis=0).mean(1)
    methods = {
        name: {
            "mean": round(float(table[i].mean()), 3),
            "sd": round(float(table[i].std(ddof=1)), 3),
            "p_against_best": 1.0 if i == best else round(next(corrected), 5),
            "mean_rank": round(float(ranks[i]), 2),
        }
        for i, name in enumerate(names)
    }
    friedman = float(stats.friedmanchisquare(*table).pvalue) if len(names) > 2 else None
    return {"best": names[best], "friedman_p": friedman, "methods": methods}


def paired(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p of a paired t-test; 1 if there is no difference at all."""
    if np.allclose(first, second):
        return 1.0
    if np.ptp(first - second) == 0:  # the same difference for every seed
        return 0.0
    return float(stats.ttest_rel(first, second).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction for several tests."""
    order = np.argsort(p)
    corrected, most = np.zeros(len(p)), 0.0
    for step, i in enumerate(order):
        most = max(most, min(1.0, (len(p) - step) * p[i]))
        corrected[i] = most
    return corrected.tolist()


def markdown(report: Any, densities: Sequence[float], got: Mapping[str, Any]) -> str:
    """A table with a row per method: mean ± sd, and a mark where not worse than the
    best beyond chance; methods by mean rank over the densities."""
    keys = [f"{d:g}" for d in densities]
    names = list(report[keys[0]]["methods"])
    rank = {
        n: np.mean([report[k]["methods"][n]["mean_rank"] for k in keys]) for n in names
    }
    lines = [
        "| method | " + " | ".join(f"density {k}" for k in keys) + " | mean rank |",
        "| --- |" + " --- |" * (len(keys) + 1),
    ]
    for name in sorted(names, key=rank.__getitem__):
        cells = []
        for d, k in enumerate(keys):
            one = report[k]["methods"][name]
            cell = f"{one['mean']:.2f} ± {one['sd']:.2f}"
            if report[k]["best"] == name:
                cell = f"**{cell}**"
            elif one["p_against_best"] >= 0.05:
                cell += f" {UNRESOLVED}"
            share = float(np.mean(got[name][d]))
            if abs(share - densities[d]) > 0.05 * densities[d]:
                cell += f" (got {share:.3g})"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {rank[name]:.1f} |")
    return "\n".join(lines)
