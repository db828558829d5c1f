"""What is known of one array while a jaxpr is followed.

Every axis carries *parts*: pieces of axes of a source, major to minor. A source is a
parameter (`("w", leaf)`), the output units of a kernel use (`("u", use)`) or a range of
these (`("u", use, cuts)`, see `ranges`); rows that are sorted by group have a source,
too (`("g", node)`, the node of the group sizes). A part of none is a mere position. A
part has a size and the stride it has in its source axis, so that reshapes which merge,
split or move axes can be undone exactly:

    (512,)  ->  (8, 64)      part (axis 0, size 512, stride 1)
                             parts (axis 0, size 8, stride 64), (axis 0, 64, 1)

Besides its axes, a value has `owners` (the output units from which it is computed,
entry by entry), the nonlinearity applied since, and `deps` (the sources that it depends
on since the last kernel).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

# Kind ("w", "u" or "g") and number; of a range, also its cuts.
Source = tuple[Any, ...]
# In `lost`: a parameter whose own mean is subtracted. Every weight of an output unit
# moves its mean and deviation, so no value of one weight is a 0 of its own there.
CENTRED = "centring"
DATA = -1  # in `deps`: depends on an argument or an array constant


class Part(NamedTuple):
    """A piece of an axis of a source; `source=None` is a mere position."""

    source: Source | None
    axis: int
    size: int
    stride: int

    @property
    def is_unit(self) -> bool:
        """Whether it counts output units of a kernel."""
        return self.source is not None and self.source[0] == "u"

    @property
    def is_row(self) -> bool:
        """Whether it counts rows that are sorted by group."""
        return self.source is not None and self.source[0] == "g"


Axis = tuple[Part, ...]


def position(size: int) -> Axis:
    """An axis about which nothing is known but its size."""
    return (Part(None, -1, size, 1),)


def positions(shape: Sequence[int]) -> tuple[Axis, ...]:
    """Axes about which nothing is known."""
    return tuple(position(n) for n in shape)


def without_units(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Axes as mere positions; sorted rows stay what they are."""
    return tuple(
        axis if all(p.is_row for p in axis) else position(extent(axis)) for axis in axes
    )


def merged(axis: Axis) -> bool:
    """Whether an axis has units beside something else, or positions of two axes."""
    kinds = [p.source if p.is_unit else None for p in axis if p.size > 1]
    return len(set(kinds)) > 1 or kinds.count(None) > 1


