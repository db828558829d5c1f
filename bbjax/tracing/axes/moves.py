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
from bbjax.tracing.primitives import (
    ACROSS,
    CUMULATIVE,
    ELEMENTWISE,
    IDENTITY,
    RANDOM,
    REDUCING,
    WINDOWED,
)


@dataclasses.dataclass
class AxisStep:
    """One equation without a body.

    Attributes:
      extents: what dims are made of.
      name: of the primitive.
      params: of the equation.
      ins: dims of its operands.
      shapes: of its results.
      used: where dims are recorded that a sum runs over.
      drawn: where dims are recorded that random numbers are drawn for.
    """

    extents: Extents
    name: str
    params: dict[str, Any]
    ins: list[Dims]
    shapes: list[tuple[int, ...]]
    used: list[Dim]
    drawn: list[Dim]

    def fix(self, dims: Iterable[Dim], why: str) -> None:
        """Fixes some dims."""
        for dim in dims:
            self.extents.fix(dim, why)

    def mixed(self, axes: Iterable[int], what: str) -> None:
        """Fixes axes of the first operand that the operation mixes."""
        self.fix((self.ins[0][a] for a in axes), f"{self.name} {what}")


def followed(step: AxisStep) -> list[Dims]:
    """Dims of the results of an equation."""
    if step.name in ACROSS:
        return _reduced_each(step)
    if step.name in IDENTITY:
        return list(step.ins)
    if step.name in ELEMENTWISE:
        return [elementwise(step)]
    if step.name in RANDOM:
        return _random(step)
    if step.name in MOVES:
        return MOVES[step.name](step)
    why = f"{step.name} is not followed"
    for dims in step.ins:
        step.fix(dims, why)
    return [step.extents.shape(s, why) for s in step.shapes]


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


def _reduced_each(step: AxisStep) -> list[Dims]:
    """Sums over mesh axes, or over axes of the array that `vmap` has named."""
    axes = [a for a in step.params.get("axes", ()) if isinstance(a, int)]
    found = []
    for dims in step.ins:
        step.fix((dims[a] for a in axes), f"{step.name} runs over its units")
        found.append(tuple(d for i, d in enumerate(dims) if i not in axes))
    return found


# Moves ---------------------------------------------------------------------------
def _transposed(step: AxisStep) -> list[Dims]:
    return [tuple(step.ins[0][i] for i in step.params["permutation"])]


def _broadcast(step: AxisStep) -> list[Dims]:
    found = [step.extents.new(n) for n in step.shapes[0]]
    own = step.ins[0]
    for dim, target in zip(own, step.params["broadcast_dimensions"], strict=True):
        if step.extents.size(dim) == step.shapes[0][target]:
            found[target] = dim
    return [tuple(found)]


def _reshaped(step: AxisStep) -> list[Dims]:
    dims = step.ins[0]
    order = step.params.get("dimensions")
    if order is not None:
        dims = tuple(dims[i] for i in order)
    return [step.extents.reshaped(dims, step.shapes[0])]


def _squeezed(step: AxisStep) -> list[Dims]:
    dims = step.ins[0]
    drop = {d % len(dims) for d in step.params["dimensions"]}
    return [tuple(d for i, d in enumerate(dims) if i not in drop)]


def _expanded(step: AxisStep) -> list[Dims]:
    return [step.extents.reshaped(step.ins[0], step.shapes[0])]


def _reversed(step: AxisStep) -> list[Dims]:
    return [_anew(step, step.ins[0], step.params["dimensions"], "turns them around")]


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


def _unstacked(step: AxisStep) -> list[Dims]:
    """Every entry along the axis becomes an array."""
    axis = step.params["axis"]
    step.mixed([axis], "takes them one by one")
    rest = (*step.ins[0][:axis], *step.ins[0][axis + 1 :])
    return [rest for _ in step.shapes]


def _tiled(step: AxisStep) -> list[Dims]:
    reps = step.params["reps"]
    return [
        tuple(
            d if r == 1 else step.extents.new(r, "tile repeats them") + d
            for d, r in zip(step.ins[0], reps, strict=True)
        )
    ]


