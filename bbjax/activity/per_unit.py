"""Reductions of one array to statistics of the units on its axes.

`unit_sums` reduces over all axes but those of units, without padding: sums, maxima and
a count, in the order of the value's own axes. `bbjax.activity.order` puts them into the
kernel's order and `bbjax.activity.statistics.finish` divides them.

A padding mask covers leading ones of the axes that are not units. It becomes an array
with as many axes as the values, of size 1 along all other axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, Shaped

from bbjax.activity.on import Above, On
from bbjax.activity.statistics import Raw
from bbjax.arrays import reductions


def unit_sums(
    x: Num[Array, "..."],
    axes: Sequence[int],
    *,
    on: On,
    valid: Shaped[Array, "..."] | None,
    statistics: Sequence[str],
) -> Raw:
    """Sums statistics of an array over all axes but `axes`.

    Args:
      x: values of any float dtype.
      axes: axes that carry units; the result has them, in this order.
      on: what counts as on.
      valid: from `valid_entries`; None if there is no padding.
      statistics: names out of `bbjax.activity.statistics.PER_UNIT`.

    Returns:
      Sums and maxima, and the count, all of the shape of `axes`.
    """
    rest = tuple(a for a in range(x.ndim) if a not in axes)
    shape = [x.shape[a] for a in axes]
    count: Array | float
    if valid is None:
        count = float(math.prod(x.shape[a] for a in rest))
    else:
        repeats = math.prod(x.shape[a] for a in rest if valid.shape[a] == 1)
        count = jnp.sum(valid, dtype=jnp.float32) * repeats
    raw = {"count": jnp.broadcast_to(jnp.asarray(count, jnp.float32), shape)}
    for name in statistics:
        if name in ("on_rate", "zero_share"):
            hit = _on(x, on, valid) if name == "on_rate" else x == 0
            reduced = _share(x, hit, rest, valid)
        elif name == "max_abs":
            peaks = real(jnp.abs(x), valid).astype(jnp.float32)
            reduced = jnp.max(peaks, axis=rest, initial=0.0)
        else:
            wide = x.astype(jnp.float32)
            sizes = jnp.square(wide) if name == "mean_square" else jnp.abs(wide)
            reduced = jnp.sum(real(sizes, valid), axis=rest)
        raw[name] = in_order(reduced, axes)
    return raw


def _on(
    x: Num[Array, "*shape"], on: On, valid: Shaped[Array, "..."] | None
) -> Shaped[Array, "*shape"]:
    everywhere = None if valid is None else jnp.broadcast_to(valid, x.shape)
    hit = on(x, everywhere) if isinstance(on, Above) else on(x)
    if jnp.shape(hit) != x.shape:
        raise ValueError(
            f"expected `on` to keep the shape {x.shape}, got {jnp.shape(hit)}; it "
            "must be elementwise, from values to [0, 1]"
        )
    return hit


def _share(
    x: Num[Array, "*shape"],
    hit: Shaped[Array, "*shape"],
    rest: tuple[int, ...],
    valid: Shaped[Array, "..."] | None,
) -> Float[Array, "..."]:
    """The sum of hits; NaN where `x` is not finite, so that it is noticed."""
    counted = [real(hit.astype(jnp.float32), valid)]
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return reductions.sums(counted, rest)[0]
    broken = real((~jnp.isfinite(x)).astype(jnp.float32), valid)
    hits, bad = reductions.sums([*counted, broken], rest)
    return jnp.where(bad > 0, jnp.nan, hits)


def real(
    values: Num[Array, "*shape"], valid: Shaped[Array, "*#shape"] | None
) -> Num[Array, "*shape"]:
    """Values, 0 at padding."""
    if valid is None:
        return values
    return jnp.where(valid, values, jnp.zeros((), values.dtype))


def valid_entries(
    where: Shaped[Array, "..."], shape: tuple[int, ...], axes: Sequence[int], path: str
) -> Bool[Array, "..."]:
    """The padding mask, with size-1 axes, ready to meet an array of `shape`."""
    rest = [a for a in range(len(shape)) if a not in axes]
    free = [shape[a] for a in rest]
    lead = free[: where.ndim]
    fits = where.ndim <= len(free) and all(
        m in (1, n) for m, n in zip(where.shape, lead, strict=True)
    )
    if not fits:
        raise ValueError(
            f"expected `where` to match the leading batch and position axes "
            f"{tuple(free)} of the activity at {path!r} (array of shape {shape}), got "
            f"shape {tuple(where.shape)}; select only kernels that see these positions "
            "or pass a mask of the shared leading axes"
        )
    full = [1] * len(shape)
    for axis, size in zip(rest, where.shape, strict=False):
        full[axis] = size
    return jnp.reshape(where.astype(bool), full)


def in_order(reduced: Num[Array, "..."], axes: Sequence[int]) -> Num[Array, "..."]:
    """Axes of a reduced array, from ascending order to that of `axes`."""
    order = sorted(axes)
    return permuted(reduced, [order.index(a) for a in axes])


def permuted(x: Shaped[Array, "..."], order: Sequence[int]) -> Shaped[Array, "..."]:
    """A transposition, left out where it changes nothing."""
    return x if list(order) == list(range(len(order))) else jnp.transpose(x, order)
