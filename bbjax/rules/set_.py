"""SET: the weakest edges are dropped, and others grow at random.

    drop   a share of the kept edges of a slice, smallest |w|
    grow   as many again, drawn from all other edges of the slice, weight 0

RigL without the gradient (`bbjax.rules.parts.regrowth`), and its control. The edges
that grow depend on the seed, the update and the kernel's position among the budgeted
ones, so that a run can be repeated and resumed. Differences from the published rule:
"weakest" is the smallest |w|, not the smallest positive and the largest negative
weights, and edges that have just been dropped may be drawn again. Reference: Mocanu et
al., "Scalable training of artificial neural networks with adaptive sparse
connectivity", 2018.
"""

from __future__ import annotations

import jax
from jaxtyping import Array, ArrayLike, Bool, Integer

from bbjax.arrays.types import Number
from bbjax.model.numbers import check_seed
from bbjax.rules.base import Candidates, Rule
from bbjax.rules.parts.regrowth import (
    check_drop,
    drop_and_grow,
    drop_share,
)


def set_(
    *,
    drop: Number = 0.3,
    anneal: Number | None = None,
    seed: Integer[ArrayLike, ""] = 0,
) -> Rule:
    """Drops the weakest edges and grows random ones.

    Start from a random topology as for `bb.rules.rigl`. With `regrow=False` nothing
    grows, and the largest |w| of a slice stay. A unit's `k_min` largest weights are not
    dropped; `k_min=0` is the published rule.

    Args:
      drop: share of the kept edges that a refresh drops, in [0, 1] (may be traced).
      anneal: number of updates until the share has fallen to 0 by half a cosine, at
        least 1 (may be traced); None, as published, keeps it constant.
      seed: integer of the random edges (may be traced).

    Returns:
      A rule that needs neither activity nor gradients; weights come back as 0.

    Raises:
      TypeError: an argument is no number.
      ValueError: an argument is out of range.

    Example:
      >>> set_(seed=1).needs, set_().revive
      ((), 'zero')
    """
    check_drop(drop, anneal)
    seed = check_seed(seed)

    def select(seen: Candidates) -> Bool[Array, "*edges"]:
        key = jax.random.fold_in(jax.random.key(seed), seen.index)
        noise = jax.random.uniform(
            jax.random.fold_in(key, seen.step), seen.kernel.edge_shape
        )
        return drop_and_grow(seen, drop_share(drop, anneal, seen.step), noise)

    return Rule("set_", select, revive="zero", favours=False)
