"""The runs of this benchmark: a line for each net, method and seed."""

from pathlib import Path
from typing import Any

from benchmarks.common.lines import Lines
from benchmarks.corruptions.corrupt import CELLS, CLEAN

Key = tuple[str, str, int]


def opened(path: Path, settings: dict[str, Any]) -> Lines:
    """The runs in a file that have these settings and all corruptions."""
    return Lines(
        path,
        ("net", "method", "seed"),
        settings,
        lambda line: set(line["accuracy"]) == {CLEAN, *CELLS},
    )
