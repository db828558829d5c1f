"""Stack slices without activity: experts that no calibration sample reached.

Nothing is known of the inputs of such a slice. Its statistics are replaced by those of
inputs that are all alike, independent and as large as the inputs of the other slices:

    inputs of any kind    the same for every unit; a Gram matrix is a multiple of I
    outputs, sizes        in proportion to the norm of the weights of the unit
    shares (on-rates)     the same for every unit
    edges                 in proportion to |w|

So every rule ranks the edges (or units) of the slice by |w|, and those of other slices
as without it. The slices are named in a warning. A slice was not reached if nothing was
counted there, or if all of its inputs were 0 (rows of an expert that stayed empty).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.activity.statistics import PER_EDGE
from bbjax.model.units import Kernel, Side
from bbjax.model.warn import warn
from bbjax.rules.base import Rule, side_in

_SIZES = ("mean_abs", "mean_square", "max_abs")
_SHARES = ("on_rate", "zero_share")


def unseen_slices(kernel: Kernel, weights: jax.Array, sides: Any) -> jax.Array:
    """Stack slices of which nothing was measured.

    Args:
      kernel: the kernel.
      weights: its weights, shape `kernel.split`.
      sides: its `Activity`.

    Returns:
      bool, shape `kernel.stack_shape`.

    Example:
      >>> from bbjax.activity.statistics import Activity, Statistics
      >>> kernel = Kernel("w", (2, 1, 1), stack=(0,), fan_in=(1,), fan_out=(2,))
      >>> seen = Statistics(count=jnp.array([[4.0], [0.0]]))
      >>> unseen_slices(kernel, jnp.ones((2, 1, 1)), Activity(seen, seen)).tolist()
      [False, True]
    """
    found = jnp.zeros(kernel.stack_shape, bool)
    for side in (sides.inputs, sides.outputs):
        count = getattr(side, "count", None)
        if count is not None:
            found |= _everywhere(kernel, count == 0)
    inputs = sides.inputs
    for name in (*_SIZES, "abs_map", "gram"):
        value = getattr(inputs, name, None)
        if value is not None:
            found |= _everywhere(kernel, value == 0)
    if getattr(inputs, "zero_share", None) is not None:
        found |= _everywhere(kernel, inputs.zero_share == 1)
    some = kernel.sum_spatial(jnp.abs(weights)) > 0
    for name in PER_EDGE:
        value = getattr(inputs, name, None)
        if value is not None:  # where every weight is 0, edges tell nothing
            quiet = _stack_first(kernel, (value == 0) | ~some)
            told = jnp.any(_stack_first(kernel, some), axis=-1)
            found |= told & jnp.all(quiet, axis=-1)
    return found


def _everywhere(kernel: Kernel, what: jax.Array) -> jax.Array:
    return jnp.all(jnp.reshape(what, (*kernel.stack_shape, -1)), axis=-1)


def _stack_first(kernel: Kernel, per_edge: jax.Array) -> jax.Array:
    """An array per edge as `(*stack, edges)`."""
    stack = kernel.axes("stack")
    rest = [a for a in range(per_edge.ndim) if a not in stack]
    moved = jnp.transpose(per_edge, (*stack, *rest))
    return jnp.reshape(moved, (*kernel.stack_shape, -1))


def stand_ins(
    kernel: Kernel,
    weights: jax.Array,
    rule: Rule,
    statistics: Mapping[str, jax.Array],
    unseen: jax.Array,
) -> dict[str, jax.Array]:
    """Statistics in which those of slices without activity are replaced.

    Args:
      kernel: the kernel.
      weights: its weights, shape `kernel.split`.
      rule: reads the statistics. Those that it names without a side are of the units
        that it ranks.
      statistics: by `"side.statistic"`.
      unseen: from `unseen_slices`.
    """
    squares = kernel.sum_spatial(jnp.square(weights.astype(jnp.float32)))
    squares = jnp.where(jnp.isfinite(squares), squares, 0.0)

    def norms(side: Side) -> jax.Array:
        """Norms of the weights of each unit of a side, 1 on average in a slice."""
        flat = jnp.sqrt(kernel.gather(squares, side))
        flat = jnp.reshape(flat, (*kernel.stack_shape, -1))
        mean = jnp.mean(flat, axis=-1, keepdims=True)
        flat = jnp.where(mean > 0, flat / jnp.where(mean > 0, mean, 1.0), 1.0)
        return jnp.reshape(flat, kernel.per_unit_shape(side))

    found = {}
    for key, value in statistics.items():
        name, side = key.split(".")[1], side_in(key)
        mean = _typical(kernel, name, value, unseen)
        if name == "gram":
            other = mean[..., None, None] * jnp.eye(value.shape[-1], dtype=value.dtype)
        elif name in PER_EDGE:
            size = kernel.sum_spatial(jnp.abs(weights.astype(jnp.float32)))
            other = size * _over_edges(kernel, _per_weight(kernel, mean, size))
        elif name in _SIZES and (side == "outputs" or name in rule.needs):
            norm = norms(side)
            norm = jnp.square(norm) if name == "mean_square" else norm
            other = norm * _behind(mean, norm.ndim)
        else:
            other = jnp.broadcast_to(_behind(mean, value.ndim), value.shape)
        where = _behind(unseen, value.ndim)
        if name in PER_EDGE:
            where = _over_edges(kernel, unseen)
        found[key] = jnp.where(where, other, value)
    return found


def _typical(
    kernel: Kernel, name: str, value: jax.Array, unseen: jax.Array
) -> jax.Array:
    """The mean of a statistic over the slices that were seen, for every slice."""
    if name == "gram":
        value = jnp.diagonal(value, axis1=-2, axis2=-1)
    if name in PER_EDGE:
        each = jnp.mean(_stack_first(kernel, value), axis=-1)
    else:
        each = jnp.mean(jnp.reshape(value, (*kernel.stack_shape, -1)), axis=-1)
    count = jnp.sum(~unseen, dtype=jnp.float32)
    total = jnp.sum(jnp.where(unseen, 0.0, each))
    none = 0.5 if name in _SHARES else 1.0
    mean = jnp.where(count > 0, total / jnp.maximum(count, 1.0), none)
    return jnp.broadcast_to(mean, kernel.stack_shape)


def _per_weight(kernel: Kernel, mean: jax.Array, size: jax.Array) -> jax.Array:
    """The factor on |w| with which edges have this mean."""
    average = jnp.mean(_stack_first(kernel, size), axis=-1)
    return jnp.where(average > 0, mean / jnp.where(average > 0, average, 1.0), 0.0)


def _behind(per_slice: jax.Array, ndim: int) -> jax.Array:
    """An array per slice, with axes of size 1 behind."""
    return jnp.reshape(per_slice, per_slice.shape + (1,) * (ndim - per_slice.ndim))


def _over_edges(kernel: Kernel, per_slice: jax.Array) -> jax.Array:
    """An array per slice, with axes of size 1 for those of the edges."""
    pairs = zip(kernel.edge_shape, kernel.edge_roles, strict=True)
    return jnp.reshape(per_slice, [n if role == "stack" else 1 for n, role in pairs])


def name_unseen(kernel: Kernel, unseen: jax.Array) -> bool:
    """Names slices without activity in a warning; whether there may be any."""
    if isinstance(unseen, jax.core.Tracer):
        return True
    if not getattr(unseen, "is_fully_addressable", True):
        return True
    which = np.asarray(unseen)
    if not which.any():
        return False
    numbers = [tuple(map(int, at)) for at in np.argwhere(which)]
    slices = [at[0] if len(at) == 1 else at for at in numbers]
    of = f" in {slices} of {math.prod(which.shape)} stack slices" * bool(which.ndim)
    warn(
        f"no activity of {kernel.path!r} was measured{of}: no sample got there, or all "
        "inputs were 0; |w| ranks the edges there; calibrate on more batches"
    )
    return True
