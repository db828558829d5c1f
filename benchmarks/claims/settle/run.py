"""Follows masks over long training, refresh by refresh; the README says how."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import bbjax as bb
from benchmarks.claims.common import digits, train
from benchmarks.claims.common.methods import METHODS
from benchmarks.claims.settle import churn, judge

SEEDS = 20
STEPS, EVERY, EMA, DENSITY = 8000, 100, 0.99, 0.1
NAMES = ("bb", "bb_no_regrow", "threshold", "magnitude", "layer", "rigl", "set")
# What is changed, one at a time, from the setting above.
CHANGES: dict[str, dict[str, Any]] = {
    "EMA 0.9": {"ema": 0.9},
    "EMA 0.999": {"ema": 0.999},
    "every 25": {"every": 25},
    "every 400": {"every": 400},
    "learning rate 3e-4": {"rate": 3e-4},
    "learning rate 3e-3": {"rate": 3e-3},
    "rate annealed": {"anneal": True},
    "rate annealed, magnitude": {"anneal": True, "name": "magnitude"},
    "hysteresis 0.1": {"hysteresis": 0.1},
    "hysteresis 0.5": {"hysteresis": 0.5},
}


def run(seeds: int, small: bool) -> dict[str, Any]:
    """Churn, returns and accuracy of every method and setting."""
    steps = 800 if small else STEPS
    asked = {name: {"name": name} for name in NAMES}
    asked |= {} if small else CHANGES
    found = {}
    for label, change in asked.items():
        lane = _lane(steps, **change)
        seen = train.over_seeds(lane, train.seeds_of(seeds))
        found[label] = churn.follow(seen["masks"], seen["kept"]) | {
            "every": change.get("every", EVERY),
            "accuracy": seen["accuracy"],
            "loss": seen["loss"],
        }
    return {
        "steps": steps,
        "found": found,
        "verdicts": judge.verdicts(found),
        "tables": judge.tables(found),
        "caption": "Share of kept edges replaced at each refresh, share of flips that "
        "undo the last ones, overlap with the final mask, and what settings do",
    }


def _lane(
    steps: int,
    *,
    name: str = "bb",
    every: int = EVERY,
    ema: float = EMA,
    rate: float = train.RATE,
    anneal: bool = False,
    hysteresis: float = 0.0,
) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """From a seed to the masks after every refresh, as bits, and the end."""
    method, task = METHODS[name], digits.task()
    units = train.trace(task, (digits.KERNELS, "in"))
    schedule = optax.cosine_decay_schedule(rate, steps) if anneal else rate
    settings = {"start": every, "every": every, "ema": ema, "k_min": 1}
    if hysteresis:
        settings["hysteresis"] = hysteresis

    def lane(seed):
        weights, order = train.keys(seed)
        tx, params = method.optimizer(
            optax.adam(schedule),
            units,
            task.init(weights),
            seed,
            density=DENSITY,
            **settings,
        )
        loop = train.Loop(task, units, tx, method.needs)

        def look(lane: train.Lane) -> jax.Array:
            flat = [m.ravel() for m in bb.masks(lane.state).values()]
            return jnp.packbits(jnp.concatenate(flat))

        # A block ends with the refresh of its last step: updates count from 0.
        lane, _ = loop.train(loop.start(params, order), 1, 1)
        lane, masks = loop.train(lane, steps, every, look)
        kept = sum(m.sum() for m in bb.masks(lane.state).values())
        return {"masks": masks, "kept": kept} | digits.tested(lane.params)

    return lane
