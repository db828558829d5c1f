"""C15: settings of Budgeted Broadcast varied together, on two tasks.

All spreads and all decays of the running means are lanes of one compiled program, with
all seeds; the other settings are constants of a program each.
"""

import functools
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import spearmanr

import bbjax as bb
from benchmarks.common import stats
from benchmarks.common.stats import Verdict
from benchmarks.common.text import table
from benchmarks.domains.common.experiment import (
    Bench,
    Case,
    Earlier,
    Experiment,
    Found,
    Metric,
    Runs,
)
from benchmarks.domains.sensitivity import picture
from benchmarks.rules import data
from benchmarks.rules import train as rules_train
from benchmarks.rules.methods import METHODS
from benchmarks.rules.speech import speech

STEPS, SEEDS, DENSITY = 1000, 4, 0.05
TASKS = ("mnist", "speech")
SPREADS, DECAYS = (-0.1, 0.0, 0.1, 0.3, 1.0), (0.9, 0.99)
# (every, start, k_min, competition): the first is the middle, others change one.
CONSTANTS = (
    (25, 100, 1, 0.0),
    (5, 100, 1, 0.0),
    (100, 100, 1, 0.0),
    (25, 0, 1, 0.0),
    (25, 400, 1, 0.0),
    (25, 100, 0, 0.0),
    (25, 100, 4, 0.0),
    (25, 100, 1, 0.75),
)
NAMES = ("spread", "decay", "every", "start", "k_min", "competition")
METRICS = {"accuracy": Metric("accuracy, mean of settings, %")}


class Setting(NamedTuple):
    """One combination, in the order of `NAMES`."""

    spread: float
    decay: float
    every: int
    start: int
    k_min: int
    competition: float


MIDDLE = Setting(0.1, 0.99, *CONSTANTS[0])


def name(task: str, constants: Sequence[float]) -> str:
    """Of a run: a task and the constants of its program."""
    every, start, k_min, competition = constants
    return (
        f"{task}, every {every}, start {start}, k_min {k_min}, "
        f"competition {competition:g}"
    )


