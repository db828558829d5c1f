"""The run: compile, train all methods together, sweep the density, write the folder.

results.json           the table, per-seed values, settings, versions, machine
activity_degree.png    on-rate against degree, with the fitted balance line
degrees.png            degrees per layer, from both ends
accuracy_density.png   test accuracy against density
churn.png              edges flipped at each refresh
overview.png           one panel of each
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

import bbjax as bb
from bbjax.demo import model, pictures, tables
from bbjax.demo.data import BATCH, HELD_OUT, Data, load
from bbjax.demo.methods import METHODS, Timing, least_degree
from bbjax.demo.outcome import Outcome, measure
from bbjax.demo.train import EMA, LEARNING_RATE, Step, Trainer, together

SWEEP = (0.3, 0.1, 0.05, 0.035)
SWEPT = ("magnitude", "activity_only", "bb_in", "bb_out")
SWEEP_SEEDS = 3


def run(density: float, seeds: int, steps: int, out: Path) -> dict[str, Any]:
    """Runs the demo; prints the table and writes the folder.

    Args:
        density: kept share of the edges of every budgeted kernel.
        seeds: number of seeds, from 0.
        steps: training steps of each.
        out: folder to write, which exists.

    Returns:
        What stands in `results.json`.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    data, units, timing = load(), model.trace(), Timing(steps)
    k_min = least_degree(units, density)
    console = Console()
    with _progress(console) as progress:
        compiled = _compile(progress, units, timing, k_min, data)
        main = _main(progress, compiled, density, seeds, units, data)
        sweep = _sweep(progress, compiled, density, seeds, units, data)
        task = progress.add_task("draw", total=1)
        pictures.draw_all(main, sweep, units, timing, out)
        progress.advance(task)
    settings = {
        "density": density,
        "seeds": seeds,
        "steps": steps,
        "sweep_seeds": min(seeds, SWEEP_SEEDS),
        "k_min": k_min,
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
    }
    seconds = {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
    }
    result = tables.report(main, sweep, timing, settings, seconds)
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    _say(console, result, out)
    return result


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _compile(
    progress: Progress, units: bb.Units, timing: Timing, k_min: int, data: Data
) -> dict[str, Step]:
    task = progress.add_task("compile", total=len(METHODS))
    steps = {}
    for method in METHODS:
        steps[method.key] = Step(method, units, timing, k_min, data)
        progress.advance(task)
    return steps


def _main(
    progress: Progress,
    compiled: dict[str, Step],
    density: float,
    seeds: int,
    units: bb.Units,
    data: Data,
) -> list[Outcome]:
    """All methods at the density asked for, taking turns."""
    trainers = [Trainer(step, density, seeds, data) for step in compiled.values()]
    steps = compiled["dense"].timing.steps
    task = progress.add_task(f"train {len(trainers)} methods", total=steps)
    share = 1 / len(trainers)
    together(trainers, steps, lambda: progress.advance(task, share))
    progress.update(task, completed=steps)
    return [measure(trainer, units, data) for trainer in trainers]


def _sweep(
    progress: Progress,
    compiled: dict[str, Step],
    density: float,
    seeds: int,
    units: bb.Units,
    data: Data,
) -> list[Outcome]:
    """Some methods at further densities, with fewer seeds."""
    steps = compiled["dense"].timing.steps
    densities = [d for d in SWEEP if not 0.75 < d / density < 1.33]  # a new point
    task = progress.add_task(f"train {len(densities)} densities", total=0)
    progress.update(task, total=len(densities) * len(SWEPT) * steps)
    found = []
    for other in densities:
        trainers = [
            Trainer(compiled[key], other, min(seeds, SWEEP_SEEDS), data)
            for key in SWEPT
        ]
        together(trainers, steps, lambda: progress.advance(task))
        found += [measure(trainer, units, data) for trainer in trainers]
    return found


def _say(console: Console, result: dict[str, Any], out: Path) -> None:
    seconds = result["seconds"]
    console.print(tables.table(result))
    console.print(result["conclusion"], highlight=False)
    console.print(
        f"{seconds['wall']:.0f} s ({seconds['cpu']:.0f} s of CPU time, "
        f"{os.cpu_count()} cores, {jax.devices()[0].device_kind}); the table and the "
        f"pictures are in {out}{os.sep}",
        highlight=False,
        soft_wrap=True,
    )
