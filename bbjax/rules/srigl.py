"""SRigL: RigL with the same degree for every unit, except units that lose all edges.

    salient   the strongest |w| that RigL would keep, and as many of the largest
              |dL/dw| of the whole slice as it would grow
    starved   units with fewer salient edges than t = max(1, floor(gamma * k)),
              k = floor(budget / units)
    degree    0 for starved units, else budget / survivors, as equal as can be
    mask      each unit's strongest edges that stay, then its largest |dL/dw|

A starved unit loses all its edges, and the other units get them. It may return at any
later refresh, where its gradients are large. Enough units survive to hold the budget:
`t` is at most the number of salient edges of the m+1-st unit, m = floor(budget / fan).

Differences from the published code: the budget is met exactly, and the edges left over
by the division go to survivors with the largest sums of |w| (published: lost); a unit
with more edges than its degree loses the weakest (published: an arbitrary choice).
Reference: Lasby et al., arXiv 2305.02299.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bbjax.arrays.topk import kth_largest, top_k_mask
from bbjax.arrays.types import Number
from bbjax.budgets import laws
from bbjax.budgets.degrees import solve
from bbjax.model.numbers import check_number
from bbjax.model.units import Actuator
from bbjax.rules.base import Candidates, Chosen, Rule, side_of
from bbjax.rules.parts.regrowth import (
    check_drop,
    drop_share,
    gradient,
    staying,
    whole_part,
    within_budget,
)
from bbjax.rules.parts.selection import (
    best,
    in_steps_of,
    one_side,
    ranked,
    select_by_law,
)
from bbjax.rules.patterns import groups_per_unit


def srigl(
    *,
    drop: Number = 0.3,
    anneal: Number | None = None,
    gamma: Number = 0.3,
) -> Rule:
    """RigL in which every unit has the same degree, and starved ones have none.

    Units are those that the actuator counts: constant fan-in for "in", as published,
    constant fan-out for "out". `k_min` does not hold for starved units. Gradients,
    `masks` and `anneal` as for `bb.rules.rigl`. With `regrow=False` nothing grows and
    no unit is starved: each keeps its largest |w|, the same number each.

    Args:
      drop: share of the kept edges that a refresh drops, in [0, 1] (may be traced).
      anneal: number of updates until the share has fallen to 0 by half a cosine, at
        least 1 (may be traced); None keeps it constant.
      gamma: share of the constant degree that has to be salient in a unit for it to
        survive, in [0, 1] (may be traced); published .3 for convolutions, .95 for
        vision transformers. 0 lets all units survive.

    Returns:
      A rule that needs dense gradients; weights come back as 0.

    Raises:
      TypeError: an argument is no number.
      ValueError: an argument is out of range. When edges are chosen: a kernel with
        both actuators.

    Example:
      >>> srigl(gamma=0.5).needs
      ('grads',)
    """
    check_drop(drop, anneal)
    remedy = "it is the share that has to be salient, e.g. 0.3"
    check_number("gamma", gamma, "[0, 1]", remedy)
    same = select_by_law(laws.uniform())

    def select(seen: Candidates) -> Chosen:
        (actuator,) = seen.actuators
        if not seen.regrow:
            return same(seen)
        share = drop_share(drop, anneal, seen.step)
        return _select(seen, actuator, share, jnp.asarray(gamma).astype(jnp.float32))

    return Rule(
        "srigl", select, needs=("grads",), revive="zero", one_sided=True, favours=False
    )


def _select(
    seen: Candidates,
    actuator: Actuator,
    share: Float[Array, ""],
    gamma: Float[Array, ""],
) -> Bool[Array, "*edges"]:
    # The degrees of units and groups are set at the end.
    kept, n = within_budget(dataclasses.replace(seen, pattern=None))
    strong, grads = ranked(kept, seen.magnitude), gradient(seen)
    stay = staying(n, share)
    axes = seen.kernel.axes("group", "in", "out")
    salient = best(kept, strong, stay) | top_k_mask(grads, n - stay, axis=axes)
    survive = _survivors(seen, actuator, salient, gamma)
    own = seen.kernel.spread(survive, side_of(actuator))
    degree = _degrees(seen, actuator, survive, jnp.where(seen.mask, strong, 0.0))
    stays = best(kept, jnp.where(own, strong, jnp.nan), stay) & own
    among = one_side(seen, jnp.where(stays, strong, jnp.nan), actuator, degree) & stays
    return one_side(seen, jnp.where(among, jnp.inf, grads), actuator, degree)


def _survivors(
    seen: Candidates,
    actuator: Actuator,
    salient: Bool[Array, "*edges"],
    gamma: Float[Array, ""],
) -> Bool[Array, "*units"]:
    """The units that are not starved."""
    kernel = seen.kernel
    count = seen.degrees(actuator, salient)
    flat = seen.flat(count).astype(jnp.float32)
    degree = (seen.budget // kernel.unit_count(actuator)).astype(jnp.float32)
    asked = jnp.maximum(whole_part(gamma * degree), 1).astype(jnp.float32)
    least = jnp.where(gamma > 0, asked, 0.0)
    needed = seen.budget // kernel.fan(actuator) + 1  # units that can hold the budget
    least = jnp.minimum(least, kth_largest(flat, needed, axis=flat.ndim - 1))
    return jnp.reshape(flat >= least[..., None], count.shape)


def _degrees(
    seen: Candidates,
    actuator: Actuator,
    survive: Bool[Array, "*units"],
    strong: Float[Array, "*edges"],
) -> Int[Array, "*units"]:
    """The same degree for all survivors, per group of edges."""
    kernel, side = seen.kernel, side_of(actuator)
    groups = groups_per_unit(kernel, actuator, seen.pattern)
    cap = seen.flat(survive).astype(jnp.int32) * (kernel.fan(actuator) // groups)
    # A sum of integers does not depend on the order of its terms, nor on the number of
    # devices.
    axes = kernel.axes("group", "in", "out")
    top = jnp.max(strong, axis=axes, keepdims=True)
    parts = jnp.where(top > 0, strong / jnp.where(top > 0, top, 1.0), 0.0)
    unit = 2.0**30 / kernel.fan(actuator)
    total = kernel.gather(jnp.floor(parts * unit).astype(jnp.int32), side)
    weak = 1.0 - seen.flat(total).astype(jnp.float32) / 2.0**30
    edges = in_steps_of(seen.budget, groups)
    degree = solve(jnp.zeros_like(weak), "shift", edges, cap, 0, weak)
    return jnp.reshape(degree, survive.shape)