class Lab:
    """Trains all lanes of a program."""

    def __init__(self, folder: Path, small: bool) -> None:
        """Tasks are read when they are first trained."""
        self.steps = 40 if small else STEPS
        readers = {"mnist": data.mnist, "speech": speech}
        self.bench = functools.cache(
            lambda task: rules_train.Bench(readers[task](folder))
        )

    def run(self, case: Case, seed: int, earlier: Earlier) -> Found:
        """Accuracy of every spread and decay, for the seeds of a program."""
        task, constants = CASES[case]
        began, bench = time.perf_counter(), self.bench(task)
        seeds = [seed * SEEDS + i for i in range(SEEDS)]
        lanes = bench.lanes(seeds, self.steps)
        pairs = np.array(list(itertools.product(SPREADS, DECAYS)), np.float32)

        @jax.jit
        def program(held: Any, pairs: Any, lanes: Any) -> Any:
            def one(pair: Any, lane: Any) -> Any:
                return self._lane(bench, held, pair, lane, constants)

            return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(pairs, lanes)

        found = jax.tree.map(np.asarray, program(bench.data, jnp.asarray(pairs), lanes))
        accuracy = np.round(found["accuracy"].astype(float), 3)
        return {
            "accuracy": float(accuracy.mean()),
            "kept": float(found["kept"].mean()),
            "lanes": accuracy.tolist(),
            "program_seconds": round(time.perf_counter() - began, 1),
        }

    def _lane(self, bench: Any, held: Any, pair: Any, lane: Any, constants: Any) -> Any:
        """One net: trained, tested."""
        spread, decay = pair
        every, start, k_min, competition = constants
        # A trial of fewer steps has the same schedule, faster.
        every, start = (
            max(n * self.steps // STEPS, low) for n, low in ((every, 1), (start, 0))
        )
        params = rules_train.init(lane["seed"], bench.task)
        rule = bb.rules.budgeted_broadcast(spread=spread, competition=competition)
        units = bench.units(METHODS["BB"])
        pruned = bb.transform(
            units,
            rule,
            density=bb.ramp(DENSITY, start, self.steps // 2 - start, power=3),
            every=every,
            start=start,
            stop=3 * self.steps // 4,
            k_min=k_min,
            ema=decay,
        )
        tx = optax.chain(optax.adam(bench.task.rate), pruned)
        params, state = bench.fit(held, params, tx, lane["order"], (rule, units))
        kept = rules_train.share_kept(bb.masks(state))
        return bench.measure(held, params, lane) | {"kept": kept}


CASES = {
    Case(name(task, constants), DENSITY): (task, constants)
    for task in TASKS
    for constants in CONSTANTS
}


# Reading ------------------------------------------------------------------------------
def measured(runs: Runs) -> dict[str, dict[Setting, np.ndarray]]:
    """By task, the accuracies of every setting that was run, at the seeds of all."""
    found: dict[str, dict[Setting, np.ndarray]] = {task: {} for task in TASKS}
    there = {case: runs.of(*case) for case in CASES if runs.of(*case)}
    for case, of in there.items():
        task, constants = CASES[case]
        others = [set(runs) for c, runs in there.items() if CASES[c][0] == task]
        if not (both := sorted(set.intersection(*others))):
            continue
        lanes = np.concatenate([np.array(of[s]["lanes"]) for s in both], 1)
        for row, pair in zip(lanes, itertools.product(SPREADS, DECAYS), strict=True):
            found[task][Setting(*pair, *constants)] = row
    return found


def around(of: dict[Setting, np.ndarray], what: str) -> dict[float, np.ndarray]:
    """Accuracies where one setting alone leaves the middle."""
    return {
        getattr(setting, what): values
        for setting, values in of.items()
        if setting == MIDDLE._replace(**{what: getattr(setting, what)})
    }


def panels(runs: Runs) -> dict[str, dict[str, dict[float, np.ndarray]]]:
    """Differences to the middle where one setting alone leaves it, seeds paired."""
    found = measured(runs)
    return {
        what: {
            task: {v: x - of[MIDDLE] for v, x in around(of, what).items()}
            for task, of in found.items()
        }
        for what in NAMES
    }


def judged(runs: Runs) -> Sequence[Verdict]:
    """The questions of the README."""
    found = measured(runs)
    if any(MIDDLE not in of for of in found.values()):
        return [stats.undecided("which settings matter", "no runs", "runs are needed")]
    return [*(_matters(found, what) for what in NAMES), _carries(found)]


def _matters(found: dict[str, dict[Setting, np.ndarray]], what: str) -> Verdict:
    """Whether some value of a setting differs from the middle one, on both tasks."""
    parts, some = [], []
    for task, of in found.items():
        at = around(of, what)
        others = {f"{v:g}": x for v, x in at.items() if v != getattr(MIDDLE, what)}
        gaps = stats.differences(of[MIDDLE], others)
        some.append(any(gap.p < stats.LEVEL for gap in gaps.values()))
        text = ", ".join(
            f"{value} {0 - g.mean:+.2f} ± {g.error:.2f}{'*' * (g.p < stats.LEVEL)}"
            for value, g in gaps.items()
        )
        parts.append(f"{task}: {text or 'not run'}")
    return stats.decide(
        f"{what} matters (difference in points to {getattr(MIDDLE, what):g})",
        "; ".join(parts),
        "some value differs from the middle one, paired t-tests over seeds, Holm in a "
        "task, p < 0.05 (*), on both tasks (weakly: on one)",
        holds=all(some),
        weakly=any(some),
    )


def _carries(found: dict[str, dict[Setting, np.ndarray]]) -> Verdict:
    """Whether settings are ranked alike on both tasks.

    Other values of `k_min` are left out: they hardly bind, so those nets are the same
    nets again.
    """
    one, other = (found[task] for task in TASKS)
    both = [s for s in one if s in other and s.k_min == MIDDLE.k_min]
    means = np.array([[of[s].mean() for s in both] for of in (one, other)])
    rank, p = _rank(means.reshape(2, -1, len(SPREADS) * len(DECAYS)))
    regrets = [
        float(means[b].max() - means[b, means[a].argmax()]) for a, b in ((0, 1), (1, 0))
    ]
    default = both.index(MIDDLE)
    text = "; ".join(
        f"the best of {TASKS[a]} is {regret:.2f} points below the best on {TASKS[b]}, "
        f"the middle setting {means[b].max() - means[b, default]:.2f}"
        for (a, b), regret in zip(((0, 1), (1, 0)), regrets, strict=True)
    )
    return stats.decide(
        "a setting that is good on one task is good on the other",
        f"Spearman's rank correlation of {len(both)} settings {rank:.2f} "
        f"(p = {p:.2g}); {text}",
        "rank correlation at least 0.7 (weakly: above 0 at p < 0.05, one-sided, all "
        "orders of one task's programs)",
        holds=rank >= 0.7,
        weakly=p < stats.LEVEL,
    )


def _rank(means: np.ndarray) -> tuple[float, float]:
    """Rank correlation of two tasks (2, programs, lanes), and p.

    The lanes of a program share most of its settings, so p is the share of the orders
    of one task's whole programs that correlate as much.
    """
    one, other = means
    found = np.array(
        [
            spearmanr(one.ravel(), other[list(order)].ravel()).statistic
            for order in itertools.permutations(range(len(other)))
        ]
    )
    return float(found[0]), float(np.mean(found >= found[0] - 1e-12))


def tables(runs: Runs) -> str:
    """The best and the worst settings of each task."""
    parts = []
    for task, of in measured(runs).items():
        ranked = sorted(of, key=lambda s: -of[s].mean())
        shown = [*ranked[:5], *ranked[-5:]] if len(ranked) > 10 else ranked
        rows = [[*(f"{v:g}" for v in s), stats.mean_sd(of[s], 2)] for s in shown]
        head = [*NAMES, "accuracy, %"]
        parts.append(f"{task}, best and worst settings:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def bench(folder: Path, small: bool) -> Bench:
    """Reads what the tasks need, when they need it."""
    return Lab(folder, small).run


EXPERIMENT = Experiment(
    name="sensitivity",
    title="Settings",
    claim="C15",
    cases=tuple(CASES),
    metrics=METRICS,
    bench=bench,
    judge=judged,
    seeds=2,
    over="runs, each the mean of a program's settings and four seeds",
    tables=tables,
    draw=lambda runs, path: picture.draw(panels(runs), path),
    caption="Accuracy where one setting alone leaves the middle, on two tasks",
)
