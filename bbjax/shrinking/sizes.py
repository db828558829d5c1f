"""What a plan takes for constant has to be so at other sizes of the arguments, too.

The sum of a constant over a sequence grows with its length, and `np.sqrt(x.shape[1])`
is just a number to whoever reads the program. So the function is traced again on longer
arguments, as far as it takes them, and the plan is made for these programs as well.
Groups for which it comes out otherwise say something that depends on a size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bbjax.model.groups import Group
from bbjax.shrinking.cut import shape_of
from bbjax.shrinking.folds import Fold
from bbjax.shrinking.model import Model
from bbjax.shrinking.plan import Plan, plan
from bbjax.tracing.call import Call, Prepared, traced

WHY = "what they add depends on the sizes of the arguments"
_TOLERANCE = 1e-5  # of a constant, whose sums are rounded


class Axis(NamedTuple):
    """An axis of an argument: the number of the operand, and of its axis."""

    operand: int
    axis: int


def elsewhere(this: Call, model: Model) -> Iterator[Prepared]:
    """The function on arguments of other sizes, those that it takes.

    Args:
      this: the call that the model is of.
      model: says which axes have one size.
    """
    free, shared = _tied(model)
    every = _longer(this, {axis: 2 + n for n, axes in enumerate(free) for axis in axes})
    if every is not None:
        yield every
    for axes in shared if every is not None else free + shared:
        found = _longer(this, dict.fromkeys(axes, 2)) or _shorter(this, axes)
        for more in _with_others(this, axes, free):
            found = found or _longer(this, dict.fromkeys(more, 2))
        if found is not None:
            yield found


def _with_others(
    this: Call, axes: Sequence[Axis], free: Sequence[Sequence[Axis]]
) -> Iterator[list[Axis]]:
    """Axes that may have to change along: those as long (square images), and all."""
    every = [axis for other in free for axis in other]
    yield [*axes, *(a for a in every if _size(this, a) == _size(this, axes[0]))]
    yield [*axes, *every]


def _tied(model: Model) -> tuple[list[list[Axis]], list[list[Axis]]]:
    """Axes of arguments that change together.

    First those of the arguments' own; then those that parameters have as well: whose
    size these decide, unless a function takes a part of them, as positions.
    """
    extents = model.program.extents
    leaves = [dim for dims in model.program.leaves for dim in dims]
    inner = {whole for dim in leaves for whole in extents.wholes(dim)}
    found: list[tuple[set[int], list[Axis]]] = []
    invars = model.program.top.jaxpr.invars
    for operand in range(len(model.paths), len(invars)):
        for axis, dim in enumerate(model.program.top.dims[invars[operand]]):
            if not extents.size(dim):
                continue
            wholes, axes = {*extents.wholes(dim)}, [Axis(operand, axis)]
            for other in [pair for pair in found if pair[0] & wholes]:
                found.remove(other)
                wholes, axes = wholes | other[0], other[1] + axes
            found.append((wholes, axes))
    free = [axes for wholes, axes in found if not wholes & inner]
    return free, [axes for wholes, axes in found if wholes & inner]


def _longer(this: Call, times: Mapping[Axis, int]) -> Prepared | None:
    """The function on arguments that are as many times as long."""
    if not times:
        return None
    return _at(this, {axis: n * _size(this, axis) for axis, n in times.items()})


def _shorter(this: Call, axes: Sequence[Axis]) -> Prepared | None:
    """The function on arguments of half the length."""
    sizes = {axis: (_size(this, axis) + 1) // 2 for axis in axes}
    if all(size == _size(this, axis) for axis, size in sizes.items()):
        return None
    return _at(this, sizes)


def _size(this: Call, axis: Axis) -> int:
    return jnp.shape(this.arrays[axis.operand])[axis.axis]


def _at(this: Call, sizes: Mapping[Axis, int]) -> Prepared | None:
    """The function with other sizes of axes; None if it does not take them."""
    shapes = [list(jnp.shape(array)) for array in this.arrays]
    for axis, size in sizes.items():
        shapes[axis.operand][axis.axis] = size
    changed = {axis.operand for axis in sizes}
    arrays = tuple(
        shape_of(array, tuple(shapes[i])) if i in changed else array
        for i, array in enumerate(this.arrays)
    )
    try:
        return traced(dataclasses.replace(this, arrays=arrays))
    except Exception:  # whatever the user's function raises, it does not take them
        return None


def differing(
    model: Model,
    made: Plan,
    other: Model,
    refused: Mapping[int, str],
    bound: Mapping[int, str],
) -> dict[int, str]:
    """Groups that lose other units, or say something else, at other sizes.

    Args:
      model: of the example arguments.
      made: its plan.
      other: the model at other sizes.
      refused: as the plan was made with.
      bound: likewise.
    """
    numbers = {_identity(group): whole for whole, group in other.groups.items()}
    there = {w: numbers.get(_identity(g), -1) for w, g in model.groups.items()}
    again = plan(
        other,
        {there[w]: why for w, why in refused.items()},
        {there[w]: why for w, why in bound.items()},
    )
    wrong = {
        whole
        for whole, kept in made.kept.items()
        if not np.array_equal(kept, again.kept.get(there[whole], ()))
    }
    said = _said(again.folds)
    for (whole, *use), fold in _said(made.folds).items():
        other_fold = said.get((there[whole], *use))
        if other_fold is None or not _close(fold, other_fold):
            wrong.add(whole)
    return dict.fromkeys(sorted(wrong), WHY)


def _said(folds: Sequence[Fold]) -> dict[tuple[Any, ...], Fold]:
    """What the units of a group said in all, by group and use of a kernel."""
    found: dict[tuple[Any, ...], Fold] = {}
    for fold in folds:
        key = (fold.whole, fold.leaf, fold.layer, fold.axis)
        before = found.get(key)
        value = fold.value if before is None else before.value + fold.value
        found[key] = dataclasses.replace(fold, value=value)
    return found


def _identity(group: Group) -> Hashable:
    """The same for the same group at other sizes."""
    return tuple((m.path, m.axis, m.stack, m.units.tobytes()) for m in group.members)


def _close(one: Fold, two: Fold) -> bool:
    """Whether both add the same, up to how sums of their kind are rounded."""
    share = _TOLERANCE
    if jnp.issubdtype(one.dtype, jnp.floating):
        share = max(share, 4 * float(jnp.finfo(one.dtype).eps))
    most = share * np.abs(one.value).max(initial=0)
    return one.value.shape == two.value.shape and bool(
        np.all(np.abs(one.value - two.value) <= most)
    )