def extent(axis: Axis) -> int:
    """Number of entries along an axis."""
    return math.prod(part.size for part in axis)


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of one array.

    Attributes:
      axes: the parts of each axis.
      const: for each axis, whether the array is known not to vary along it.
      weight: the parameter (leaf number) whose entries these are, if any.
      scanned: parts of `weight` that enclosing scans have consumed, by scan.
      owners: the output units of kernel uses, whole or a range, that this is an
        elementwise function of.
      twins: in a product of two kernels' units, which part of the other kernel each
        named part is as well; kept as long as the axes are.
      nonlinearity: name of the nonlinearity applied since, or "".
      bends: how many nonlinear operations were applied since the product.
      mixed: whether a value that is not made of units was added to these units.
      pooled: whether their entries are pooled, or picked, over positions.
      deps: kernel uses and `DATA` it depends on since the last kernel.
      lost: parameters it is made of in a way that lost their axes, with the reason.
      leaves: parameters that it depends on.
      number: the number that all its entries are, if that is known.
      constant: whether all data that it depends on are array constants.
    """

    axes: tuple[Axis, ...]
    const: tuple[bool, ...] = ()
    weight: int | None = None
    scanned: tuple[tuple[tuple, Part], ...] = ()
    owners: frozenset[Source] = frozenset()
    twins: frozenset[tuple[Part, Part]] = frozenset()
    nonlinearity: str = ""
    bends: int = 0
    mixed: bool = False
    pooled: bool = False
    deps: frozenset[int] = frozenset()
    lost: frozenset[tuple[int, str]] = frozenset()
    leaves: frozenset[int] = frozenset()
    number: float | None = None
    constant: bool = False

    def __post_init__(self):
        if len(self.const) != len(self.axes):
            object.__setattr__(self, "const", (False,) * len(self.axes))

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(extent(axis) for axis in self.axes)

    @property
    def is_parametric(self) -> bool:
        """Whether it is made of parameters alone (and constants of no shape)."""
        return not self.deps and (self.weight is not None or bool(self.lost))

    @property
    def owning_uses(self) -> frozenset[int]:
        """Kernel uses that own it."""
        return frozenset(source[1] for source in self.owners)

    @property
    def is_merged(self) -> bool:
        """Whether an axis has units beside something else, or positions of two axes.

        Reshaped again, as by a norm of groups, they are what they were.
        """
        return any(map(merged, self.axes))

    def unit_axes(self, owners: frozenset[Source]) -> tuple[int, ...]:
        """Axes that carry units of one of `owners`."""
        return tuple(
            i
            for i, axis in enumerate(self.axes)
            if any(p.source in owners for p in axis)
        )

    def named_axes(self) -> tuple[int, ...]:
        """Axes that carry units of any kernel."""
        return tuple(
            i for i, axis in enumerate(self.axes) if any(p.is_unit for p in axis)
        )

    def released(self) -> Value:
        """The same without owners; its axes are no units if others are mixed in."""
        axes = without_units(self.axes) if self.mixed else self.axes
        return self.replace(
            axes=axes, owners=frozenset(), nonlinearity="", mixed=False, pooled=False
        )

    def pool(self, axes: Sequence[Axis], const: Sequence[bool] = ()) -> Value | None:
        """These units at other positions; None if an axis of theirs is gone."""
        before, after = (
            {p for axis in found for p in axis if p.source in self.owners}
            for found in (self.axes, axes)
        )
        if not before or before != after:
            return None
        return self.replace(axes=tuple(axes), const=tuple(const), pooled=True)

    def replace(self, **changes) -> Value:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def plain(shape: Sequence[int], deps: frozenset[int] = frozenset(), **fields) -> Value:
    """A value of which only the shape and the dependencies are known."""
    return Value(positions(shape), deps=deps, **fields)


def leaf(number: int, shape: Sequence[int]) -> Value:
    """The value of a parameter: each axis is itself."""
    axes = tuple((Part(("w", number), i, n, 1),) for i, n in enumerate(shape))
    return Value(axes, weight=number, leaves=frozenset({number}))


def reshape(value: Value, shape: Sequence[int]) -> tuple[Axis, ...]:
    """Splits and merges parts so that the axes have sizes `shape`."""
    if 0 in shape:  # nothing is anywhere
        return positions(shape)
    queue = [p for axis in value.axes for p in axis if p.size != 1]
    axes: list[Axis] = []
    for n in shape:
        axis, queue = _take(queue, n)
        axes.append(axis)
    return tuple(axes)


def _take(queue: list[Part], size: int) -> tuple[Axis, list[Part]]:
    """Takes parts worth `size` entries from the front, splitting the last one."""
    taken: list[Part] = []
    need = size
    while need > 1:
        head, queue = queue[0], queue[1:]
        if need % head.size == 0:
            taken.append(head)
            need //= head.size
        elif head.size % need == 0:
            rest = head.size // need
            taken.append(head._replace(size=need, stride=head.stride * rest))
            queue = [head._replace(size=rest), *queue]
            need = 1
        else:  # sizes that do not nest: the pieces have no name
            return _blur(taken, head, queue, size, need)
    return _joined(taken) or position(1), queue


def _continues(lead: Part, part: Part) -> bool:
    """Whether a part is the minor piece of an axis of which another is the major."""
    same = (lead.source, lead.axis) == (part.source, part.axis)
    nested = lead.stride == part.stride * part.size
    return same and nested and part.source is not None


def _joined(parts: Sequence[Part]) -> Axis:
    """Parts with neighbouring pieces of one axis put together again."""
    done: list[Part] = []
    for part in parts:
        if done and _continues(done[-1], part):
            part = part._replace(size=done.pop().size * part.size)
        done.append(part)
    return tuple(done)


def _blur(
    taken: list[Part], head: Part, queue: list[Part], size: int, need: int
) -> tuple[Axis, list[Part]]:
    """An axis that straddles parts: it and what is left over become positions."""
    done = size // need
    total = head.size
    while (done * total) % size:
        total *= queue[0].size
        queue = queue[1:]
    left = done * total // size
    rest = [Part(None, -1, left, 1)] if left > 1 else []
    return position(size), [*rest, *queue]
