"""A change that is made only where it is due, without copies.

A loop of zero or one iterations. What a loop carries is changed in place, where a
conditional would copy what it leaves alone; the change is compiled once and runs, and
reads, only if it has to; and under `vmap` it still runs only where one lane wants it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

T = TypeVar("T")


def when(due: Bool[Array, ""], change: Callable[[T], T], held: T) -> T:
    """What `change` makes of `held` if it is due, else `held`.

    Args:
      due: bool scalar.
      change: keeps structure, shapes and dtypes.
      held: arrays; those that are only read are better left to `change` to close over.

    Example:
      >>> when(jnp.array(True), lambda x: x + 1, jnp.zeros(2)).tolist()
      [1.0, 1.0]
    """

    def once(loop: tuple[Array, T]) -> tuple[Array, T]:
        return jnp.zeros((), bool), change(loop[1])

    return lax.while_loop(lambda loop: loop[0], once, (due, held))[1]
