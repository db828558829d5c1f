"""Selection: from scores and degrees to masks.

Most rules consist of a law and a score: the law turns on-rates into a degree for each
unit, and each unit keeps its edges of the highest scores,

    k = solve(law(on_rate), budget)          mask = top_k_mask(score, k)

In other rules all edges of a slice compete for the budget (`pooled`), or all edges of
several kernels (`pooled_over`), with a floor of `k_min` edges for every unit. A law may
be blended with competition (`bbjax.rules.parts.competition`): the edges that a unit
wins in its slice then set a part of its degree. With both actuators on one kernel each
side selects by itself. Edges that both sides keep stay. Edges that one side keeps
compete for the rest of the budget, which is met exactly, by their scores relative to
the higher threshold of the two sides.

Under an N:M pattern the same degrees are counted per group (`bbjax.rules.patterns`),
and a pooled budget is spread evenly over the groups. In a prune-only run
(`regrow=False`) edges that are gone rank below all others.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bbjax.arrays import sharding
from bbjax.arrays.topk import kth_largest, share_out, top_k_mask
from bbjax.arrays.types import Number
from bbjax.budgets.degrees import solve
from bbjax.budgets.exact import mean_degree
from bbjax.budgets.laws import Law
from bbjax.model.units import Actuator
from bbjax.rules.base import Candidates, Chosen, Group, JointSelect, Select, side_of
from bbjax.rules.parts.competition import Blend, Claims, blended
from bbjax.rules.parts.hysteresis import Score, favoured, is_on, played
from bbjax.rules.parts.scores import magnitude
from bbjax.rules.patterns import groups_per_unit, join_groups, row_axes, split_groups


def select_by_law(
    law: Law, score: Score = magnitude, *, competition: Number = 0.0
) -> Select:
    """Selection by a law and a score: degrees first, then each unit's best edges.

    Args:
      law: from on-rates to degrees, up to the number that the budget fixes.
      score: from candidates to a float score per edge, higher is kept; |w| by default.
      competition: share of the degrees that comes from competition by this score inside
        the slice, in [0, 1]; may be traced.

    Returns:
      A `select` function that meets the budget of every stack slice exactly.
    """
    blend = Blend(law, competition)

    def select(seen: Candidates) -> Bool[Array, "*edges"]:
        plain = score(seen)
        scores = ranked(seen, favoured(seen, plain, seen.mask))
        # Hysteresis acts within a unit, and on its degree (`played`), but not between
        # units: competition would otherwise depend on the masks that it has made.
        rivals = ranked(seen, plain) if blend.competes and is_on(seen) else scores
        counts = {a: degrees_for(seen, blend, a, rivals) for a in seen.actuators}
        if len(counts) == 1:
            (actuator,) = counts
            return one_side(seen, scores, actuator, counts[actuator])
        return both_sides(seen, scores, counts)

    return select


def select_over_all(select: Select, score: Score) -> JointSelect:
    """Selection in which kernels compete for one budget before their units do.

    Args:
      select: selection within a kernel, made by `select_by_law`.
      score: by which the edges of all kernels compete.

    Returns:
      A `select` function for rules with `joint=True`. Every slice keeps as many edges
      as it wins among all kernels.
    """

    def joint(group: Group) -> list[Chosen]:
        every = range(len(group.members))
        scores = [score(seen) for seen in group.members]
        masks = pooled_over(group, every, scores)
        return [
            select(dataclasses.replace(seen, budget=_edges_in(seen, mask)))
            for seen, mask in zip(group.members, masks, strict=True)
        ]

    return joint


def _edges_in(seen: Candidates, mask: Bool[Array, "*edges"]) -> Int[Array, "*stack"]:
    """Kept edges of every stack slice."""
    each = sharding.whole(seen.degrees("in", mask))
    return jnp.sum(seen.flat(each), -1, dtype=jnp.int32)


def ranked(seen: Candidates, scores: Float[Array, "*edges"]) -> Float[Array, "*edges"]:
    """Scores with the sharding of the mask, and NaN where an edge is gone for good.

    NaN ranks below every score.
    """
    scores = sharding.match(scores.astype(jnp.float32), seen.mask)
    return scores if seen.regrow else jnp.where(seen.mask, scores, jnp.nan)


# Degrees -------------------------------------------------------------------------
def degrees_for(
    seen: Candidates,
    law: Law | Blend,
    actuator: Actuator,
    scores: Float[Array, "*edges"] | None = None,
) -> Int[Array, "*units"]:
    """Degree of each unit under a law: int32, shape `stack + units`.

    Under an N:M pattern these are edges per group.

    Args:
      seen: the kernel.
      law: a law, or one that is blended with competition.
      actuator: side of the units.
      scores: the scores of competition, as `ranked` returns them.
    """
    blend = law if isinstance(law, Blend) else Blend(law)
    kernel, side, law = seen.kernel, side_of(actuator), blend.law
    if law.reads_activity:
        rate = seen.on_rate(actuator)
    else:
        rate = jnp.full(kernel.per_unit_shape(side), 0.5, jnp.float32)
    flat, groups = seen.flat(rate), groups_per_unit(kernel, actuator, seen.pattern)
    budget = in_steps_of(seen.budget, groups)
    cap: Array | int = kernel.fan(actuator) // groups
    if not seen.regrow:
        cap = seen.flat(sharding.match(_room(seen, actuator), rate))
    mean = mean_degree(budget, kernel.unit_count(actuator))
    floor = law.least(mean, -(-seen.k_min // groups))
    claims = Claims(law.profile(flat, mean), flat)
    if blend.competes:
        assert scores is not None
        claims = blended(seen, blend, actuator, claims, scores, groups)
    count = solve(claims.profile, law.combine, budget, cap, floor, claims.rate)
    # With both sides budgeted, the mask has the degrees of neither side.
    if is_on(seen) and len(seen.actuators) == 1:
        old = seen.flat(sharding.match(seen.degrees(actuator) // groups, rate))
        count = played(seen, count, old, budget, (cap, floor), flat)
    return jnp.reshape(count, rate.shape)


def in_steps_of(edges: Int[Array, "*shape"], size: int) -> Int[Array, "*shape"]:
    """A number of edges as steps of `size` edges, the nearest number, halves up.

    Example:
      >>> in_steps_of(jnp.array([5, 6, 7]), 4).tolist()
      [1, 2, 2]
    """
    return edges if size == 1 else (edges + size // 2) // size


def _room(seen: Candidates, actuator: Actuator) -> Int[Array, "*units"]:
    """Most edges that a unit can keep if none come back, or the same of each group."""
    if seen.pattern is None:
        return seen.degrees(actuator)
    kernel, held = seen.kernel, seen.mask.astype(jnp.int32)
    cut, axis = split_groups(kernel, held, actuator, seen.pattern)
    rows = row_axes(kernel, actuator)
    least = jnp.min(jnp.sum(cut, axis=axis), axis=rows, keepdims=True)
    everywhere = jnp.broadcast_to(least, kernel.edge_shape)
    return kernel.gather(everywhere, side_of(actuator)) // kernel.fan(actuator)


# Within a unit -------------------------------------------------------------------
def one_side(
    seen: Candidates,
    scores: Float[Array, "*edges"],
    actuator: Actuator,
    count: Int[Array, "*units"],
) -> Bool[Array, "*edges"]:
    """Keeps `count` edges of each unit of one side: a mask per edge.

    Under an N:M pattern `count` is per group.
    """
    axes = row_axes(seen.kernel, actuator)
    spread = seen.kernel.spread(count, side_of(actuator))
    if seen.pattern is None:
        return top_k_mask(scores, lax.squeeze(spread, axes), axis=axes)
    cut, axis = split_groups(seen.kernel, scores, actuator, seen.pattern)
    return join_groups(seen.kernel, top_k_mask(cut, spread, axis=axis))


def within_limits(
    seen: Candidates,
    scores: Float[Array, "*edges"],
    limits: Mapping[Actuator, Int[Array, "..."]],
) -> Bool[Array, "*edges"]:
    """Keeps the best edges of every unit, up to its limit; the density is an outcome.

    With both sides of a kernel limited, an edge stays if both of its ends keep it. So
    no unit exceeds its limit, except for the floor: the `k_min` best edges of a unit
    stay whether or not the other ends keep them.

    Args:
      seen: the kernel.
      scores: per edge, higher is kept; NaN where an edge must not be kept.
      limits: for each actuator the most edges of each unit, int32 `stack + units`.
    """
    scores = ranked(seen, scores)
    kept = [one_side(seen, scores, a, limit) for a, limit in limits.items()]
    mask = functools.reduce(operator.and_, kept)
    for actuator, limit in limits.items() if len(limits) > 1 else ():
        floor = jnp.minimum(limit, seen.k_min)
        mask |= one_side(seen, scores, actuator, floor)
    mask &= ~jnp.isnan(scores)
    return mask if seen.regrow else mask & seen.mask


def both_sides(
    seen: Candidates,
    scores: Float[Array, "*edges"],
    counts: Mapping[Actuator, Int[Array, "..."]],
) -> Bool[Array, "*edges"]:
    """Combines the choices of both sides so that the budget is still exact.

    First come each unit's `k_min` best edges, then edges that both sides keep, then
    those that one side keeps, by score relative to the higher of the two thresholds.
    (Where `k_min` takes most of the budget, edges that both keep can lose.)
    """
    kernel = seen.kernel
    kept, floor, level = [], jnp.zeros(scores.shape, bool), []
    for actuator, count in counts.items():
        axes = row_axes(kernel, actuator)
        k = lax.squeeze(kernel.spread(count, side_of(actuator)), axes)
        kept.append(top_k_mask(scores, k, axis=axes))
        floor |= top_k_mask(scores, jnp.minimum(k, seen.k_min), axis=axes)
        level.append(jnp.expand_dims(kth_largest(scores, k, axis=axes), axes))
    if not seen.regrow:
        floor &= seen.mask
    bar = jnp.maximum(*level)
    ratio = jnp.where(bar > 0, scores / jnp.where(bar > 0, bar, 1.0), 1.0)
    ratio = jnp.clip(jnp.nan_to_num(ratio), 0.0, 1.0)
    rank = (
        ratio
        + 2.0 * (kept[0] | kept[1]).astype(jnp.float32)
        + 2.0 * (kept[0] & kept[1]).astype(jnp.float32)
        + 8.0 * floor.astype(jnp.float32)
    )
    return best(seen, rank, seen.budget)


# Across units --------------------------------------------------------------------
def best(
    seen: Candidates, scores: Float[Array, "*edges"], budget: Int[Array, "*stack"]
) -> Bool[Array, "*edges"]:
    """Keeps the `budget` best edges of every stack slice, wherever they are."""
    scores = ranked(seen, scores)
    axes = seen.kernel.axes("group", "in", "out")
    mask = top_k_mask(scores, budget, axis=axes)
    return mask if seen.regrow else mask & seen.mask


def pooled(
    seen: Candidates, scores: Float[Array, "*edges"], budget: Int[Array, "*stack"]
) -> Bool[Array, "*edges"]:
    """As `best`, with a floor of `k_min` edges per unit and within a pattern.

    Args:
      seen: the kernel.
      scores: float score per edge, higher is kept.
      budget: edges to keep, int32, shape `kernel.stack_shape`.
    """
    if seen.pattern is not None:
        return _evenly(seen, scores, budget)
    return best(seen, with_floor(seen, scores), budget)


def with_floor(
    seen: Candidates, scores: Float[Array, "*edges"]
) -> Float[Array, "*edges"]:
    """Scores in which each unit's `k_min` best edges come before all others."""
    scores = ranked(seen, scores)
    for actuator in seen.actuators if seen.k_min else ():
        axes = row_axes(seen.kernel, actuator)
        floor = top_k_mask(scores, seen.k_min, axis=axes)
        scores = jnp.where(floor, jnp.inf, scores)
    return ranked(seen, scores)


