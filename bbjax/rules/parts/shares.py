"""Keeps the largest entries of every unit that make up a share of its sum.

Entries are the edges of an output unit and its bias; each has a size. They are put in
falling order, equal ones by index and the bias last, and the shortest beginning is kept
that has the share `alpha` of the unit's sum,

    p0 = min{p: s_(1) + ... + s_(p) >= alpha * sum(s)}

but no entry of size 0. Sums are taken from the smallest entry up: an entry goes if it
and all smaller ones sum to no more than `1 - alpha` of the whole. So at alpha = 1 every
entry that is not 0 stays, however small it is. Shapes: sizes are per edge,
`kernel.edge_shape`, and per output unit, `stack + units`. Reference: NNrelief's keep
rule (Dekhovich et al., arXiv 2109.10795).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from bbjax.arrays.topk import top_k_mask
from bbjax.arrays.types import Number
from bbjax.model.units import Kernel

_ROUNDING = 1 + 2.0**-20  # of a float32 sum: what is exactly a share must count as one


class KeptEntries(NamedTuple):
    """Entries that are kept: edges, and biases of output units or None."""

    edges: Bool[Array, "*edges"]
    bias: Bool[Array, "*outputs"] | None


def keep_share(
    kernel: Kernel,
    edges: Float[Array, "*edges"],
    bias: Float[Array, "*outputs"] | None,
    alpha: Number,
) -> KeptEntries:
    """Keeps the largest entries of every output unit, up to a share of their sum.

    Args:
      kernel: the kernel.
      edges: size of each edge, at least 0, float32 of shape `kernel.edge_shape`.
      bias: size of the bias of each output unit, `stack + units`, or None.
      alpha: share to keep, in (0, 1].

    Returns:
      What is kept of both; nothing of a unit whose entries are all 0.

    Example:
      >>> kernel = Kernel("w", (3, 1), fan_in=(0,), fan_out=(1,))
      >>> kept = keep_share(kernel, jnp.array([[2.0], [0.0], [2.0]]), jnp.ones(1), 0.75)
      >>> kept.edges[:, 0].tolist(), kept.bias.tolist()
      ([True, False, True], [False])
    """
    return _keep_share(kernel, edges, bias, jnp.asarray(1 - alpha).astype(jnp.float32))


@functools.partial(jax.jit, static_argnums=0)
def _keep_share(
    kernel: Kernel,
    edges: Float[Array, "*edges"],
    bias: Float[Array, "*outputs"] | None,
    spare: Float[Array, ""],
) -> KeptEntries:
    rows = kernel.axes("in")
    columns = _columns(edges, edges, rows)
    if bias is not None:
        own = _columns(kernel.spread(bias, "outputs"), edges, rows)
        columns = jnp.concatenate([columns, own], axis=-1)
    keep = top_k_mask(columns, _shortest(columns, spare), axis=columns.ndim - 1)
    if bias is None:
        return KeptEntries(_uncolumns(keep, edges.shape, rows), None)
    mine = tuple(1 if a in rows else n for a, n in enumerate(edges.shape))
    kept_bias = kernel.gather(_uncolumns(keep[..., -1:], mine, rows), "outputs") > 0
    return KeptEntries(_uncolumns(keep[..., :-1], edges.shape, rows), kept_bias)


def _shortest(
    entries: Float[Array, "*units entries"], spare: Float[Array, ""]
) -> Int[Array, "*units"]:
    """How many of the largest entries are kept if a share may go; 0 if all are 0."""
    up = jnp.cumsum(jnp.sort(entries, axis=-1), axis=-1)
    return jnp.sum(up > spare * up[..., -1:] * _ROUNDING, axis=-1, dtype=jnp.int32)


def _columns(
    per_edge: Float[Array, "..."], like: Float[Array, "*edges"], rows: tuple[int, ...]
) -> Float[Array, "*units entries"]:
    """The entries of each unit on one last axis, whole on every device."""
    mesh, spec = jax.typeof(like).sharding.mesh, jax.typeof(like).sharding.spec
    if AxisType.Explicit in mesh.axis_types:
        whole = PartitionSpec(*(None if a in rows else s for a, s in enumerate(spec)))
        per_edge = jax.sharding.reshard(per_edge, NamedSharding(mesh, whole))
    last = jnp.moveaxis(per_edge, rows, range(-len(rows), 0))
    return jnp.reshape(last, (*last.shape[: last.ndim - len(rows)], -1))


def _uncolumns(
    columns: Shaped[Array, "*units entries"],
    shape: tuple[int, ...],
    rows: tuple[int, ...],
) -> Shaped[Array, "..."]:
    """The inverse of `_columns`."""
    split = (*columns.shape[:-1], *(shape[a] for a in rows))
    return jnp.moveaxis(jnp.reshape(columns, split), range(-len(rows), 0), rows)
