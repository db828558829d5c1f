"""RIA: relative importance and activations.

    score of edge (i, j) = (|w_ij| / sum_i' |w_i'j| + |w_ij| / sum_j' |w_ij'|)
                           * sqrt(mean x_i**2) ** exponent,   k = budget / units

The two shares tell how much of the weight of its output unit, and of its input unit, an
edge is. So an edge that is the only one of an input is kept, though it may be small.
Every unit keeps the same number of edges. Elsewhere the score goes by its name:
`bb.rules.magnitude(scope="layer", score="ria")` lets the edges of a layer compete, as
the published code does by default.

In a convolution |w| is summed over the window. In a grouped one the sums are over the
edges that exist, inside the group.

Reference: Zhang, Bai, Lin, Zhao, Hou, Cannistraci, "Plug-and-Play", ICLR 2024.
"""

from __future__ import annotations

from bbjax.arrays.types import Number
from bbjax.budgets import laws
from bbjax.model.numbers import check_number
from bbjax.rules.base import Rule
from bbjax.rules.parts.scores import relative_importance
from bbjax.rules.parts.selection import select_by_law


def ria(exponent: Number = 0.5) -> Rule:
    """Every unit keeps the same number of edges, by their shares and their inputs.

    In one shot sizes of inputs are those of a calibration; while training they are
    running means. Costs two more sums over the weights than `wanda()`, no memory
    between refreshes.

    Args:
      exponent: of the root mean square of the input, at least 0; 0 ignores activity;
        may be traced.

    Returns:
      A rule that needs the mean square of the inputs.

    Raises:
      TypeError: `exponent` is no number.
      ValueError: it is out of range.

    Example:
      >>> import bbjax as bb
      >>> import jax.numpy as jnp
      >>> def fn(params, x):
      ...     return x @ params["w"]
      >>> params = {"w": jnp.array([[4.0, 4.0], [0.0, 3.0]])}
      >>> x = jnp.ones((1, 2))
      >>> units, rule = bb.trace(fn, params, x).select("w"), ria()
      >>> stats = bb.calibrate(fn, units, params, [(x,)], needs=rule.needs)
      >>> bb.prune(params, units, rule, density=0.5, stats=stats)[0]["w"].tolist()
      [[4.0, 0.0], [0.0, 3.0]]
    """
    remedy = "it is the power of the size of an input, e.g. 0.5"
    exponent = check_number("exponent", exponent, "[0, inf)", remedy)
    select = select_by_law(laws.uniform(), relative_importance(exponent))
    return Rule("ria", select, needs=("inputs.mean_square",))
