"""Folders of results, which are not written over unless that is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from bbjax.files import atomic

FOLDER = "demo-output"
# What a run writes, also what one of an earlier version wrote.
RESULTS = ("results.json", "overview.png")


def holds_results(folder: Path) -> bool:
    """Whether a run of the demo has written into a folder."""
    return any((folder / name).exists() for name in RESULTS)


def free_folder(first: Path = Path(FOLDER)) -> Path:
    """The first of a folder, the same with -2, with -3, ... without results in it.

    Example:
        >>> str(free_folder(Path("no-such-folder")))
        'no-such-folder'
    """
    later = (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))
    folders = itertools.chain([first], later)
    return next(folder for folder in folders if not holds_results(folder))


def write_results(folder: Path, files: Mapping[str, bytes], overwrite: bool) -> Path:
    """Writes the files of a run, beside those of a run that was faster.

    Args:
        folder: that was asked for, which exists.
        files: content by name.
        overwrite: whether the folder may hold results.

    Returns:
        The folder; the next free one if results have appeared in it meanwhile.
    """
    if not overwrite and holds_results(folder):
        folder = free_folder(folder)
        folder.mkdir(exist_ok=True)
    for name, content in files.items():
        atomic.write(folder / name, content)
    return folder
