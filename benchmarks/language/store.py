"""Cells: a method at a density, scope and draw; a file for each, whole or absent."""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.measure import write


class Cell(NamedTuple):
    """What makes a result.

    Attributes:
      scope: "ffn" or "all"; "none" of the dense model.
      draw: seed of the calibration data; 0 where none are read.
      windows: what is measured on.
      sequences: of calibration; 0 where none are read.
      layers: of the model.
      pattern: "2:4", or "" where any edges may stay.
    """

    method: str
    scope: str
    density: float
    draw: int
    windows: int
    sequences: int
    layers: int
    pattern: str = ""

    @property
    def kept(self) -> str:
        """The density, or the pattern."""
        return self.pattern or f"{self.density:g}"

    @property
    def name(self) -> str:
        """Of its file; methods that differ have names that do."""
        method = re.sub("[^a-z0-9>]+", "-", self.method.lower()).replace(">", "gt")
        rest = f"{self.scope}_{self.kept.replace(':', '-')}_draw{self.draw}"
        return f"{method}_{rest}_w{self.windows}_s{self.sequences}_l{self.layers}.json"


class Store:
    """The cells in a folder."""

    def __init__(self, folder: Path) -> None:
        """Reads what is there."""
        self.folder = folder
        self.cells: dict[Cell, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.json")):
            found = json.loads(path.read_text())
            self.cells[Cell(**found["cell"])] = found

    def add(self, cell: Cell, found: dict[str, Any]) -> None:
        """Writes a cell beside its place, then moves it there."""
        path = self.folder / cell.name
        new = path.with_suffix(".new")
        write(new, {"cell": cell._asdict()} | found)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
        self.cells[cell] = json.loads(path.read_text())
