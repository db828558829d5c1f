"""Sharding of state: masks and dormant weights lie where their weights lie.

Masks and dormant weights take the sharding of their kernel, so that steps without a
refresh move nothing between devices. On meshes with explicit axes the sharding is part
of an array's type and must be the same after every update: `match` restores it. Arrays
per unit are whole on every device of a mesh. One measurement may belong to two kernels
that are sharded along different axes, and a change of sharding would compile the step
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped


def like(
    array: Shaped[Array, "*shape"], weights: Any, axes: Sequence[int | None]
) -> Shaped[Array, "*shape"]:
    """Places a new array as the weights are.

    Args:
      array: the array to place.
      weights: array, tracer, or None to leave it where it is.
      axes: for each axis of `array`, the axis of `weights` that it follows, or None.
    """
    sharding = _sharding(weights)
    if sharding is None:
        return array
    full = tuple(sharding.spec) + (None,) * (np.ndim(weights) - len(sharding.spec))
    spec = [None if a is None else full[a] for a in axes]
    spec = [
        name if array.shape[i] % _ways(sharding, name) == 0 else None
        for i, name in enumerate(spec)
    ]
    if AxisType.Explicit not in sharding.mesh.axis_types and not any(spec):
        spec = []  # as the compiler writes it; another form would compile again
    return _place(array, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def match(
    new: Shaped[Array, "*shape"], old: Shaped[Array, "..."]
) -> Shaped[Array, "*shape"]:
    """Gives a new value the type of the old one, sharding included."""
    sharding = jax.typeof(old).sharding
    if sharding.mesh.empty or jax.typeof(new).sharding == sharding:
        return new
    return jax.sharding.reshard(new, sharding)


def match_axes(
    new: Shaped[Array, "*shape"], old: Shaped[Array, "..."], axes: Sequence[int]
) -> Shaped[Array, "*shape"]:
    """Shards axis `i` of a value as axis `axes[i]` of another, if that is a type."""
    sharding = jax.typeof(old).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return new
    spec = PartitionSpec(*(sharding.spec[a] for a in axes))
    if jax.typeof(new).sharding.spec == spec:
        return new
    return jax.sharding.reshard(new, NamedSharding(sharding.mesh, spec))


def whole(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Replicates a value: all of it on every device."""
    sharding = jax.typeof(x).sharding
    everywhere = sharding.update(spec=PartitionSpec(*[None] * x.ndim))
    if not sharding.mesh.empty and AxisType.Explicit not in sharding.mesh.axis_types:
        return jax.lax.with_sharding_constraint(x, everywhere)
    return x if sharding == everywhere else jax.sharding.reshard(x, everywhere)


def _sharding(weights: Any) -> NamedSharding | None:
    if isinstance(weights, jax.core.Tracer):
        sharding = jax.typeof(weights).sharding
        return sharding if any(s is not None for s in sharding.spec) else None
    sharding = getattr(weights, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def _ways(sharding: NamedSharding, name: Any) -> int:
    names = name if isinstance(name, tuple) else (name,)
    return int(np.prod([sharding.mesh.shape[n] for n in names if n is not None]))


def _place(
    array: Shaped[Array, "*shape"], sharding: NamedSharding
) -> Shaped[Array, "*shape"]:
    if isinstance(sharding.mesh, jax.sharding.AbstractMesh):
        return jax.sharding.reshard(array, sharding.spec)
    return jax.device_put(array, sharding)
