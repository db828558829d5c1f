"""One-shot pruning of a pretrained language model: `python -m benchmarks.language`.

    python -m benchmarks.language --data FOLDER [--model FOLDER] [--only PATTERN]
                                  [--draws N] [--densities D ...] [--scopes ffn all]

Every cell (method, scope, density, draw) is a file, written as soon as it is measured,
so the command can be stopped at any time, and goes on where it was. `--report` writes
tables from the cells that are there. See `README.md` for the protocol.
"""

import argparse
import re
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from benchmarks.common.measure import RESULTS
from benchmarks.common.text import finish
from benchmarks.language import page, picture, text, weights
from benchmarks.language.bench import Bench
from benchmarks.language.methods import DENSE, METHODS, SCOPES
from benchmarks.language.store import Cell, Store

DENSITIES = ("0.5", "0.3", "0.7", "0.6", "0.4", "2:4")
LAYERS = 30  # all of them
STOPPED = 130  # as shells have it for Ctrl-C


def cells(args: Any) -> list[Cell]:
    """All that is asked for: every method of a draw before the next draw."""
    names = [name for name in METHODS if re.search(args.only, name)]
    dense = bool(re.search(args.only, DENSE))
    if not names and not dense:
        raise SystemExit(
            f"expected --only to match a method, got {args.only!r}; the methods are: "
            f"{', '.join([DENSE, *METHODS])}"
        )
    at = {"windows": args.windows, "layers": args.layers}
    # What is pruned is told beside the dense model.
    made = [Cell(DENSE, "none", 1.0, 0, sequences=0, **at)]
    for draw in range(args.draws):
        for scope in args.scopes:
            for density, pattern in map(share, args.densities):
                for name in names:
                    reads = METHODS[name].reads_data
                    drawn, sequences = (draw, args.sequences) if reads else (0, 0)
                    cell = Cell(
                        name, scope, density, drawn, sequences=sequences,
                        pattern=pattern, **at,
                    )  # fmt: skip
                    if cell not in made and not (pattern and METHODS[name].by_density):
                        made.append(cell)
    return made


def share(given: str) -> tuple[float, str]:
    """A density and a pattern: `"0.5"` is .5 and none, `"2:4"` is .5 and itself.

    Raises:
      ValueError: neither a number in (0, 1] nor `"N:M"`.
    """
    kept, _, group = given.partition(":")
    density = int(kept) / int(group) if group else float(given)
    if not 0 < density <= 1:
        raise ValueError(f"expected a density in (0, 1] or N:M, got {given!r}")
    return density, given if group else ""


def work(
    left: list[Cell], known: int, bench: Bench, store: Store, console: Any
) -> None:
    """Measures what is missing."""
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        line = bar.add_task("", total=known + len(left))
        bar.advance(line, known)
        for cell in left:
            about = f"{cell.method}, {cell.scope}, {cell.kept}, draw {cell.draw}"
            bar.update(line, description=about)
            started = time.perf_counter()
            found = bench.run(cell)
            store.add(cell, found)
            took = time.perf_counter() - started
            bar.advance(line)
            value = found["perplexities"]["all"]["perplexity"]
            bar.print(f"{about:55} perplexity {value:10.2f} {took:6.1f} s")


def bench_of(args: Any) -> Bench:
    """The model and its text."""
    loaded = weights.load(args.model, args.layers)
    test = text.read(args.data, "test", loaded.tokenizer)
    valid = text.read(args.data, "valid", loaded.tokenizer)
    windows = text.windows(test, args.windows)
    about = weights.versions(args.model)
    return Bench(loaded.config, loaded.params, windows, valid, args.sequences, about)


def parsed(given: list[str] | None = None) -> Any:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.language", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder with text_lm/")
    add("--model", type=Path, help="folder of `pip install --target`, if one was used")
    add("--only", default="", help="pattern of method names")
    add("--draws", type=int, default=5, help="of calibration data")
    add("--densities", nargs="+", default=list(DENSITIES), help="or N:M")
    add("--scopes", nargs="+", choices=list(SCOPES), default=list(SCOPES))
    add("--windows", type=int, default=32, help="of 512 tokens, to measure on")
    add("--sequences", type=int, default=16, help="of 512 tokens, to calibrate on")
    add("--layers", type=int, default=LAYERS, help="only the first, for a trial")
    add("--report", action="store_true", help="tables from what is there, no runs")
    add("--out", type=Path, default=RESULTS)
    args = parser.parse_args(given)
    for each in args.densities:
        try:
            share(each)
        except (ValueError, ZeroDivisionError) as error:
            parser.error(f"--densities: {error}")
    if not args.report and args.data is None:
        parser.error("expected --data, the folder that holds text_lm/")
    if args.layers != LAYERS and args.out == RESULTS:
        parser.error("expected --out with --layers: its numbers are not results")
    return args


def main(given: list[str] | None = None) -> None:
    """Measures what is missing and writes what is there."""
    args, console = parsed(given), Console()
    began, store = time.perf_counter(), Store(args.out / "language")
    if not args.report:
        wanted = cells(args)
        left = [cell for cell in wanted if cell not in store.cells]
        try:
            if left:
                known = len(wanted) - len(left)
                with console.status("reading weights and text"):
                    bench = bench_of(args)
                work(left, known, bench, store, console)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on from here")
            raise SystemExit(STOPPED) from None
    report = finish("language", page.report(store), began, args.out)
    console.print(Markdown(page.results(report)))
    picture.draw(report, args.out / "language.png")
    if args.out == RESULTS:
        page.PAGE.publish()


if __name__ == "__main__":
    main()
