"""All rules on five tasks: `python -m benchmarks.rules --data FOLDER`.

Every run is kept as soon as its method is done, so the command can be stopped at any
time, and goes on where it was. The main contenders come first, on all tasks. `--report`
makes tables and picture from the runs that are there. See `README.md` for the protocol.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from benchmarks.common.measure import RESULTS, commit
from benchmarks.rules import page, plan
from benchmarks.rules.methods import METHODS
from benchmarks.rules.plan import DENSE, TASKS
from benchmarks.rules.store import Job, Store, as_runs
from benchmarks.rules.train import Bench

STOPPED = 130  # as shells have it for Ctrl-C


class Runner:
    """Does jobs that are not there yet, and keeps what comes out."""

    def __init__(self, store: Store, data: Path | None) -> None:
        self.store, self.data, self.commit = store, data, commit()
        self.bench = functools.cache(lambda task: Bench(TASKS[task](self.data)))

    def do(self, job: Job) -> None:
        """Computes a job, all its runs in one program."""
        started = time.perf_counter()
        bench, at = self.bench(job.task), {"steps": job.steps, "k_min": job.k_min}
        if job.method == DENSE:
            found = bench.dense(job.seeds, job.steps)[1]
            found = {name: np.asarray(v)[None] for name, v in found.items()}
            found["kept"] = np.ones((1, len(job.seeds)))
        else:
            method = METHODS[job.method]
            found = bench.run(method, job.densities, job.seeds, **at)
        seconds = time.perf_counter() - started
        self.store.add(as_runs(job, found, seconds, self.commit))


def work(jobs: list[Job], runner: Runner, console: Console) -> None:
    """Does what is missing of all jobs, in their order."""
    left = [part for job in jobs for part in runner.store.missing(job)]
    known = sum(job.runs for job in jobs)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        line = bar.add_task("", total=known)
        bar.advance(line, known - sum(job.runs for job in left))
        for job in left:
            bar.update(line, description=f"{job.task}: {job.method}")
            started = time.perf_counter()
            runner.do(job)
            took = time.perf_counter() - started
            bar.advance(line, job.runs)
            bar.print(f"{job.task:9} {job.method:45} {took:6.1f} s, {job.runs} runs")


def parsed() -> Any:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, help="folder with mnist/, fsdd/ and text_lm/")
    add("--tasks", nargs="+", choices=list(TASKS), help="default: all that can run")
    add("--only", default="", help="pattern of method names")
    add("--seeds", type=int, default=12)
    add("--steps", type=int, default=plan.STEPS)
    add("--k-min", type=int, default=1, help="least number of edges of a unit")
    add("--densities", type=float, nargs="+", help="default: those of each task")
    add("--factors", action="store_true", help="other floors and lengths of training")
    add("--fresh", metavar="PATTERN", help="drop the runs of these methods first")
    add("--report", action="store_true", help="tables from what is there, no runs")
    add("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not args.report:
        args.tasks = plan.possible(args.tasks, args.data)
    return args


def main() -> None:
    """Runs what is missing and writes what is there."""
    args, console = parsed(), Console()
    store = Store(args.out / "rules")
    if args.fresh is not None and not args.report:
        gone = store.drop(args.fresh, args.tasks)
        console.print(f"{gone} runs dropped")
    if not args.report:
        jobs = plan.jobs(args)
        try:
            work(jobs, Runner(store, args.data), console)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on from here")
            raise SystemExit(STOPPED) from None
    page.publish(store, args, console)


if __name__ == "__main__":
    main()
