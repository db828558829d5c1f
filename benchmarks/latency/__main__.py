"""Latency: dense, masked and shrunk models, against what the operations promise.

    python -m benchmarks.latency [--small] [--models mlp "gpt decode" ...]
                                 [--rounds N] [--out FOLDER] [--redraw]

Units of every free group are cut to densities .75, .5 and .25 (`cut.py`), `bb.shrink`
makes the arrays smaller, and the jitted forward pass is timed at batch 1 and at a large
batch beside the dense and the masked one (`measure.py`). Products alone and widths side
by side say where the rest goes (`products.py`). Takes 9 minutes on 2 CPU cores;
`--small` takes half a minute on toy sizes, whose times say nothing. Writes latency.json
(on an accelerator latency_<backend>.json) and the results of README.md, unless other
processes took part of the cores (`benchmarks/common/quiet.py`).
"""

from typing import Any

from rich.console import Console

from benchmarks.common import command
from benchmarks.latency import measure, models, page, products


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


def main(given: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = command.parser("latency", __doc__)
    choices = models.MODELS
    parser.add_argument("--models", nargs="+", choices=choices, default=list(choices))
    args = command.parsed(parser, given)
    if args.redraw:
        page.PAGE.publish()
        return
    watch = command.Watch(page.PAGE, args)
    found = run(args.models, command.size(args), args.rounds, watch.console)
    whole = set(args.models) == set(models.MODELS)
    watch.finish({"goal": measure.GOAL} | found, whole=whole)


if __name__ == "__main__":
    main()
