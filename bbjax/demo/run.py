"""The run: compile, train all methods together, sweep the density, shrink, write.

results.json           the table, per-seed values, settings, commit, versions, machine
overview.png           accuracy, budget, balance and smaller nets, one panel each
benefit.png            two of them: smaller nets and the budget
degrees.png            degrees of the units of one layer, by method
churn.png              edges that change at each refresh
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

import bbjax as bb
from bbjax.demo import model, pictures, smaller, tables
from bbjax.demo.data import BATCH, HELD_OUT, Data, load
from bbjax.demo.drawing import many
from bbjax.demo.folders import holds_results, write_results
from bbjax.demo.methods import LAW, METHODS, Timing, least_degree
from bbjax.demo.origin import origin
from bbjax.demo.outcome import Outcome, measure
from bbjax.demo.progress import Steps, Tick, duration
from bbjax.demo.results import Results
from bbjax.demo.train import EMA, LEARNING_RATE, Step, Trainer, together

SWEEP = (0.3, 0.1, 0.05, 0.035)
SWEPT = ("magnitude", "activity_only", "bb_in", "bb_out")
SWEEP_SEEDS = 3  # at most
STEP_SECONDS = 0.0038  # of one step of one net
OTHER_SECONDS = 60.0  # compiling, shrinking, drawing
PROBED = 0.1  # share of the main training after which the speed counts as measured


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be trained; work is counted in steps of one net.

    Attributes:
        density: kept share of the edges of every budgeted kernel.
        seeds: number of seeds.
        steps: of training.

    Example:
        >>> plan = Plan(0.05, seeds=5, steps=600)
        >>> plan.densities, plan.main
        ((0.3, 0.1, 0.035), 21000)
    """

    density: float
    seeds: int
    steps: int

    @property
    def few(self) -> int:
        """Seeds of the sweep."""
        return min(self.seeds, SWEEP_SEEDS)

    @property
    def densities(self) -> tuple[float, ...]:
        """Further densities, apart from the one asked for."""
        return tuple(d for d in SWEEP if not 0.75 < d / self.density < 1.33)

    @property
    def tune(self) -> int:
        """Steps of training after each round of shrinking."""
        return max(1, self.steps // 3)

    @property
    def main(self) -> int:
        """Work of the comparison."""
        return len(METHODS) * self.seeds * self.steps

    @property
    def swept(self) -> int:
        """Work at further densities, and of the law alone."""
        return (len(self.densities) * len(SWEPT) * self.few + 1) * self.steps

    @property
    def rest(self) -> int:
        """Work of all that comes after the comparison."""
        return self.swept + len(smaller.KEEP) * self.seeds * self.tune

    @property
    def seconds(self) -> float:
        """Expected duration on two quiet CPU cores."""
        return OTHER_SECONDS + STEP_SECONDS * (self.main + self.rest)


def run(density: float, seeds: int, steps: int, out: Path) -> dict[str, Any]:
    """Runs the demo; prints the table and writes the folder.

    Args:
        density: kept share of the edges of every budgeted kernel.
        seeds: number of seeds, from 0.
        steps: training steps of each.
        out: folder to write, which exists. If it is without results now, but holds
            those of another run in the end, the next free one is written.

    Returns:
        What stands in `results.json`.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    plan, timing = Plan(density, seeds, steps), Timing(steps)
    console, made = _console(), origin()  # at the start: files may change meanwhile
    free = not holds_results(out)
    with Steps(console, 6) as progress:
        progress.say(
            f"This takes about {duration(plan.seconds)} on two free CPU cores (from an "
            f"earlier run, scaled to {many(seeds, 'seed')} and {many(steps, 'step')}); "
            "the time here is measured as soon as training runs."
        )
        with progress.step("reading the digits and the net", 2) as tick:
            data = load()
            tick(1)
            units = model.trace()
        compiled = _compile(progress, units, timing, least_degree(units, density), data)
        trainers, main = _main(progress, compiled, plan, units, data)
        sweep, law = _sweep(progress, compiled, plan, units, data)
        params = {t.method.key: [p for p, _ in t.states] for t in trainers}
        sizes, times = _smaller(progress, plan, params, data)
        results = Results(main, sweep, law, sizes, times, timing, units)
        with progress.step(f"drawing {len(pictures.NAMES)} pictures", 1):
            files = _drawn(results)
            seconds = {
                "wall": time.perf_counter() - wall,
                "cpu": time.process_time() - cpu,
            }
            settings = _settings(plan, results, data)
            result = tables.report(results, settings, seconds, made)
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
    files = {"results.json": f"{text}\n".encode(), **files}
    out = write_results(out, files, overwrite=not free)
    console.print()
    console.print(tables.table(result, console.width))
    for line in tables.notes(result):
        console.print(line, highlight=False)
    console.print(_where(seconds, out), highlight=False, soft_wrap=True)
    return result


def _drawn(results: Results) -> dict[str, bytes]:
    """PNG files by name."""
    files = {}
    for name, figure in pictures.draw_all(results).items():
        file = io.BytesIO()
        figure.savefig(file, format="png")
        files[name] = file.getvalue()
    return files


def _console() -> Console:
    """The terminal; text that goes elsewhere is as wide as the table."""
    console = Console()
    return console if console.is_terminal else Console(width=112)


def _settings(plan: Plan, results: Results, data: Data) -> dict[str, Any]:
    timing, units = results.timing, results.units
    return {
        "density": plan.density,
        "seeds": plan.seeds,
        "steps": plan.steps,
        "sweep_seeds": plan.few,
        "k_min": results.main[0].k_min,
        "start": timing.start,
        "every": timing.every,
        "ramp": timing.ramp,
        "stop": timing.stop,
        "ema": EMA,
        "learning_rate": LEARNING_RATE,
        "batch": BATCH,
        "held_out": HELD_OUT,
        "train_images": len(data.train_y),
        "test_images": len(data.test_y),
        "kernels": list(model.PRUNED),
        "hidden_units": sum(units[p].unit_count("in") for p in model.HIDDEN),
        "smaller_keep": list(smaller.KEEP),
        "smaller_steps": plan.tune,
    }


def _where(seconds: dict[str, float], out: Path) -> str:
    return (
        f"{duration(seconds['wall'])} on {os.cpu_count()} cores "
        f"({jax.devices()[0].device_kind}); all numbers and {len(pictures.NAMES)} "
        f"pictures are in {out}{os.sep}, see overview.png first"
    )


def _compile(
    progress: Steps, units: bb.Units, timing: Timing, k_min: int, data: Data
) -> dict[str, Step]:
    methods = (*METHODS, LAW)
    steps = {}
    text = f"compiling {len(methods)} training steps"
    with progress.step(text, len(methods)) as tick:
        for method in methods:
            steps[method.key] = Step(method, units, timing, k_min, data)
            tick(1)
    return steps


def _main(
    progress: Steps,
    compiled: dict[str, Step],
    plan: Plan,
    units: bb.Units,
    data: Data,
) -> tuple[list[Trainer], list[Outcome]]:
    """All methods at the density asked for, taking turns."""
    chosen = [compiled[method.key] for method in METHODS]
    text = f"training {len(METHODS)} methods, {many(plan.seeds, 'seed')}"
    with progress.step(text, plan.main) as tick:
        trainers = [Trainer(step, plan.density, plan.seeds, data) for step in chosen]
        together(trainers, plan.steps, _probing(progress, plan, tick))
        return trainers, [measure(trainer, units, data) for trainer in trainers]


def _probing(progress: Steps, plan: Plan, tick: Tick) -> Tick:
    """Says how long the run will take, once the first steps were timed."""
    begin, done = time.perf_counter(), 0.0

    def probe(amount: float) -> None:
        nonlocal done
        tick(amount)
        before, done = done, done + amount
        if before < PROBED * plan.main <= done:
            speed = (time.perf_counter() - begin) / done
            left = speed * (plan.main - done + plan.rest)
            # What is not training goes slower with the machine, too.
            left += OTHER_SECONDS / 2 * max(1.0, speed / STEP_SECONDS)
            progress.say(
                f"At the speed measured so far, about {duration(left)} are left."
            )

    return probe


def _sweep(
    progress: Steps,
    compiled: dict[str, Step],
    plan: Plan,
    units: bb.Units,
    data: Data,
) -> tuple[list[Outcome], Outcome]:
    """Some methods at further densities, with fewer seeds; and the law alone."""
    text = f"training at {len(plan.densities)} densities, {many(plan.few, 'seed')}"
    with progress.step(text, plan.swept) as tick:
        groups = [
            [Trainer(compiled[key], other, plan.few, data) for key in SWEPT]
            for other in plan.densities
        ]
        groups.append([Trainer(compiled[LAW.key], plan.density, 1, data)])
        for group in groups:
            together(group, plan.steps, tick)
        *found, law = [measure(t, units, data) for group in groups for t in group]
        return found, law


def _smaller(
    progress: Steps, plan: Plan, params: dict[str, list[Any]], data: Data
) -> tuple[list[smaller.Size], Any]:
    """The dense nets with fewer and fewer units, and times per call."""
    dense, masked = params["dense"], params["bb_in"][0]
    rounds = len(smaller.KEEP) * plan.seeds
    text = f"making nets smaller, {many(plan.seeds, 'seed')}"
    with progress.step(text, 1.1 * rounds) as tick:
        sizes = smaller.shrink(dense, plan.tune, data, tick)
        nets = [size.net for size in sizes] + [(model.FULL, masked)]
        part = 0.1 * rounds / smaller.CALLS
        times = smaller.times(nets, data, _scale(tick, part))
    return sizes, times


def _scale(tick: Callable[[float], None], factor: float) -> Tick:
    return lambda amount: tick(factor * amount)
