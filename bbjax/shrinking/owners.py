"""Which parameter an array of an optimizer state belongs to.

A state holds copies of the parameter tree, or of a part of it (`variables["params"]`),
below names of its own:

    path in the state = prefix / relative path
    path of the parameter = root / relative path

A parameter may have the name of a field (`mu`), and parts of a tree look alike, so one
path can be read in several ways. The reading counts that finds the most parameters
below its prefix; of equals, the one with the shortest root. A field alone that is
called like a parameter is no copy: below the prefix there has to be nothing else but
parameters, or all that there are.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

Shapes = Mapping[str, tuple[int, ...]]


class _Reading(NamedTuple):
    """One way to read a path."""

    prefix: str
    root: str
    name: str


class Owners:
    """Parameters by path of their copies."""

    def __init__(self, shapes: Shapes, paths: Iterable[str]) -> None:
        """All parameters, and all paths of the state."""
        paths = list(paths)
        self.shapes, self.paths = shapes, frozenset(paths)
        self.ends: dict[str, list[tuple[str, str]]] = {}
        self.below: dict[str, list[str]] = {}
        for name in shapes:
            parts = name.split("/")
            for start in range(len(parts)):
                root, end = "/".join(parts[:start]), "/".join(parts[start:])
                self.ends.setdefault(end, []).append((root, name))
                self.below.setdefault(root, []).append(end)
        self.found = functools.cache(self._found)
        self.leaves = collections.Counter(p for path in paths for p in _above(path))

    def of(self, path: str) -> list[str]:
        """The parameters that a leaf may belong to: none, one, or several alike."""
        best: list[_Reading] = []
        most = (0, 0)
        for reading in self._readings(path):
            count = self.found(reading.prefix, reading.root)
            if not self.is_copy(reading, count):
                continue
            rank = (count, -len(reading.root.split("/")) if reading.root else 0)
            if rank > most or not best:
                best, most = [reading], rank
            elif rank == most:
                best.append(reading)
            if count == len(self.shapes):  # the whole tree
                break
        return list(dict.fromkeys(reading.name for reading in best))

    def is_copy(self, reading: _Reading, count: int) -> bool:
        """Whether what is below a prefix is a copy of parameters below a root."""
        if not reading.name:  # the parameters are one array
            return True
        all_of_them = count == len(self.below[reading.root])
        nothing_else = count == self.leaves[reading.prefix]
        return nothing_else or (all_of_them and (count > 1 or not reading.root))

    def _readings(self, path: str) -> Iterable[_Reading]:
        parts = path.split("/")
        for start in range(len(parts)):
            prefix, end = "/".join(parts[:start]), "/".join(parts[start:])
            for root, name in self.ends.get(end, ()):
                yield _Reading(prefix, root, name)
        if "" in self.shapes:  # the parameters are one array
            yield _Reading(path, "", "")

    def _found(self, prefix: str, root: str) -> int:
        """How many parameters below a root have copies below a prefix."""
        lead = f"{prefix}/" if prefix else ""
        return sum(lead + end in self.paths for end in self.below[root])


def _above(path: str) -> list[str]:
    """The prefixes of a path."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts))]


def root_of(names: Iterable[str], shapes: Shapes) -> str | None:
    """Where parameters of these relative paths stand; None if nowhere together.

    Example:
      >>> shapes = {"params/up": (3, 8), "params/down": (8, 2)}
      >>> root_of(["up", "down"], shapes)
      'params/'
    """
    names = list(names)
    first = names[0] if names else ""
    roots = ["", *(n[: -len(first)] for n in shapes if n.endswith("/" + first))]
    for root in sorted(roots, key=len):
        if all(root + name in shapes for name in names):
            return root
    return None
