"""Tracks: which entry of a source each entry of an array stands for.

A stricter analysis of the flow than `values`. It finds what depends on units, not
where to measure them. A *source* is the output units of a kernel use (`("u", use)`) or
a parameter (`("w", leaf)`). An array has a *track* of a source if each of its entries
is computed from one entry of the source alone (and from other sources): the parts on
its axes say from which. Parts are written in the source's own row-major index: `stack +
units` of the kernel, or all entries of the parameter; whatever merges, splits or moves
axes keeps them exact.

    h (B, C), units of a kernel     axes  (B positions), (C units, stride 1)
    bias[None] (1, C)               axes  (1 position),  (C entries, stride 1)
    matched                         C digits of unit stride 1 and entry stride 1
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bbjax.model.kernel import Kernel, Layout, Side
from bbjax.tracing.flow.contract import Scope
from bbjax.tracing.flow.values import Axis, Part, Value, extent, position, reshape
from bbjax.tracing.primitives import ACROSS, CUMULATIVE, REDUCING, WINDOWED

Source = tuple[str, int]
Zeros = frozenset[frozenset[Source]]  # see `zeros`
# `Part.axis` in a track: which part of the index it is, or that a parameter is read
# backwards, as in the windows of a transposed convolution.
UNIT, STACK, REVERSED = 0, 1, 2

NEVER: Zeros = frozenset({frozenset[Source]()})


class Track(NamedTuple):
    """How one source lies in an array.

    Attributes:
      axes: parts of the source on each axis; all of them are on some axis or scan.
      scans: parts that enclosing scans run over, by scope of their bodies.
      raw: whether the array holds the very entries of the source.
    """

    axes: tuple[Axis, ...]
    scans: tuple[tuple[Scope, Axis], ...] = ()
    raw: bool = True


@dataclasses.dataclass(frozen=True)
class Info:
    """What is known of an array.

    Attributes:
      tracks: how sources lie in it.
      loose: parameters that it depends on in any other way.
      zeros: sets of sources; where one of each set is 0, so is the array.
      number: the constant that it is everywhere, if known.
      pooled: whether it is a summary of its units over all else.
      running: whether it updates a statistic that the function was given.
    """

    tracks: Mapping[Source, Track] = dataclasses.field(default_factory=dict)
    loose: frozenset[int] = frozenset()
    zeros: Zeros = NEVER
    number: float | None = None
    pooled: bool = False
    running: bool = False

    @property
    def units(self) -> dict[int, Track]:
        """Tracks of kernels' units, by use."""
        return {s[1]: t for s, t in self.tracks.items() if s[0] == "u"}

    @property
    def params(self) -> dict[int, Track]:
        """Tracks of parameters, by leaf."""
        return {s[1]: t for s, t in self.tracks.items() if s[0] == "w"}

    @property
    def leaves(self) -> frozenset[int]:
        """Every parameter that it depends on, as far as that is known."""
        return self.loose | frozenset(self.params)


