"""While loops inside `jax.shard_map`, and an in-place conditional.

`lax.while_loop` wants what it carries to vary over the same mesh axes before and after
a step. Searches begin at constants, which vary over none, and then depend on a device's
part of the scores. `repeat` takes such loops, too.

`when` is a loop of zero or one steps. `lax.cond` copies the arrays that its branches
pass through; a loop changes what it carries in place. The change is compiled once, and
runs only if the condition holds. Under `vmap`, where `lax.cond` always runs both
branches, it runs only if the condition holds for one element of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

T = TypeVar("T")


def when(due: Bool[Array, ""], change: Callable[[T], T], held: T) -> T:
    """Returns `change(held)` if it is due, else `held`.

    Args:
      due: bool scalar.
      change: a function that keeps structure, shapes and dtypes.
      held: arrays that may change. Arrays that are only read are better closed over.

    Example:
      >>> when(jnp.array(True), lambda x: x + 1, jnp.zeros(2)).tolist()
      [1.0, 1.0]
    """

    def once(loop: tuple[Array, T]) -> tuple[Array, T]:
        return jnp.zeros((), bool), change(loop[1])

    return repeat(lambda loop: loop[0], once, (due, held))[1]


def repeat(
    goes_on: Callable[[T], Bool[Array, ""]], step: Callable[[T], T], start: T
) -> T:
    """`lax.while_loop`, also where steps depend on a device's part of an array.

    Args:
      goes_on: whether there is a further step.
      step: a function that keeps structure, shapes and dtypes.
      start: arrays.

    Example:
      >>> int(repeat(lambda n: n < 9, lambda n: 2 * n, jnp.int32(1)))
      16
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return lax.while_loop(goes_on, step, start)
    before: list[frozenset[str]] = []
    while before != (now := [_axes(jax.typeof(x)) for x in jax.tree.leaves(start)]):
        before, start = now, _varying(start, jax.eval_shape(step, start))
    kinds = jax.tree.map(jax.typeof, start)
    return lax.while_loop(goes_on, lambda held: _varying(step(held), kinds), start)


def _varying(held: T, like: Any) -> T:
    """Arrays that count as different between devices where others do."""

    def one(array: Array, other: Any) -> Array:
        more = _axes(other) - _axes(jax.typeof(array))
        return lax.pcast(array, tuple(sorted(more)), to="varying") if more else array

    return jax.tree.map(one, held, like)


def _axes(of: Any) -> frozenset[str]:
    """Mesh axes over which an array may differ from device to device."""
    kind = of.manual_axis_type
    return kind.varying if kind else frozenset()
