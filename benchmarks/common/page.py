"""The results part of a benchmark's README, made from saved JSON alone."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.measure import RESULTS
from benchmarks.common.text import put_in

Report = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Page:
    """A README and what it is made from.

    Attributes:
      path: the README.
      name: of the JSON files; other backends than the CPU have one of their own, so
        that a device does not overwrite another's numbers.
      results: the text for one report.
    """

    path: Path
    name: str
    results: Callable[[Report], str]

    def file_name(self, backend: str) -> str:
        """Where a run leaves its numbers, without `.json`."""
        return self.name if backend == "cpu" else f"{self.name}_{backend}"

    def saved(self, place: Path = RESULTS) -> list[Report]:
        """The reports that are there."""
        names = (self.file_name(backend) for backend in ("cpu", "gpu", "tpu"))
        paths = [place / f"{name}.json" for name in names]
        return [json.loads(path.read_text()) for path in paths if path.exists()]

    def publish(self) -> None:
        """Writes what the saved reports say into the README."""
        if found := self.saved():
            part = "\n\n".join(self.results(report) for report in found)
            self.path.write_text(put_in(self.path.read_text(), part))


def origin(report: Report, dtype: str) -> str:
    """Where the numbers of a report come from."""
    machine, others = report["machine"], report["others"]
    place = machine["cpu"] if machine["backend"] == "cpu" else machine["device"]
    share = "an unknown share" if others is None else f"{100 * others:.1f} %"
    return (
        f"`{report['command']}`: {place}, {machine['cores']} cores, backend "
        f"{machine['backend']}, jax {machine['jax']}, {dtype}, {report['rounds']} "
        f"rounds, {report['seconds'] / 60:.1f} minutes, in which other processes took "
        f"{share} of the cores ([JSON](../results/{report['name']}.json))."
    )


def middle(found: dict[str, float], digits: int = 2) -> str:
    """A median with its quartiles."""
    low, high = (f"{found[k]:.{digits}f}" for k in ("low", "high"))
    return f"{found['median']:.{digits}f} ({low}–{high})"
