"""How alike two sets of masks are: the fingerprint, alone and pairwise.

A mask is a fingerprint of the data that a model was pruned on. The overlap of two masks
`a` and `b` of `n` weights is the Jaccard index of what they keep, to be read against
that of random masks that keep as many:

    jaccard   = |a & b| / |a or b|
    expected  = e / (|a| + |b| - e),   e = |a| |b| / n     (independent random masks)
    agreement = share of the n weights on which both say the same

Two masks that keep nothing are equal: jaccard = expected = 1. Shapes: masks are dicts
by path of bool arrays of the parameter's shape. Reference: Jaccard 1912, "The
distribution of the flora in the alpine zone".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bbjax.model.checks import Masks, count, on_host
from bbjax.model.text import table
from bbjax.reporting.compare import diff_masks


class Overlap(NamedTuple):
    """How alike two masks are.

    Attributes:
      jaccard: share of the weights kept in either mask that both keep, in [0, 1].
      expected: the same of random masks with as many kept weights (the ratio of the
        expected counts), in [0, 1].
      agreement: share of all weights on which the two say the same, in [0, 1].
    """

    jaccard: float
    expected: float
    agreement: float


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """How alike two sets of masks are; `str()` is a table.

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
    """Lays two sets of masks over each other: the fingerprint.

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
    return _overlaps(_counts(a, b))


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
    """Lays every set of masks over every other.

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
            counts = _counts(sets[i], sets[j], label)
            overall = _overlaps(counts).overall
            jaccard[i, j] = jaccard[j, i] = overall.jaccard
            expected[i, j] = expected[j, i] = overall.expected
    return OverlapTable(names, jaccard, expected)


class _Counts(NamedTuple):
    """Numbers of weights: all, kept in a, kept in b, kept in both; so by chance."""

    size: int
    kept_a: int
    kept_b: int
    both: int
    chance: float


def _counts(a: Masks, b: Masks, names: str = "two sets a and b") -> dict[str, _Counts]:
    mine, theirs = on_host(a), on_host(b)
    if {p: m.shape for p, m in mine.items()} != {p: m.shape for p, m in theirs.items()}:
        rows = diff_masks(mine, theirs).rows
        raise ValueError(
            f"expected masks of the same parameters, got {names} that differ; lay "
            "masks of one model over each other:\n  "
            + "\n  ".join(f"{row.path}: {row.problem}" for row in rows if row.problem)
        )
    counts = {}
    for path, mask in mine.items():
        kept_a, kept_b = count(mask), count(theirs[path])
        chance = kept_a * kept_b / max(mask.size, 1)
        both = count(mask & theirs[path])
        counts[path] = _Counts(mask.size, kept_a, kept_b, both, chance)
    return counts


def _overlaps(counts: Mapping[str, _Counts]) -> Overlaps:
    total = _Counts(*(sum(column) for column in zip(*counts.values(), strict=True)))
    return Overlaps(_ratios(total), {p: _ratios(c) for p, c in counts.items()})


def _ratios(c: _Counts) -> Overlap:
    def jaccard(both: float) -> float:
        either = c.kept_a + c.kept_b - both
        return both / either if either else 1.0

    flipped = c.kept_a + c.kept_b - 2 * c.both
    agreement = 1 - flipped / c.size if c.size else 1.0
    return Overlap(jaccard(c.both), jaccard(c.chance), agreement)
