"""What is run, in which order: the main contenders on all tasks, then the rest."""

import itertools
import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.rules import data
from benchmarks.rules.data import Task
from benchmarks.rules.methods import FACTOR_METHODS, MAIN, METHODS
from benchmarks.rules.speech import speech
from benchmarks.rules.store import Job
from benchmarks.rules.text import text

STEPS = 1000
DENSE = "dense"
TASKS: dict[str, Callable[[Path], Task]] = {
    "digits": lambda folder: data.digits(),
    "mnist": data.mnist,
    "longtail": data.longtail,
    "speech": speech,
    "text": text,
}
DENSITIES = {
    "digits": data.SMALL,
    "mnist": data.WIDE,
    "longtail": data.WIDE,
    "speech": data.WIDE,
    "text": data.SMALL,
}
NO_FILES = ("digits",)

FACTOR_TASKS = ("digits", "longtail", "speech")
FACTOR_K_MIN, FACTOR_STEPS = (0, 1), (1000, 3000)
FACTOR_DENSITIES = {0: (0.1, 0.03, 0.01), 1: (0.1, 0.03)}


def possible(wanted: list[str] | None, folder: Path | None) -> tuple[str, ...]:
    """The tasks that are asked for and can run."""
    if wanted is None:
        return tuple(TASKS) if folder is not None else NO_FILES
    if folder is None and (lacking := [t for t in wanted if t not in NO_FILES]):
        raise SystemExit(
            f"expected --data for {', '.join(lacking)}, got none; pass the folder that "
            "holds mnist/, fsdd/ and text_lm/"
        )
    return tuple(wanted)


def jobs(args: Namespace) -> list[Job]:
    """All that is asked for, whether it is there or not, in order."""
    made = list(_factors(args) if args.factors else _main(args))
    if not made:
        raise SystemExit(
            f"expected --only to match a method, got {args.only!r}; the methods are: "
            f"{', '.join(METHODS)}"
        )
    return made


def ordered() -> list[str]:
    """Methods, the main ones first."""
    return [*MAIN, *(name for name in METHODS if name not in MAIN)]


def _main(args: Namespace) -> Iterator[Job]:
    seeds = tuple(range(args.seeds))
    names = [name for name in ordered() if re.search(args.only, name)]
    for name, task in itertools.product(names, args.tasks):
        densities = tuple(args.densities or DENSITIES[task])
        # A method that prunes once needs the dense net, which is told beside it.
        if name == names[0]:
            yield Job(task, DENSE, 0, args.steps, (1.0,), seeds)
        yield Job(task, name, args.k_min, args.steps, densities, seeds)


def _factors(args: Namespace) -> Iterator[Job]:
    seeds = tuple(range(args.seeds))
    names = [name for name in FACTOR_METHODS if re.search(args.only, name)]
    tasks = [task for task in FACTOR_TASKS if task in args.tasks]
    settings = itertools.product(FACTOR_STEPS, FACTOR_K_MIN)
    for (steps, k_min), name, task in itertools.product(settings, names, tasks):
        wanted = args.densities or FACTOR_DENSITIES[k_min]
        yield Job(task, name, k_min, steps, tuple(wanted), seeds)
