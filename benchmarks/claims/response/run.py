"""Shocks to one side of half of the units, and what their a and k do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbjax as bb
from bbjax import rules
from benchmarks.claims.common import digits, net, train
from benchmarks.claims.response import judge
from benchmarks.common.laws import standardized

SEEDS = 20
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4)
BEFORE, FAST, SLOW, EVERY, DENSITY = 2000, 49, 1000, 50, 0.3
FIRST, SECOND = "layer_0/kernel", "layer_1/kernel"
TIMES = ("at once", "before the next refresh", "in the end")


def run(seeds: int, small: bool) -> dict[str, Any]:
    """a and k of every unit after shocks of every size, at three times."""
    before, slow = (300, 150) if small else (BEFORE, SLOW)
    shares = np.array(SHARES, np.float32)
    found = {}
    for side in ("in", "out"):
        over = jax.vmap(_lane(side, before, slow), (0, None))
        found[side] = train.over_seeds(
            over, train.seeds_of(seeds), shares, axes=(None, 0)
        )
    responses = judge.responses(found, SHARES)
    return {
        "shares": SHARES,
        "times": TIMES,
        "steps": [before, FAST, slow],
        "curves": judge.curves(found),
        "matrix": {t: judge.summary(responses, i) for i, t in enumerate(TIMES)},
        "verdicts": judge.verdicts(responses),
        "tables": judge.tables(responses, TIMES),
        "caption": "Response of on-rate and degree of the shocked units to shocks of "
        "their incoming and of their outgoing edges, and the 2 x 2 matrices",
    }


def _lane(side: str, before: int, slow: int):
    """`(seed, share)` to rates and degrees, (times, units), and who was shocked."""
    task = digits.task()
    units = train.trace(task, (SECOND, "out"))
    settings = {"density": DENSITY, "every": EVERY, "k_min": 1}
    rule = rules.budgeted_broadcast(law=standardized())
    half = jnp.arange(digits.SIZES[1]) % 2 == 0

    def lane(seed, share):
        weights, order = train.keys(seed)
        tx = optax.chain(
            optax.adam(train.RATE), bb.transform(units, rule, start=100, **settings)
        )
        loop = train.Loop(task, units, tx, rule.needs)
        lane = loop.start(task.init(weights), order)
        lane, _ = loop.train(lane, before, before)
        key = jax.random.fold_in(order, 1)
        masks = {
            FIRST: jnp.ones(units[FIRST].shape, bool),
            SECOND: bb.masks(lane.state)[SECOND],
        }
        path = {"in": FIRST, "out": SECOND}[side]
        gone = jax.random.uniform(key, masks[path].shape) < share
        hit = half[None, :] if side == "in" else half[:, None]
        masks[path] &= ~(gone & hit)
        return _after(loop, lane, masks, rule, settings, slow) | {"hit": half}

    return lane


def _after(
    loop: train.Loop,
    lane: train.Lane,
    masks: dict[str, jax.Array],
    rule: rules.Rule,
    settings: dict[str, Any],
    slow: int,
) -> dict[str, jax.Array]:
    """What follows a shock: lost incoming edges stay lost, outgoing ones are ruled."""
    held = bb.hold({FIRST: masks[FIRST]})
    second = {SECOND: masks[SECOND]}
    pruned = bb.transform(loop.units, rule, start=FAST, masks=second, **settings)
    params = bb.apply_masks(lane.params, masks)
    tx = optax.chain(optax.adam(train.RATE), held, pruned)
    after = train.Loop(loop.task, loop.units, tx, rule.needs)
    # As before the shock but for the masks: what the transform remembers stays.
    old, state = lane.state[1], pruned.init(params)
    lost = lane.params["layer_1"]["kernel"] - params["layer_1"]["kernel"]
    dormant = {SECOND: old.bb_dormant[SECOND] + lost}
    state = state._replace(bb_means=old.bb_means, bb_dormant=dormant)
    state = (lane.state[0], held.init(params), state)
    lane = train.Lane(params, state, lane.key)
    x = jnp.asarray(digits.images().train_x)

    def look(lane: train.Lane, mask: jax.Array) -> dict[str, jax.Array]:
        rate = net.on_rates(net.hidden(lane.params, x)[0])
        return {"rate": rate, "degree": mask.sum(1).astype(jnp.float32)}

    seen = [look(lane, masks[SECOND])]
    for steps in (FAST, slow):
        lane, _ = after.train(lane, steps, steps)
        seen.append(look(lane, bb.masks(lane.state[2])[SECOND]))
    return jax.tree.map(lambda *v: jnp.stack(v), *seen)
