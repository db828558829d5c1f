"""Pruning and regrowing at random, as a rule: Budgeted Broadcast's and its control.

At each refresh a unit keeps most of its edges, loses the rest and takes random ones in
their place:

    BB        k from the log-odds law; loses a share f a k / mean(a k): busy units most
    random    k equal; every unit loses a share f

so that both exchange the same number of edges on average. Where weights do not move,
pruning by size alone would choose the same edges again.
"""

from typing import Any

import jax
import jax.numpy as jnp

from bbjax import laws, rules

SHARE = 0.3


def redraw(seed: Any, *, by_traffic: bool) -> rules.Rule:
    """The rule; `by_traffic` is Budgeted Broadcast's."""
    law = laws.log_odds() if by_traffic else laws.uniform()

    def score(seen: rules.Candidates) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), seen.step)
        draw, leave = jax.random.split(key)
        shape = seen.kernel.edge_shape
        held = seen.mask.astype(jnp.int32)
        lost = jnp.full(shape[-1], SHARE)
        if by_traffic:
            traffic = seen.on_rate("in") * seen.kernel.gather(held, "outputs")
            lost = SHARE * traffic / jnp.maximum(traffic.mean(), 1e-6)
        stays = seen.mask & (jax.random.uniform(leave, shape) >= lost)
        return jax.random.uniform(draw, shape) + 2.0 * stays.astype(jnp.float32)

    return rules.Rule(
        "redraw", rules.select_by_law(law, score), needs=("on_rate",), patterned=False
    )
