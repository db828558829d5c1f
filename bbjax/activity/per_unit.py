"""Reductions of one array to statistics of the units on its axes.

`unit_sums` reduces over all axes but those of units, without padding: sums, maxima and
a count, in the order of the value's own axes. `Over` is which entries are of which
unit. `bbjax.activity.order` puts them into the kernel's order and
`bbjax.activity.statistics.finish` divides them.

A padding mask covers leading ones of the axes that are not units. It becomes an array
with as many axes as the values, of size 1 along all other axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, Shaped

from bbjax.activity.on import Above, On
from bbjax.activity.statistics import Raw
from bbjax.arrays import reductions


@dataclasses.dataclass(frozen=True)
class Over:
    """The entries of each unit in an array, and sums over them.

    Attributes:
      axes: axes that carry units; sums have them, in this order.
      shape: of the array.
      valid: from `valid_entries`; None if there is no padding.
    """

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    valid: Shaped[Array, "..."] | None

    @property
    def rest(self) -> tuple[int, ...]:
        """Axes that are summed over."""
        return tuple(a for a in range(len(self.shape)) if a not in self.axes)

    @property
    def counted(self) -> Bool[Array, "*shape"] | None:
        """Entries that are no padding; None for all of them."""
        return None if self.valid is None else jnp.broadcast_to(self.valid, self.shape)

    def ordered(self, reduced: Num[Array, "..."]) -> Num[Array, "*units"]:
        """Axes of a reduced array, from ascending order to that of `axes`."""
        order = sorted(self.axes)
        return permuted(reduced, [order.index(a) for a in self.axes])

    def total(self, values: Num[Array, "*shape"]) -> Num[Array, "*units"]:
        """Sums of values."""
        return self.ordered(jnp.sum(real(values, self.valid), axis=self.rest))

    def totals(
        self, arrays: Sequence[Num[Array, "*shape"]]
    ) -> list[Num[Array, "*units"]]:
        """Sums of several arrays of one dtype, in one pass if that pays."""
        kept = [real(a, self.valid) for a in arrays]
        return [self.ordered(s) for s in reductions.sums(kept, self.rest)]

    def peak(self, values: Num[Array, "*shape"]) -> Float[Array, "*units"]:
        """Maxima of values of at least 0."""
        peaks = real(values, self.valid).astype(jnp.float32)
        return self.ordered(jnp.max(peaks, axis=self.rest, initial=0.0))

    def count(self) -> Float[Array, "*units"]:
        """Number of entries of each unit."""
        count: Array | float
        if self.valid is None:
            count = float(math.prod(self.shape[a] for a in self.rest))
        else:
            alike = (self.shape[a] for a in self.rest if self.valid.shape[a] == 1)
            count = jnp.sum(self.valid, dtype=jnp.float32) * math.prod(alike)
        shape = [self.shape[a] for a in self.axes]
        return jnp.broadcast_to(jnp.asarray(count, jnp.float32), shape)


_SUMMED: dict[str, Callable[[Array], Array]] = {
    "mean": lambda x: x,
    "mean_abs": jnp.abs,
    "mean_square": jnp.square,
}


def unit_sums(
    x: Num[Array, "..."], over: Over, *, on: On, statistics: Sequence[str]
) -> Raw:
    """Sums statistics of an array over the entries of each unit.

    Args:
      x: values of any float dtype.
      over: which entries are of which unit.
      on: what counts as on.
      statistics: names out of `bbjax.activity.statistics.PER_UNIT`.

    Returns:
      Sums and maxima, and the count, one entry per unit.
    """
    raw = {"count": over.count()}
    for name in statistics:
        if name in ("on_rate", "zero_share"):
            hit = _on(x, on, over.counted) if name == "on_rate" else x == 0
            raw[name] = _share(x, hit, over)
        elif name == "max_abs":
            raw[name] = over.peak(jnp.abs(x))
        else:
            raw[name] = over.total(_SUMMED[name](x.astype(jnp.float32)))
    return raw


def _on(
    x: Num[Array, "*shape"], on: On, valid: Shaped[Array, "*shape"] | None
) -> Shaped[Array, "*shape"]:
    hit = on(x, valid) if isinstance(on, Above) else on(x)
    if jnp.shape(hit) != x.shape:
        raise ValueError(
            f"expected `on` to keep the shape {x.shape}, got {jnp.shape(hit)}; it "
            "must be elementwise, from values to [0, 1]"
        )
    return hit


def _share(
    x: Num[Array, "*shape"], hit: Shaped[Array, "*shape"], over: Over
) -> Float[Array, "*units"]:
    """The sum of hits; NaN where `x` is not finite, so that it is noticed."""
    counted = [hit.astype(jnp.float32)]
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return over.totals(counted)[0]
    broken = (~jnp.isfinite(x)).astype(jnp.float32)
    hits, bad = over.totals([*counted, broken])
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


def permuted(x: Shaped[Array, "..."], order: Sequence[int]) -> Shaped[Array, "..."]:
    """A transposition, left out where it changes nothing."""
    return x if list(order) == list(range(len(order))) else jnp.transpose(x, order)
