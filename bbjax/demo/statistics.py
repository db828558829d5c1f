"""Paired comparisons of methods, seed by seed.

A method and magnitude start from the same weights and see the same batches, so the
difference `d` of each seed is what counts:

    t = mean(d) / se,   se = sd(d) / sqrt(seeds),   two-sided p of Student's t

The p values of all compared methods are corrected together. Reference: S. Holm, A
simple sequentially rejective multiple test procedure, 1979.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.scipy.special import betainc

LEVEL = 0.05


def spread(values: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation (None for one seed) and the values.

    Example:
        >>> spread(np.array([1.0, 3.0]))["mean"]
        2.0
    """
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "per_seed": values.tolist()}


def t_test(differences: np.ndarray) -> tuple[float | None, float | None]:
    """Standard error of the mean, and the two-sided p value of Student's t test.

    Returns:
        Both are None for one seed. If all differences are equal, the test says nothing:
        p is 1 if they are 0, else None.

    Example:
        >>> se, p = t_test(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
        >>> round(se, 4), round(p, 4)
        (0.7071, 0.0132)
    """
    count = len(differences)
    if count < 2:
        return None, None
    mean, se = np.mean(differences), np.std(differences, ddof=1) / math.sqrt(count)
    if np.ptp(differences) < 1e-9:
        return 0.0, 1.0 if abs(mean) < 1e-9 else None
    freedom = count - 1
    x = np.float32(freedom / (freedom + (mean / se) ** 2))
    return float(se), float(betainc(np.float32(freedom / 2), np.float32(0.5), x))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrects p values for being looked at together.

    Args:
        p_values: of each comparison; None where there is no test, and none is counted.

    Example:
        >>> holm([0.01, 0.04, None, 0.03])
        [0.03, 0.06, None, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[i] = highest
    return corrected


def paired(
    accuracies: Mapping[str, np.ndarray], against: np.ndarray, name: str
) -> list[dict[str, Any]]:
    """Differences in test accuracy, in points, each tested against 0.

    Args:
        accuracies: of the compared methods, by key, one value per seed.
        against: accuracies of the method that they are compared with.
        name: key of that method.

    Returns:
        For each method mean, standard error, p, p after Holm's correction, and the
        significance: "better", "worse", "noise", or None where there is no test.

    Example:
        >>> rows = paired(
        ...     {"a": np.array([91.0, 93.1, 91.9])}, np.array([90, 92, 91]), "b"
        ... )
        >>> rows[0]["significance"]
        'better'
    """
    differences = {key: values - against for key, values in accuracies.items()}
    tests = {key: t_test(d) for key, d in differences.items()}
    corrected = holm([p for _, p in tests.values()])
    rows = []
    for (key, d), p_holm in zip(differences.items(), corrected, strict=True):
        se, p = tests[key]
        mean, word = float(np.mean(d)), None
        if p_holm is not None:
            sign = "better" if mean > 0 else "worse"
            word = sign if p_holm < LEVEL else "noise"
        rows.append(
            {
                "method": key,
                "against": name,
                "mean": mean,
                "se": se,
                "p": p,
                "p_holm": p_holm,
                "significance": word,
                "per_seed": d.tolist(),
            }
        )
    return rows
