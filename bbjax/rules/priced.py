"""Priced competition: all edges of a slice compete, and an edge pays for its traffic.

Maximise the value of what is kept, `sum v_ij m_ij`, under a number of edges,
`sum m_ij = budget`, and a total traffic, `sum a_j m_ij <= T`. With multipliers theta
(one more edge) and lambda (one more unit of traffic) an edge is kept iff

    v_ij > theta + lambda a_j,   that is   v_ij / (1 + price a_j) > theta

with `price = lambda / theta`, the traffic's price in edges. So the score is value over
cost, theta follows from the budget, and degrees are an outcome. Price 0 ignores
activity; under a very large price the score is v / a, and dead units take all edges.
The cost lies in [1, 1 + price], so that no clip is needed, and equal on-rates change
nothing. The value is

    v_ij = |w_ij| * sqrt(mean x_i**2) ** inputs

The gain over magnitude comes from `inputs` and, with "global", from the competition of
all kernels. The price trades accuracy for less traffic, so its default is small
(`bbjax/rules/README.md` has the numbers).

"layer": a budget for each stack slice; "global": one for all kernels. Traffic: Budgeted
Broadcast, arXiv 2510.01263; the competition is this library's own.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from bbjax.arrays.types import Number
from bbjax.budgets.laws import clean_rate
from bbjax.model.numbers import check_number
from bbjax.rules.base import Candidates, Rule, side_of
from bbjax.rules.parts.pools import Scope, check_scope, competing
from bbjax.rules.parts.scores import by_input


def priced(*, price: Number = 0.3, inputs: float = 0.5, scope: Scope = "layer") -> Rule:
    """Keeps the edges that are worth most for what they cost, one edge plus traffic.

    With both actuators an edge pays at both ends. Each unit first keeps its `k_min`
    best edges; where the mean degree is below about 4, `k_min=0` is better, since
    floors then take much of the budget.

    Args:
      price: cost of one unit of traffic, in edges, at least 0; may be traced. With 1
        an edge of a unit that is always on costs two edges, and accuracy falls where
        budgets bind; 0.3 has no measurable cost; 0 ignores activity.
      inputs: exponent of the root mean square of an edge's input, in [0, 1]: 0 values
        an edge by |w| alone, 1 by what it carries.
      scope: `"layer"`: all edges of a stack slice compete for its budget; `"global"`:
        all edges of all budgeted kernels for one.

    Returns:
      A rule that needs the on-rate of the budgeted units and, unless `inputs` is 0, the
      mean square of the inputs.

    Raises:
      ValueError: price negative or not finite, inputs outside [0, 1], unknown scope.

    Example:
      >>> priced().needs
      ('on_rate', 'inputs.mean_square')
      >>> priced(inputs=0, scope="global").name
      'priced[global]'
    """
    remedy = "it is the cost of one unit of traffic in edges, e.g. 1.0"
    check_number("price", price, "[0, inf)", remedy)
    remedy = "it is the exponent of the size of an edge's input; 0: edges count by |w|"
    check_number("inputs", inputs, "[0, 1]", remedy)
    check_scope(scope)
    needs = ("on_rate", "inputs.mean_square") if inputs else ("on_rate",)
    sized = by_input(inputs)

    def score(seen: Candidates) -> Float[Array, "*edges"]:
        value = sized(seen) if inputs else seen.magnitude
        return value / _cost(seen, price)

    joint = scope == "global"
    return competing("priced[global]" if joint else "priced", score, needs, joint=joint)


def _cost(seen: Candidates, price: Number) -> Float[Array, "..."]:
    cost = jnp.ones((), jnp.float32)
    price = jnp.asarray(price).astype(jnp.float32)
    for actuator in seen.actuators:
        each = 1 + price * clean_rate(seen.on_rate(actuator))
        cost = cost * seen.kernel.spread(each, side_of(actuator))
    return cost