# Parts ---------------------------------------------------------------------------
def tidy(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """One way to write axes: no part of size 1, neighbours that continue as one."""
    return tuple(_tidy(axis) for axis in axes)


def _tidy(axis: Axis) -> Axis:
    found: list[Part] = []
    for part in axis:
        last = found[-1] if found else None
        if part.size == 1:
            continue
        if last is not None and last.source is None and part.source is None:
            found[-1] = position(last.size * part.size)[0]
        elif part.source is None:
            found += position(part.size)
        elif last is not None and last == part._replace(
            size=last.size, stride=part.size * part.stride
        ):
            found[-1] = part._replace(size=last.size * part.size)
        else:
            found.append(part)
    return tuple(found) or position(1)


def sourced(axes: Sequence[Axis]) -> int:
    """How many entries of the source are distinct."""
    return math.prod(p.size for axis in axes for p in axis if p.source is not None)


def whole(axis: Axis) -> bool:
    """Whether nothing but entries of the source runs along an axis."""
    return all(p.source is not None for p in axis if p.size > 1)


def at_rank(track: Track, shape: Sequence[int]) -> Track:
    """The track of an operand, broadcast to the shape of the result."""
    if not track.axes:
        return track._replace(axes=tuple(position(n) for n in shape))
    axes = tuple(
        a if extent(a) == n else position(n)
        for a, n in zip(track.axes, shape, strict=True)
    )
    return track._replace(axes=axes)


class Digit(NamedTuple):
    """A piece of an axis that is one piece in both of two tracks."""

    size: int
    first: Part
    second: Part


def digits(first: Axis, second: Axis) -> list[Digit] | None:
    """The pieces of an axis that two tracks share; None if their sizes do not nest."""
    one = [p for p in first if p.size > 1]
    two = [p for p in second if p.size > 1]
    found = []
    while one and two:
        (a, *one), (b, *two) = one, two
        size = min(a.size, b.size)
        if a.size % size or b.size % size:
            return None
        for part, queue in ((a, one), (b, two)):
            if part.size > size:
                queue.insert(0, part._replace(size=part.size // size))
        found.append(Digit(size, _major(a, size), _major(b, size)))
    return None if one or two else found


def _major(part: Part, size: int) -> Part:
    return part._replace(size=size, stride=part.stride * (part.size // size))


def matched(first: Track, second: Track) -> list[Digit] | None:
    """The pieces of all axes and scans of two tracks of one array."""
    found: list[Digit] = []
    mine, its = dict(first.scans), dict(second.scans)
    pairs = list(zip(first.axes, second.axes, strict=True))
    for scan in {**mine, **its}:
        size = extent(mine.get(scan) or its[scan])
        pairs.append((mine.get(scan, position(size)), its.get(scan, position(size))))
    for a, b in pairs:
        shared = digits(a, b)
        if shared is None:
            return None
        found += shared
    return found


def one_to_one(shared: Sequence[Digit] | None) -> bool:
    """Whether each entry of the one source meets one entry of the other."""
    return shared is not None and all(
        (d.first.source is None) == (d.second.source is None)
        and d.first.axis != REVERSED
        for d in shared
    )


def touching(shared: Sequence[Digit] | None) -> bool:
    """Whether entries of the one source meet different entries of the other."""
    return shared is None or any(d.first.source and d.second.source for d in shared)


def layout(pairs: Sequence[tuple[int, int, int]]) -> Layout:
    """Digits `(size, stride)` of an index, from `(size, order, stride)`."""
    found: list[tuple[int, int]] = []
    for size, _, stride in sorted(pairs, key=lambda d: -d[1]):
        if found and found[-1][1] == size * stride:
            found[-1] = (found[-1][0] * size, stride)
        else:
            found.append((size, stride))
    return tuple(found)


# Sources -------------------------------------------------------------------------
def of_leaf(number: int, shape: Sequence[int]) -> Track:
    """The track of a parameter in itself."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    axes = [
        (Part(("w", number), UNIT, n, s),) for n, s in zip(shape, strides, strict=True)
    ]
    return Track(tidy(axes))


def indexed(axis: Axis, kernel: Kernel, side: Side, source: Source) -> Axis | None:
    """Parts of a kernel's axes, as parts of its index `stack + units` of one side."""
    found: list[Part] = []
    for part in axis:
        if part.source is None:
            found.append(part)
            continue
        pieces = _pieces(part, kernel, side, source)
        if pieces is None:
            return None
        found += pieces
    return tuple(found)


def _pieces(
    part: Part, kernel: Kernel, side: Side, source: Source
) -> list[Part] | None:
    """A part of one axis, cut where the axis is (groups), major to minor."""
    strides = _strides(kernel, side)
    found: list[Part] = []
    inner = 1
    for d in reversed(_dims(kernel, part.axis)):
        low = max(part.stride, inner)
        high = min(part.stride * part.size, inner * kernel.split[d])
        if high > low:
            if high % low or low % inner or d not in strides:
                return None
            code = STACK if kernel.roles[d] == "stack" else UNIT
            stride = strides[d] * (low // inner)
            found.insert(0, Part(source, code, high // low, stride))
        inner *= kernel.split[d]
    return found if part.stride > 0 else None


def _dims(kernel: Kernel, axis: int) -> range:
    """Axes of `split` that an axis of the kernel became."""
    if "group" not in kernel.roles:
        return range(axis, axis + 1)
    at = kernel.roles.index("group")  # an axis splits into groups and units
    start = axis + (axis > at)
    return range(start, start + 1 + (axis == at))


def _strides(kernel: Kernel, side: Side) -> dict[int, int]:
    """Stride of each axis of `split` in the index `stack + units` of a side."""
    own = "in" if side == "inputs" else "out"
    order = [d for r in ("stack", "group", own) for d in _having(kernel, r)]
    sizes = [kernel.split[d] for d in order]
    return {d: math.prod(sizes[i + 1 :]) for i, d in enumerate(order)}


def _having(kernel: Kernel, role: str) -> list[int]:
    return [d for d, r in enumerate(kernel.roles) if r == role]


# Moves ---------------------------------------------------------------------------
def moved(eqn: Any, axes: tuple[Axis, ...], shape: Sequence[int]) -> Any:
    """Axes of a result that moves entries about, or None if it mixes them."""
    name = eqn.primitive.name
    if name in _SHAPED:
        found = _SHAPED[name](eqn.params, axes, shape)
    elif name in _ALONG:
        hit = _ALONG[name](eqn.params, [extent(a) for a in axes])
        found = tuple(
            position(n) if i in hit else a
            for i, (a, n) in enumerate(zip(axes, shape, strict=True))
        )
    else:
        return None
    whole_axes = tuple(extent(a) for a in found) == tuple(shape)
    return tidy(found) if whole_axes and sourced(found) == sourced(axes) else None


def _transposed(params: Any, axes: tuple[Axis, ...], shape: Sequence[int]):
    return tuple(axes[i] for i in params["permutation"])


def _broadcast(params: Any, axes: tuple[Axis, ...], shape: Sequence[int]):
    found = [position(n) for n in shape]
    for axis, target in zip(axes, params["broadcast_dimensions"], strict=True):
        if extent(axis) == shape[target]:
            found[target] = axis
    return tuple(found)


def _reshaped(params: Any, axes: tuple[Axis, ...], shape: Sequence[int]):
    order = params.get("dimensions")
    if order is not None and len(order) == len(axes):
        axes = tuple(axes[i] for i in order)
    return reshape(Value(axes), shape)


def _squeezed(params: Any, axes: tuple[Axis, ...], shape: Sequence[int]):
    drop = {d % len(axes) for d in params["dimensions"]}
    return tuple(a for i, a in enumerate(axes) if i not in drop)


def _reduced(params: Any, axes: tuple[Axis, ...], shape: Sequence[int]):
    drop = set(params["axes"])
    return tuple(a for i, a in enumerate(axes) if i not in drop)


def _reversed(params: Any, axes: tuple[Axis, ...], shape: Sequence[int]):
    found = list(axes)
    for i in params["dimensions"]:
        source = found[i][0].source
        turn = len(found[i]) == 1 and source is not None and source[0] == "w"
        new = found[i][0]._replace(axis=REVERSED)
        found[i] = (new,) if turn else position(shape[i])
    return tuple(found)


_SHAPED = {
    "rev": _reversed,
    "transpose": _transposed,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "expand_dims": lambda params, axes, shape: reshape(Value(axes), shape),
    "squeeze": _squeezed,
    **dict.fromkeys(REDUCING | ACROSS, _reduced),
}


def _sliced(params: Any, sizes: Sequence[int]) -> set[int]:
    strides = params["strides"] or [1] * len(sizes)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return {
        i for i, (b, n) in enumerate(zip(bounds, sizes, strict=True)) if b != (0, n, 1)
    }


def _windowed(params: Any, sizes: Sequence[int]) -> set[int]:
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    given = [params[n] for n in names if params.get(n) is not None]
    return {
        i
        for i in range(len(sizes))
        if any(g[i] != 1 for g in given) or tuple(params["padding"][i]) != (0, 0)
    }


# Axes along which an operation does not act entry by entry.
_ALONG = {
    "slice": _sliced,
    "dynamic_slice": lambda p, sizes: {
        i for i, n in enumerate(p["slice_sizes"]) if n != sizes[i]
    },
    "pad": lambda p, sizes: {
        i for i, c in enumerate(p["padding_config"]) if tuple(c) != (0, 0, 0)
    },
    "split": lambda p, sizes: {p["axis"]},
    **dict.fromkeys(WINDOWED, _windowed),
    **dict.fromkeys(CUMULATIVE, lambda p, sizes: {p["axis"]}),
}
