"""Sets of masks side by side: what each keeps, and what flipped between them.

Masks are dicts by path of bool arrays of the parameter's shape, True where a weight is
kept, of numpy or of JAX. For masks `a` and `b` of one parameter

    both = |a & b|,   flipped = |a xor b| = |a| + |b| - 2 both

where `|m|` counts weights; of a convolution, all that an edge holds. Masks of other
shapes, and those that only one set has, are listed as such.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bbjax.model.checks import Masks, count, on_host
from bbjax.model.text import size, table


@dataclasses.dataclass(frozen=True)
class MaskChange:
    """What became of one mask between two sets.

    Attributes:
      path: of the parameter.
      shape_a: shape of the mask in the first set, None if it is not there.
      shape_b: likewise in the second.
      kept_a: kept weights in the first set, None if it is not there.
      kept_b: likewise in the second.
      both: weights kept in both, None if the two cannot be laid over each other.
      flipped: weights kept in one of the two, None likewise.
    """

    path: str
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    kept_a: int | None
    kept_b: int | None
    both: int | None
    flipped: int | None

    @property
    def problem(self) -> str:
        """Why the two cannot be laid over each other; empty if they can."""
        if self.shape_b is None:
            return "only in a"
        if self.shape_a is None:
            return "only in b"
        return "" if self.shape_a == self.shape_b else "other shape"


@dataclasses.dataclass(frozen=True)
class MaskDiff:
    """Differences of two sets of masks; `str()` is a table.

    Attributes:
      rows: one per path of either set, in order of the path.
    """

    rows: tuple[MaskChange, ...]

    @property
    def same(self) -> bool:
        """Whether the two sets are equal."""
        return all(row.flipped == 0 for row in self.rows)

    def __getitem__(self, path: str) -> MaskChange:
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(
            f"expected the path of a mask, got {path!r}; there are "
            f"{[row.path for row in self.rows][:8]}"
        )

    def __str__(self) -> str:
        head = ("mask", "shape", "kept in a", "kept in b", "in both", "flipped", "")
        return table(head, [_change_row(row) for row in self.rows])


def diff_masks(a: Masks, b: Masks) -> MaskDiff:
    """Compares two sets of masks, path by path.

    Args:
      a: by path, bool arrays of the parameter's shape; of numpy or of JAX.
      b: likewise; paths and shapes may be others.

    Returns:
      `MaskDiff`; print it.

    Raises:
      TypeError: not masks by path, or not bool.

    Example:
      >>> a = {"w": np.array([True, True, False])}
      >>> b = {"w": np.array([True, False, True]), "v": np.ones(2, bool)}
      >>> print(diff_masks(a, b))
      mask  shape  kept in a  kept in b  in both  flipped
      ----  -----  ---------  ---------  -------  -------  ---------
      v     2      -          2          -        -        only in b
      w     3      2          2          1        2
    """
    mine, theirs = on_host(a), on_host(b)
    paths = sorted(mine.keys() | theirs.keys())
    return MaskDiff(tuple(_change(p, mine.get(p), theirs.get(p)) for p in paths))


def _change(path: str, a: np.ndarray | None, b: np.ndarray | None) -> MaskChange:
    both = flipped = None
    if a is not None and b is not None and a.shape == b.shape:
        both, flipped = count(a & b), count(a ^ b)
    return MaskChange(
        path=path,
        shape_a=None if a is None else a.shape,
        shape_b=None if b is None else b.shape,
        kept_a=None if a is None else count(a),
        kept_b=None if b is None else count(b),
        both=both,
        flipped=flipped,
    )


def _change_row(row: MaskChange) -> tuple[str, ...]:
    shapes = [size(s) for s in (row.shape_a, row.shape_b) if s is not None]
    counts = (row.kept_a, row.kept_b, row.both, row.flipped)
    shown = ("-" if count is None else str(count) for count in counts)
    return (row.path, " / ".join(dict.fromkeys(shapes)), *shown, row.problem)
