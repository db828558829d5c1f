"""Whether the gain of Budgeted Broadcast under input noise is seen elsewhere.

    python -m benchmarks.corruptions --data FOLDER [--seeds 20]     # about half an hour

Trains two nets by nine methods on clean images and tests them on five corruptions, two
strengths each. Runs are kept in `corruptions.jsonl`, so that a stopped benchmark goes
on where it was. `--report` trains nothing. See README.md for protocol and results.
"""

import argparse
import importlib.metadata
import time
from collections import Counter
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
    TimeRemainingColumn,
)

import bbjax
from benchmarks.common.lines import Lines
from benchmarks.common.measure import RESULTS, commit, place
from benchmarks.common.text import finish
from benchmarks.corruptions import page, picture
from benchmarks.corruptions.judge import judged
from benchmarks.corruptions.methods import METHODS
from benchmarks.corruptions.nets import NETS
from benchmarks.corruptions.runs import Key, opened
from benchmarks.corruptions.train import DENSITY, Bench

NAME = "corruptions"
FIRST = 100  # seeds that nothing was looked at with
STEPS = 600


def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}", description=__doc__.splitlines()[0]
    )
    made.add_argument("--data", type=Path, help="folder of the MNIST files")
    made.add_argument("--seeds", type=int, default=20, help=f"from {FIRST} on")
    made.add_argument("--steps", type=int, default=STEPS)
    made.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    made.add_argument("--out", type=Path, help="folder; default: benchmarks/results")
    made.add_argument(
        "--report", action="store_true", help="of the runs that are there"
    )
    args = made.parse_args(given)
    if args.steps != STEPS and args.out is None:
        made.error("expected --out with --steps: the numbers of trials are not results")
    return args


def planned(nets: Sequence[str], seeds: int) -> list[Key]:
    """All runs, seeds outermost: stopped at any time, some seeds are whole."""
    return [
        (net, method, FIRST + seed)
        for seed in range(seeds)
        for net in nets
        for method in METHODS
    ]


def run(args: argparse.Namespace, store: Lines, console: Console) -> None:
    """Makes the runs that are not there yet."""
    missing = [k for k in planned(args.nets, args.seeds) if k not in store]
    if not missing:
        return
    # Of the program that was loaded, whatever happens to its files from now on.
    origin = {"commit": commit() or "unknown", "place": place()}
    benches: dict[str, Bench] = {}
    for net in sorted({net for net, _, _ in missing}):
        benches[net] = Bench(NETS[net], NETS[net].data(args.data), args.steps)
    with _progress(console) as progress:
        task = progress.add_task("", total=len(missing))
        for net, method, seed in missing:
            told = f"{net}, {METHODS[method].label}, seed {seed}"
            progress.update(task, description=told)
            found = benches[net].run(method, seed)
            which = {"net": net, "method": method, "seed": seed}
            store.add(which | found | origin)
            progress.advance(task)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<44}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def report(store: Lines) -> dict[str, Any]:
    """What goes into the JSON file, from the runs alone."""
    runs = store.runs
    names = ("scikit-learn", "scipy", "matplotlib")
    return {
        "command": f"python -m benchmarks.{NAME}",
        **store.settings,
        "commits": dict(Counter(run["commit"] for run in runs)),
        "places": sorted({run["place"] for run in runs}),
        "versions": {n: importlib.metadata.version(n) for n in names}
        | {"bbjax": bbjax.__version__},
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        "seconds_a_run": {
            net: round(sum(each) / len(each), 2)
            for net in NETS
            if (each := [run["seconds"] for run in runs if run["net"] == net])
        },
        **judged(runs),
    }


def main(given: Sequence[str] | None = None) -> None:
    """Runs what is missing, then writes JSON, picture and README."""
    args, started = parsed(given), time.perf_counter()
    console, out = Console(), args.out or RESULTS
    settings = {"steps": args.steps, "density": DENSITY}
    store = opened(out / f"{NAME}.jsonl", settings)
    if store.others:
        console.print(f"{store.others} runs of other settings are left out")
    if not args.report:
        run(args, store, console)
    found = report(store)
    if not found["nets"]:
        raise SystemExit(
            f"expected a seed with all {len(METHODS)} methods in {store.path}, got "
            "none; run the benchmark without --report"
        )
    written = finish(NAME, found, started, out)
    picture.draw(written, out / f"{NAME}.png")
    console.print(Markdown(page.summary(written)))
    console.print(f"written: {out / NAME}.json, .png", soft_wrap=True)
    if args.out is None:
        page.publish(written)


if __name__ == "__main__":
    main()
