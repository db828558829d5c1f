"""Magnitude pruning: every unit keeps the same number of its largest weights.

    k = budget / units (one more for the first units while some are left),   score = |w|

The control for every rule that gives units different degrees: the same selection with
a uniform law. Reference: Han et al., arXiv 1506.02626.
"""

from __future__ import annotations

from typing import Literal

from bbjax import laws
from bbjax.rules.base import Rule, select_by_law


def magnitude(*, scope: Literal["unit"] = "unit") -> Rule:
    """Every unit keeps its largest |w|, the same number each.

    Args:
      scope: `"unit"`: each unit has its own share of the budget.

    Returns:
      A rule that needs no activity.

    Raises:
      ValueError: unknown scope.

    Example:
      >>> magnitude().needs
      ()
    """
    if scope != "unit":
        raise ValueError(
            f'expected scope "unit", got {scope!r}; other scopes are not available'
        )
    return Rule("magnitude", select_by_law(laws.uniform()))
