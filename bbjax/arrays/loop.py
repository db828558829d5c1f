"""An in-place conditional: a while loop of zero or one steps.

`lax.cond` copies the arrays that its branches pass through; a loop changes what it
carries in place. The change is compiled once, and runs only if the condition holds.
Under `vmap`, where `lax.cond` always runs both branches, it runs only if the condition
holds for one element of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

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

    return lax.while_loop(lambda loop: loop[0], once, (due, held))[1]
