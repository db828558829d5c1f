"""One traffic for all units: fixed points of the local threshold.

A unit with on-rate `a` that loses edges while `a * k` exceeds tau ends at

    k(tau) = clip(floor(tau / a), k_min, fan)

The traffic of all units, `sum a * k(tau)`, rises with tau. So tau is found from the
total, by bisection over all floats. Of the units that take an edge at the next float,
the first ones take it as long as it fits: units of equal on-rates may differ by an
edge. Shapes: on-rates and degrees have the same, any. Reference: Meirovitch et al.,
Budgeted Broadcast, arXiv 2510.01263.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bbjax.arrays.bracket import Bracket, bisect
from bbjax.arrays.keys import from_key, top_key
from bbjax.arrays.types import Number

# Relative tolerance for the rounding of on-rates, tau and sums: 3 times 0.3 fits in
# 0.9.
_ROOM = 1 + 2.0**-16


class Sharers(NamedTuple):
    """Units of one side of a kernel, whose traffic is part of a total.

    Attributes:
      rate: on-rates in [0, 1], float32, any shape.
      fan: edges of an unpruned unit.
      k_min: least degree.
    """

    rate: Float[Array, "*units"]
    fan: int
    k_min: int


def fixed_point(units: Sharers, tau: Number) -> Int[Array, "*units"]:
    """The largest degrees at which no unit is over tau.

    Args:
      units: the units.
      tau: traffic of a unit, scalar >= 0.

    Returns:
      int32 of the shape of the on-rates, in [k_min, fan].

    Example:
      >>> rates = jnp.array([0.0, 0.3, 0.5, 1.0])
      >>> fixed_point(Sharers(rates, fan=12, k_min=1), 0.9).tolist()
      [12, 3, 1, 1]
    """
    rate, fan, k_min = units
    most = jnp.asarray(tau).astype(jnp.float32) * _ROOM
    edges = jnp.where(rate > 0, most / jnp.where(rate > 0, rate, 1.0), jnp.inf)
    whole = jnp.floor(jnp.clip(edges, k_min, fan)).astype(jnp.int32)
    return jnp.minimum(whole, fan)


def common_fixed_point(
    units: Sequence[Sharers], traffic: Number
) -> Sequence[Int[Array, "..."]]:
    """Degrees at the largest tau whose total traffic is within a share of the dense.

    Args:
      units: units of any kernels.
      traffic: share of `sum a * fan` over all of them, scalar in (0, 1].

    Returns:
      For each, int32 degrees of the shape of its on-rates.

    Example:
      >>> busy, quiet = jnp.array([0.8, 0.8]), jnp.array([0.2])
      >>> both = [Sharers(busy, fan=10, k_min=1), Sharers(quiet, fan=10, k_min=1)]
      >>> [k.tolist() for k in common_fixed_point(both, 0.52)]
      [[5, 4], [10]]
    """

    def total(counts: Sequence[Int[Array, "..."]]) -> Float[Array, ""]:
        each = [jnp.sum(_traffic(u, k)) for u, k in zip(units, counts, strict=True)]
        return jnp.sum(jnp.stack(each))

    def at(level: Int[Array, ""]) -> list[Int[Array, "..."]]:
        tau = from_key(level, jnp.float32)
        return [fixed_point(u, tau) for u in units]

    def fits(counts: Sequence[Int[Array, "..."]]) -> Bool[Array, ""]:
        return total(counts) <= most

    dense = total([jnp.full_like(u.rate, u.fan, jnp.int32) for u in units])
    most = jnp.asarray(traffic).astype(jnp.float32) * dense * _ROOM
    low, high = jnp.int32(0), jnp.int32(top_key(jnp.float32))
    found = bisect(at, fits, Bracket(low, at(low), high + 1, at(high)))
    return _topped_up(units, found.at_low, found.at_high, most - total(found.at_low))


def _traffic(units: Sharers, count: Int[Array, "*units"]) -> Float[Array, "*units"]:
    return units.rate * count.astype(jnp.float32)


def _topped_up(
    units: Sequence[Sharers],
    below: Sequence[Int[Array, "..."]],
    above: Sequence[Int[Array, "..."]],
    left: Float[Array, ""],
) -> list[Int[Array, "..."]]:
    """Raises degrees to those above, from the first unit on, while traffic is left."""
    counts = []
    for u, low, high in zip(units, below, above, strict=True):
        cost = jnp.ravel(_traffic(u, high - low))
        taken = jnp.reshape(jnp.cumsum(cost) <= left, low.shape)
        count = jnp.where(taken, high, low)
        left = left - jnp.sum(_traffic(u, count - low))
        counts.append(count)
    return counts
