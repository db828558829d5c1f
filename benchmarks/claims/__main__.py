"""Repeats claims: `python -m benchmarks.claims xor [--seeds N] [--small]`.

Each leaves JSON and a picture in `benchmarks/results/claims` and rewrites the results
of its README; `--small` is a quick trial and writes to a folder of its own.
"""

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.claims.common import report as reports
from benchmarks.common.text import finish

CLAIMS = tuple(reports.HEADLINES)


def main(given: list[str] | None = None) -> None:
    """Runs the claims that are named, one after another."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claims", description=__doc__.splitlines()[0]
    )
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help=", ".join(CLAIMS))
    parser.add_argument("--seeds", type=int, help="default: as the claim's README says")
    parser.add_argument("--small", action="store_true", help="a trial: few, short runs")
    parser.add_argument("--out", type=Path, help="folder; default: benchmarks/results")
    parser.add_argument(
        "--redraw", action="store_true", help="picture and README from the JSON there"
    )
    args = parser.parse_args(given)
    unknown = sorted(set(args.claims) - set(CLAIMS))
    if unknown:
        parser.error(f"expected claims out of {', '.join(CLAIMS)}, got {unknown}")
    if args.seeds is not None and args.seeds < 2:
        parser.error(f"expected at least 2 seeds, to have a spread, got {args.seeds}")
    console = Console(width=100)
    for name in args.claims or CLAIMS:
        if args.redraw:
            redraw(name, args.out)
            continue
        run(name, args.seeds, args.small, args.out, console)


def run(
    name: str, seeds: int | None, small: bool, out: Path | None, console: Console
) -> None:
    """Runs one claim and writes what came out."""
    claim = importlib.import_module(f"benchmarks.claims.{name}.run")
    publish = not small and seeds is None and out is None
    place = out or (Path("claims-small") if small else reports.PLACE)
    if not publish and out is None and not small:
        place = Path(f"claims-{seeds}-seeds")
    count = seeds or (2 if small else claim.SEEDS)
    started = time.perf_counter()
    console.rule(f"{name}, {count} seeds")
    report = claim.run(count, small)
    report |= {"seeds": count, "command": command(name, seeds, small)}
    report = finish(name, report, started, place)
    if publish:
        reports.publish(name, report)
    _draw(name, report, place)
    console.print(Markdown(reports.results(report)))
    console.print(f"written: {place / name}.json, .png")


def redraw(name: str, out: Path | None) -> None:
    """Draws a claim's picture, and writes its README, from its JSON."""
    place = out or reports.PLACE
    report = json.loads((place / f"{name}.json").read_text())
    _draw(name, report, place)
    if out is None:
        reports.publish(name, report)


def _draw(name: str, report: dict[str, Any], place: Path) -> None:
    picture = importlib.import_module(f"benchmarks.claims.{name}.picture")
    picture.draw(report, place / f"{name}.png")


def command(name: str, seeds: int | None, small: bool) -> str:
    """The command line that makes a report."""
    options = [f"--seeds {seeds}"] * (seeds is not None) + ["--small"] * small
    return " ".join([f"python -m benchmarks.claims {name}", *options])


if __name__ == "__main__":
    main()
