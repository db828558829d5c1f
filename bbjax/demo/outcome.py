"""What a trained method has come to: numbers per seed, and arrays for the pictures.

Accuracy is on the held-out images; dead units and everything else that looks at
activity is on the training images. Step times are ratios to the dense net of the same
run, step by step, and the median over steps with or without a refresh:

    ratio = median_n( seconds_method[n] / seconds_dense[n] )      first steps left out

There is no ratio where fewer than `LEAST` steps count.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

import bbjax as bb
from bbjax.demo import model
from bbjax.demo.data import Data
from bbjax.demo.methods import Method
from bbjax.demo.train import Trainer

SKIPPED = 3  # first steps that no step time counts
LEAST = 10  # steps that a ratio of step times takes


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One method at one density, all seeds.

    Attributes:
        method: the method.
        density: asked for.
        k_min: least degree of a budgeted unit.
        accuracy: test accuracy in %, by seed.
        dead: dead hidden units, by seed.
        kept: budgeted edges with a nonzero weight, by seed.
        edges: budgeted edges that there are.
        metrics: `bb.metrics` by seed; empty for the dense net.
        degrees: by kernel, fan-in and fan-out of its units, of seed 0.
        on_rates: by kernel, those that the last refresh read, of seed 0.
        churn: share of edges flipped, (refreshes, seeds).
        kept_at: by kernel, kept edges after each refresh, (refreshes, seeds).
        seconds: of each step, all seeds together.
    """

    method: Method
    density: float
    k_min: int
    accuracy: np.ndarray
    dead: np.ndarray
    kept: np.ndarray
    edges: int
    metrics: list[dict[str, float]]
    degrees: dict[str, tuple[np.ndarray, np.ndarray]]
    on_rates: dict[str, np.ndarray]
    churn: np.ndarray
    kept_at: dict[str, np.ndarray]
    seconds: np.ndarray


def measure(trainer: Trainer, units: bb.Units, data: Data) -> Outcome:
    """The outcome of a trainer that is through."""
    pruned = trainer.method.rule is not None
    found = [_of_params(units, params, data) for params, _ in trainer.states]
    numbers = []
    if pruned:
        numbers = [jax.device_get(_metrics(opt)) for _, opt in trainer.states]
    return Outcome(
        method=trainer.method,
        density=trainer.density if pruned else 1.0,
        k_min=trainer.k_min,
        accuracy=np.array([100 * float(f["accuracy"]) for f in found]),
        dead=np.array([int(f["dead"]) for f in found]),
        kept=np.array([_kept(f["degrees"]) for f in found]),
        edges=sum(units[path].edge_count for path in model.PRUNED),
        metrics=[{k: float(v) for k, v in m.items()} for m in numbers],
        degrees=jax.device_get(found[0]["degrees"]),
        on_rates=trainer.on_rates,
        churn=np.array(trainer.churn),
        kept_at={
            path: np.array([[seed[path] for seed in at] for at in trainer.kept])
            for path in (model.PRUNED if pruned else ())
        },
        seconds=np.array(trainer.seconds),
    )


_metrics = jax.jit(bb.metrics)


@functools.partial(jax.jit, static_argnums=0)
def _of_params(units: bb.Units, params: Any, data: Data) -> dict[str, Any]:
    _, activity = bb.observe(model.loss, units)(params, data.train_x, data.train_y)
    return {
        "accuracy": model.accuracy(params, data.test_x, data.test_y),
        "dead": model.dead_units(units, params, activity),
        "degrees": model.degrees(units, params),
    }


def _kept(degrees: dict[str, tuple[jax.Array, jax.Array]]) -> int:
    return sum(int(degrees[path][0].sum()) for path in model.PRUNED)


def step_ratio(outcome: Outcome, dense: Outcome, steps: list[int]) -> float | None:
    """Median step time against the dense net.

    Args:
        outcome: of a method.
        dense: of the dense net in the same run.
        steps: that count, but for the first `SKIPPED` of the run.

    Returns:
        The ratio; None if fewer than `LEAST` steps are left.
    """
    counted = [n for n in steps if n >= SKIPPED]
    if len(counted) < LEAST:
        return None
    return float(np.median(outcome.seconds[counted] / dense.seconds[counted]))
