"""Activity-only: the share of edges is `1 - a`, with no price on the degree.

    k = clip(c (1 - a), k_min, fan),   score = |w|

with `c` such that the kept edges are exactly the budget. It uses the same activity as
Budgeted Broadcast (arXiv 2510.01263) but not the balance of log-odds against fan-out,
and so is the control that isolates what the traffic idea adds.
"""

from __future__ import annotations

from bbjax.budgets import laws
from bbjax.rules.base import Rule
from bbjax.rules.parts.selection import select_by_law


def activity_only() -> Rule:
    """Degrees proportional to the share of time a unit is off.

    Returns:
      A rule that needs the on-rate of the budgeted units.

    Example:
      >>> activity_only().needs
      ('on_rate',)
    """
    return Rule("activity_only", select_by_law(laws.linear()), needs=("on_rate",))
