"""Priced competition: all edges of a slice compete, and an edge pays for its traffic.

Maximise the value of what is kept, `sum v_ij m_ij`, under a number of edges,
`sum m_ij = budget`, and a total traffic, `sum a_j m_ij <= T`. With multipliers theta
(one more edge) and lambda (one more unit of traffic) an edge is kept iff

    v_ij > theta + lambda a_j,   that is   v_ij / (1 + price a_j) > theta

with `price = lambda / theta`, the traffic's price in edges. So the score is value over
cost, theta is whatever meets the budget, and degrees are an outcome. Price 0 ignores
activity; with a very large one, v / a, dead units take all. The cost
lies in [1, 1 + price], so that no clip is needed, and equal on-rates change nothing.
The value is

    v_ij = |w_ij| * sqrt(mean x_i**2) ** inputs

What this rule gains over magnitude comes from `inputs` and, with "global", from the
competition of all kernels; the price trades accuracy for less traffic
(`bbjax/rules/README.md` has the numbers), hence its small default.

"layer": a budget for each stack slice; "global": one for all kernels. Traffic: Budgeted
Broadcast, arXiv 2510.01263; the competition is this library's own.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from bbjax.budgets.laws import clean_rate
from bbjax.rules.base import Candidates, Rule, side_of
from bbjax.rules.parts.hysteresis import Score
from bbjax.rules.parts.pools import check_scope, in_slices, over_all
from bbjax.rules.parts.scores import by_input

Scope = Literal["layer", "global"]


def priced(
    *, price: Real[ArrayLike, ""] = 0.3, inputs: float = 0.5, scope: Scope = "layer"
) -> Rule:
    """Keeps the edges that are worth most for what they cost, one edge plus traffic.

    With both actuators an edge pays at both ends. Each unit first keeps its `k_min`
    best edges; where the mean degree is below about 4, `k_min=0` is better, since
    floors then take much of the budget.

    Args:
      price: cost of one unit of traffic, in edges, at least 0; may be traced. With 1
        an edge of a unit that is always on costs two edges, and accuracy suffers where
        budgets bind; 0.3 costs nothing measurable; 0 ignores activity.
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
    if not isinstance(price, jax.core.Tracer) and not (
        0 <= float(np.asarray(price)) < math.inf
    ):
        raise ValueError(
            f"expected a finite price >= 0, got {price!r}; it is the cost of one unit "
            "of traffic in edges, e.g. 1.0"
        )
    if not 0 <= inputs <= 1:
        raise ValueError(
            f"expected inputs in [0, 1], got {inputs!r}; it is the exponent of the "
            "root mean square of an edge's input, 0 to value edges by |w| alone"
        )
    check_scope(scope, get_args(Scope))
    needs = ("on_rate", "inputs.mean_square") if inputs else ("on_rate",)
    score = _score(price, inputs)
    if scope == "global":
        return Rule("priced[global]", over_all(score), needs=needs, joint=True)
    return Rule("priced", in_slices(score), needs)


def _score(price: Real[ArrayLike, ""], inputs: float) -> Score:
    sized = by_input(inputs)

    def score(seen: Candidates) -> Float[Array, "*edges"]:
        value = sized(seen) if inputs else seen.magnitude
        return value / _cost(seen, price)

    return score


def _cost(seen: Candidates, price: Real[ArrayLike, ""]) -> Float[Array, "..."]:
    cost = jnp.ones((), jnp.float32)
    price = jnp.asarray(price).astype(jnp.float32)
    for actuator in seen.actuators:
        each = 1 + price * clean_rate(seen.on_rate(actuator))
        cost = cost * seen.kernel.spread(each, side_of(actuator))
    return cost
