"""Uses a law's degrees directly, without a budget: the density is an outcome.

    k = clip(round(law.edges(a, fan)), k_min, fan),   score = |w|

Every unit keeps its `k` largest weights out of its full row. The authors of Budgeted
Broadcast trained their networks in this way:

    speech, change detection   laws.three_zone(), k_min 8 and 4, regrow=False
    faces                      laws.quantile(), k_min 8
    language models            laws.threshold(d0, clip=1e-6), k_min 64

Reference: Meirovitch, Yang, Lichtman, Shavit, arXiv 2510.01263, and its notebooks.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from bbjax.budgets.laws import Edges, Law
from bbjax.budgets.laws.base import check_law
from bbjax.model.units import Actuator
from bbjax.rules.base import Candidates, Rule
from bbjax.rules.parts.selection import within_limits


def unbudgeted(law: Law) -> Rule:
    """Degrees of a law, without a budget that would rescale them.

    With both actuators on one kernel an edge stays if both its ends keep it.

    Args:
      law: one with degrees of its own: `bb.laws.three_zone()`, `quantile()`,
        `threshold(tau)`, or a `Law` of your own with `edges`.

    Returns:
      A rule that needs the on-rate of the units; it takes no density.

    Raises:
      TypeError: `law` is no `Law`.
      ValueError: a law whose degrees depend on a budget.

    Example:
      >>> from bbjax import laws
      >>> unbudgeted(laws.quantile()).free
      True
    """
    check_law(law, "three_zone")
    if law.edges is None:
        raise ValueError(
            f"expected a law with degrees of its own, got {law.name!r}, whose degrees "
            "depend on a budget; use bb.rules.budgeted_broadcast(law=...) with a "
            "density"
        )
    edges = law.edges

    def select(seen: Candidates) -> Bool[Array, "*edges"]:
        limits = {a: _degrees(seen, edges, a) for a in seen.actuators}
        return within_limits(seen, seen.magnitude, limits)

    name = f"unbudgeted[{law.name}]"
    return Rule(name, select, needs=("on_rate",), free=True, patterned=False)


def _degrees(
    seen: Candidates, edges: Edges, actuator: Actuator
) -> Int[Array, "*units"]:
    """The law's degrees, as whole numbers within their bounds: `stack + units`."""
    rate, fan = seen.on_rate(actuator), seen.kernel.fan(actuator)
    real = edges(seen.flat(rate), fan)
    whole = jnp.clip(jnp.round(real), seen.k_min, fan).astype(jnp.int32)
    return jnp.reshape(jnp.minimum(whole, fan), rate.shape)
