"""SRigL: RigL with a constant degree per unit, and without units that are starved.

    salient   the strongest |w| that RigL would keep, and as many of the largest
              |dL/dw| of the whole slice as it would grow
    starved   units with fewer salient edges than t = max(1, floor(gamma * k)),
              k = floor(budget / units)
    degree    0 for starved units, else budget / survivors, as equal as can be
    mask      each unit's strongest edges that stay, then its largest |dL/dw|

A starved unit loses all its edges and the others share them. It is judged anew at every
refresh and comes back where gradients are large. So many units survive that the budget
fits them: `t` is at most the salient edges of the m+1-st unit, m = floor(budget / fan).

Different from the published code: the budget is met exactly, the edges left over by the
division going to survivors with the largest sums of |w| (published: lost); a unit with
more edges than its degree loses the weakest (published: an arbitrary choice).
Reference: Lasby et al., arXiv 2305.02299.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from bbjax.arrays.topk import kth_largest, top_k_mask
from bbjax.budgets import laws
from bbjax.budgets.degrees import solve
from bbjax.model.units import Actuator
from bbjax.rules.base import Candidates, Chosen, Rule, side_of
from bbjax.rules.parts.regrowth import (
    check_anneal,
    check_share,
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
    drop: Real[ArrayLike, ""] = 0.3,
    anneal: Real[ArrayLike, ""] | None = None,
    gamma: Real[ArrayLike, ""] = 0.3,
) -> Rule:
    """RigL in which every unit has the same degree, but starved ones none at all.

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
    check_share("drop", drop, "it is the share of kept edges to drop, e.g. 0.3")
    check_share("gamma", gamma, "it is the share that has to be salient, e.g. 0.3")
    check_anneal(anneal)
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
    # What units and groups keep is seen to at the end.
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
    """Which units are not starved: bool, `stack + units`."""
    kernel = seen.kernel
    count = kernel.gather(salient.astype(jnp.int32), side_of(actuator))
    flat = jnp.reshape(count, (*kernel.stack_shape, -1)).astype(jnp.float32)
    degree = (seen.budget // kernel.unit_count(actuator)).astype(jnp.float32)
    asked = jnp.maximum(whole_part(gamma * degree), 1).astype(jnp.float32)
    least = jnp.where(gamma > 0, asked, 0.0)
    needed = seen.budget // kernel.fan(actuator) + 1  # units that the budget fits in
    least = jnp.minimum(least, kth_largest(flat, needed, axis=flat.ndim - 1))
    return jnp.reshape(flat >= least[..., None], count.shape)


def _degrees(
    seen: Candidates,
    actuator: Actuator,
    survive: Bool[Array, "*units"],
    strong: Float[Array, "*edges"],
) -> Int[Array, "*units"]:
    """The same degree for all survivors, per group: int32, `stack + units`."""
    kernel, side = seen.kernel, side_of(actuator)
    groups = 1
    if seen.pattern is not None:
        groups = groups_per_unit(kernel, actuator, seen.pattern)
    shape = (*kernel.stack_shape, -1)
    cap = jnp.reshape(survive, shape).astype(jnp.int32) * (
        kernel.fan(actuator) // groups
    )
    # In whole numbers a sum does not depend on the order of its terms, hence not on
    # the number of devices.
    axes = kernel.axes("group", "in", "out")
    top = jnp.max(strong, axis=axes, keepdims=True)
    parts = jnp.where(top > 0, strong / jnp.where(top > 0, top, 1.0), 0.0)
    unit = 2.0**30 / kernel.fan(actuator)
    total = kernel.gather(jnp.floor(parts * unit).astype(jnp.int32), side)
    weak = 1.0 - jnp.reshape(total, shape).astype(jnp.float32) / 2.0**30
    none = jnp.zeros_like(weak)
    edges = in_steps_of(seen.budget, groups)
    degree = solve(none, "shift", edges, cap, 0, weak)
    return jnp.reshape(degree, survive.shape)
