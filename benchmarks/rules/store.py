"""One line for every run, so that a benchmark can be stopped and taken up again.

A run is one task, method, setting, density and seed. The runs of a task lie in a file
of JSON lines, to which lines are only ever added. A line that was cut off, because the
process ended while it was written, is no run: it is left out, and done again.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Job(NamedTuple):
    """A method with its setting on a task, at all its densities and seeds."""

    task: str
    method: str
    k_min: int
    steps: int
    densities: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def runs(self) -> int:
        """How many runs that is."""
        return len(self.densities) * len(self.seeds)


class Key(NamedTuple):
    """What makes a run."""

    task: str
    method: str
    k_min: int
    steps: int
    density: float
    seed: int


class Run(NamedTuple):
    """A run and what came out.

    Attributes:
      metrics: by name; NaN where a run came to no number.
      kept: density got.
      seconds: its share of the time of the program that it ran in.
      commit: of the library, with a "+" if it was changed; None outside git.
    """

    key: Key
    metrics: dict[str, float]
    kept: float
    seconds: float
    commit: str | None

    def line(self) -> str:
        """The run as a line of JSON."""
        metrics = {k: v if math.isfinite(v) else None for k, v in self.metrics.items()}
        rest = self._asdict() | {"metrics": metrics}
        del rest["key"]
        return json.dumps(self.key._asdict() | rest)

    @classmethod
    def of(cls, line: str) -> "Run | None":
        """The run of a line, or None if the line is not whole."""
        try:
            found = json.loads(line)
            key = Key(*(found[name] for name in Key._fields))
            metrics = {
                name: math.nan if value is None else float(value)
                for name, value in found["metrics"].items()
            }
            return cls(key, metrics, *(found[n] for n in ("kept", "seconds", "commit")))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


class Store:
    """The runs in a folder, a file for each task."""

    def __init__(self, folder: Path) -> None:
        """Reads what is there."""
        self.folder = folder
        self.runs: dict[Key, Run] = {}
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_text().splitlines():
                if run := Run.of(line):
                    self.runs[run.key] = run

    def add(self, runs: Iterable[Run]) -> None:
        """Appends runs to the files of their tasks, and sees them on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for run in runs:
            path = self._path(run.key.task)
            whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
            with path.open("a") as file:
                file.write(("" if whole else "\n") + run.line() + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.runs[run.key] = run

    def drop(self, pattern: str, tasks: Iterable[str]) -> int:
        """Forgets the runs of methods that match; returns how many."""
        gone = [
            key
            for key in self.runs
            if key.task in set(tasks) and re.search(pattern, key.method)
        ]
        for key in gone:
            del self.runs[key]
        for task in {key.task for key in gone}:
            lines = [r.line() for r in self.runs.values() if r.key.task == task]
            # Beside the file, then in its place: an end in between loses nothing.
            new = self._path(task).with_suffix(".new")
            new.write_text("".join(line + "\n" for line in lines))
            new.replace(self._path(task))
        return len(gone)

    def missing(self, job: Job) -> list[Job]:
        """What of a job is not there, as jobs of full grids."""
        by_densities: dict[tuple[float, ...], list[int]] = {}
        for seed in job.seeds:
            lacking = tuple(
                density
                for density in job.densities
                if Key(*job[:4], density, seed) not in self.runs
            )
            if lacking:
                by_densities.setdefault(lacking, []).append(seed)
        return [
            job._replace(densities=densities, seeds=tuple(seeds))
            for densities, seeds in by_densities.items()
        ]

    def _path(self, task: str) -> Path:
        return self.folder / f"{task}.jsonl"


def as_runs(job: Job, found: Any, seconds: float, made_at: str | None) -> list[Run]:
    """The runs of a job from arrays (densities, seeds) by name."""
    share = round(seconds / job.runs, 3)
    names: Sequence[str] = [name for name in found if name != "kept"]
    return [
        Run(
            Key(*job[:4], density, seed),
            {name: round(float(found[name][d, s]), 5) for name in names},
            round(float(found["kept"][d, s]), 6),
            share,
            made_at,
        )
        for d, density in enumerate(job.densities)
        for s, seed in enumerate(job.seeds)
    ]
