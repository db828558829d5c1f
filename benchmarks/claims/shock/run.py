"""Cuts many edges at once and trains on; the README says how."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbjax as bb
from benchmarks.claims.common import digits, train
from benchmarks.claims.common.methods import METHODS
from benchmarks.claims.shock import judge

SEEDS = 20
CUTS = (0.1, 0.3, 0.5, 0.7, 0.9)
PRUNED = ("magnitude", "layer", "activity_only", "bb", "random")
LESIONED = ("dense", "magnitude", "layer", "activity_only", "bb")
BEFORE, AFTER, EVERY, LOOK = 1500, 1500, 50, 10
DENSITY = 0.5


def run(seeds: int, small: bool) -> dict[str, Any]:
    """Test loss before, right after, and while training goes on."""
    before, after = (200, 100) if small else (BEFORE, AFTER)
    curves: dict[str, Any] = {"pruned": {}, "lesioned": {}}
    cuts = np.array(CUTS, np.float32)
    for kind, names in (("pruned", PRUNED), ("lesioned", LESIONED)):
        for name in names:
            lane = {"pruned": _pruned, "lesioned": _lesioned}[kind]
            both = jax.vmap(lane(name, before, after), (0, None))
            curves[kind][name] = train.over_seeds(
                both, train.seeds_of(seeds), cuts, axes=(None, 0)
            )
    uncut = train.over_seeds(_uncut(before, after), train.seeds_of(seeds))
    outcomes = {
        kind: {name: judge.outcome(seen, LOOK) for name, seen in of.items()}
        for kind, of in curves.items()
    }
    return {
        "cuts": CUTS,
        "before": before,
        "after": after,
        "times": [0, 1, *(1 + LOOK * (i + 1) for i in range(after // LOOK))],
        "curves": {
            kind: {n: s["loss"].mean(1) for n, s in of.items()}
            for kind, of in curves.items()
        },
        "uncut": uncut["loss"].mean(0),
        "outcomes": outcomes,
        "verdicts": judge.verdicts(outcomes, CUTS),
        "tables": judge.tables(outcomes, CUTS, after + LOOK + 1),
        "caption": "Loss right after a sudden cut, steps to recover and final loss "
        "against the share cut; curves of recovery at 90 %",
    }


Curve = Callable[..., dict[str, jax.Array]]


def _watch(loop: train.Loop, lane: train.Lane, after: int) -> dict[str, jax.Array]:
    """Test loss after one step, then every `LOOK` steps: (looks,)."""

    def look(lane: train.Lane) -> dict[str, jax.Array]:
        return digits.tested(lane.params)

    lane, first = loop.train(lane, 1, 1, look)
    _, rest = loop.train(lane, after, LOOK, look)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), first, rest)


def _with_first(first: dict[str, jax.Array], rest: dict[str, jax.Array]) -> Any:
    return {k: jnp.concatenate([first[k][None], rest[k]]) for k in rest}


def _parts(name: str, seed: Any, **settings: Any) -> tuple[train.Loop, train.Lane]:
    """The loop of a method and a lane to begin with; Adam comes first in the chain."""
    task = digits.task()
    units = train.trace(task, (digits.KERNELS, "in"))
    weights, order = train.keys(seed)
    method, adam = METHODS[name], optax.adam(train.RATE)
    params = task.init(weights)
    if method.make is None:
        tx = optax.chain(adam)
    else:
        rule = bb.rules.random(seed=seed) if name == "random" else method.make()
        settings = {"every": EVERY, "k_min": 1} | settings
        tx = optax.chain(adam, bb.transform(units, rule, **settings))
    loop = train.Loop(task, units, tx, method.needs)
    return loop, loop.start(params, order)


def _pruned(name: str, before: int, after: int) -> Curve:
    """Dense training, then a cut by the method, which goes on."""

    def lane(seed, cut):
        loop, lane = _parts(name, seed, density=1 - cut, start=before)
        lane, _ = loop.train(lane, before, before)
        return _with_first(digits.tested(lane.params), _watch(loop, lane, after))

    return lane


def _lesioned(name: str, before: int, after: int) -> Curve:
    """Training at half density, then a random loss of edges that is for good."""

    def lane(seed, cut):
        loop, lane = _parts(name, seed, density=DENSITY, start=100)
        lane, _ = loop.train(lane, before, before)
        first = digits.tested(lane.params)
        masks = _held(name, loop.units, lane)
        key = jax.random.fold_in(jax.random.key(seed), 7)
        left = {
            path: mask
            & (jax.random.uniform(jax.random.fold_in(key, i), mask.shape) >= cut)
            for i, (path, mask) in enumerate(masks.items())
        }
        held = bb.hold(left)
        tx = optax.chain(optax.adam(train.RATE), held)
        params = bb.apply_masks(lane.params, left)
        after_loop = train.Loop(loop.task, loop.units, tx)
        lane = train.Lane(params, (lane.state[0], held.init(params)), lane.key)
        return _with_first(first, _watch(after_loop, lane, after))

    return lane


def _held(name: str, units: bb.Units, lane: train.Lane) -> dict[str, jax.Array]:
    if name != "dense":
        return bb.masks(lane.state)
    return {path: jnp.ones(units[path].shape, bool) for path in units.budgeted}


def _uncut(before: int, after: int) -> Curve:
    """Dense training without a cut."""

    def lane(seed):
        loop, lane = _parts("dense", seed)
        lane, _ = loop.train(lane, before, before)
        return _with_first(digits.tested(lane.params), _watch(loop, lane, after))

    return lane