def _split(step: AxisStep) -> list[Dims]:
    along, sizes = step.params["axis"], step.params["sizes"]
    bounds = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    parts = step.extents.cut(step.ins[0][along], bounds)
    return [
        tuple(p if i == along else d for i, d in enumerate(step.ins[0])) for p in parts
    ]


def _sliced(step: AxisStep) -> list[Dims]:
    params = step.params
    strides = params["strides"] or [1] * len(step.ins[0])
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    found = []
    for dim, (start, stop, stride) in zip(step.ins[0], bounds, strict=True):
        size = step.extents.size(dim)
        if (start, stop, stride) == (0, size, 1):
            found.append(dim)
        elif stride == 1:
            found.append(step.extents.cut(dim, [start, stop])[1])
        else:
            why = "slice takes every so many of them"
            step.extents.fix(dim, why)
            found.append(step.extents.new(-(-(stop - start) // stride), why))
    return [tuple(found)]


def _padded(step: AxisStep) -> list[Dims]:
    """Axes that get entries before and after become sums."""
    found = []
    why = "pad adds entries along them"
    config = step.params["padding_config"]
    for dim, (low, high, inner), n in zip(
        step.ins[0], config, step.shapes[0], strict=True
    ):
        if (low, high, inner) == (0, 0, 0):
            found.append(dim)
        elif inner or low < 0 or high < 0:
            step.extents.fix(dim, why)
            found.append(step.extents.new(n, why))
        else:
            parts = [step.extents.new(low), dim, step.extents.new(high)]
            found.append(step.extents.joined(parts))
    return [tuple(found)]


def _reduced(step: AxisStep) -> list[Dims]:
    axes = step.params["axes"]
    step.mixed(axes, "runs over its units")
    found = tuple(d for i, d in enumerate(step.ins[0]) if i not in axes)
    return [found for _ in step.shapes]


def _along(step: AxisStep) -> list[Dims]:
    """Mixes entries along one axis."""
    named = [step.params[n] for n in ("axis", "dimension") if n in step.params]
    axis = named[0] % len(step.ins[0])
    for other in step.ins[1:]:
        step.extents.tie_each(step.ins[0], other)
    found = _anew(step, step.ins[0], [axis], "runs along its units")
    return [found for _ in step.shapes]


def _top_k(step: AxisStep) -> list[Dims]:
    axis = step.params.get("axis", -1) % len(step.ins[0])
    step.mixed([axis], "chooses among its units")
    kept = list(step.ins[0])
    kept[axis] = step.extents.new(step.shapes[0][axis], "top_k makes as many")
    return [tuple(kept) for _ in step.shapes]


def _windowed(step: AxisStep) -> list[Dims]:
    """Windows of size 1 leave an axis as it is."""
    params, dims = step.params, step.ins[0]
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    given = [params[n] for n in names if params.get(n) is not None]
    hit = {
        i
        for i in range(len(dims))
        if any(g[i] != 1 for g in given) or tuple(params["padding"][i]) != (0, 0)
    }
    return [_anew(step, dims, hit, "slides a window along them")]


def _anew(step: AxisStep, dims: Dims, hit: Iterable[int], what: str) -> Dims:
    """Dims of which some are fixed, and new and fixed in the result."""
    why = f"{step.name} {what}"
    found = list(dims)
    for i in hit:
        step.extents.fix(dims[i], why)
        found[i] = step.extents.new(step.shapes[0][i], why)
    return tuple(found)


def _dynamic_slice(step: AxisStep) -> list[Dims]:
    dims = step.ins[0]
    hit = [i for i, d in enumerate(dims) if step.extents.size(d) != step.shapes[0][i]]
    return [_anew(step, dims, hit, "picks some of them")]


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


MOVES: dict[str, Callable[[AxisStep], list[Dims]]] = {
    "transpose": _transposed,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "squeeze": _squeezed,
    "expand_dims": _expanded,
    "rev": _reversed,
    "concatenate": _concatenated,
    "stack": _stacked,
    "unstack": _unstacked,
    "tile": _tiled,
    "split": _split,
    "slice": _sliced,
    "pad": _padded,
    "sort": _along,
    "top_k": _top_k,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "iota": _iota,
    **dict.fromkeys(REDUCING | {"reduce_xor"}, _reduced),
    **dict.fromkeys(CUMULATIVE, _along),
    **dict.fromkeys(WINDOWED, _windowed),
}
