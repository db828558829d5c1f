"""What a rule is, and what it is given.

A rule decides *which* edges of one kernel are kept. It is a frozen record of a `select`
function and of what that function needs; it sees a `Candidates` view of the kernel and
returns a mask. Everything else (schedules, dormant weights, state, statistics) is the
transform's business. Most rules are *law x score*: a law turns on-rates into a degree
for each unit, and each unit keeps its highest-scored edges:

    k = solve(law(on_rate), budget)          mask = top_k_mask(score, k)

With both actuators on one kernel each side selects by itself. Edges that both keep
stay; those that only one side keeps compete, by score relative to the higher of the two
sides' thresholds, for the rest of the budget, which is met exactly.

Other methods fit the same interface: RigL reads `mask`, `grads` and `step`, NNrelief
and Wanda read statistics of `inputs`; neither needs more than `select`.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from bbjax import placement
from bbjax.degrees import solve
from bbjax.laws import Law
from bbjax.topk import kth_largest, top_k_mask
from bbjax.units import Actuator, Kernel, Side


@dataclasses.dataclass(frozen=True)
class Candidates:
    """One kernel at a refresh, as a rule sees it.

    Arrays "per edge" have shape `kernel.edge_shape`, weights also the window axes of a
    convolution (`kernel.split`).

    Attributes:
      kernel: the kernel.
      actuators: sides whose edges the budget counts.
      weights: latent weights, shape `kernel.split`; a pruned weight has the value it
        would come back with (0 where nothing comes back).
      mask: edges kept so far, per edge.
      statistics: averages by `"side.statistic"`, shape `stack + units`.
      budget: edges to keep, int32, shape `kernel.stack_shape`.
      k_min: least degree of a unit.
      regrow: whether pruned edges may return.
      step: number of the update, int32.
      grads: dense gradients, shape `kernel.split`, where the rule needs them.
      index: position of the kernel among the budgeted ones, to draw its own noise.
    """

    kernel: Kernel
    actuators: tuple[Actuator, ...]
    weights: jax.Array
    mask: jax.Array
    statistics: Mapping[str, jax.Array]
    budget: jax.Array
    k_min: int
    regrow: bool
    step: jax.Array
    grads: jax.Array | None = None
    index: int = 0

    @property
    def magnitude(self) -> jax.Array:
        """Score |w| per edge: summed over the window of a convolution, float32."""
        return self.kernel.sum_spatial(jnp.abs(self.weights.astype(jnp.float32)))

    def on_rate(self, actuator: Actuator) -> jax.Array:
        """On-rate of the units whose edges an actuator counts."""
        return self.statistics[f"{side_of(actuator)}.on_rate"]


Select = Callable[[Candidates], jax.Array]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How edges are chosen. Made by the factories of `bb.rules`.

    Attributes:
      name: for tables and messages.
      select: from `Candidates` to the mask of kept edges, per edge.
      needs: statistics it reads: names of `bb.activity.STATISTICS` for the units that
        the actuator counts, `"inputs.<name>"` for a kernel's input units, `"grads"`
        for dense gradients.
      revive: value of a weight that comes back: what it was (`"dormant"`) or 0
        (`"zero"`).
    """

    name: str
    select: Select
    needs: tuple[str, ...] = ()
    revive: Literal["dormant", "zero"] = "dormant"


def side_of(actuator: Actuator) -> Side:
    """The side of a kernel whose units' edges an actuator counts."""
    return "outputs" if actuator == "in" else "inputs"


def side_in(name: str) -> Side:
    """The side that a running mean `"side.statistic"` speaks of."""
    return "inputs" if name.startswith("inputs.") else "outputs"


def select_by_law(
    law: Law,
    score: Callable[[Candidates], jax.Array] = operator.attrgetter("magnitude"),
) -> Select:
    """Selection by a law and a score: degrees first, then each unit's best edges.

    Args:
      law: from on-rates to degrees, up to the number that the budget fixes.
      score: from candidates to a float score per edge, higher is kept; |w| by default.

    Returns:
      A `select` function that meets the budget of every stack slice exactly.
    """

    def select(seen: Candidates) -> jax.Array:
        scores = placement.match(score(seen).astype(jnp.float32), seen.mask)
        if not seen.regrow:  # NaN ranks below every score
            scores = jnp.where(seen.mask, scores, jnp.nan)
        counts = {a: degrees_for(seen, law, a) for a in seen.actuators}
        if len(counts) == 1:
            (actuator,) = counts
            return one_side(seen, scores, actuator, counts[actuator])
        return both_sides(seen, scores, counts)

    return select


def degrees_for(seen: Candidates, law: Law, actuator: Actuator) -> jax.Array:
    """Degree of each unit under a law: int32, shape `stack + units`."""
    kernel, side = seen.kernel, side_of(actuator)
    rate = seen.on_rate(actuator)
    if not law.reads_activity:
        rate = jnp.full_like(rate, 0.5)
    flat = jnp.reshape(rate, (*kernel.stack_shape, -1))
    cap: jax.Array | int = kernel.fan(actuator)
    if not seen.regrow:
        kept = kernel.gather(seen.mask.astype(jnp.int32), side)
        cap = jnp.reshape(kept, flat.shape)
    mean = seen.budget.astype(jnp.float32) / kernel.unit_count(actuator)
    profile = law.profile(flat, mean)
    count = solve(profile, law.combine, seen.budget, cap, seen.k_min, flat)
    return jnp.reshape(count, rate.shape)


def one_side(
    seen: Candidates, scores: jax.Array, actuator: Actuator, count: jax.Array
) -> jax.Array:
    """Keeps `count` edges of each unit of one side: a mask per edge."""
    axes, k = _rows(seen.kernel, actuator, count)
    return top_k_mask(scores, k, axis=axes)


def both_sides(
    seen: Candidates, scores: jax.Array, counts: Mapping[Actuator, jax.Array]
) -> jax.Array:
    """Combines the choices of both sides so that the budget is still exact.

    First come each unit's `k_min` best edges, then edges that both sides keep, then
    those that one side keeps, by score relative to the higher of the two thresholds.
    (Where `k_min` takes most of the budget, edges that both keep can lose.)
    """
    kernel = seen.kernel
    kept, floor, level = [], jnp.zeros(scores.shape, bool), []
    for actuator, count in counts.items():
        axes, k = _rows(kernel, actuator, count)
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
    if seen.regrow:
        return pooled(seen, rank, seen.budget)
    return seen.mask & pooled(seen, jnp.where(seen.mask, rank, jnp.nan), seen.budget)


def pooled(seen: Candidates, scores: jax.Array, budget: jax.Array) -> jax.Array:
    """Keeps the `budget` best edges of every stack slice, wherever they are."""
    return top_k_mask(scores, budget, axis=seen.kernel.axes("group", "in", "out"))


def _rows(
    kernel: Kernel, actuator: Actuator, count: jax.Array
) -> tuple[tuple[int, ...], jax.Array]:
    """Axes along which a unit's edges lie, and the counts of the other axes."""
    axes = kernel.axes("in" if actuator == "in" else "out")
    spread = kernel.spread(count, side_of(actuator))
    return axes, lax.squeeze(spread, axes)
