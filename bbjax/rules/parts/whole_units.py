"""Selection of whole units: a unit keeps all of its edges, or none.

A density is a share of units here, and hence of edges. In a prune-only run
(`regrow=False`) a unit without edges ranks below all others. Shapes: scores
`stack + units`, masks per edge.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bbjax.arrays import sharding
from bbjax.arrays.topk import share_out, top_k_mask
from bbjax.model.units import Actuator
from bbjax.rules.base import Candidates, Group, JointSelect, Select, side_of
from bbjax.rules.parts.hysteresis import favoured, is_on
from bbjax.rules.parts.selection import in_steps_of


def most_active(statistic: str) -> Select:
    """Selection of the most active units of every slice, at least one."""

    def select(seen: Candidates) -> Bool[Array, "*edges"]:
        return whole_units(seen, _activity(seen, statistic), seen.actuators[0])

    return select


def most_active_of_all(statistic: str) -> JointSelect:
    """Selection of the most active units of all kernels together.

    As many units stay as would stay slice by slice; the best unit of every slice does.
    """

    def select(group: Group) -> list[Bool[Array, "..."]]:
        units, count = [], jnp.zeros((), jnp.int32)
        for seen in group.members:
            count += jnp.sum(_asked(seen, seen.actuators[0]), dtype=jnp.int32)
            flat = seen.flat(_activity(seen, statistic)).astype(jnp.float32)
            first = top_k_mask(flat, 1, axis=flat.ndim - 1)
            units.append(jnp.where(first, jnp.inf, flat))
        masks = []
        for seen, flat, share in zip(
            group.members, units, share_out(units, count), strict=True
        ):
            keep = top_k_mask(flat, share, axis=tuple(range(flat.ndim)))
            masks.append(edges_of(seen, keep, seen.actuators[0]))
        return masks

    return select


def whole_units(
    seen: Candidates, score: Float[Array, "*units"], actuator: Actuator
) -> Bool[Array, "*edges"]:
    """Keeps the best units with all their edges.

    Args:
      seen: the kernel.
      score: per unit, higher is kept.
      actuator: side of the units.

    Returns:
      All edges of the `round(budget / fan)` best units of every slice, at least one.
    """
    if is_on(seen):
        score = favoured(seen, score, alive(seen, actuator, like=score))
    flat = seen.flat(score).astype(jnp.float32)
    count = jnp.maximum(_asked(seen, actuator), 1)
    return edges_of(seen, top_k_mask(flat, count, axis=flat.ndim - 1), actuator)


def edges_of(
    seen: Candidates, keep: Bool[Array, "..."], actuator: Actuator
) -> Bool[Array, "*edges"]:
    """All edges of the units that are kept, which may be flat in each slice."""
    rows = seen.kernel.spread(keep, side_of(actuator))
    mask = jnp.broadcast_to(rows, seen.kernel.edge_shape)
    mask = sharding.match(mask, seen.mask)
    return mask if seen.regrow else mask & seen.mask


def alive(
    seen: Candidates, actuator: Actuator, like: Float[Array, "*units"]
) -> Bool[Array, "*units"]:
    """Units that have an edge, placed on devices like another array."""
    return sharding.match(seen.degrees(actuator), like) > 0


def _activity(seen: Candidates, statistic: str) -> Float[Array, "*units"]:
    """The statistic, NaN (below all others) for units that are gone for good."""
    (actuator,) = seen.actuators
    score = seen.of_units(statistic, actuator)
    if seen.regrow:
        return score
    return jnp.where(alive(seen, actuator, like=score), score, jnp.nan)


def _asked(seen: Candidates, actuator: Actuator) -> Int[Array, "*stack"]:
    """Units that the budget of every slice is worth."""
    return in_steps_of(seen.budget, seen.kernel.fan(actuator))