def _evenly(
    seen: Candidates, scores: Float[Array, "*edges"], budget: Int[Array, "*stack"]
) -> Bool[Array, "*edges"]:
    """Keeps the same number of edges of every group, the budget over all of them."""
    (actuator,), kernel = seen.actuators, seen.kernel
    assert seen.pattern is not None
    n = in_steps_of(budget, kernel.edge_count // seen.pattern.m)
    shape = kernel.per_unit_shape(side_of(actuator))
    own = jnp.reshape(n, n.shape + (1,) * (len(shape) - n.ndim))
    count = jnp.broadcast_to(own, shape)
    mask = one_side(seen, ranked(seen, scores), actuator, count)
    return mask if seen.regrow else mask & seen.mask


def pooled_over(
    group: Group, which: Sequence[int], scores: Sequence[Float[Array, "..."]]
) -> list[Bool[Array, "..."]]:
    """Keeps the best edges of some kernels, for one budget of all of them.

    Args:
      group: all kernels.
      which: positions of the kernels that share a budget.
      scores: score per edge of each of these.

    Returns:
      Their masks, in the order of `which`.
    """
    members = [group.members[i] for i in which]
    if any(seen.pattern is not None for seen in members):
        # Every group keeps the same number of edges, so that kernels do not compete.
        return [
            pooled(seen, s, seen.budget)
            for seen, s in zip(members, scores, strict=True)
        ]
    floored = [with_floor(seen, s) for seen, s in zip(members, scores, strict=True)]
    shares = share_out(floored, group.pool(which))
    return [
        _any_slice(seen, s, k)
        for seen, s, k in zip(members, floored, shares, strict=True)
    ]


def _any_slice(
    seen: Candidates, scores: Float[Array, "*edges"], k: Int[Array, ""]
) -> Bool[Array, "*edges"]:
    mask = top_k_mask(scores, k, axis=tuple(range(scores.ndim)))
    return mask if seen.regrow else mask & seen.mask
