"""Checks that the constants of a removal do not depend on the sizes of the arguments.

The sum of a constant over a sequence grows with its length, and `np.sqrt(x.shape[1])`
is only a number in the traced program. So the function is traced again on longer
arguments, if it takes them, and the units to remove are chosen for these programs as
well. The constants of a group depend on a size if the choice is another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bbjax.model.groups import Group
from bbjax.shrinking.cut import shape_of
from bbjax.shrinking.model import TracedModel
from bbjax.shrinking.removal import Fold, Removal, choose
from bbjax.tracing.call import Call, Prepared, traced

WHY = "what they add depends on the sizes of the arguments"
_TOLERANCE = 1e-5  # share of a constant: sums are rounded


class ArgumentAxis(NamedTuple):
    """An axis of an argument: the number of the operand, and of its axis."""

    operand: int
    axis: int


def at_other_sizes(this: Call, model: TracedModel) -> Iterator[Prepared]:
    """Traces the function on arguments of other sizes, where it takes them.

    Args:
      this: the call that the model is of.
      model: its program shows which axes have the same size.
    """
    size = {
        ArgumentAxis(operand, axis): n
        for operand, array in enumerate(this.arrays)
        for axis, n in enumerate(jnp.shape(array))
    }

    def longer(axes: Sequence[ArgumentAxis]) -> Prepared | None:
        return _traced(this, {axis: 2 * size[axis] for axis in axes})

    free, shared = _tied(model)
    times = {axis: 2 + n for n, axes in enumerate(free) for axis in axes}
    every = _traced(this, {axis: n * size[axis] for axis, n in times.items()})
    if every is not None:
        yield every
    for axes in shared if every is not None else free + shared:
        shorter = {axis: (size[axis] + 1) // 2 for axis in axes if size[axis] > 1}
        found = longer(axes) or _traced(this, shorter)
        # Other axes may have to change as well: those as long (square images), or all.
        alike = [axis for axis in times if size[axis] == size[axes[0]]]
        found = found or longer([*axes, *alike]) or longer([*axes, *times])
        if found is not None:
            yield found


def _traced(this: Call, sizes: Mapping[ArgumentAxis, int]) -> Prepared | None:
    """The function with other sizes of some axes; None if it does not take them."""
    if not sizes:
        return None
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
    except Exception:  # any error of the user's function: it does not take them
        return None


def _tied(
    model: TracedModel,
) -> tuple[list[list[ArgumentAxis]], list[list[ArgumentAxis]]]:
    """Axes of arguments that change together.

    First axes of arguments alone; then axes that parameters have as well. Parameters
    decide their size, unless a function takes a part of a parameter, as of positions.
    """
    extents = model.program.extents
    leaves = [dim for dims in model.program.leaves for dim in dims]
    inner = {group for dim in leaves for group in extents.wholes(dim)}
    found: list[tuple[set[int], list[ArgumentAxis]]] = []
    invars = model.program.top.jaxpr.invars
    for operand in range(len(model.paths), len(invars)):
        for axis, dim in enumerate(model.program.top.dims[invars[operand]]):
            if not extents.size(dim):
                continue
            groups, axes = {*extents.wholes(dim)}, [ArgumentAxis(operand, axis)]
            for other in [pair for pair in found if pair[0] & groups]:
                found.remove(other)
                groups, axes = groups | other[0], other[1] + axes
            found.append((groups, axes))
    free = [axes for groups, axes in found if not groups & inner]
    return free, [axes for groups, axes in found if groups & inner]


def differing(
    model: TracedModel,
    removal: Removal,
    other: TracedModel,
    refused: Mapping[int, str],
    varying: Mapping[int, str],
) -> dict[int, str]:
    """Groups that lose other units, or other constants, at other sizes.

    Args:
      model: of the example arguments.
      removal: chosen for it.
      other: the model at other sizes.
      refused: as given to `choose`.
      varying: likewise.
    """
    numbers = {_identity(group): number for number, group in other.groups.items()}
    there = {n: numbers.get(_identity(g), -1) for n, g in model.groups.items()}
    again = choose(
        other,
        {there[group]: why for group, why in refused.items()},
        {there[group]: why for group, why in varying.items()},
    )
    wrong = {
        group
        for group, kept in removal.kept.items()
        if not np.array_equal(kept, again.kept.get(there[group], ()))
    }
    for use, fold in removal.folds.items():
        other_fold = again.folds.get(use._replace(group=there[use.group]))
        if other_fold is None or not _close(fold, other_fold):
            wrong.add(use.group)
    return dict.fromkeys(sorted(wrong), WHY)


def _identity(group: Group) -> Hashable:
    """Equal for the same group at other sizes of the arguments."""
    return tuple((m.path, m.axis, m.stack, m.units.tobytes()) for m in group.members)


def _close(one: Fold, two: Fold) -> bool:
    """Whether both add the same, up to the rounding of sums of their dtype."""
    share = _TOLERANCE
    if jnp.issubdtype(one.dtype, jnp.floating):
        share = max(share, 4 * float(jnp.finfo(one.dtype).eps))
    most = share * np.abs(one.value).max(initial=0)
    return one.value.shape == two.value.shape and bool(
        np.all(np.abs(one.value - two.value) <= most)
    )
