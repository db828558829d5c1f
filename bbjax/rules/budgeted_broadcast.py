"""Budgeted Broadcast: every unit gets a traffic budget, on-rate times degree.

The stationary point of maximal coding entropy under a total traffic is the
selectivity-audience balance `log((1 - a) / a) = beta k`; the controller solved for the
degree is

    k = clip(d0 + (1 / beta) log((1 - a) / a), k_min, fan)

with `d0` such that the kept edges are exactly the budget. Each unit keeps its `k`
largest |w|, over its full row, so that a pruned edge returns once it is among them.
Reference: Meirovitch, Yang, Lichtman, Shavit, arXiv 2510.01263.
"""

from __future__ import annotations

from jax.typing import ArrayLike

from bbjax import laws
from bbjax.rules.base import Rule
from bbjax.rules.selection import select_by_law


def budgeted_broadcast(
    *, beta: ArrayLike | None = None, law: laws.Law | None = None
) -> Rule:
    """Busy units keep few edges, quiet units many.

    Args:
      beta: slope of the balance, log-odds per edge, above 0; `None` takes the standard
        deviation of the degrees equal to their mean (see `bb.laws.log_odds`).
      law: another law than `log_odds`, e.g. `bb.laws.threshold()`.

    Returns:
      A rule that needs the on-rate of the budgeted units.

    Raises:
      ValueError: both `beta` and `law`, or `beta` not positive.

    Example:
      >>> budgeted_broadcast().needs
      ('on_rate',)
    """
    if law is not None and beta is not None:
        raise ValueError(
            f"expected beta or law, got both (beta={beta!r}, law={law.name!r}); pass "
            "beta to the law itself: bb.laws.log_odds(beta=...)"
        )
    law = laws.log_odds(beta) if law is None else law
    name = "budgeted_broadcast"
    if law.name != "log_odds":
        name += f"[{law.name}]"
    return Rule(name, select_by_law(law), needs=("on_rate",))
