"""Moves: which entries of an operand the results of an operation are made of.

Every axis of a result is said to be made of one of the operand:

    Kept(axis)                      the same entries in the same order
    Repeated(size)                  of none: all entries along it are equal
    Ranged(axis, start, size, step) some of them, or all in reverse
    Padded(axis, before, after)     the same, between entries of another operand
    Tiled(axis, times)              the same, again and again
    Mixed(axis, size)               not followed: sums, or an order by data

Axes of the operand that a result has no more are said to be made in the same way, with
one entry: a sum over an axis leaves `Mixed(axis, 1)`, an index `Ranged(axis, i, 1, 1)`.
A reshape is none of these: it takes entries in order and gives them another shape.

Each function here reads the settings of one kind of equation. What moves mean is up to
those who ask: where units go (`flow`), which sizes are tied (`axes`), whether two
programs are the same or what a parameter becomes (`bbjax.shrinking`).
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Shape = tuple[int, ...]


class Kept(NamedTuple):
    """An axis of the operand as it is."""

    axis: int


class Repeated(NamedTuple):
    """A new axis, along which entries repeat."""

    size: int


class Ranged(NamedTuple):
    """Every `step`-th entry of an axis from `start` on; -1 reverses it."""

    axis: int
    start: int
    size: int
    step: int


class Padded(NamedTuple):
    """An axis with entries of something else before and after it."""

    axis: int
    before: int
    after: int


class Tiled(NamedTuple):
    """An axis several times, one after the other."""

    axis: int
    times: int


class Mixed(NamedTuple):
    """An axis whose entries are picked, counted or summed."""

    axis: int
    size: int


AxisOrigin = Kept | Repeated | Ranged | Padded | Tiled | Mixed


class Move(NamedTuple):
    """What one result of an operation is made of.

    Attributes:
      axes: of the result.
      gone: of the operand, where the result does not have them.
      reshaped: axes of the operand in the order in which a reshape takes them; None if
        it is no reshape. Then `axes` is empty.
    """

    axes: tuple[AxisOrigin, ...]
    gone: tuple[AxisOrigin, ...] = ()
    reshaped: tuple[int, ...] | None = None


Params = Mapping[str, Any]
# From settings, shape of the operand and shapes of the results to their moves.
Reader = Callable[[Params, Shape, Sequence[Shape]], list[Move]]


def transposed(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """`transpose`."""
    return [Move(tuple(map(Kept, params["permutation"])))]


def broadcast(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """`broadcast_in_dim`."""
    axes: list[AxisOrigin] = [Repeated(n) for n in results[0]]
    for axis, target in enumerate(params["broadcast_dimensions"]):
        if shape[axis] == results[0][target]:
            axes[target] = Kept(axis)
    return [Move(tuple(axes))]


def reshaped(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """`reshape`."""
    order = params.get("dimensions")
    order = range(len(shape)) if order is None else order
    return [Move((), reshaped=tuple(order))]


def squeezed(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """`squeeze`."""
    gone = {axis % len(shape) for axis in params["dimensions"]}
    return [Move(_rest(shape, gone), tuple(map(Kept, sorted(gone))))]


def expanded(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """`expand_dims`."""
    new = {axis % len(results[0]) for axis in params["dimensions"]}
    old = iter(range(len(shape)))
    axes = [
        Repeated(1) if i in new else Kept(next(old)) for i in range(len(results[0]))
    ]
    return [Move(tuple(axes))]


def reversed_(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """`rev`."""
    turned = {i: Ranged(i, shape[i] - 1, shape[i], -1) for i in params["dimensions"]}
    return [Move(_each(shape, turned))]


def sliced(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """`slice`."""
    steps = params["strides"] or [1] * len(shape)
    cut = {
        i: Ranged(i, int(start), size, int(step))
        for i, (start, size, step) in enumerate(
            zip(params["start_indices"], results[0], steps, strict=True)
        )
        if size != shape[i]
    }
    return [Move(_each(shape, cut))]


def split(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """`split`."""
    axis, start, found = params["axis"], 0, []
    for size in map(int, params["sizes"]):
        cut = {axis: Ranged(axis, start, size, 1)} if size != shape[axis] else {}
        found.append(Move(_each(shape, cut)))
        start += size
    return found


def unstacked(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """`unstack`: every entry along an axis becomes an array."""
    axis = params["axis"]
    rest = _rest(shape, {axis})
    return [Move(rest, (Ranged(axis, i, 1, 1),)) for i in range(len(results))]


def tiled(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """`tile`."""
    reps = {i: Tiled(i, n) for i, n in enumerate(params["reps"]) if n != 1}
    return [Move(_each(shape, reps))]


def padded(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """`pad`."""
    found: dict[int, AxisOrigin] = {}
    for i, (low, high, inner) in enumerate(params["padding_config"]):
        if inner or low < 0 or high < 0:
            found[i] = Mixed(i, results[0][i])
        elif low or high:
            found[i] = Padded(i, low, high)
    return [Move(_each(shape, found))]


def picked(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """`dynamic_slice`: axes that keep their size are whole."""
    hit = [i for i, n in enumerate(results[0]) if n != shape[i]]
    return [_mixed(shape, hit, results[0])]


def reduced(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """Reductions; mesh axes are no axes of the array."""
    gone = {int(axis) for axis in params["axes"] if isinstance(axis, numbers.Integral)}
    move = Move(_rest(shape, gone), tuple(Mixed(axis, 1) for axis in sorted(gone)))
    return [move] * len(results)


def along(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """Operations along one axis: sorts, cumulative sums, the largest few."""
    named = [params[name] for name in ("axis", "dimension") if name in params]
    axis = (named or [-1])[0] % len(shape)
    return [_mixed(shape, [axis], result) for result in results]


def windowed(params: Params, shape: Shape, results: Sequence[Shape]) -> list[Move]:
    """Reductions over windows: a window of one entry leaves an axis as it is."""
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    given = [params[n] for n in names if params.get(n) is not None]
    hit = [
        i
        for i in range(len(shape))
        if any(g[i] != 1 for g in given) or tuple(params["padding"][i]) != (0, 0)
    ]
    return [_mixed(shape, hit, results[0])]


def _each(shape: Shape, changed: Mapping[int, AxisOrigin]) -> tuple[AxisOrigin, ...]:
    return tuple(changed.get(i, Kept(i)) for i in range(len(shape)))


def _rest(shape: Shape, gone: set[int]) -> tuple[AxisOrigin, ...]:
    return tuple(Kept(i) for i in range(len(shape)) if i not in gone)


def _mixed(shape: Shape, hit: Iterable[int], result: Shape) -> Move:
    return Move(_each(shape, {i: Mixed(i, result[i]) for i in hit}))
