"""What the state holds before the first update.

Every edge is kept, or what `masks` keep; nothing has been observed; and nothing rests
but the weights that `masks` prune. Each array lies on devices as its kernel does: a
state that moved after the first update would be compiled for twice. `weights` is None
where a tree has no leaves, as `optax.tree.map_params` gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bbjax.arrays import bits, sharding
from bbjax.model.units import Kernel
from bbjax.rules.base import side_in
from bbjax.training.state import full_mask, packed_axis


def mask(kernel: Kernel, weights: Any, masks: Mapping[str, Any] | None) -> jax.Array:
    """The first mask of a kernel, as bits."""
    if masks is None or kernel.path not in masks:
        return _all_kept(kernel, weights)
    kept = kernel.edge_mask(jnp.asarray(masks[kernel.path]))
    packed = bits.pack(kept, packed_axis(kernel))
    return sharding.like(packed, weights, _parameter_axes(kernel))


def means(kernel: Kernel, names: tuple[str, ...], weights: Any) -> dict[str, jax.Array]:
    """No running mean yet, and no weight of the observations of a side."""
    sides = {f"{name.split('.')[0]}.weight" for name in names}
    return {name: _no_mean(kernel, name, weights) for name in sorted({*names} | sides)}


def dormant(
    kernel: Kernel, weights: Any, packed: jax.Array, dtype: Any, pruned: bool
) -> jax.Array:
    """What rests: the weights outside the first mask, if that prunes any."""
    if dtype is None:
        dtype = kernel.dtype if weights is None else weights.dtype
    rest = jnp.zeros(kernel.shape, dtype)
    if pruned and weights is not None:
        rest = jnp.where(full_mask(kernel, packed), rest, weights.astype(dtype))
    return sharding.like(rest, weights, tuple(range(len(kernel.shape))))


def _all_kept(kernel: Kernel, weights: Any) -> jax.Array:
    shape = list(kernel.edge_shape)
    axis = packed_axis(kernel)
    size = shape[axis]
    whole, rest = divmod(size, 8)
    column = [255] * whole + ([(1 << rest) - 1] if rest else [])
    shape[axis] = len(column)
    at = [1] * len(shape)
    at[axis] = len(column)
    full = jnp.broadcast_to(jnp.asarray(column, jnp.uint8).reshape(at), shape)
    return sharding.like(full, weights, _parameter_axes(kernel))


def _parameter_axes(kernel: Kernel) -> tuple[int | None, ...]:
    """For each axis of the edge view, the axis of the parameter that it is."""
    if kernel.split != kernel.shape:
        return (None,) * len(kernel.edge_shape)
    return tuple(i for i, r in enumerate(kernel.roles) if r != "spatial")


def _no_mean(kernel: Kernel, name: str, weights: Any) -> jax.Array:
    zeros = jnp.zeros(kernel.per_unit_shape(side_in(name)), jnp.float32)
    return sharding.like(zeros, weights, (None,) * zeros.ndim)
