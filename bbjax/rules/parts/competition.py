"""Competition: part of a unit's degree is the number of edges it wins in its layer.

    won_i = number of edges of unit i among the B best of the slice, B its budget
    k_i   = clip(d0 + competition * won_i + profile_i, floor, fan)

with the law's profile and `d0` such that the kept edges are exactly the budget. At 0
the law alone sets the degrees; at 1 with a flat law all edges of the layer compete, as
in layer-wide magnitude pruning. Each unit keeps its `k_i` best edges.

Edges that tie at the threshold are divided in proportion among all units that have
them, so that equal units win equally. Dead units do not compete: the living ones win
the whole budget, and a dead unit keeps only what every unit gets besides.

Under actuator "out" the units of a kernel that reads raw inputs (no other kernel's
output units) are no units of the net, and their on-rates mean nothing. With any
competition, their degrees come from competition alone.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from bbjax.arrays import sharding
from bbjax.arrays.topk import kth_largest
from bbjax.arrays.types import Number
from bbjax.budgets.laws import Law
from bbjax.model.numbers import check_number
from bbjax.model.units import Actuator
from bbjax.rules.base import Candidates, side_of


@dataclasses.dataclass(frozen=True)
class Blend:
    """A law, and the share of the degrees that comes from competition.

    Attributes:
      law: from on-rates to degrees.
      share: of competition, in [0, 1]; may be traced.

    Raises:
      ValueError: a share out of range, or competition with a law that combines by
        "scale": its degrees are shares of the budget already.
    """

    law: Law
    share: Number = 0.0

    def __post_init__(self) -> None:
        """Checks the values that are known."""
        remedy = "it is a share of the degree, e.g. 0.75"
        check_number("competition", self.share, "[0, 1]", remedy)
        if not isinstance(self.share, jax.core.Tracer):  # 0 of any type is 0
            object.__setattr__(self, "share", float(np.asarray(self.share)))
        if self.competes and self.law.combine != "shift":
            raise ValueError(
                "expected competition=0 with a law whose degrees scale with the "
                f"budget, got {self.share!r} with {self.law.name!r}; leave it out, or "
                "take bb.laws.log_odds(...)"
            )

    @property
    def competes(self) -> bool:
        """Whether there may be competition; a traced share may be anything."""
        return self.share != 0 if isinstance(self.share, float) else True


class Claims(NamedTuple):
    """Degrees up to the number that the budget fixes: (..., units).

    Attributes:
      profile: relative degrees, float32.
      rate: on-rates, to break ties.
    """

    profile: Float[Array, "*stack units"]
    rate: Float[Array, "*stack units"]


def blended(
    seen: Candidates,
    blend: Blend,
    actuator: Actuator,
    law: Claims,
    scores: Float[Array, "*edges"],
    groups: int,
) -> Claims:
    """Adds the claims of competition to those of a law.

    Args:
      seen: the kernel.
      blend: the law, and the share of competition.
      actuator: side of the units.
      law: claims by the law.
      scores: float per edge, NaN below all others.
      groups: number of groups of a unit's edges; degrees are counted per group.
    """
    share = jnp.asarray(blend.share).astype(jnp.float32)
    raw = actuator == "out" and not seen.kernel.reads
    alive = jnp.ones_like(law.rate) if raw else blend.law.alive(law.rate)
    wins = _won(seen, scores, actuator, alive) * alive / groups
    if raw:
        alone = share > 0
        return Claims(
            jnp.where(alone, wins, law.profile), jnp.where(alone, 0.5, law.rate)
        )
    # A product that is added is rounded first, compiled or not.
    return Claims(lax.optimization_barrier(share * wins) + law.profile, law.rate)


def _won(
    seen: Candidates,
    scores: Float[Array, "*edges"],
    actuator: Actuator,
    alive: Float[Array, "*stack units"],
) -> Float[Array, "*stack units"]:
    """Edges that each unit wins where all edges of living units compete.

    Returns:
      float32, (..., units); the sum over the units of a slice is its budget, as far as
      living units have edges whose score is a number.
    """
    kernel, axes = seen.kernel, seen.kernel.axes("group", "in", "out")
    side = side_of(actuator)
    living = jnp.reshape(alive > 0, kernel.per_unit_shape(side))
    scores = jnp.where(kernel.spread(living, side), scores, jnp.nan)
    at = jnp.expand_dims(kth_largest(scores, seen.budget, axis=axes), axes)
    at = jnp.where(jnp.isnan(at), -jnp.inf, at)
    above, equal = (
        seen.flat(sharding.whole(seen.degrees(actuator, one)))
        for one in (scores > at, scores == at)
    )
    ahead, ties = (jnp.sum(n, -1, dtype=jnp.int32) for n in (above, equal))
    left = (seen.budget - ahead).astype(jnp.float32)
    share = jnp.clip(left / jnp.maximum(ties, 1).astype(jnp.float32), 0.0, 1.0)
    shared = lax.optimization_barrier(share[..., None] * equal.astype(jnp.float32))
    return above.astype(jnp.float32) + shared
