"""Command line of the demo: `python -m bbjax.demo --help`.

Everything a user can get wrong is checked before the first step of training: values
out of range, a folder that cannot be written, packages that are missing. Each ends in
one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

EXTRAS = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bbjax.demo: error: {message}\n")


def _density(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"expected a number in (0, 1], got {text!r}; pass the share of edges to "
            "keep, e.g. 0.05"
        )
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(
            f"expected an integer >= 1, got {text!r}; e.g. 5"
        )
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = _Parser(
        prog="python -m bbjax.demo",
        description="Train small convolutional nets on scikit-learn's digits: dense, "
        "and pruned to the same exact density by magnitude, by activity alone and by "
        "Budgeted Broadcast. Prints one table; writes it and five pictures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument(
        "--density",
        type=_density,
        default=0.05,
        help="kept share of the edges of every budgeted kernel, in (0, 1]",
    )
    made.add_argument(
        "--seeds", type=_count, default=5, help="number of seeds, at least 1"
    )
    made.add_argument(
        "--steps", type=_count, default=600, help="training steps, at least 1"
    )
    made.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="folder to write"
    )
    return made


def _missing() -> list[str]:
    """Distributions that the demo needs and that are not installed."""
    return [
        name
        for module, name in EXTRAS.items()
        if importlib.util.find_spec(module) is None
    ]


def _make_folder(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo.

    Args:
        argv: arguments; those of the process if None.

    Returns:
        Exit code 0. Errors exit with code 2 and one line.
    """
    line = parser()
    args = line.parse_args(argv)
    if missing := _missing():
        line.error(
            f"expected the packages of the demo, {', '.join(missing)} is missing; pip "
            "install 'bbjax[demo]'"
        )
    try:
        _make_folder(args.out)
    except OSError as error:
        line.error(
            f"argument --out: expected a folder that can be written, got "
            f"{str(args.out)!r} ({error.strerror}); pass another"
        )
    # After the checks: it needs the packages.
    from bbjax.demo.run import run

    run(args.density, args.seeds, args.steps, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
