"""How fast a cost grows: the slope of log cost against log size.

    log cost = c + exponent * log size       least squares over the upper range

Of the smallest sizes a call costs what any call costs, so the fit begins at `start`
(and takes at least the three largest sizes). The error of the exponent has two parts,
added in squares: that of the fit, from how far the sizes lie off the line, and that of
the times, from drawing the rounds anew (whole rounds, for times of a round belong
together). `within` says whether it is at most `most`, 1 for a cost and 0 for a ratio to
something dense, up to two errors and `SLACK`. Local slopes between neighbours show what
a single number hides, caches that are outgrown above all.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 500
SLACK = 0.02  # a factor 1.15 over three decades


def exponent(
    sizes: Sequence[float], costs: np.ndarray, start: float = 0.0, most: float = 1.0
) -> dict[str, Any]:
    """The exponent of a cost, with its error.

    Args:
        sizes: rising.
        costs: positive, (sizes, rounds); (sizes,) if they are exact.
        start: least size that the fit takes.
        most: what the exponent is held against.
    """
    x = np.log10(np.asarray(sizes, float))
    table = np.log10(np.asarray(costs, float).reshape(len(x), -1))
    first = min(int(np.searchsorted(sizes, start)), max(0, len(x) - 3))
    middle = np.median(table, axis=1)
    slope, fit_error = _line(x[first:], middle[first:])
    time_error = _redrawn(x[first:], table[first:])
    error = float(np.hypot(fit_error, time_error))
    return {
        "exponent": slope,
        "error": error,
        "error_of_fit": fit_error,
        "error_of_times": time_error,
        "most": most,
        "from": float(sizes[first]),
        "at_end": float(
            10 ** (middle[first:].mean() + slope * (x[-1] - x[first:].mean()))
        ),
        "local": (np.diff(middle) / np.diff(x)).tolist(),
        "within": bool(slope <= most + 2 * error + SLACK),
    }


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and its standard error; two points show no error."""
    if len(x) == 1:
        return 0.0, 0.0
    dx = x - x.mean()
    slope = float(dx @ y / (dx @ dx))
    rest = y - y.mean() - slope * dx
    freedom = len(x) - 2
    error = float(np.sqrt(rest @ rest / freedom / (dx @ dx))) if freedom > 0 else 0.0
    return slope, error


def _redrawn(x: np.ndarray, table: np.ndarray) -> float:
    """Standard deviation of the slope when rounds are drawn with replacement."""
    rounds = table.shape[1]
    rng = np.random.default_rng(0)
    drawn = table[:, rng.integers(0, rounds, (DRAWS, rounds))]  # (sizes, draws, rounds)
    slopes = [_line(x, y)[0] for y in np.median(drawn, axis=2).T]
    return float(np.std(slopes))
