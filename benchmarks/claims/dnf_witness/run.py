"""Trains the nets of C3 and counts cycles to success; the README says how."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbjax as bb
from bbjax import rules
from benchmarks.claims.common import net, train
from benchmarks.claims.dnf_witness import judge
from benchmarks.claims.dnf_witness import task as dnf
from benchmarks.claims.dnf_witness.redraw import redraw
from benchmarks.common.laws import standardized

SEEDS = 40
CLAUSES = (2, 4, 8, 16, 32)
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # hidden units per clause
WIDE = 16  # clauses for the ratios
CYCLES, STEPS, DENSITY, RATE = 100, 500, 0.5, 0.3
METHODS = ("sgd", "random", "bb", "bb_shipped", "rich")


def run(seeds: int, small: bool) -> dict[str, Any]:
    """Success and cycles by method and W; separability; success by hidden units."""
    cycles, steps = (4, 50) if small else (CYCLES, STEPS)
    clauses = CLAUSES[:3] if small else CLAUSES
    solved: dict[str, Any] = {name: [] for name in METHODS}
    parted: dict[str, Any] = {"DNF labels": [], "random labels": []}
    for w in clauses:
        for name in METHODS:
            lanes = _lanes(name, w, w, cycles, steps)
            solved[name].append(np.asarray(lanes(train.seeds_of(seeds))))
        for name, shares in _separable(w, w, seeds).items():
            parted[name].append(shares)
    ratios = {
        ratio: np.asarray(
            _lanes("sgd", WIDE, round(ratio * WIDE), cycles, steps)(
                train.seeds_of(seeds)
            )
        ).any(1)
        for ratio in RATIOS
    }
    by_ratio = {r: _separable(WIDE, round(r * WIDE), seeds) for r in RATIOS}
    report = {
        "clauses": clauses,
        "ratios": RATIOS,
        "cycles": cycles,
        "steps": steps,
        "solved": {name: judge.firsts(of, cycles) for name, of in solved.items()},
        "alone": [of[:, 0] for of in solved["sgd"]],
        "separable": parted,
        "by_ratio": {r: {"sgd": ratios[r]} | by_ratio[r] for r in RATIOS},
    }
    return report | {
        "verdicts": judge.verdicts(report),
        "tables": judge.tables(report),
        "caption": "Success against the number of clauses, cycles to success with "
        "three fits, and success against hidden units per clause",
    }


def _lanes(
    name: str, clauses: int, hidden: int, cycles: int, steps: int
) -> Callable[[jax.Array], jax.Array]:
    """From seeds to whether each cycle ends with all points right, (seeds, cycles).

    A score of exactly 0, where no unit is on, is on neither side.
    """

    def lane(seed):
        points, order, params, task, units = _problem(seed, clauses, hidden)
        tx = _optimizer(name, units, seed, steps)
        loop = train.Loop(task, units, tx, None if name == "rich" else ())

        def look(lane: train.Lane) -> jax.Array:
            scores = net.logits(lane.params, points.x)
            return (net.right(scores, points.y) & (scores != 0)).all()

        return loop.train(loop.start(params, order), cycles * steps, steps, look)[1]

    return jax.jit(jax.vmap(lane))


def _problem(seed: Any, clauses: int, hidden: int) -> Any:
    """Points, a key, first weights, the task of learning all points, and its units."""
    weights, order = train.keys(seed)
    points = dnf.witness_set(order, clauses)
    params = dnf.first_weights(weights, clauses, hidden)
    task = net.Task((points.x.shape[1], hidden, 1), lambda key, n: points)
    return points, order, params, task, train.trace(task, (dnf.KERNEL, "in"))


def _optimizer(name: str, units: bb.Units, seed: Any, steps: int) -> Any:
    adam = optax.adam(RATE)
    if name == "rich":
        return adam
    lazy = {"layer_0": "frozen", "layer_1": {"kernel": "learnt", "bias": "frozen"}}
    trained = optax.partition({"learnt": adam, "frozen": optax.set_to_zero()}, lazy)
    made = {
        "sgd": lambda: redraw(seed, by_traffic=False),
        "random": lambda: redraw(seed, by_traffic=False),
        "bb": lambda: redraw(seed, by_traffic=True),
        "bb_shipped": lambda: rules.budgeted_broadcast(law=standardized()),
    }
    settings = {"density": DENSITY, "start": 0, "every": steps, "ema": 0.9}
    settings["stop"] = 1 if name == "sgd" else None
    return optax.chain(trained, bb.transform(units, made[name](), **settings))


def _separable(clauses: int, hidden: int, seeds: int) -> dict[str, np.ndarray]:
    """Whether a readout exists for the features that `sgd` trains on, by seed."""

    def features(seed):
        points, order, params, _, units = _problem(seed, clauses, hidden)
        rule = redraw(seed, by_traffic=False)
        zeros = jnp.zeros(hidden)
        held = bb.activity.Statistics(on_rate=zeros, count=zeros + 1)
        stats = {dnf.KERNEL: bb.activity.Activity(held, held)}
        params, _ = bb.prune(params, units, rule, density=DENSITY, stats=stats)
        labels = jax.random.permutation(jax.random.fold_in(order, 1), points.y)
        return net.hidden(params, points.x)[0], points.y, labels

    of = train.over_seeds(features, train.seeds_of(seeds))
    return {
        name: np.array(
            [dnf.separable(f, y) for f, y in zip(of[0], labels, strict=True)]
        )
        for name, labels in (("DNF labels", of[1]), ("random labels", of[2]))
    }
