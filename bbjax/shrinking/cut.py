"""Cuts arrays to what is kept.

Arrays of the shape of a parameter are cut as it is: parameters, masks, gradients,
moments. Layers of a stack that keep units of their own are cut one by one, each to as
many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bbjax.shrinking.model import Model
from bbjax.shrinking.plan import axis_kept

# Along one axis of a parameter: its stack axes, and per layer which entries stay.
Cut = tuple[int, tuple[int, ...], np.ndarray]
Cuts = dict[str, tuple[Cut, ...]]


def cuts(model: Model, kept: Mapping[int, np.ndarray]) -> Cuts:
    """Cuts of every parameter that gets smaller, by path."""
    found: Cuts = {}
    for leaf, path in enumerate(model.paths):
        for axis in range(len(model.program.leaves[leaf])):
            mine = axis_kept(model, leaf, axis, kept)
            if mine is not None:
                at, keep = mine
                indices = np.nonzero(keep)[-1].reshape(*keep.shape[:-1], -1)
                found[path] = (*found.get(path, ()), (axis, at, indices))
    return found


def cut(array: Any, mine: tuple[Cut, ...]) -> Any:
    """An array of a parameter's shape, cut as the parameter is.

    Concrete arrays are cut on the host, which compiles nothing for new shapes, and go
    back to their devices. Weakly typed ones (`jnp.full(n, 0.1)`) stay so.
    """
    on_host = isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
    if not on_host or array.weak_type:  # numpy knows no weak types
        for axis, at, indices in mine:
            array = _along(array, axis, at, indices)
        return array
    found = cut(np.asarray(array), mine)
    sharding = resharded(array, found.shape)
    return jax.device_put(found, sharding or next(iter(array.devices())))


def resharded(array: Any, shape: tuple[int, ...]) -> NamedSharding | None:
    """The sharding of an array, for another shape: axes that still divide keep it."""
    sharding = getattr(array, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    kept = []
    for names, size in zip(spec, shape, strict=True):
        named = names if isinstance(names, tuple) else (names,) if names else ()
        share = math.prod(sharding.mesh.shape[name] for name in named)
        kept.append(names if size % share == 0 else None)
    return NamedSharding(sharding.mesh, PartitionSpec(*kept))


def shape_of(array: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """What an array would be with another shape, without its values."""
    return jax.ShapeDtypeStruct(
        shape,
        array.dtype,
        sharding=resharded(array, shape),
        weak_type=getattr(array, "weak_type", False),
    )


def _along(array: Any, axis: int, at: tuple[int, ...], indices: np.ndarray) -> Any:
    xp: Any = jnp if isinstance(array, jax.Array) else np
    if not at:
        return xp.take(array, indices, axis=axis)
    lead = len(at)
    moved = xp.moveaxis(array, (*at, axis), range(lead + 1))
    spread = indices.reshape(*indices.shape, *[1] * (moved.ndim - lead - 1))
    taken = xp.take_along_axis(moved, spread, axis=lead)
    return xp.moveaxis(taken, range(lead + 1), (*at, axis))
