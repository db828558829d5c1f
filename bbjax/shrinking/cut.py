"""Cuts arrays to the entries of the units that stay.

Arrays of the shape of a parameter (masks, gradients, moments) are cut as the parameter
is. Layers of a stack may keep different units; they are cut one by one, to the same
size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bbjax.model.groups import on_axes
from bbjax.shrinking.model import Array, Kept, TracedModel

# An axis of a parameter, the axes of its layers, and per layer the indices that stay.
Cut = tuple[int, tuple[int, ...], np.ndarray]
Cuts = dict[str, tuple[Cut, ...]]
A = TypeVar("A", np.ndarray, jax.Array)
Shapes = Mapping[str, tuple[int, ...]]


def cuts(model: TracedModel, kept: Kept) -> Cuts:
    """Cuts of every parameter that gets smaller, by path."""
    found: Cuts = {}
    for leaf, path in enumerate(model.paths):
        for axis in range(len(model.program.leaves[leaf])):
            mine = model.kept_along(leaf, axis, kept)
            if mine is not None:
                layers, keep = mine
                indices = np.nonzero(keep)[-1].reshape(*keep.shape[:-1], -1)
                found[path] = (*found.get(path, ()), (axis, layers, indices))
    return found


def cut(array: A, mine: tuple[Cut, ...]) -> A:
    """An array of a parameter's shape, cut as the parameter is.

    Concrete arrays are cut on the host, where new shapes need no compilation, and then
    put on their devices again. Weak types (`jnp.full(n, 0.1)`) stay weak.
    """
    traced = isinstance(array, jax.core.Tracer)
    keys = jnp.issubdtype(array.dtype, jax.dtypes.extended)
    if not isinstance(array, jax.Array) or traced or keys or array.weak_type:
        for axis, layers, indices in mine:  # numpy has no weak types, and no keys
            array = _along(array, axis, layers, indices)
        return array
    found = cut(np.asarray(array), mine)
    sharding = resharded(array, found.shape)
    return jax.device_put(found, sharding or next(iter(array.devices())))


def masked(array: A, mask: np.ndarray) -> A:
    """An array with zeros where the mask is False; concrete ones as by `cut`."""
    if not isinstance(array, jax.Array) or array.weak_type:
        return array.__array_namespace__().where(mask, array, array.dtype.type(0))
    host = np.asarray(array)
    return jax.device_put(np.where(mask, host, host.dtype.type(0)), array.sharding)


def resharded(array: Array, shape: tuple[int, ...]) -> NamedSharding | None:
    """The sharding of an array for another shape, on axes that it still divides."""
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


def shape_of(array: Array, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """The type of an array with another shape."""
    return jax.ShapeDtypeStruct(
        shape,
        array.dtype,
        sharding=resharded(array, shape),
        weak_type=getattr(array, "weak_type", False),
    )


def _along(array: A, axis: int, layers: tuple[int, ...], indices: np.ndarray) -> A:
    xp: Any = jnp if isinstance(array, jax.Array) else np  # keys know no namespace
    if not layers:
        return xp.take(array, indices, axis=axis)
    spread = on_axes(indices, (*layers, axis), array.ndim)
    return xp.take_along_axis(array, spread, axis=axis)
