"""Runs kept one by one: a line of JSON for each.

A stopped benchmark goes on where it was. What was being written when it stopped is cut
off; a line that cannot be read anywhere else is an error, for it is no accident.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]
Key = tuple[Any, ...]


class Lines:
    """The runs in a file.

    Attributes:
      path: the file.
      names: the fields of a line that say which run it is.
      settings: what runs have to agree in; others stay in the file and do not count.
      others: how many do not count.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        settings: Mapping[str, Any],
        counts: Callable[[Line], bool] = lambda line: True,
    ) -> None:
        """Reads what is there.

        Args:
          path: the file, there or not.
          names: as the attribute.
          settings: as the attribute.
          counts: whether a line of these settings is a run.
        """
        self.path, self.names, self.settings = path, tuple(names), dict(settings)
        self._counts = counts
        self._runs: dict[Key, Line] = {}
        self.others = 0
        for line in read(path):
            self._take(line)

    def __contains__(self, key: Key) -> bool:
        return key in self._runs

    @property
    def runs(self) -> list[Line]:
        """The runs that count, in the order they were made."""
        return list(self._runs.values())

    def add(self, line: Line) -> None:
        """Writes a run behind the last whole line, and sees it on the disk."""
        line = line | self.settings
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _cut_off(self.path)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(line)

    def _take(self, line: Line) -> None:
        same = all(line.get(k) == v for k, v in self.settings.items())
        if not same or not self._counts(line):
            self.others += 1
            return
        self._runs.setdefault(tuple(line[name] for name in self.names), line)


def read(path: Path) -> list[Line]:
    """All lines but one that was cut off."""
    if not path.exists():
        return []
    whole = path.read_text().split("\n")[:-1]  # a whole line ends in a line break
    found = []
    for number, text in enumerate(whole, 1):
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: expected JSON, got {text[:40]!r} ({error}); "
                "delete the line, and its run is made again"
            ) from error
    return found


def _cut_off(path: Path) -> None:
    """Takes away a last line that was not written to its end; the rest stays."""
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)
