"""What an experiment tells the command, and the runs that it gets back.

A run is a method at a density with a seed. A seed fixes first weights and batches for
every method, so differences between methods are taken seed by seed.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common.stats import Verdict

Found = dict[str, Any]
FEWEST = 3  # paired seeds behind a verdict
DENSE = "dense"


class Case(NamedTuple):
    """A method at a density; 1 where nothing is pruned."""

    method: str
    density: float = 1.0


class Metric(NamedTuple):
    """A number that a run is judged by.

    Attributes:
      label: in tables, with its unit.
      higher: whether more is better.
      digits: behind the point.
    """

    label: str
    higher: bool = True
    digits: int = 2


Earlier = Mapping[Case, Found]
Bench = Callable[[Case, int, Earlier], Found]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One domain.

    Attributes:
      name: of its folder.
      title: for tables.
      claim: its number among the claims, such as "C7".
      cases: methods and densities, in the order in which they are run.
      metrics: by name; the first decides.
      bench: `(data, small)` to what makes a run, `(case, seed, earlier)` to its metrics
        by name and whatever else its own tables show; `earlier` are the runs with this
        seed that are there. `small` is a trial of seconds.
      judge: from the runs to verdicts.
      protocol: number of the protocol; runs of another do not count.
      seeds: how many, unless the command says otherwise.
      over: what standard deviations in tables are over.
      tables: further tables, as markdown.
      draw: a picture of its own, `(runs, path)`; None draws the first metric.
      caption: of the picture.
    """

    name: str
    title: str
    claim: str
    cases: tuple[Case, ...]
    metrics: Mapping[str, Metric]
    bench: Callable[[Path, bool], Bench]
    judge: Callable[["Runs"], Sequence[Verdict]]
    protocol: int = 1
    seeds: int = 3
    over: str = "seeds"
    tables: Callable[["Runs"], str] = lambda runs: ""
    draw: Callable[["Runs", Path], None] | None = None
    caption: str = ""

    @property
    def first(self) -> str:
        """The metric that decides."""
        return next(iter(self.metrics))

    @property
    def densities(self) -> tuple[float, ...]:
        """Of pruned cases, in order."""
        return tuple(dict.fromkeys(c.density for c in self.cases if c.density < 1))

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods, in order."""
        return tuple(dict.fromkeys(case.method for case in self.cases))


def grid(methods: Iterable[str], densities: Iterable[float]) -> tuple[Case, ...]:
    """The dense net, then density by density all methods."""
    methods = tuple(methods)
    pruned = (Case(m, d) for d in densities for m in methods)
    return (Case(DENSE), *pruned)


class Runs:
    """The runs that are there, read by case."""

    def __init__(self, lines: Iterable[Found], metrics: Mapping[str, Metric]) -> None:
        self.metrics = metrics
        self._by_case: dict[Case, dict[int, Found]] = {}
        for line in lines:
            case = Case(line["method"], line["density"])
            self._by_case.setdefault(case, {})[line["seed"]] = line

    def __len__(self) -> int:
        return sum(map(len, self._by_case.values()))

    @property
    def lines(self) -> list[Found]:
        """All runs."""
        return [line for case in self._by_case.values() for line in case.values()]

    def of(self, method: str, density: float = 1.0) -> dict[int, Found]:
        """The runs of a case, by seed."""
        return self._by_case.get(Case(method, density), {})

    def values(self, what: str, method: str, density: float = 1.0) -> np.ndarray:
        """A number of each run of a case, seeds in order; NaN where it has none."""
        found = self.of(method, density)
        return np.array([_number(found[seed], what) for seed in sorted(found)])

    def paired(
        self, what: str, one: Case, other: Case
    ) -> tuple[np.ndarray, np.ndarray]:
        """A number of two cases at the seeds that both have."""
        left, right = self.of(*one), self.of(*other)
        both = sorted(set(left) & set(right))
        pairs = [[_number(of[s], what) for s in both] for of in (left, right)]
        return np.array(pairs[0]), np.array(pairs[1])


def _number(line: Found, what: str) -> float:
    """`code.entropy` is the entry `entropy` of the entry `code`."""
    value: Any = line
    for name in what.split("."):
        value = None if value is None else value.get(name)
    return math.nan if value is None else float(value)
