"""Schedules: the density as a function of the step.

A schedule is a function `step -> density`, as in Optax. `ramp` is 1 (nothing is pruned)
until `start` and then falls to the final density in `steps` steps,

    left = 1 - clip((step - start) / steps, 0, 1)
    density(step) = density + (1 - density) * left ** power

linearly (power 1, the paper's warm-up) or cubically (power 3, fast at first, when
there are many edges to spare). Scalars in, scalars out; an array of steps, an array.

References: Meirovitch et al., arXiv 2510.01263 (linear); Zhu and Gupta, arXiv
1710.01878 (cubic).
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Integer

from bbjax.arrays.types import Number
from bbjax.budgets.exact import check_density
from bbjax.model.numbers import check_int, check_number

_MAX_STEP = 2**31 - 1  # steps are int32


def ramp(
    density: Number, start: int, steps: int, power: float = 1
) -> Callable[[Integer[ArrayLike, "*shape"]], Float[Array, "*shape"]]:
    """A density of 1 before `start`, falling to `density` over `steps` updates.

    Args:
        density: final kept fraction in (0, 1], a number or a traced scalar.
        start: the last update at which the density is still 1, >= 0. (With `steps=0`
            the first at which it is not.)
        steps: length of the ramp in updates, >= 0; 0 is a jump at `start`.
        power: 1 is linear, 3 cubic; any finite number > 0.

    Returns:
        A function of the step (an int, an integer array or a tracer) to float32 of the
        same shape: exactly 1 up to the start and exactly float32(density) at the end.

    Raises:
        ValueError: if a value is outside its range.
        TypeError: if `start` or `steps` is not an int.

    Example:
        >>> schedule = ramp(0.5, start=100, steps=200)
        >>> [float(schedule(step)) for step in (0, 100, 200, 300, 999)]
        [1.0, 1.0, 0.75, 0.5, 0.5]
    """
    check_density(density)
    check_number("power", power, "(0, inf)", "use 1 for a linear or 3 for a cubic ramp")
    start = check_int("start", start, 0, _MAX_STEP, "it is an optimizer update")
    room = _MAX_STEP - start
    steps = check_int("steps", steps, 0, room, "it counts optimizer updates")
    stop = start + steps

    def schedule(step: Integer[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        # In integers first: a float32 step stops counting at 2**24.
        to_go = stop - jnp.asarray(step).astype(jnp.int32)
        left = jnp.clip(to_go.astype(jnp.float32) / max(steps, 1), 0, 1) ** power
        final = jnp.asarray(density).astype(jnp.float32)
        return final * (1 - left) + left  # the formula, exact at both ends

    return schedule
