"""Means with errors, paired tests, fits with bootstrapped errors, verdicts.

Tests compare methods over seeds that share first weights and batches (paired t-test,
two-sided); families of tests are corrected after Holm. Shares carry Wilson's interval.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.rules.table import holm, paired

LEVEL = 0.05
VERDICTS = (
    "holds",
    "holds weakly",
    "does not hold",
    "cannot be decided",
)


class Verdict(NamedTuple):
    """What one question came to.

    Attributes:
      question: a statement that can fail.
      verdict: one of `VERDICTS`.
      number: the figures that decide, with spread.
      test: how they decide.
    """

    question: str
    verdict: str
    number: str
    test: str


def decide(question: str, number: str, test: str, *, holds: bool, weakly: bool = False):
    """A verdict from two conditions, the weaker one last."""
    verdict = VERDICTS[0] if holds else VERDICTS[1] if weakly else VERDICTS[2]
    return Verdict(question, verdict, number, test)


def undecided(question: str, number: str, test: str) -> Verdict:
    """No verdict."""
    return Verdict(question, VERDICTS[3], number, test)


def mean_sd(values: Any, digits: int = 3) -> str:
    """`mean ± sd` over seeds; NaN are left out, and said."""
    values = np.asarray(values, float)
    seen = values[np.isfinite(values)]
    if not len(seen):
        return "none"
    sd = seen.std(ddof=1) if len(seen) > 1 else 0.0
    text = f"{seen.mean():.{digits}f} ± {sd:.{digits}f}"
    missing = len(values) - len(seen)
    return text + (f" (of {len(seen)}; {missing} without a value)" if missing else "")


class Difference(NamedTuple):
    """A paired difference: mean, standard error and p, after correction if any."""

    mean: float
    error: float
    p: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.error:.3f} (p = {self.p:.2g})"


def differences(
    one: Any, others: Mapping[str, Any], *, correct: bool = True
) -> dict[str, Difference]:
    """One method against others, over seeds that have both values."""
    one = np.asarray(one, float)
    found, p = {}, []
    for name, other in others.items():
        other = np.asarray(other, float)
        both = np.isfinite(one) & np.isfinite(other)
        gap = one[both] - other[both]
        enough = len(gap) > 1
        p.append(paired(one[both], other[both]) if enough else 1.0)
        error = gap.std(ddof=1) / len(gap) ** 0.5 if enough else float("nan")
        found[name] = Difference(float(gap.mean()) if len(gap) else np.nan, error, 1.0)
    corrected = holm(p) if correct else p
    return {
        name: d._replace(p=float(q))
        for (name, d), q in zip(found.items(), corrected, strict=True)
    }


def interval(gaps: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Interval of Student's t for the mean of paired differences, 1 - `level` wide."""
    reach = stats.t.ppf(1 - level / 2, len(gaps) - 1)
    error = reach * gaps.std(ddof=1) / len(gaps) ** 0.5
    return float(gaps.mean() - error), float(gaps.mean() + error)


def wilson(successes: int, tries: int) -> tuple[float, float]:
    """95 % interval of a share."""
    low, high = stats.binomtest(successes, tries).proportion_ci(method="wilson")
    return float(low), float(high)


def share(successes: int, tries: int) -> str:
    """A share with its interval, for tables."""
    low, high = wilson(successes, tries)
    return f"{successes / tries:.2f} ({low:.2f}–{high:.2f})"


class Line(NamedTuple):
    """A straight line y = slope x + level: slope, R2 and number of points."""

    slope: float
    r2: float
    count: int


NO_LINE = Line(float("nan"), float("nan"), 0)


def line(x: Any, y: Any) -> Line:
    """Least squares of y on x; NaN with fewer than 3 points or without spread."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return NO_LINE._replace(count=len(x))
    fit = stats.linregress(x, y)
    return Line(float(fit.slope), float(fit.rvalue**2), len(x))


def bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], float], draws: int = 2000
) -> tuple[float, float]:
    """95 % interval of a statistic of the last axis (seeds), by resampling seeds."""
    rng = np.random.default_rng(0)
    count = values.shape[-1]
    rows = rng.integers(0, count, (draws, count))
    found = [statistic(values[..., row]) for row in rows]
    low, high = np.nanpercentile(found, (2.5, 97.5))
    return float(low), float(high)
