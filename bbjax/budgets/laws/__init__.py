"""Laws: on-rates to real-valued degrees, up to the one number a budget fixes.

A unit that is rarely on may keep many edges, a busy one few. A law gives their relative
numbers, a `profile`, and how the free number `c` enters:

    shift:  degree_i = c + profile_i        (c is the paper's d0)
    scale:  degree_i = c * profile_i        (c is the paper's tau)

`bbjax.budgets.degrees` finds the `c` that spends the budget, and rounds. The default,
`log_odds`, is the selectivity-audience balance log((1 - a) / a) = beta * k. Some laws
give degrees without a budget as well (`edges`): `bb.rules.unbudgeted` uses them
directly, and the density is an outcome.

Shapes: on-rates are (..., units). The units of the last axis share one budget, the
leading axes are independent slices; mean degrees have the leading shape or none.

Reference: Meirovitch et al., Budgeted Broadcast, arXiv 2510.01263.
"""

from bbjax.budgets.laws.balance import SPREAD, log_odds
from bbjax.budgets.laws.base import Combine, Edges, Law, Profile, clean_rate
from bbjax.budgets.laws.controls import linear, uniform
from bbjax.budgets.laws.published import quantile, three_zone, threshold

__all__ = [
    "SPREAD",
    "Combine",
    "Edges",
    "Law",
    "Profile",
    "clean_rate",
    "linear",
    "log_odds",
    "quantile",
    "three_zone",
    "threshold",
    "uniform",
]
