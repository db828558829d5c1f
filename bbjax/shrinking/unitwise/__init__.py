"""Whole units: scores for every unit of every group, and masks without the lowest.

A group of `units.graph` is one set of units on many axes. Here a unit is cut on all of
them, so that `bb.shrink` removes exactly the units that were cut:

    scores = bb.unitwise.group_magnitude(units, params)     one array per group
    masks  = bb.unitwise.cut(units, scores, density=0.5)    cuts half of every group
    small  = bb.shrink(fn, params, masks, *args)

A budget of parameters, operations or bytes in place of the density:

    costs  = bb.unitwise.costs(fn, units, params, *args)    traces the function
    masks  = bb.unitwise.cut(units, scores, budget={"flops": 0.5}, costs=costs)

Scores are float64 numpy arrays of shape `layers + (units,)` by the name of the group,
for the groups that can shrink. Everything is computed once, on the host.
"""

from bbjax.shrinking.unitwise.masks import cut
from bbjax.shrinking.unitwise.model_costs import Costs, costs
from bbjax.shrinking.unitwise.scores import activity, group_magnitude, traffic

__all__ = ["Costs", "activity", "costs", "cut", "group_magnitude", "traffic"]
