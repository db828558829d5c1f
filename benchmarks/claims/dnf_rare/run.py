"""Trains the nets of C2 and measures fan-out and recall; the README says how."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbjax as bb
from benchmarks.claims.common import net, train
from benchmarks.claims.common.methods import METHODS, Method
from benchmarks.claims.dnf_rare import judge
from benchmarks.claims.dnf_rare import task as dnf

SEEDS = 20
NAMES = ("dense", "magnitude", "layer", "activity_only", "bb", "threshold")
DENSITIES = (0.3, 0.1, 0.05)
RARITIES = (0.005, 0.01, 0.02, 0.05, 0.1)
FLOORS = (1, 2, 4)
DENSITY, RARITY, FLOOR = 0.1, 0.02, 1
STEPS, START, EVERY, LOOKS = 4000, 100, 50, 40
TESTED, PROBED = 2048, 256


def run(seeds: int, small: bool) -> dict[str, Any]:
    """All nets of C2, by placement, setting and method."""
    steps = 400 if small else STEPS
    found: dict[str, Any] = {}
    for placement in dnf.PLACEMENTS:
        found[placement] = _placement(placement, seeds, steps, small)
    return {
        "densities": DENSITIES,
        "rarities": RARITIES,
        "floors": FLOORS,
        "at": [DENSITY, RARITY],
        "steps": steps,
        "looks": [steps // LOOKS * (i + 1) for i in range(LOOKS)],
        "ends": {
            place: {key: _each(of, "end") for key, of in all_.items()}
            for place, all_ in found.items()
        },
        "units": {
            place: _each(all_[judge.key()], "units") for place, all_ in found.items()
        },
        "verdicts": judge.verdicts(found, RARITIES),
        "tables": judge.tables(found),
        "caption": "Fan-out of rare, moderate and common features over training, and "
        "recall on rare clauses against density and rarity, for budgets on the first "
        "and on the second kernel",
    }


def _each(of: dict[str, Any], what: str) -> dict[str, Any]:
    return {name: seen[what] for name, seen in of.items()}


def _placement(placement: str, seeds: int, steps: int, small: bool) -> dict[str, Any]:
    """By setting and method; a dense net knows no density."""
    settings = [(d, RARITY) for d in DENSITIES]
    settings += [(DENSITY, r) for r in RARITIES if r != RARITY]
    names = NAMES[:-1] if small else NAMES
    found: dict[str, Any] = {}
    for name in names:
        lanes = lanes_of(placement, METHODS[name], steps, FLOOR)
        for density, rare in settings:
            key = judge.key(density, rare)
            if name == "dense" and density != DENSITY:
                continue
            seen = lanes(train.seeds_of(seeds), density, rare)
            found.setdefault(key, {})[name] = jax.tree.map(np.asarray, seen)
    for of in found.values():
        of.setdefault("dense", found[judge.key()]["dense"])
    for floor in FLOORS:
        if floor != FLOOR and not small:
            lanes = lanes_of(placement, METHODS["bb"], steps, floor)
            seen = lanes(train.seeds_of(seeds), DENSITY, RARITY)
            found[judge.key()][f"bb, k_min {floor}"] = jax.tree.map(np.asarray, seen)
    return found


def lanes_of(
    placement: str, method: Method, steps: int, floor: int
) -> Callable[..., Any]:
    """`(seeds, density, rare)` to what comes out, one program for all."""
    dense, kernel = method.make is None, dnf.PLACEMENTS[placement]
    units = train.trace(dnf.task(RARITY), (kernel, "out"))
    when = {"start": START, "every": EVERY, "k_min": floor}

    def lane(seed, density, rare):
        weights, order = train.keys(seed)
        task = dnf.task(rare)
        tx, params = method.optimizer(
            optax.adam(train.RATE), units, task.init(weights), density=density, **when
        )
        loop = train.Loop(task, units, tx, method.needs)
        tested = jax.random.fold_in(order, 1)

        def look(lane: train.Lane) -> dict[str, jax.Array]:
            return _units(placement, dense, lane, tested, rare)

        every = steps // LOOKS
        lane, seen = loop.train(loop.start(params, order), steps, every, look)
        end = _test(lane.params, tested, rare)
        if not dense:
            end["density"] = bb.masks(lane.state)[kernel].mean()
        return {"units": seen, "end": end}

    return jax.jit(jax.vmap(lane, (0, None, None)))


def _units(
    placement: str, dense: bool, lane: train.Lane, key: jax.Array, rare: Any
) -> dict[str, jax.Array]:
    """Mean fan-out and traffic of units of each class, and how many there are."""
    kernel = dnf.PLACEMENTS[placement]
    x, _ = dnf.task(rare).sample(key, TESTED)
    if placement == "inputs":
        rate = dnf.rates(rare)
        kinds = jnp.full(dnf.INPUTS, -1).at[dnf.KEYS].set(dnf.OF_CLAUSE)
    else:

        def first(x: jax.Array) -> jax.Array:
            return net.hidden(lane.params, x)[0]

        rate, kinds = net.on_rates(first(x)), dnf.detected(first, key, PROBED, rare)
    full = jnp.full(len(rate), dnf.FANS[placement], jnp.float32)
    degree = full if dense else bb.degrees_of(lane.state)[kernel]
    found = {"traffic, all": jnp.sum(degree * rate)}
    for kind, label in enumerate(dnf.CLASSES):
        of = (kinds == kind).astype(jnp.float32)
        count = jnp.sum(of)
        found[f"count, {label}"] = count
        for what, value in (("fan-out", degree), ("traffic", degree * rate)):
            mean = jnp.sum(of * value) / jnp.maximum(count, 1)
            found[f"{what}, {label}"] = jnp.where(count > 0, mean, jnp.nan)
    return found


def _test(params: net.Params, key: jax.Array, rare: Any) -> dict[str, jax.Array]:
    """Recall of every class, false alarms, and how well scores part rare clauses."""
    keys = jax.random.split(key, 8)

    def scores(x: jax.Array) -> jax.Array:
        return net.logits(params, x)

    end, near = {}, []
    for kind, label in enumerate(dnf.CLASSES):
        x = dnf.positives(keys[kind], TESTED, rare, kind)
        near.append(scores(dnf.near_misses(keys[3 + kind], TESTED, rare, kind)))
        end[f"recall {label}"] = 100 * (scores(x) > 0).mean()
        end[f"near miss {label}"] = 100 * (near[kind] > 0).mean()
    none = scores(dnf.negatives(keys[6], TESTED, rare))
    end["false alarms"] = 100 * (none > 0).mean()
    rare_ones = scores(dnf.positives(keys[0], TESTED, rare, 0))
    end["AUC rare"] = 100 * auc(rare_ones, jnp.concatenate([none, near[0]]))
    x, y = dnf.task(rare).sample(keys[7], TESTED)
    end["accuracy"] = 100 * net.right(scores(x), y).mean()
    return end


def auc(positive: jax.Array, negative: jax.Array) -> jax.Array:
    """Chance that a positive scores above a negative, ties half."""
    ordered = jnp.sort(negative)
    below = jnp.searchsorted(ordered, positive, side="left")
    upto = jnp.searchsorted(ordered, positive, side="right")
    return (below + upto).mean() / 2 / len(negative)
