"""What operations without a contraction make of axes.

Entry by entry, operands and result are tied. A move hands dims on; where an operation
picks, counts or mixes entries along an axis, the axis is fixed, and the reason names
the operation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from bbjax.tracing.axes.extents import Dim, Dims, Extents
from bbjax.tracing.moves import AxisOrigin, Kept, Move, Padded, Ranged, Repeated, Tiled
from bbjax.tracing.primitives import (
    EACH,
    ELEMENTWISE,
    IDENTITY,
    RANDOM,
    TABLE,
    moves_of,
)


@dataclasses.dataclass
class AxisStep:
    """One equation without a body.

    Attributes:
      extents: what dims are made of.
      eqn: it.
      ins: dims of its operands.
      shapes: of its results.
      used: where dims are recorded that a sum runs over.
      drawn: where dims are recorded that random numbers are drawn for.
    """

    extents: Extents
    eqn: Any
    ins: list[Dims]
    shapes: list[tuple[int, ...]]
    used: list[Dim]
    drawn: list[Dim]

    @property
    def name(self) -> str:
        """Name of the primitive."""
        return self.eqn.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """Settings of the equation."""
        return self.eqn.params

    def fix(self, dims: Iterable[Dim], why: str) -> None:
        """Fixes some dims."""
        for dim in dims:
            self.extents.fix(dim, why)


def followed(step: AxisStep) -> list[Dims]:
    """Dims of the results of an equation."""
    if step.name in EACH:
        return _each(step)
    if step.name in IDENTITY:
        return list(step.ins)
    if step.name in ELEMENTWISE:
        return [elementwise(step)]
    if step.name in RANDOM:
        return _random(step)
    if step.name in _OTHERS:
        return _OTHERS[step.name](step)
    found = moves_of(step.eqn)
    if found is not None:
        pairs = zip(found, step.shapes, strict=True)
        return [moved(step, step.ins[0], move, shape) for move, shape in pairs]
    why = f"{step.name} is not followed"
    for dims in step.ins:
        step.fix(dims, why)
    return [step.extents.shape(s, why) for s in step.shapes]


def moved(step: AxisStep, dims: Dims, move: Move, shape: tuple[int, ...]) -> Dims:
    """Dims of what is made of an array with `dims`."""
    if move.reshaped is not None:
        return step.extents.reshaped(tuple(dims[i] for i in move.reshaped), shape)
    for origin in move.gone:
        _axis(step, dims, origin)
    return tuple(_axis(step, dims, origin) for origin in move.axes)


def _axis(step: AxisStep, dims: Dims, origin: AxisOrigin) -> Dim:
    """The dim of one axis of a result."""
    extents, what = step.extents, TABLE[step.name].what
    if isinstance(origin, Repeated):
        return extents.new(origin.size)
    dim = dims[origin.axis]
    if isinstance(origin, Kept):
        return dim
    if isinstance(origin, Tiled):
        return extents.new(origin.times, "tile repeats them") + dim
    if isinstance(origin, Padded):
        before, after = origin.before, origin.after
        return extents.joined([extents.new(before), dim, extents.new(after)])
    if isinstance(origin, Ranged) and not what:
        if origin.step == 1:
            return extents.cut(dim, [origin.start, origin.start + origin.size])[1]
        what = "takes every so many of them"
    why = f"{step.name} {what}"
    extents.fix(dim, why)
    return extents.new(origin.size, why)


def _each(step: AxisStep) -> list[Dims]:
    """The same move of every operand; operands of a sort are tied."""
    if step.name == "sort":
        for other in step.ins[1:]:
            step.extents.tie_each(step.ins[0], other)
    found = moves_of(step.eqn) or []
    each = zip(step.ins, found, step.shapes, strict=True)
    return [moved(step, *one) for one in each]


def elementwise(step: AxisStep) -> Dims:
    """Operands and result are tied, entry by entry."""
    shape = step.shapes[0]
    full = [d for d in step.ins if len(d) == len(shape)]
    found = []
    for axis, n in enumerate(shape):
        having = [d[axis] for d in full if step.extents.size(d[axis]) == n]
        for other in having[1:]:
            step.extents.tie(having[0], other)
        found.append(having[0] if having else step.extents.new(n))
    return tuple(found)


def _random(step: AxisStep) -> list[Dims]:
    """Noise: as much of it as the other operands need; keys keep their size."""
    for dims in step.ins:
        step.fix(dims, f"{step.name} uses them as a key")
    free = step.name in ("random_bits", "random_gamma", "rng_uniform")
    why = "" if free else f"{step.name} makes keys of this size"
    if step.name == "threefry2x32":
        return [elementwise(dataclasses.replace(step, shapes=[s])) for s in step.shapes]
    found = [step.extents.shape(s, why) for s in step.shapes]
    step.drawn += [d for dims in found for d in dims if free]
    return found


# Several operands, or none --------------------------------------------------------
def _concatenated(step: AxisStep) -> list[Dims]:
    along = step.params["dimension"]
    found = list(step.ins[0])
    for dims in step.ins[1:]:
        for axis, dim in enumerate(dims):
            if axis != along:
                step.extents.tie(found[axis], dim)
    found[along] = step.extents.joined([dims[along] for dims in step.ins])
    return [tuple(found)]


def _stacked(step: AxisStep) -> list[Dims]:
    found = step.ins[0]
    for dims in step.ins[1:]:
        step.extents.tie_each(found, dims)
    along = step.params["axis"]
    new = step.extents.new(step.shapes[0][along], "stack makes as many")
    return [(*found[:along], new, *found[along:])]


def _dynamic_update(step: AxisStep) -> list[Dims]:
    into, new = step.ins[:2]
    for one, two in zip(into, new, strict=True):
        if step.extents.size(one) == step.extents.size(two):
            step.extents.tie(one, two)
        else:
            step.fix((one, two), "dynamic_update_slice replaces some of them")
    return [into]


def _iota(step: AxisStep) -> list[Dims]:
    along = step.params["dimension"]
    why = "iota numbers them"
    return [
        tuple(
            step.extents.new(n, why if i == along else "")
            for i, n in enumerate(step.shapes[0])
        )
    ]


_OTHERS: dict[str, Callable[[AxisStep], list[Dims]]] = {
    "concatenate": _concatenated,
    "stack": _stacked,
    "dynamic_update_slice": _dynamic_update,
    "iota": _iota,
}
