"""What commands that time models and keep a page of results have in common."""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.common import quiet
from benchmarks.common.measure import RESULTS
from benchmarks.common.page import Page
from benchmarks.common.text import finish

ROUNDS = 31


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """Options that all of them have.

    Args:
      name: of the package in `benchmarks`.
      doc: of its command.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc.splitlines()[0]
    )
    made.add_argument("--small", action="store_true", help="toy sizes, 2 rounds")
    made.add_argument("--rounds", type=int)
    made.add_argument("--out", type=Path, help="folder; default: benchmarks/results")
    made.add_argument(
        "--redraw", action="store_true", help="README from the JSON that is there"
    )
    return made


def parsed(made: argparse.ArgumentParser, given: list[str] | None) -> Any:
    """The command line; numbers of toy sizes are no results."""
    args = made.parse_args(given)
    if args.small and args.out is None and not args.redraw:
        made.error("expected --out with --small: its numbers are not results")
    args.rounds = args.rounds or (2 if args.small else ROUNDS)
    return args


def size(args: Any) -> str:
    """Which sizes are for this machine."""
    on_cpu = jax.default_backend() == "cpu"
    return "small" if args.small else "cpu" if on_cpu else "accelerator"


class Watch:
    """Begins with the measuring, and writes down what was measured."""

    def __init__(self, page: Page, args: Any) -> None:
        self.page, self.args = page, args
        self.console = Console(width=120)
        self.began, self.start = time.perf_counter(), quiet.mark()

    def finish(self, report: dict[str, Any], *, whole: bool = True) -> None:
        """Prints and writes; into the README what is whole and was not disturbed.

        Args:
          report: what was measured.
          whole: whether all was.
        """
        given, name = self.args, self.page.file_name(jax.default_backend())
        head = {
            "command": f"python -m benchmarks.{self.page.name}"
            + " --small" * given.small,
            "small": given.small,
            "rounds": given.rounds,
            "others": quiet.others(self.start, quiet.mark()),
        }
        publish, place = given.out is None, given.out or RESULTS
        if publish and not (whole and quiet.undisturbed(head["others"])):
            publish, place = False, Path(f"{self.page.name}-unpublished")
            self.console.print(
                f"not published: expected everything, and others to take at most "
                f"{quiet.MOST:.0%} of the cores, got {head['others'] or 0:.1%}"
            )
        report = finish(name, head | report, self.began, place)
        self.console.print(Markdown(self.page.results(report)))
        self.console.print(f"written: {place / name}.json")
        if publish:
            self.page.publish()
