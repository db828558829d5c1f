"""Padding masks of tokens, for rows that were sorted by expert.

A mask has the order of tokens. The rows of a ragged product are tokens in another
order, some of them more than once. So the mask takes the same way: it is repeated along
the features of the tokens and moved by the operations that moved them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from bbjax.tracing import jaxprs
from bbjax.tracing.flow.kernels import Rows, Tap
from bbjax.tracing.flow.order import Order, RowMove

Read = Callable[[Any], Shaped[Array, "..."]]


def read_by(order: Order) -> list[Any]:
    """Variables that the way of a mask to the rows reads."""
    others = [a for m in order.moves if m.eqn is not None for a in m.eqn.invars]
    return [order.rows, *(m.before for m in order.moves), *others]


def row_mask(
    where: Shaped[Array, "..."], order: Order, jaxpr: Any, read: Read
) -> Bool[Array, "..."] | tuple[int, ...]:
    """The mask of rows, over `order.axes` ascending; a shape that it does not fit.

    Args:
      where: mask of tokens, over the leading axes of the array before it was sorted.
      order: how the rows were sorted.
      jaxpr: that of the scope.
      read: gives the value of a variable of the scope.
    """
    places = [move.before for move in order.moves] + [order.rows]
    arrays = [read(var) for var in places]
    first = next((i for i, x in enumerate(arrays) if _fits(where, x.shape)), None)
    if first is None:
        return arrays[0].shape
    shape = arrays[first].shape
    spread = jnp.reshape(where, where.shape + (1,) * (len(shape) - where.ndim))
    mask = jnp.broadcast_to(spread.astype(bool), shape)
    for move in order.moves[first:]:
        mask = _moved(mask, move, jaxpr, read)
    other = tuple(a for a in range(mask.ndim) if a not in order.axes)
    return jnp.any(mask, axis=other)


def valid_rows(
    mask: Bool[Array, "..."] | tuple[int, ...] | None, ndim: int, tap: Tap
) -> Bool[Array, "..."]:
    """The padding mask of a measured value with sorted rows, size 1 on other axes.

    Args:
      mask: from `row_mask`; None if the rows could not be followed.
      ndim: number of axes of the value.
      tap: where the value is.

    Raises:
      ValueError: rows that are sorted in a way that is not followed, or a mask that
        fits no array on the way.
    """
    rows = tap.rows
    assert rows is not None and rows.order is not None
    if mask is None:
        why = rows.order.why_not or "a function inside of this one sorts them"
        raise ValueError(
            f"expected rows at {tap.kernel!r} that `where` can follow from the tokens, "
            f"got rows sorted by expert: {why}; gather the tokens (x[order]) beside "
            "the ragged_dot, or observe these kernels without `where`"
        )
    if isinstance(mask, tuple):
        raise ValueError(
            "expected `where` to match the leading batch and position axes of the "
            f"tokens at {tap.kernel!r} (array of shape {mask}); pass a mask of the "
            "tokens before they are sorted by expert"
        )
    return _placed(mask, rows.order.axes, rows, ndim)


def _fits(where: Shaped[Array, "..."], shape: tuple[int, ...]) -> bool:
    return where.ndim <= len(shape) and all(
        m in (1, n) for m, n in zip(where.shape, shape, strict=False)
    )


def _moved(
    mask: Bool[Array, "..."], move: RowMove, jaxpr: Any, read: Read
) -> Bool[Array, "..."]:
    """A mask moved as the values were."""
    eqn = move.eqn
    if eqn is None:
        return mask
    atoms = dict.fromkeys(a for a in eqn.invars if not jaxprs.is_literal(a))
    given = [mask.astype(a.aval.dtype) if a is move.before else read(a) for a in atoms]
    out = eqn.outvars[move.at]
    (moved,) = jaxprs.segment(jaxpr, list(atoms), [out], [eqn])(*given)
    return jnp.abs(moved) > 0.5  # what is filled in with NaN is not real


def _placed(
    mask: Bool[Array, "..."], axes: tuple[int, ...], rows: Rows, ndim: int
) -> Bool[Array, "..."]:
    """A mask over `axes`, in ascending order, on the axes of the measured value."""
    order = sorted(axes)
    mine = (*rows.prefix, rows.axis)
    target = {order.index(a): m for a, m in zip(axes, mine, strict=True)}
    by_place = sorted(range(len(axes)), key=lambda i: target[i])
    mask = jnp.transpose(mask, by_place)
    return jnp.expand_dims(mask, tuple(a for a in range(ndim) if a not in mine))
