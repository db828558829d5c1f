"""A training state restored on another mesh: what should lie where.

A checkpoint library needs a *target*: the tree of the state with shapes, dtypes and
shardings. A state made anew on the mesh has nearly that. The exception are leaves that
an optimizer makes without the parameters (its step count). They lie on one device, and
JAX moves them where they are needed; a restored array it does not move. So:

    leaf on all devices of the mesh    its own sharding
    any other leaf                     replicated over the mesh
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def restore_target(state: Any, mesh: Mesh) -> Any:
    """The tree of a training state as a target for restoring it on a mesh.

    Args:
      state: made as at the start of training, from parameters placed on `mesh`: any
        tree, e.g. a train state or `(params, tx.init(params))`. Nothing is read from
        its arrays.
      mesh: on which training continues.

    Returns:
      The same tree of `ShapeDtypeStruct`s with shardings on `mesh`; leaves that are
      neither arrays nor numbers stay.

    Example:
      >>> import optax
      >>> import bbjax as bb
      >>> kernel = bb.Kernel("w", (8, 2), fan_in=(0,), fan_out=(1,))
      >>> tx = optax.chain(
      ...     optax.adam(0.1), bb.transform(bb.Units((kernel,)).select("w"))
      ... )
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> whole = NamedSharding(mesh, PartitionSpec())
      >>> params = jax.device_put({"w": jnp.ones((8, 2))}, whole)
      >>> target = restore_target((params, tx.init(params)), mesh)
      >>> target[1][1].bb_masks["w"].shape, target[1][1].bb_masks["w"].dtype
      ((1, 2), dtype('uint8'))
    """
    devices = set(mesh.devices.flat)

    def struct(leaf: Any) -> Any:
        if isinstance(leaf, bool | int | float | complex):
            leaf = jnp.asarray(leaf)
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            return leaf
        sharding = getattr(leaf, "sharding", None)
        if sharding is None or sharding.device_set != devices:
            sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(struct, state)
