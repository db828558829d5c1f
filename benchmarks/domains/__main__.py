"""The experiments on real data: `python -m benchmarks.domains NAME --data FOLDER`.

Every finished run is kept, so the command can be stopped at any time and goes on where
it was; `--budget` stops it by itself. Verdicts are made from the runs that are there
and say how many seeds they rest on. Protocol and results are in the README of each
folder.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from benchmarks.common.lines import Lines
from benchmarks.common.measure import RESULTS, commit, place
from benchmarks.domains.common import page
from benchmarks.domains.common.experiment import FEWEST, Case, Experiment

NAMES = page.NAMES
PLACE = RESULTS / "domains"
STOPPED = 130  # as shells have it for Ctrl-C


def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.domains", description=__doc__.splitlines()[0]
    )
    made.add_argument("name", choices=NAMES, help="of the experiment")
    made.add_argument("--data", type=Path, help="folder of the data sets")
    made.add_argument("--seeds", type=int, help="default: as the README says")
    made.add_argument("--budget", type=float, metavar="MINUTES", help="stop after them")
    made.add_argument("--small", action="store_true", help="a trial of seconds a run")
    made.add_argument("--out", type=Path, help="folder; default: benchmarks/results")
    made.add_argument(
        "--report", action="store_true", help="of the runs that are there"
    )
    args = made.parse_args(given)
    if args.small and args.out is None:
        made.error("expected --out with --small: the numbers of trials are not results")
    if args.seeds is not None and args.seeds < 1:
        made.error(f"expected at least 1 seed, got {args.seeds}")
    if not args.report and args.data is None:
        made.error("expected --data, the folder of the data sets, got none")
    return args


def planned(experiment: Experiment, seeds: int) -> list[tuple[Case, int]]:
    """All runs: case by case as many seeds as a verdict needs, then the other seeds."""
    some = min(seeds, FEWEST)
    return [
        (case, seed)
        for part in (range(some), range(some, seeds))
        for case in experiment.cases
        for seed in part
    ]


def work(experiment: Experiment, args: Any, store: Lines, console: Console) -> None:
    """Makes the runs that are not there yet, until the time is used up."""
    wanted = planned(experiment, args.seeds or experiment.seeds)
    missing = [run for run in wanted if (*run[0], run[1]) not in store]
    if not missing:
        return
    began, spent = time.perf_counter(), [line["seconds"] for line in store.runs]
    end = began + 60 * args.budget if args.budget else float("inf")
    # Of the program that was loaded, whatever happens to its files from now on.
    origin = {"commit": commit() or "unknown", "place": place()}
    bench = experiment.bench(args.data, args.small)
    with _progress(console) as bar:
        task = bar.add_task("", total=len(wanted), completed=len(wanted) - len(missing))
        for number, (case, seed) in enumerate(missing):
            usual = statistics.median(spent) if spent else 0.0
            left = f"{usual * (len(missing) - number) / 60:.0f} minutes left"
            told = f"{case.method}, {case.density:g}, seed {seed} ({left})"
            bar.update(task, description=told)
            if spent and time.perf_counter() + usual > end:
                console.print("out of time; the same command goes on from here")
                return
            started = time.perf_counter()
            earlier = {
                Case(line["method"], line["density"]): line
                for line in store.runs
                if line["seed"] == seed
            }
            found = bench(case, seed, earlier)
            spent.append(round(time.perf_counter() - started, 1))
            which = case._asdict() | {"seed": seed}
            store.add(which | found | {"seconds": spent[-1]} | origin)
            bar.advance(task)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<60}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def main(given: Sequence[str] | None = None) -> None:
    """Runs what is missing, then writes JSON, picture and README."""
    args, console = parsed(given), Console(width=110)
    experiment = load(args.name)
    out = args.out or PLACE
    store = Lines(
        out / f"{experiment.name}.jsonl",
        ("method", "density", "seed"),
        {"small": args.small, "protocol": experiment.protocol},
    )
    stopped = False
    if not args.report:
        try:
            work(experiment, args, store, console)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on from here")
            stopped = True
    if not store.runs:
        raise SystemExit(
            f"expected runs in {store.path}, got none; run without --report"
        )
    report = page.write_report(experiment, store, out)
    console.print(Markdown(page.summary(report)))
    console.print(f"written: {out / experiment.name}.json, .png", soft_wrap=True)
    if args.out is None:
        page.publish(report)
    if stopped:
        raise SystemExit(STOPPED)


def load(name: str) -> Experiment:
    """An experiment by name."""
    made: Experiment = importlib.import_module(
        f"benchmarks.domains.{name}.run"
    ).EXPERIMENT
    return made


if __name__ == "__main__":
    main()
