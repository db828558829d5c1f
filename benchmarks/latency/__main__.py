"""Latency: dense, masked and shrunk models, against what the operations promise.

    python -m benchmarks.latency [--small] [--models mlp "gpt decode" ...]
                                 [--rounds N] [--out FOLDER] [--redraw]

Units of every free group are cut to densities .75, .5 and .25 (`cut.py`), `bb.shrink`
makes the arrays smaller, and the jitted forward pass is timed at batch 1 and at a large
batch beside the dense and the masked one (`measure.py`). Products alone and widths side
by side say where the rest goes (`products.py`). Takes 9 minutes on 2 CPU cores;
`--small` takes half a minute on toy sizes, whose times say nothing. Writes latency.json
(on an accelerator latency_<backend>.json) and the results of README.md, unless other
processes took part of the cores (`quiet.py`).
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.claims.common.report import finish
from benchmarks.common import RESULTS
from benchmarks.latency import measure, models, page, products, quiet


def run(names: list[str], size: str, rounds: int, console: Console) -> dict[str, Any]:
    """Everything that is measured."""
    rows, alone = {}, {}
    for task in models.tasks(names, size):
        console.print(f"{task.name} ...")
        rows[task.name] = measure.row(task, rounds)
        found = products.of_models(task, rounds)
        alone[task.name] = products.explained(rows[task.name]["large"], found)
    return {
        "models": rows,
        "products": alone,
        "widths": products.widths(rounds, size == "small"),
    }


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--small", action="store_true", help="toy sizes, 2 rounds")
    choices = models.MODELS
    parser.add_argument("--models", nargs="+", choices=choices, default=list(choices))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path, help="folder; default: benchmarks/results")
    parser.add_argument(
        "--redraw", action="store_true", help="README from the JSON that is there"
    )
    args = parser.parse_args(given)
    if args.small and args.out is None and not args.redraw:
        parser.error("expected --out with --small: its numbers are not results")
    return args


def main(given: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    args = arguments(given)
    if args.redraw:
        page.PAGE.publish()
        return
    console, began, start = Console(width=120), time.perf_counter(), quiet.mark()
    on_cpu = jax.default_backend() == "cpu"
    size = "small" if args.small else "cpu" if on_cpu else "accelerator"
    rounds = args.rounds or (2 if args.small else 31)
    report = {
        "command": "python -m benchmarks.latency" + " --small" * args.small,
        "small": args.small,
        "rounds": rounds,
        "goal": measure.GOAL,
    } | run(args.models, size, rounds, console)
    report["others"] = quiet.others(start, quiet.mark())
    place = args.out or RESULTS
    publish = args.out is None and set(args.models) == set(models.MODELS)
    if args.out is None and not (publish and quiet.undisturbed(report["others"])):
        publish, place = False, Path("latency-unpublished")
        console.print(f"not published: expected all models, and {quiet.so(report)}")
    name = page.PAGE.file_name(jax.default_backend())
    report = finish(name, report, began, place)
    console.print(Markdown(page.results(report)))
    console.print(f"written: {place / name}.json")
    if publish:
        page.PAGE.publish()


if __name__ == "__main__":
    main()
