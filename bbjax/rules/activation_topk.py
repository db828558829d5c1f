"""Activation top-k as a mask: the most active units stay whole, the others go whole.

    keep the round(density * units) units of a slice with the largest mean |a|

The density is a share of units, hence of edges. (Another method of that name keeps the
largest activations of each token in the forward pass; it has no mask.) With actuator
"in" a unit that goes loses its incoming edges: its value is then its bias, and a large
bias may bring it back. With actuator "out" it loses its outgoing edges, is measured as
before, and returns when it is active again. Shapes: statistics `stack + units`.
Reference: the baseline of arXiv 2510.01263.
"""

from __future__ import annotations

from typing import Literal, get_args

from bbjax.rules.base import Rule
from bbjax.rules.parts.whole_units import most_active

Activeness = Literal["mean_abs", "mean_square", "max_abs", "on_rate"]


def activation_topk(*, statistic: Activeness = "mean_abs") -> Rule:
    """Keeps the most active units with all their edges, and no edge of the others.

    Every slice keeps at least one unit; `k_min` has no effect.

    Args:
      statistic: the measure of activity: `"mean_abs"`, `"mean_square"`, `"max_abs"` or
        `"on_rate"`.

    Returns:
      A rule that needs this statistic; on one side of each kernel, without a pattern.

    Raises:
      ValueError: unknown statistic. When edges are chosen: a kernel with both sides
        budgeted.

    Example:
      >>> activation_topk().needs
      ('mean_abs',)
    """
    if statistic not in get_args(Activeness):
        raise ValueError(
            f"expected a statistic out of {get_args(Activeness)}, got {statistic!r}; "
            "the units where it is largest are kept"
        )
    return Rule(
        "activation_topk",
        most_active(statistic),
        needs=(statistic,),
        patterned=False,
        one_sided=True,
    )
