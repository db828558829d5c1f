"""What is known of the entries of an array, unit by unit, whatever the input is.

For a group of units on an axis of an array, `Entries` has one line per unit:

    known[j]   all entries of unit j are `value[j]`, whatever the input
    firm[j]    and they stay so while the model is trained: masks and constants of the
               function alone make them so

A masked column is firm and 0. A unit that hears nothing says `relu(bias[j])`, which is
known, not firm. Zero times anything is known only where the zero is firm: a scale that
merely is 0 today, as in the last norm of a residual block, can learn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bbjax.tracing.axes.extents import Dims, Extents

Bind = Callable[..., Any]
Tag = tuple[str, int]


class Entries(NamedTuple):
    """What is known of the units of one group; arrays of one entry per unit."""

    value: np.ndarray
    known: np.ndarray
    firm: np.ndarray

    @property
    def zero(self) -> np.ndarray:
        """Where they are known to be 0."""
        return self.known & (self.value == 0)

    @property
    def gone(self) -> np.ndarray:
        """Where they are 0 for good."""
        return self.zero & self.firm


class Held(NamedTuple):
    """A parameter that was only moved or cast: its values, and its mask if it has one.

    Values are asked for only where an axis is all there is of them.
    """

    value: Callable[[], np.ndarray]
    mask: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of one array.

    Attributes:
      by: entries by group of units; a group that lies on two axes is not there.
      number: the constant of the function that it is everywhere, if any.
      held: the parameter that it is, if any.
      tag: `("leaf", number)` of the parameter that it is, moved or spread; or
        `("sum", number)` of the product that it is the result of.
    """

    by: dict[int, Entries] = dataclasses.field(default_factory=dict)
    number: np.ndarray | None = None
    held: Held | None = None
    tag: Tag | None = None

    def entries(self, whole: int, size: int) -> Entries | None:
        """What is known of the units of a group."""
        if whole in self.by:
            return self.by[whole]
        if self.number is None:
            return None
        yes = np.ones(size, bool)
        return Entries(np.broadcast_to(self.number, (size,)), yes, yes)


NOTHING = Known()


def once(extents: Extents, dims: Dims) -> dict[int, int]:
    """The axis of each group that lies on one axis alone."""
    axes: dict[int, list[int]] = {}
    for axis, dim in enumerate(dims):
        for whole in extents.wholes(dim):
            axes.setdefault(whole, []).append(axis)
    return {whole: found[0] for whole, found in axes.items() if len(found) == 1}


def along(
    extents: Extents, known: Known, dims: Dims, axis: int, whole: int
) -> Entries | None:
    """What is known of the units of a group on one axis of an array."""
    if known.held is not None:
        return _of_held(extents, known.held, dims, axis, whole)
    if once(extents, dims).get(whole) != axis:
        return None
    return known.entries(whole, extents.size((whole,)))


def spread(extents: Extents, known: Known, dims: Dims) -> Known:
    """The same by groups: for arrays that are more than a moved parameter."""
    if known.held is None:
        return known
    found = {}
    for whole, axis in once(extents, dims).items():
        entries = _of_held(extents, known.held, dims, axis, whole)
        if entries is not None:
            found[whole] = entries
    return Known(found)


def _of_held(
    extents: Extents, held: Held, dims: Dims, axis: int, whole: int
) -> Entries | None:
    shape = tuple(map(extents.size, dims))
    at = extents.positions(dims[axis], whole)
    mine = at >= 0
    size = extents.size((whole,))
    lone = int(np.prod(shape)) == size  # one entry per unit, and no more
    if held.mask is None and not lone:
        return None
    gone = np.zeros(size, bool)
    if held.mask is not None:
        others = tuple(i for i in range(len(shape)) if i != axis)
        cut = np.asarray(~held.mask.any(axis=others))
        gone[:] = True
        np.logical_and.at(gone, at[mine], cut[mine])
    if not lone:
        return Entries(np.zeros(size, np.float32), gone, gone) if gone.any() else None
    value = np.asarray(held.value()).reshape(-1)
    if np.iscomplexobj(value):
        return Entries(np.zeros(size, value.dtype), gone, gone)
    ordered = np.zeros(size, value.dtype)
    ordered[at[mine]] = value[mine]
    return Entries(np.where(gone, 0, ordered), np.ones(size, bool), gone)


def join(one: Known, two: Known) -> Known:
    """What is known of an array that is the one or the other."""
    both = {}
    for whole in one.by.keys() | two.by.keys():
        size = len((one.by.get(whole) or two.by[whole]).value)
        found = alike([k.entries(whole, size) for k in (one, two)])
        if found is not None:
            both[whole] = found
    same = one.number is not None and two.number is not None
    return Known(both, one.number if same and one.number == two.number else None)


def alike(entries: Sequence[Entries | None]) -> Entries | None:
    """What is known of units that several arrays have entries of; None if nothing."""
    found = entries[0] if entries else None
    for other in entries[1:]:
        if found is None or other is None:
            return None
        same = found.known & other.known & (found.value == other.value)
        found = Entries(found.value, same, found.firm & other.firm & same)
    return found if found is not None and found.known.any() else None


# Entry by entry ------------------------------------------------------------------
def elementwise(
    name: str,
    bind: Bind,
    knowns: Sequence[Known],
    wholes: dict[int, int],
    dtypes: Sequence[Any],
) -> Known:
    """The result of an operation that acts entry by entry.

    Args:
      name: of the primitive.
      bind: computes it for arrays.
      knowns: of the operands.
      wholes: sizes of the groups on the axes of the result.
      dtypes: of the operands, and of the result.
    """
    numbers = [k.number for k in knowns]
    if all(n is not None for n in numbers):
        return Known(number=np.asarray(bind(*(jnp.asarray(n) for n in numbers))))
    found = {}
    for whole, size in wholes.items():
        entries = [
            None if e is None else e._replace(value=np.asarray(e.value, dtype))
            for e, dtype in zip(
                (k.entries(whole, size) for k in knowns), dtypes[:-1], strict=True
            )
        ]
        result = _zeros(name, entries, size, dtypes[-1])
        if all(e is not None for e in entries):
            result = _computed(bind, [e for e in entries if e is not None], result)
        if result.known.any():
            found[whole] = result
    return Known(found)


def _zeros(
    name: str, entries: Sequence[Entries | None], size: int, dtype: Any
) -> Entries:
    """What is 0, or the same, whatever else the operands are."""
    no = np.zeros(size, bool)
    nothing = Entries(np.zeros(size, dtype), no, no)
    gone = [no if e is None else e.gone for e in entries]
    if name == "mul":
        gone_now = gone[0] | gone[1]
        return Entries(nothing.value, gone_now, gone_now)
    if name == "div":
        return Entries(nothing.value, gone[0], gone[0])
    if name == "select_n":
        return alike(entries[1:]) or nothing
    return nothing


def _computed(bind: Bind, entries: Sequence[Entries], found: Entries) -> Entries:
    """Where all operands are known, so is the result."""
    known = np.logical_and.reduce([e.known for e in entries])
    if any(np.iscomplexobj(e.value) for e in (found, *entries)):
        return found  # only zeros are followed
    if not (known & ~found.known).any():
        return found
    firm = np.logical_and.reduce([e.firm for e in entries])
    value = np.asarray(bind(*(jnp.asarray(e.value) for e in entries)))
    fine = known & ~np.isnan(np.asarray(value, np.float64))
    return Entries(
        np.where(found.known, found.value, value).astype(value.dtype),
        found.known | fine,
        found.firm | (firm & fine),
    )
