"""Limits on degrees, and choices of whole units, on one side of a kernel or on both.

A rule whose density is an outcome says how many edges each unit may keep, at most, and
every unit keeps its best ones. Where both sides of a kernel are limited, an edge stays
if both of its ends keep it, so that no unit exceeds its limit but for the floor: the
`k_min` best edges of a unit stay whatever the other ends say. Shapes: limits int32,
`stack + units`; scores and masks per edge.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bbjax.arrays import sharding
from bbjax.model.units import Actuator
from bbjax.rules.base import Candidates, side_of
from bbjax.rules.parts.selection import one_side, ranked


def within_limits(
    seen: Candidates,
    scores: Float[Array, "*edges"],
    limits: Mapping[Actuator, Int[Array, "..."]],
) -> Bool[Array, "*edges"]:
    """Keeps the best edges of every unit, up to its limit.

    Args:
      seen: the kernel.
      scores: score per edge, higher is kept; NaN where an edge must not be kept.
      limits: for each actuator the most edges of each unit.

    Returns:
      The mask, per edge.
    """
    scores = ranked(seen, scores)
    kept = [one_side(seen, scores, a, limit) for a, limit in limits.items()]
    mask = functools.reduce(operator.and_, kept)
    for actuator, limit in limits.items() if len(limits) > 1 else ():
        floor = jnp.minimum(limit, seen.k_min)
        mask |= one_side(seen, scores, actuator, floor)
    mask &= ~jnp.isnan(scores)
    return mask if seen.regrow else mask & seen.mask


def of_living(
    seen: Candidates, score: Float[Array, "*units"], actuator: Actuator
) -> Float[Array, "*units"]:
    """A score per unit, NaN (below all others) for units that are gone for good."""
    if seen.regrow:
        return score
    held = seen.kernel.gather(seen.mask.astype(jnp.int32), side_of(actuator))
    return jnp.where(sharding.match(held, score) > 0, score, jnp.nan)
