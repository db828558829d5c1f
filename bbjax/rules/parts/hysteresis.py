"""Hysteresis: a kept edge stays until another one is better by a share h.

Activity is measured with noise, so degrees change by an edge or two from refresh to
refresh, and weights of nearly equal size change places. With hysteresis

    score of a kept edge     (1 + h) s where s > 0, s / (1 + h) below
    degree                   k <- play(law, k)            off by at most h k: it stays
    play(l, k)               k + sign(l - k) max(|l - k| - h k, 0)

A degree follows the law at a distance, like gears with play, and a pruned edge returns
once it is better by the share h than the worst kept one. Budgets stay exact: what these
degrees lack, or have too much, is spread evenly. While a budget changes (a ramp, the
first refresh), and where a kernel is budgeted on both sides, degrees follow the law at
once.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from bbjax.arrays import sharding
from bbjax.budgets.degrees import solve
from bbjax.rules.base import Candidates

Score = Callable[[Candidates], Float[Array, "*edges"]]


def scored(seen: Candidates, score: Score) -> Float[Array, "*edges"]:
    """The scores of a rule, raised for edges that are kept."""
    return favoured(seen, score(seen), seen.mask)


def favoured(
    seen: Candidates, scores: Float[Array, "*shape"], held: Bool[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Scores, raised by the share h for edges (or units) that are kept.

    Args:
      seen: the kernel.
      scores: float, higher is kept.
      held: whether each of them is kept so far.
    """
    if not is_on(seen):
        return scores
    scores = scores.astype(jnp.float32)
    factor = 1 + _share(seen)
    better = jnp.where(scores > 0, scores * factor, scores / factor)
    return jnp.where(sharding.match(held, scores), better, scores)


def played(
    seen: Candidates,
    law: Int[Array, "*stack units"],
    old: Int[Array, "*stack units"],
    budget: Int[Array, "*stack"],
    limits: tuple[Int[ArrayLike, "..."], Int[ArrayLike, "..."]],
    rate: Float[Array, "*stack units"],
) -> Int[Array, "*stack units"]:
    """Degrees that follow those of a law at a distance and spend the same budget.

    Args:
      seen: the kernel.
      law: degrees that add up to the budget, int32 (..., units).
      old: degrees so far, likewise; of any sum.
      budget: int32, the leading shape.
      limits: most and least edges of a unit.
      rate: on-rates, to break ties.
    """
    old = sharding.match(old, law)
    settled = jnp.sum(old, -1, keepdims=True) == jnp.sum(law, -1, keepdims=True)
    gap = (law - old).astype(jnp.float32)
    slack = _share(seen) * old.astype(jnp.float32)
    moved = jnp.sign(gap) * jnp.maximum(jnp.abs(gap) - slack, 0.0)
    target = jnp.where(
        settled, old.astype(jnp.float32) + moved, law.astype(jnp.float32)
    )
    return solve(target, "shift", budget, *limits, rate)


def _share(seen: Candidates) -> Float[Array, ""]:
    return jnp.asarray(seen.hysteresis).astype(jnp.float32)


def is_on(seen: Candidates) -> bool:
    """Whether there may be hysteresis; a traced share may be anything."""
    return not (isinstance(seen.hysteresis, int | float) and seen.hysteresis == 0)
