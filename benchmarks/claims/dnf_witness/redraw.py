"""Pruning and regrowing at random, as a rule: Budgeted Broadcast's and its control.

At each refresh a unit keeps most of its edges, loses the rest and takes random ones in
their place:

    BB        k from the log-odds law; a unit loses a share c a k of its edges, at most
              all: busy units most
    random    k equal; every unit loses a share f

with c such that both lose a share f of all edges on average. Where weights do not move,
pruning by size alone would choose the same edges again.
"""

from typing import Any

import jax
import jax.numpy as jnp

from bbjax import laws, rules
from benchmarks.common.laws import standardized

SHARE = 0.3


def redraw(seed: Any, *, by_traffic: bool) -> rules.Rule:
    """The rule; `by_traffic` is Budgeted Broadcast's."""
    law = standardized() if by_traffic else laws.uniform()

    def score(seen: rules.Candidates) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), seen.step)
        draw, leave = jax.random.split(key)
        shape = seen.kernel.edge_shape
        held = seen.mask.astype(jnp.int32)
        lost = jnp.full(shape[-1], SHARE)
        if by_traffic:
            lost = shares_by_traffic(
                seen.on_rate("in"), seen.kernel.gather(held, "outputs")
            )
        stays = seen.mask & (jax.random.uniform(leave, shape) >= lost)
        return jax.random.uniform(draw, shape) + 2.0 * stays.astype(jnp.float32)

    return rules.Rule(
        "redraw", rules.select_by_law(law, score), needs=("on_rate",), patterned=False
    )


def shares_by_traffic(rate: jax.Array, degree: jax.Array) -> jax.Array:
    """Shares in proportion to traffic, at most 1, that take `SHARE` of all edges."""
    traffic = rate * degree

    def lost(level: jax.Array) -> jax.Array:
        return jnp.minimum(1.0, level * traffic)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        few = jnp.sum(lost(middle) * degree) < SHARE * jnp.sum(degree)
        return jnp.where(few, middle, low), jnp.where(few, high, middle)

    most = 1 / jnp.maximum(jnp.min(jnp.where(traffic > 0, traffic, jnp.inf)), 1e-6)
    low, _ = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(most), most))
    return lost(low)
