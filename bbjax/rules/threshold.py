"""The local threshold: a unit whose traffic is over tau loses its weakest edges.

    a_j k_j > tau:   k_j <- max(k_j - ceil(fraction * k_j), floor(tau / a_j), k_min)

at every refresh, by |w| among the edges that are left; none comes back. No unit depends
on another one, the density is an outcome, and the fixed point is

    k_j = max(floor(min(fan, tau / a_j)), k_min)

In place of tau you can give the traffic of that fixed point, as a share of the traffic
of the same units when dense. Then tau is one number for all budgeted kernels, the
largest with

    sum_j a_j k_j(tau) <= traffic * sum_j a_j fan_j

found anew at each refresh (`bbjax.rules.parts.traffic`). Shapes: on-rates and degrees
`stack + units`. Reference: Meirovitch et al., arXiv 2510.01263.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from bbjax.arrays import sharding
from bbjax.arrays.types import Number
from bbjax.model.numbers import check_number
from bbjax.model.units import Actuator
from bbjax.rules.base import Candidates, Group, JointSelect, Rule, Select
from bbjax.rules.parts.selection import within_limits
from bbjax.rules.parts.traffic import Sharers, common_fixed_point, fixed_point


def threshold(
    tau: Number | None = None,
    *,
    traffic: Number | None = None,
    fraction: Number = 0.1,
) -> Rule:
    """Units over their traffic lose a fraction of their weakest edges at each refresh.

    Nothing comes back, whatever `regrow` is (`regrow=False` saves the memory of the
    dormant weights). A unit that is never on has no traffic and keeps its edges. With
    both actuators on one kernel an edge goes if one of its ends drops it. In `bb.prune`
    `fraction=1` goes to the fixed point at once. For the same degrees under a density,
    with regrowth, see `bb.laws.threshold`.

    Args:
      tau: traffic per unit (edges times on-rate), above 0; may be traced.
      traffic: share of the dense traffic of all budgeted kernels together, in (0, 1];
        may be traced. Degrees are whole numbers, so the traffic may be less by up to
        one edge of a unit; `k_min` comes first.
      fraction: share of its edges that a unit over tau loses, in (0, 1], rounded up.

    Returns:
      A rule that needs the on-rate of the units; it takes no density.

    Raises:
      ValueError: not exactly one of `tau` and `traffic`, or a number out of range.

    Example:
      >>> threshold(3.0).joint, threshold(traffic=0.5).joint
      (False, True)
    """
    if (tau is None) == (traffic is None):
        raise ValueError(
            f"expected tau or traffic, got tau={tau!r} and traffic={traffic!r}; name "
            "the traffic of one unit, or the share of the dense traffic of all"
        )
    remedy = "it is the share of its edges that a unit loses at once"
    check_number("fraction", fraction, "(0, 1]", remedy)
    if traffic is not None:
        remedy = "it is a share of the dense traffic"
        check_number("traffic", traffic, "(0, 1]", remedy)
        return _rule("threshold[traffic]", _to_a_total(traffic, fraction), joint=True)
    assert tau is not None
    remedy = "it is the traffic of one unit, edges times on-rate"
    check_number("tau", tau, "(0, inf)", remedy)
    return _rule("threshold", _to_each(tau, fraction), joint=False)


def _rule(name: str, select: Callable[[Any], Any], joint: bool) -> Rule:
    return Rule(
        name, select, needs=("on_rate",), joint=joint, free=True, patterned=False
    )


def _to_each(tau: Number, fraction: Number) -> Select:
    def select(seen: Candidates) -> Bool[Array, "*edges"]:
        ends = {a: fixed_point(_units_of(seen, a), tau) for a in seen.actuators}
        return _fewer(seen, ends, fraction)

    return select


def _to_a_total(traffic: Number, fraction: Number) -> JointSelect:
    def select(group: Group) -> list[Bool[Array, "..."]]:
        keys = [(i, a) for i, seen in enumerate(group.members) for a in seen.actuators]
        units = [_units_of(group.members[i], a) for i, a in keys]
        ends = dict(zip(keys, common_fixed_point(units, traffic), strict=True))
        return [
            _fewer(seen, {a: ends[i, a] for a in seen.actuators}, fraction)
            for i, seen in enumerate(group.members)
        ]

    return select


def _units_of(seen: Candidates, actuator: Actuator) -> Sharers:
    return Sharers(seen.on_rate(actuator), seen.kernel.fan(actuator), seen.k_min)


def _fewer(
    seen: Candidates,
    ends: Mapping[Actuator, Int[Array, "..."]],
    fraction: Number,
) -> Bool[Array, "*edges"]:
    """Takes a fraction of their weakest edges from units above their fixed point."""
    share = jnp.asarray(fraction).astype(jnp.float32)
    limits = {}
    for actuator, end in ends.items():
        held = sharding.match(seen.degrees(actuator), end)
        step = jnp.ceil(share * held.astype(jnp.float32)).astype(jnp.int32)
        limits[actuator] = held - jnp.minimum(step, jnp.maximum(held - end, 0))
    return within_limits(seen, jnp.where(seen.mask, seen.magnitude, jnp.nan), limits)
