"""Competition: part of a unit's degree is what its edges win in the whole layer.

    won_i = number of edges of unit i among the B best of the slice, B its budget
    k_i   = clip(d0 + competition * won_i + profile_i, floor, fan)

with the law's profile and `d0` such that the kept edges are exactly the budget. At 0
the law decides alone; at 1 with a flat law all edges of the layer compete, as in
layer-wide magnitude pruning. Each unit keeps its `k_i` best edges.

Edges that tie at the threshold are shared by all units that have them, in proportion,
whatever their place: units that are alike win alike. A dead unit wins the mean degree
at most. Under actuator "out" the units of a kernel that reads raw inputs are no units
of the net, and their on-rates say nothing: their degrees come from competition alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bbjax import placement
from bbjax.laws import Law, clean_rate, uniform
from bbjax.laws.base import check_range
from bbjax.rules.base import Candidates, side_of
from bbjax.topk import kth_largest
from bbjax.units import Actuator


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
    share: Any = 0.0

    def __post_init__(self) -> None:
        """Checks what is known."""
        remedy = "it is a share of the degree, e.g. 0.75"
        check_range("competition", self.share, 0, 1, remedy=remedy)
        if self.competes and self.law.combine != "shift":
            raise ValueError(
                "expected competition=0 with a law whose degrees scale with the "
                f"budget, got {self.share!r} with {self.law.name!r}; leave it out, or "
                "take bb.laws.log_odds(...)"
            )

    @property
    def competes(self) -> bool:
        """Whether there is competition, as far as is known while tracing."""
        return not (isinstance(self.share, int | float) and self.share == 0)

    def for_units(self, seen: Candidates, actuator: Actuator) -> Blend:
        """What the units of one side of a kernel get: see the module on raw inputs."""
        if self.competes and actuator == "out" and not seen.kernel.reads:
            return Blend(dataclasses.replace(uniform(), floor=self.law.floor), 1.0)
        return self


def won(seen: Candidates, scores: jax.Array, actuator: Actuator) -> jax.Array:
    """Edges that each unit wins where all edges of its slice compete.

    Args:
      seen: the kernel.
      scores: float per edge, NaN below all others.
      actuator: side of the units.

    Returns:
      float32, `stack + units`; the sum over the units of a slice is its budget, as far
      as there are edges whose score is a number.
    """
    kernel, axes = seen.kernel, seen.kernel.axes("group", "in", "out")
    at = jnp.expand_dims(kth_largest(scores, seen.budget, axis=axes), axes)
    at = jnp.where(jnp.isnan(at), -jnp.inf, at)
    above, equal = (
        placement.whole(kernel.gather(one.astype(jnp.int32), side_of(actuator)))
        for one in (scores > at, scores == at)
    )
    flat = (*kernel.stack_shape, -1)
    ahead = jnp.sum(jnp.reshape(above, flat), -1)
    ties = jnp.sum(jnp.reshape(equal, flat), -1)
    left = (seen.budget - ahead).astype(jnp.float32)
    share = jnp.clip(left / jnp.maximum(ties, 1).astype(jnp.float32), 0.0, 1.0)
    share = jnp.reshape(share, share.shape + (1,) * (above.ndim - share.ndim))
    return above.astype(jnp.float32) + share * equal.astype(jnp.float32)


def blended(
    blend: Blend,
    profile: jax.Array,
    wins: jax.Array,
    mean: jax.Array,
    rate: jax.Array,
) -> jax.Array:
    """The profile of a law with competition.

    Args:
      blend: the law, and the share of competition.
      profile: of the law, (..., units).
      wins: edges that each unit wins, float32 (..., units).
      mean: mean degree, the leading shape.
      rate: on-rates, (..., units).
    """
    dead = clean_rate(rate) <= blend.law.dead
    wins = jnp.where(dead, jnp.minimum(wins, mean[..., None]), wins)
    return jnp.asarray(blend.share).astype(jnp.float32) * wins + profile
