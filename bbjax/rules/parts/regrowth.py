"""Drop and grow, as in RigL, SET and SRigL.

Of the `n` kept edges of a slice, at most as many as the budget, a share goes: those of
the smallest |w|. As many edges as the budget then lacks come back, by another score:

    drop     = floor(f * n)                 f = share(step)
    stay     = the n - drop largest |w| of the kept edges
    mask     = stay, and the best of all other edges by `grow`, up to the budget

So the number of edges is the budget at every refresh. An edge that was dropped competes
with the others at once, and keeps its weight if it comes back. Shapes: scores and masks
per edge, counts per stack slice. The share is annealed by half a cosine,

    f(step) = drop / 2 * (1 + cos(pi * min(step, anneal) / anneal))

References: Mocanu et al. 2018 (SET); Evci et al., arXiv 1911.11134 (RigL).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bbjax.arrays import sharding
from bbjax.arrays.types import Number
from bbjax.model.numbers import check_number
from bbjax.rules.base import Candidates
from bbjax.rules.parts.selection import best, pooled, with_floor


def drop_and_grow(
    seen: Candidates, share: Float[Array, ""], grow: Float[Array, "*edges"]
) -> Bool[Array, "*edges"]:
    """Drops a share of the kept edges by |w| and grows up to the budget by a score.

    A unit's `k_min` largest weights are never dropped, and a unit that has fewer edges
    grows them first. Under a pattern every group is filled up to its number. Where
    nothing comes back, the largest |w| of the kept edges stay.

    Args:
      seen: the kernel.
      share: share of the kept edges to drop, in [0, 1], float32 scalar.
      grow: score per edge by which edges come back, higher first, finite.

    Returns:
      The mask, per edge.
    """
    if not seen.regrow:
        return pooled(seen, seen.magnitude, seen.budget)
    grow = sharding.match(grow.astype(jnp.float32), seen.mask)
    kept, n = within_budget(seen)
    strong = with_floor(kept, seen.magnitude)
    floors = count_edges(kept, jnp.isposinf(strong))
    most = jnp.minimum(staying(n, share), jnp.maximum(seen.budget, n) - _lacking(kept))
    stay = best(kept, strong, jnp.maximum(most, floors))
    return pooled(seen, jnp.where(stay, jnp.inf, grow), seen.budget)


def within_budget(seen: Candidates) -> tuple[Candidates, Int[Array, "*stack"]]:
    """The kernel as in a prune-only run, and the number of edges that it may keep.

    After a dense start or a falling density it has more edges than that. The weakest
    ones go, wherever they are; under a pattern, the weakest ones of each group.
    """
    kept = dataclasses.replace(seen, regrow=False)
    if seen.pattern is None:
        return kept, jnp.minimum(count_edges(kept), seen.budget)
    mask = pooled(kept, seen.magnitude, seen.budget)
    kept = dataclasses.replace(kept, mask=mask)
    return kept, count_edges(kept)


def staying(n: Int[Array, "*stack"], share: Float[Array, ""]) -> Int[Array, "*stack"]:
    """How many of `n` edges are left once a share of them is dropped: int32."""
    return n - whole_part(share * n.astype(jnp.float32))


def whole_part(x: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Rounds down to int32, but to the next integer where only rounding errors lack."""
    return jnp.floor(x * (1 + 2.0**-20)).astype(jnp.int32)


def count_edges(
    seen: Candidates, mask: Bool[Array, "*edges"] | None = None
) -> Int[Array, "*stack"]:
    """Number of kept edges of every slice, or of those in a mask: int32."""
    held = (seen.mask if mask is None else mask & seen.mask).astype(jnp.int32)
    axes = seen.kernel.axes("group", "in", "out")
    return jnp.sum(held, axis=axes, dtype=jnp.int32)


def _lacking(kept: Candidates) -> Int[Array, "*stack"]:
    """Number of edges that units have too few for `k_min`: int32."""
    lacking = jnp.zeros(kept.kernel.stack_shape, jnp.int32)
    for actuator in kept.actuators if kept.k_min else ():
        short = jnp.maximum(kept.k_min - kept.degrees(actuator), 0)
        units = tuple(range(lacking.ndim, short.ndim))
        lacking += jnp.sum(short, axis=units, dtype=jnp.int32)
    return lacking


def gradient(seen: Candidates) -> Float[Array, "*edges"]:
    """Score |dL/dw| per edge: summed over the window of a convolution, float32."""
    assert seen.grads is not None  # they are in the needs of the rule
    grads = jnp.abs(seen.grads.astype(jnp.float32))
    return sharding.match(seen.kernel.sum_spatial(grads), seen.mask)


# The share that is dropped -------------------------------------------------------
def drop_share(
    drop: Number, anneal: Number | None, step: Int[Array, ""]
) -> Float[Array, ""]:
    """The share of kept edges to drop at a step: float32 scalar.

    Args:
      drop: share at step 0.
      anneal: step from which on nothing is dropped; None keeps the share constant.
      step: number of the update.

    Example:
      >>> [round(float(drop_share(0.3, 100, jnp.int32(n))), 3) for n in (0, 25, 50, 99)]
      [0.3, 0.256, 0.15, 0.0]
    """
    first = jnp.asarray(drop).astype(jnp.float32)
    if anneal is None:
        return first
    end = jnp.maximum(jnp.asarray(anneal).astype(jnp.float32), 1.0)
    done = jnp.minimum(step.astype(jnp.float32) / end, 1.0)
    return first / 2 * (1 + jnp.cos(jnp.pi * done))


def check_drop(drop: Number, anneal: Number | None) -> None:
    """Raises an error if the share to drop, or the end of annealing, is not allowed.

    Raises:
      TypeError: an argument is no number.
      ValueError: an argument is out of range.
    """
    remedy = "it is the share of kept edges to drop, e.g. 0.3"
    check_number("drop", drop, "[0, 1]", remedy)
    if anneal is not None:
        remedy = "it is the update from which on no edges are dropped; None never ends"
        check_number("anneal", anneal, "[1, inf)", remedy)
