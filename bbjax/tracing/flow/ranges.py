"""Ranges of units: what a slice of an axis leaves of the units on it.

One kernel may make the units of several layers, which the function takes apart after
the product: gate and value of a gated MLP, queries, keys and values, the four gates of
an LSTM cell. A slice of an axis of units is a *range*, a source of its own:

    ("u", 3)                                   all units of use 3
    ("u", 3, (Cut(axis=1, start=8, digits=((8, 1),)),))    8 .. 15 on axis 1

A `Cut` lists the entries of one axis of the kernel: `start` plus every sum of digits
times strides. Other axes are whole. Halves, `x[..., ::2]` and an index on an axis that
was split off by a reshape are all of this form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bbjax.tracing.flow.values import Axis, Part, Source, Value, position


class Cut(NamedTuple):
    """Entries of one axis of a kernel: `start` plus all sums of digits times strides.

    Attributes:
      axis: axis of the kernel.
      start: the first entry.
      digits: `(size, stride)`, largest stride first.
    """

    axis: int
    start: int
    digits: tuple[tuple[int, int], ...]

    def entries(self) -> np.ndarray:
        """The entries, in the order of the digits."""
        found = np.array([self.start])
        for size, stride in self.digits:
            found = np.add.outer(found, stride * np.arange(size)).reshape(-1)
        return found


def cuts(source: Source) -> tuple[Cut, ...]:
    """The axes of a source that are not whole."""
    return source[2] if len(source) > 2 else ()


def whole(source: Source) -> Source:
    """The source that a range is a part of."""
    return source[:2]


def covered(source: Source, sizes: Mapping[int, int]) -> np.ndarray:
    """Which units a source has, as a mask over some axes of the kernel.

    Args:
      source: the units of a use, or a range of them.
      sizes: size of each axis of the kernel that counts units.
    """
    mask = np.ones(tuple(sizes.values()), bool)
    for cut in cuts(source):
        at = list(sizes).index(cut.axis)
        inside = np.zeros(sizes[cut.axis], bool)
        inside[cut.entries()] = True
        mask &= inside.reshape([-1 if i == at else 1 for i in range(mask.ndim)])
    return mask


def indexed(value: Value) -> tuple[Value, tuple[tuple[int, int], ...]]:
    """A slice of a parameter as one without cuts, and which index of which axis it is.

    The value of a parameter has no cuts but of axes that were indexed.
    """
    found = {
        cut for axis in value.axes for p in axis if p.source for cut in cuts(p.source)
    }
    if not found:
        return value, ()
    axes = tuple(
        tuple(p._replace(source=p.source and whole(p.source)) for p in axis)
        for axis in value.axes
    )
    at = tuple(sorted((cut.axis, cut.start) for cut in found))
    return value.replace(axes=axes), at


def sliced(value: Value, at: int, start: int, count: int, step: int) -> Value | None:
    """The value with `count` entries of an axis, from `start` on, every `step`-th.

    Returns:
      The value, with ranges in place of the units that were cut; None if there are no
      entries, if they are no sums of digits, or if they are a choice of positions, not
      of units.
    """
    picked = _picked(value.axes[at], start, count, step) if count else None
    twice = {p for i, a in enumerate(value.axes) for p in a if i != at and p.source}
    if picked is None or twice & set(value.axes[at]):
        return None
    kept: list[Part] = []
    moved: dict[tuple[Source, int], int] = {}  # by axis of a source: shift of its start
    narrowed: dict[Part, Part] = {}
    twins = dict[Part, set[Part]]()
    for part, twin in value.twins:
        twins.setdefault(part, set()).add(twin)
    for part, (first, size, every) in picked:
        if size == part.size:
            kept.append(part)
            continue
        if part.source is None or part.is_row:
            if value.owners:
                return None
            kept += [*position(size)] * (size > 1)
            continue
        for one in (part, *twins.get(part, ())):
            if one.source is None:
                continue
            key = (one.source, one.axis)
            moved[key] = moved.get(key, 0) + first * one.stride
            narrowed[one] = one._replace(size=size, stride=one.stride * every)
        if size > 1:
            kept.append(narrowed.get(part, part._replace(size=size)))
    axes = [*value.axes]
    axes[at] = tuple(kept) or position(1)
    return _renamed(value, axes, moved, narrowed)


def _picked(
    axis: Axis, start: int, count: int, step: int
) -> list[tuple[Part, tuple[int, int, int]]] | None:
    """For each part of an axis, which of its entries: first, number, step."""
    found = []
    for part in reversed(axis):
        n = part.size
        if count == 1:
            mine, rest = (start % n, 1, 1), (start // n, 1, 1)
        elif step % n == 0:  # the same entry of every block
            mine, rest = (start % n, 1, 1), (start // n, count, step // n)
        elif step == 1 and start % n == 0 and count % n == 0:  # whole blocks
            mine, rest = (0, n, 1), (start // n, count // n, 1)
        elif start // n == (start + (count - 1) * step) // n:  # in one block
            mine, rest = (start % n, count, step), (start // n, 1, 1)
        else:
            return None
        found.append((part, mine))
        start, count, step = rest
    assert count == 1 and start == 0
    return found[::-1]


def _renamed(
    value: Value,
    axes: Sequence[Axis],
    moved: Mapping[tuple[Source, int], int],
    narrowed: Mapping[Part, Part],
) -> Value:
    """The value with a range in place of every source that was cut."""
    parts = {p for axis in value.axes for p in axis} | {t for _, t in value.twins}
    names: dict[Source, Source] = {}
    for source in {key[0] for key in moved}:
        known = {cut.axis: cut for cut in cuts(source)}
        for (cut_source, axis), shift in moved.items():
            if cut_source != source:
                continue
            own = [p for p in parts if (p.source, p.axis) == (source, axis)]
            own = [narrowed.get(p, p) for p in own]
            begin = known[axis].start if axis in known else 0
            known[axis] = Cut(axis, begin + shift, _digits(own))
        names[source] = (*whole(source), tuple(sorted(known.values())))

    def name(part: Part) -> Part:
        part = narrowed.get(part, part)
        named = names.get(part.source) if part.source else None
        return part._replace(source=named or part.source)

    kept = {p for axis in axes for p in axis}
    return value.replace(
        axes=tuple(tuple(map(name, axis)) for axis in axes),
        twins=frozenset(
            (name(p), name(t)) for p, t in value.twins if narrowed.get(p, p) in kept
        ),
        owners=frozenset(names.get(s, s) for s in value.owners),
    )


def _digits(parts: Sequence[Part]) -> tuple[tuple[int, int], ...]:
    """Digits of an axis, where neighbours that continue are one."""
    found: list[tuple[int, int]] = []
    for part in sorted(parts, key=lambda p: -p.stride):
        if part.size == 1:
            continue
        if found and found[-1][1] == part.size * part.stride:
            size, _ = found.pop()
            found.append((size * part.size, part.stride))
        else:
            found.append((part.size, part.stride))
    return tuple(found)


def extent_of(source: Source, sizes: Mapping[int, int]) -> int:
    """Number of units of a source."""
    own = {cut.axis: math.prod(n for n, _ in cut.digits) for cut in cuts(source)}
    return math.prod(own.get(axis, size) for axis, size in sizes.items())
