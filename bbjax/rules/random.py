"""Random pruning: every unit keeps the same number of edges, drawn once.

    k = budget / units,   score = uniform noise, the same at every refresh

The baseline that any rule has to beat. The noise depends on the seed and on the
kernel's position among the budgeted ones, not on the step. So masks change only with
the budget, and a smaller budget keeps a subset of the edges of a larger one.
"""

from __future__ import annotations

import jax
from jaxtyping import Array, ArrayLike, Float, Integer

from bbjax.budgets import laws
from bbjax.model.numbers import check_seed
from bbjax.rules.base import Candidates, Rule
from bbjax.rules.parts.selection import select_by_law


def random(*, seed: Integer[ArrayLike, ""] = 0) -> Rule:
    """Every unit keeps random edges, the same number each.

    Args:
      seed: integer of the noise; may be traced.

    Returns:
      A rule that needs no activity.

    Raises:
      TypeError: the seed is no int.
      ValueError: it has more than 32 bits.

    Example:
      >>> random(seed=1).needs
      ()
    """
    seed = check_seed(seed)

    def score(seen: Candidates) -> Float[Array, "*edges"]:
        key = jax.random.fold_in(jax.random.key(seed), seen.index)
        return jax.random.uniform(key, seen.kernel.edge_shape)

    return Rule("random", select_by_law(laws.uniform(), score))
