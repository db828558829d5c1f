"""Larger statistics of one array: pairs of units, maps, contributions of edges.

    gram     sum of x x^T over the input units of a matrix product
    maps     sum over samples of |x|, positions kept
    edges    sum over samples of the size of |K_ij| * |x_i|, see `convolution`

All are sums in the order of the product, of values that are 0 at padding:
`(leading, in, in)` for pairs, `(units, positions)` for maps and `(leading, in, out)`
for edges, where "leading" numbers separate products (experts, groups).
`bbjax.activity.order` puts them into the kernel's order. Statistics that a product does
not have raise an error before anything is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Num, Shaped

from bbjax.activity import convolution
from bbjax.activity.convolution import Geometry
from bbjax.activity.order import in_parts, lead_parts, out_parts
from bbjax.activity.per_group import Members
from bbjax.activity.per_unit import Over, permuted, real
from bbjax.activity.statistics import BY_SAMPLE, PER_EDGE, Raw
from bbjax.model.units import Kernel
from bbjax.tracing.flow.contract import numbers_of
from bbjax.tracing.flow.kernels import Tap
from bbjax.tracing.flow.values import Part


# Pairs of input units ------------------------------------------------------------
def gram_sum(x: Num[Array, "..."], tap: Tap, over: Over) -> Float[Array, "..."]:
    """Sums `x x^T` over all axes but those of a tap: `(*leading, *in, *in)`."""
    if isinstance(over, Members):
        return _gram_by_group(x, tap, over)
    x = real(x, over.valid).astype(jnp.float32)
    rest = over.rest
    parts = [p for axis in tap.parts for p in axis]
    x = permuted(x, [*rest, *tap.axes])
    x = jnp.reshape(x, (*x.shape[: len(rest)], *(p.size for p in parts)))
    lead = [len(rest) + parts.index(p) for p in lead_parts(tap)]
    summed = list(range(len(rest)))
    return lax.dot_general(
        x,
        x,
        ((summed, summed), (lead, lead)),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
        out_sharding=_whole(x),
    )


def _gram_by_group(
    x: Num[Array, "..."], tap: Tap, over: Members
) -> Float[Array, " groups ..."]:
    """The same for the rows of each group; the groups come first."""
    numbers, side = numbers_of(tap.use.eqn), tap.use.operand
    return over.gram(x, numbers.batch[side], numbers.contract[side])


def _whole(x: Float[Array, "..."]) -> NamedSharding | None:
    """The sharding that a sum over a sharded batch needs if axes are explicit."""
    mesh = jax.typeof(x).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return None
    return NamedSharding(mesh, PartitionSpec())


# Maps and edges ------------------------------------------------------------------
def map_sums(
    x: Num[Array, "..."],
    w: Num[Array, "..."] | None,
    tap: Tap,
    geometry: Geometry,
    *,
    over: Over,
    count: Float[Array, "*units"],
    statistics: Sequence[str],
) -> Raw:
    """Sums maps of |x|, and contributions of edges, over samples.

    Args:
      x: the value at the tap.
      w: the other operand of the product; None if no edges are asked for.
      tap: where the value is.
      geometry: of the kernel.
      over: which entries are of which unit.
      count: how many there are of each, shape of the axes of the tap.
      statistics: names; those that are neither maps nor edges are ignored.

    Returns:
      Sums and the number of samples.
    """
    x = jnp.abs(x).astype(jnp.float32)
    if w is not None:
        w = jnp.abs(w).astype(jnp.float32)
    if not geometry.is_conv:
        return _of_matrix(over.total(x), w, tap, count, statistics)
    valid = over.valid
    x = real(x, valid)
    axes = _samples_first(tap, x.ndim)
    x = permuted(x, axes)
    samples = _samples(x, None if valid is None else permuted(valid, axes))
    units = len(tap.axes)
    total = jnp.sum(x, axis=0)
    raw = {"samples": jnp.broadcast_to(samples, count.shape)}
    if "abs_map" in statistics or "fro_of_mean" in statistics:
        behind = range(total.ndim - units, total.ndim)
        raw["abs_map"] = jnp.moveaxis(total, behind, range(units))
    return raw if w is None else raw | _of_conv(x, total, w, tap, geometry, statistics)


def _of_matrix(
    total: Float[Array, "*units"],
    w: Float[Array, "..."] | None,
    tap: Tap,
    count: Float[Array, "*units"],
    names: Sequence[str],
) -> Raw:
    """A matrix product: every entry is a sample, an edge contributes `|w| |x|`."""
    raw = {"samples": count}
    if "abs_map" in names:
        raw["abs_map"] = total
    if w is None:
        return raw
    numbers, side = numbers_of(tap.use.eqn), 1 - tap.use.operand
    read = (*numbers.stack, *numbers.batch[side], *numbers.contract[side])
    w = permuted(w, [*read, *(a for a in range(w.ndim) if a not in read)])
    lead, inputs, outputs = _edge_sizes(tap)
    per_input = jnp.reshape(total, (lead, inputs, 1))
    edges = jnp.reshape(w, (lead, inputs, outputs)) * per_input
    return raw | {name: edges for name in PER_EDGE if name in names}


def _of_conv(
    x: Float[Array, " samples *map"],
    total: Float[Array, "*map"],
    w: Float[Array, "..."],
    tap: Tap,
    geometry: Geometry,
    names: Sequence[str],
) -> Raw:
    """A convolution: norms of the maps that edges make of `x`, samples first."""
    groups, inputs, outputs = _edge_sizes(tap)
    w = permuted(w, tap.use.eqn.params["dimension_numbers"].rhs_spec)
    w = jnp.reshape(w, (groups, outputs, inputs, *w.shape[2:]))
    w = jnp.swapaxes(w, 1, 2)
    split = (*x.shape[1:-1], groups, inputs)
    raw = {}
    if "fro_of_mean" in names:
        raw["windows"] = w
    if "mean_of_fro" in names:
        maps = jnp.reshape(x, (x.shape[0], *split))
        raw["mean_of_fro"] = convolution.edge_norms(maps, w, geometry, 2)
    if "l1" in names:  # linear in the maps: their sum is one sample
        one = jnp.reshape(total, (1, *split))
        raw["l1"] = convolution.edge_norms(one, w, geometry, 1)
    return raw


def _edge_sizes(tap: Tap) -> tuple[int, int, int]:
    """Numbers of separate products, of input and of output units in each."""

    def size(parts: Sequence[Part]) -> int:
        return math.prod(p.size for p in parts)

    return size(lead_parts(tap)), size(in_parts(tap)), size(out_parts(tap))


def _samples_first(tap: Tap, ndim: int) -> list[int]:
    """Axes of a value around a convolution: samples, positions, units."""
    if tap.side == "inputs":
        lhs = tap.use.eqn.params["dimension_numbers"].lhs_spec
        return [lhs[0], *lhs[2:], lhs[1]]
    return [*(a for a in range(ndim) if a not in tap.axes), *tap.axes]


def _samples(
    x: Float[Array, "samples ..."], valid: Shaped[Array, "..."] | None
) -> Float[Array, ""]:
    """Number of samples that are not padding altogether."""
    if valid is None:
        return jnp.asarray(x.shape[0], jnp.float32)
    some = jnp.any(valid, axis=tuple(range(1, x.ndim)))
    return jnp.sum(some, dtype=jnp.float32) * (x.shape[0] // valid.shape[0])


# The statistics that a product has -----------------------------------------------
def geometry_of(tap: Tap, kernel: Kernel) -> Geometry:
    """How the product that a tap belongs to moves over positions."""
    if kernel.op != "conv_general_dilated":
        return Geometry(kernel)
    eqn = tap.use.eqn
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    lhs, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    spatial = [p for p, role in tap.use.roles if role == "spatial"]
    return Geometry(
        kernel,
        inside=tuple(lhs[a] for a in numbers.lhs_spec[2:]),
        outside=tuple(out[a] for a in numbers.out_spec[2:]),
        strides=tuple(params["window_strides"]),
        padding=tuple(tuple(pair) for pair in params["padding"]),
        lhs_dilation=tuple(params["lhs_dilation"]),
        rhs_dilation=tuple(params["rhs_dilation"]),
        window=tuple((p.axis, 1 if p.stride > 0 else -1) for p in spatial),
    )


def refuse(tap: Tap, geometry: Geometry, statistics: Sequence[str]) -> None:
    """Raises an error if a product does not have the statistics.

    Raises:
      ValueError: a map of a convolution whose samples are not the first axis, edges of
        a kernel that is the left operand of a convolution.
    """
    path = geometry.kernel.path
    if not geometry.is_conv or not set(statistics) & {*BY_SAMPLE, "positions"}:
        return
    if tap.use.operand != 0:
        raise ValueError(
            f"expected {path!r} to be the right operand of its convolution, got the "
            "left one; exchange the operands to measure maps and edges"
        )
    first, *_ = spec = tap.use.eqn.params["dimension_numbers"].out_spec
    if "abs_map" in statistics and tap.side == "outputs" and first > min(spec[2:]):
        raise ValueError(
            f"expected samples on the first axis of the convolution of {path!r}, got "
            f"them on axis {first}; measure 'outputs.abs_map' with the batch in front"
        )


def refuse_gram(geometries: Iterable[Geometry]) -> None:
    """Raises an error if some of these products are no matrix products.

    Raises:
      ValueError: with what each of them is, and the selection without them.
    """
    why = {g.kernel.path: _no_matrix(g) for g in geometries}
    wrong = {path: what for path, what in why.items() if what}
    if wrong:
        (path, what), *more = wrong.items()
        others = f" (and {[p for p, _ in more]})" * bool(more)
        rest = [p for p in why if p not in wrong]
        raise ValueError(
            f"expected a matrix product to measure 'inputs.gram' of {path!r}{others}, "
            f"got {what}; leave it out of what is measured and pruned: "
            f"units.only({rest})"
        )


def _no_matrix(geometry: Geometry) -> str:
    """Why a product is no matrix product, or nothing."""
    kernel = geometry.kernel
    if kernel.groups > 1:
        return f"a convolution in {kernel.groups} groups"
    if not geometry.is_conv:
        return ""
    sizes = tuple(
        n for n, r in zip(kernel.split, kernel.roles, strict=True) if r == "spatial"
    )
    if math.prod(sizes) > 1:
        return f"a convolution with window {sizes}"
    if geometry.inside != geometry.outside or any(s > 1 for s in geometry.strides):
        return "a convolution that does not read every position once"
    return ""
