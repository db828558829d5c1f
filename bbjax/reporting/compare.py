"""Compares sets of masks: what each keeps, what differs, and how much they overlap.

A mask is a fingerprint of the data that a model was pruned on. Masks are dicts by path
of bool arrays of the parameter's shape, True where a weight is kept. For masks `a` and
`b` of one parameter with `n` weights, where `|m|` is the number of kept weights (in a
convolution, weights and not edges):

    both      = |a & b|
    flipped   = |a xor b|
    jaccard   = both / |a or b|
    expected  = e / (|a| + |b| - e),   e = |a| |b| / n     (independent random masks)
    agreement = 1 - flipped / n

Two masks that keep nothing are equal: jaccard = expected = 1. Reference: Jaccard 1912,
"The distribution of the flora in the alpine zone".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bbjax.model.checks import Masks, count, on_host
from bbjax.model.text import printable, size, table


@dataclasses.dataclass(frozen=True)
class MaskChange:
    """The masks of one path in two sets.

    Attributes:
      path: of the parameter.
      shape_a: shape of the mask in the first set, None if it is not there.
      shape_b: likewise in the second.
      kept_a: kept weights in the first set, None if it is not there.
      kept_b: likewise in the second.
      both: weights kept in both, None if the two cannot be compared.
      flipped: weights kept in exactly one of the two, None likewise.
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
        """Why the two cannot be compared; empty if they can."""
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
      b: likewise; paths and shapes may differ from those of `a`.

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


# Overlap -------------------------------------------------------------------------
class Overlap(NamedTuple):
    """How much two masks overlap.

    Attributes:
      jaccard: share of the weights kept in either mask that both keep, in [0, 1].
      expected: the same of random masks with as many kept weights (the ratio of the
        expected counts), in [0, 1].
      agreement: share of all weights that both masks keep or both prune, in [0, 1].
    """

    jaccard: float
    expected: float
    agreement: float


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """How much two sets of masks overlap; `str()` is a table.

    Attributes:
      overall: of all weights taken together; `expected` is by chance within each mask.
      by_path: of each mask.
    """

    overall: Overlap
    by_path: Mapping[str, Overlap]

    def __str__(self) -> str:
        rows = [*self.by_path.items(), ("all together", self.overall)]
        return table(
            ("mask", *Overlap._fields),
            [(path, *(f"{x:.4f}" for x in overlap)) for path, overlap in rows],
        )


def overlap(a: Masks, b: Masks) -> Overlaps:
    """Measures how much two sets of masks overlap.

    Args:
      a: by path, bool arrays of the parameter's shape; of numpy or of JAX.
      b: likewise, of the same paths and shapes.

    Returns:
      `Overlaps`: `jaccard`, `expected` by chance, and `agreement`, by path and overall.

    Raises:
      TypeError: not masks by path, or not bool.
      ValueError: paths or shapes differ.

    Example:
      >>> a = {"w": np.array([True, True, False, False])}
      >>> b = {"w": np.array([True, False, True, False])}
      >>> overlap(a, b).overall
      Overlap(jaccard=0.333..., expected=0.333..., agreement=0.5)
    """
    return _overlaps(a, b, "two sets a and b")


class OverlapTable(NamedTuple):
    """Pairwise overlaps; `str()` is a table.

    Attributes:
      names: of the sets of masks, in the order given.
      jaccard: float64, `(names, names)`, symmetric, 1 on the diagonal.
      expected: likewise, of random masks with as many kept weights.
    """

    names: tuple[str, ...]
    jaccard: np.ndarray
    expected: np.ndarray

    def __str__(self) -> str:
        rows = [
            (name, *(f"{x:.4f}" for x in row))
            for name, row in zip(self.names, self.jaccard, strict=True)
        ]
        pairs = self.expected[~np.eye(len(self.names), dtype=bool)]
        chance = "no pairs" if pairs.size == 0 else f"{pairs.min():.4f}"
        if pairs.size and f"{pairs.max():.4f}" != chance:
            chance += f" to {pairs.max():.4f}"
        return f"{table(('', *self.names), rows)}\nexpected by chance: {chance}"


def overlap_table(masks_by_name: Mapping[str, Masks]) -> OverlapTable:
    """Measures how much each pair of sets of masks overlaps.

    Args:
      masks_by_name: sets of masks, all of the same paths and shapes, by a name of your
        own (a seed, a user, a rule).

    Returns:
      `OverlapTable`: the overall Jaccard index of each pair; print it.

    Raises:
      TypeError: not masks by path, or not bool.
      ValueError: paths or shapes differ.

    Example:
      >>> a, b = np.array([True, True, False]), np.array([True, False, False])
      >>> print(overlap_table({"seed 0": {"w": a}, "seed 1": {"w": b}}))
              seed 0  seed 1
      ------  ------  ------
      seed 0  1.0000  0.5000
      seed 1  0.5000  1.0000
      expected by chance: 0.2857
    """
    if not isinstance(masks_by_name, Mapping):
        raise TypeError(
            f"expected sets of masks by name, got {type(masks_by_name).__name__}; pass "
            '{"seed 0": masks, "seed 1": others}'
        )
    names = tuple(str(name) for name in masks_by_name)
    sets = [on_host(masks) for masks in masks_by_name.values()]
    jaccard, expected = np.ones((2, len(names), len(names)))
    for i in range(len(names)):
        for j in range(i, len(names)):
            label = f"a = {names[i]!r} and b = {names[j]!r}"
            overall = _overlaps(sets[i], sets[j], label).overall
            jaccard[i, j] = jaccard[j, i] = overall.jaccard
            expected[i, j] = expected[j, i] = overall.expected
    return OverlapTable(names, jaccard, expected)


class _Counts(NamedTuple):
    """Numbers of weights: all, kept in a, in b, in both; expected in both by chance."""

    size: int
    kept_a: int
    kept_b: int
    both: int
    chance: float


def _overlaps(a: Masks, b: Masks, names: str) -> Overlaps:
    mine, theirs = on_host(a), on_host(b)
    if {p: m.shape for p, m in mine.items()} != {p: m.shape for p, m in theirs.items()}:
        rows = diff_masks(mine, theirs).rows
        raise ValueError(
            f"expected masks of the same parameters, got {names} that differ; compare "
            "masks of one model:\n  "
            + "\n  ".join(
                printable(f"{row.path}: {row.problem}") for row in rows if row.problem
            )
        )
    counts = {path: _counts(mask, theirs[path]) for path, mask in mine.items()}
    total = _Counts(*(sum(column) for column in zip(*counts.values(), strict=True)))
    return Overlaps(_ratios(total), {p: _ratios(c) for p, c in counts.items()})


def _counts(a: np.ndarray, b: np.ndarray) -> _Counts:
    kept_a, kept_b = count(a), count(b)
    chance = kept_a * kept_b / max(a.size, 1)
    return _Counts(a.size, kept_a, kept_b, count(a & b), chance)


def _ratios(c: _Counts) -> Overlap:
    def jaccard(both: float) -> float:
        either = c.kept_a + c.kept_b - both
        return both / either if either else 1.0

    flipped = c.kept_a + c.kept_b - 2 * c.both
    agreement = 1 - flipped / c.size if c.size else 1.0
    return Overlap(jaccard(c.both), jaccard(c.chance), agreement)
