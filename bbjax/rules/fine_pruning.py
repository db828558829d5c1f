"""Fine-Pruning: removes what the data of one user do not use; forward passes only.

Two readings of the published text, both without labels or gradients:

    units     the units of a layer with the lowest mean |a_u| go whole
    weights   score = |w_ij| * mean |x_i|, the lowest of a layer go one by one

The mean is over the samples and positions of the target data (the published sum, up to
the number of entries). Under `scope="global"` all budgeted kernels compete: as many
units, or edges, stay in all as would stay layer by layer. To remove units with all that
belongs to them, and to stop in time, see `bb.personalise`. Shapes: statistics
`stack + units`, scores per edge. Reference: Bingham, Zonouz, Aran, Patterns 6(5)
101242, 2025, arXiv 2602.18507.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxtyping import Array, Float

from bbjax.rules.base import Candidates, Rule
from bbjax.rules.parts.pools import Scope, check_scope, competing
from bbjax.rules.parts.whole_units import most_active, most_active_of_all


def fine_pruning(
    *,
    by: Literal["units", "weights"] = "units",
    scope: Scope = "layer",
    include_output: bool = False,
) -> Rule:
    """Keeps what is most active on the data that the statistics are of.

    Args:
      by: `"units"`: whole units by their activity, the density is a share of units and
        every slice keeps at least one; `"weights"`: single edges by weight times
        activity of their input.
      scope: `"layer"`: every stack slice by itself; `"global"`: all kernels together.
      include_output: whether units of a last layer may go. Classes that the data lack
        are the least active ones there, so pruning them is most of the effect: measure
        it separately (`bb.personalise(..., include_output="only")`).

    Returns:
      A rule that needs `mean_abs` of the units, or `inputs.mean_abs`. By units in a
      layer it is `bb.rules.activation_topk()` with a check of the kernels.

    Raises:
      ValueError: unknown `by` or `scope`. When edges are chosen, by units: both sides
        of a kernel budgeted, a kernel that makes outputs without `include_output`.

    Example:
      >>> fine_pruning().needs, fine_pruning(by="weights").needs
      (('mean_abs',), ('inputs.mean_abs',))
    """
    if by not in ("units", "weights"):
        raise ValueError(
            f'expected by "units" or "weights", got {by!r}; the first removes whole '
            "units, the second single edges"
        )
    check_scope(scope)
    name, joint = f"fine_pruning[{by}]", scope == "global"
    if by == "weights":
        return competing(name, _score, ("inputs.mean_abs",), joint=joint)
    rule = Rule(
        name,
        most_active_of_all("mean_abs") if joint else most_active("mean_abs"),
        needs=("mean_abs",),
        joint=joint,
        patterned=False,
        one_sided=True,
    )
    return rule if include_output else _for_hidden_units(rule)


def _score(seen: Candidates) -> Float[Array, "*edges"]:
    mean = seen.statistics["inputs.mean_abs"]
    return seen.magnitude * seen.kernel.spread(mean, "inputs")


def _for_hidden_units(rule: Rule) -> Rule:
    """The same rule, for kernels whose units are no outputs of the model."""

    def select(given):
        for seen in given.members if rule.joint else (given,):
            (actuator,) = seen.actuators
            if actuator == "in" and not seen.kernel.hidden:
                raise ValueError(
                    f"expected kernels of hidden units for rule {rule.name!r}, got "
                    f"{seen.kernel.path!r}, whose units are outputs of the model; "
                    "leave it out of the selection, select its inputs (actuator "
                    '"out"), or pass include_output=True'
                )
        return rule.select(given)

    return dataclasses.replace(rule, select=select)
