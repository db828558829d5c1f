"""Wanda: the score of a weight is its size times the norm of its input.

    score of edge (i, j) = |w_ij| * sqrt(mean x_i**2),   k = budget / units

Every unit keeps the same number of edges. The root mean square of an input is its norm
over the samples up to a factor that all inputs share. In a convolution |w| is summed
over the window and a channel's positions are samples. Counted over outgoing edges
(actuator "out"), the norm is the same for all edges of a unit: that is magnitude.

Reference: Sun, Liu, Bair, Kolter, arXiv 2306.11695. (Among equal scores their code
keeps the highest index, this one the lowest.)
"""

from __future__ import annotations

from bbjax.budgets import laws
from bbjax.rules.base import Rule
from bbjax.rules.parts.scores import score_called
from bbjax.rules.parts.selection import select_by_law


def wanda() -> Rule:
    """Every unit keeps the same number of edges, by |w| times the norm of the input.

    In one shot norms are those of a calibration; while training they are running means.

    Returns:
      A rule that needs the mean square of the inputs.

    Example:
      >>> import bbjax as bb
      >>> import jax.numpy as jnp
      >>> def fn(params, x):
      ...     return x @ params["w"]
      >>> params, x = {"w": jnp.array([[1.0], [2.0]])}, jnp.array([[3.0, 1.0]])
      >>> units, rule = bb.trace(fn, params, x).select("w"), wanda()
      >>> stats = bb.calibrate(fn, units, params, [(x,)], needs=rule.needs)
      >>> bb.prune(params, units, rule, density=0.5, stats=stats)[0]["w"].tolist()
      [[1.0], [0.0]]
    """
    score = score_called("wanda")
    return Rule("wanda", select_by_law(laws.uniform(), score.of), needs=score.needs)
