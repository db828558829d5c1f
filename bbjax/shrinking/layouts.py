"""Where the entries of an array come from: moves as data, to compare two programs.

A `Layout` says that an array is another one, its *source*, after moves: broadcasts,
added and dropped axes of size 1, reshapes and transpositions. Every axis of the array
is a list of pieces, major to minor, as in a number with several digits:

    source of shape (4, 6)            axes (0, 1, size 4), (1, 1, size 6)
    reshaped to (24,)                 one axis of both pieces
    reshaped to (4, 2, 3)             ..., (1, 3, size 2), (1, 1, size 3)
    broadcast to (5, 4, 6)            (none, size 5), ...

A piece is an axis of the source, the stride along it, and its size. Pieces of size 1
are left out: they choose nothing. So two programs that differ only in how they add,
drop, repeat or reshape axes of size 1 have equal layouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from bbjax.tracing.moves import AxisOrigin, Kept, Repeated
from bbjax.tracing.primitives import RESHAPING, moves_of


class Piece(NamedTuple):
    """Part of an axis of the source; of none (None), where entries are repeated."""

    axis: int | None
    stride: int
    size: int


Axis = tuple[Piece, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """An array that was computed, in one of the programs.

    Attributes:
      axes: what is known of its axes, one by one.
      value: if it is a constant.
    """

    axes: tuple[Any, ...]
    value: Any = None


class Layout(NamedTuple):
    """An array, as the moves of a source.

    Attributes:
      source: where its entries are from.
      axes: of which pieces each of its axes is.
      last: name of the last move.
    """

    source: Origin
    axes: tuple[Axis, ...]
    last: str = ""


def unmoved(source: Origin, shape: Sequence[int]) -> Layout:
    """The source itself."""
    return Layout(source, tuple(joined([Piece(i, 1, n)]) for i, n in enumerate(shape)))


def moved(eqn: Any, layout: Layout) -> Layout | None:
    """The result of an equation that moves an array; None if it is no such equation."""
    shape = tuple(getattr(eqn.outvars[0].aval, "shape", ()))
    found = moves_of(eqn)
    if found is None or eqn.primitive.name not in RESHAPING or 0 in shape:
        return None
    (move,) = found
    axes: list[Sequence[Piece]] | None
    if move.reshaped is None:
        axes = [_axis(layout.axes, origin) for origin in move.axes]
    else:
        axes = _reshape([layout.axes[i] for i in move.reshaped], shape)
    if axes is None:
        return None
    return Layout(layout.source, tuple(map(joined, axes)), eqn.primitive.name)


def _axis(axes: Sequence[Axis], origin: AxisOrigin) -> Sequence[Piece]:
    """The pieces of one axis of a result."""
    if isinstance(origin, Repeated):
        return [Piece(None, 1, origin.size)]
    assert isinstance(origin, Kept), origin
    return axes[origin.axis]


def repeated(axis: Axis) -> bool:
    """Whether an array has the same entries all along an axis."""
    return all(piece.axis is None for piece in axis)


def joined(pieces: Sequence[Piece]) -> Axis:
    """Pieces in one form: none of size 1, and none that another one continues."""
    found: list[Piece] = []
    for piece in pieces:
        if piece.size == 1:
            continue
        last = found[-1] if found else None
        if last and last.axis == piece.axis:
            if last.axis is None or last.stride == piece.stride * piece.size:
                found[-1] = Piece(piece.axis, piece.stride, last.size * piece.size)
                continue
        found.append(piece)
    return tuple(found)


def _reshape(
    axes: Sequence[Axis], shape: Sequence[int]
) -> list[Sequence[Piece]] | None:
    """Pieces of a reshape; None if they do not nest in its axes."""
    pieces = [piece for axis in axes for piece in axis]
    found: list[Sequence[Piece]] = []
    for n in shape:
        own: list[Piece] = []
        while n > 1:
            if not pieces:
                return None
            piece = pieces.pop(0)
            if n % piece.size == 0:
                own.append(piece)
                n //= piece.size
            elif piece.size % n == 0:
                rest = piece.size // n
                stride = piece.stride * rest if piece.axis is not None else 1
                own.append(Piece(piece.axis, stride, n))
                pieces.insert(0, Piece(piece.axis, piece.stride, rest))
                n = 1
            else:
                return None
        found.append(own)
    return found
