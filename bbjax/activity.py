"""Statistics of activity: what is measured, and how partial measurements combine.

Per unit, over the batch and all positions that are not padding:

    on_rate      mean of on(x)            mean_abs     mean of |x|
    mean_square  mean of x**2             zero_share   mean of (x == 0)
    max_abs      maximum of |x|

A partial measurement is a sum (or a maximum) and a count, in float32. Counts of 0/1
values are exact below 2**24 samples, so the result does not depend on how the batch is
split over devices. Branches that did not run contribute a count of 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bbjax.on import Above, On

MEANS = ("on_rate", "mean_abs", "mean_square", "zero_share")
MAXIMA = ("max_abs",)
STATISTICS = MEANS + MAXIMA
Raw = dict[str, jax.Array]  # statistic -> sum or maximum; "count" -> samples


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of one side of a kernel: float32 arrays of shape `stack + units`.

    Attributes:
      on_rate: mean of "is on", in [0, 1].
      count: number of samples each unit was measured on.
      mean_abs: mean of `|x|`, where asked for.
      mean_square: mean of `x**2`, where asked for.
      zero_share: mean of `x == 0`, where asked for.
      max_abs: maximum of `|x|`, where asked for.

    A unit that was not measured (its branch did not run, everything was padding) has
    count 0 and statistics 0.
    """

    on_rate: jax.Array | None = None
    count: jax.Array | None = None
    mean_abs: jax.Array | None = None
    mean_square: jax.Array | None = None
    zero_share: jax.Array | None = None
    max_abs: jax.Array | None = None


class Activity(NamedTuple):
    """Activity around one kernel: of its input units and of its output units."""

    inputs: Statistics
    outputs: Statistics


def measure(
    x: jax.Array,
    axes: Sequence[int],
    *,
    on: On,
    where: jax.Array | None,
    statistics: Sequence[str],
    path: str,
) -> Raw:
    """Sums statistics of an array over all axes but `axes`.

    Args:
      x: values of any float dtype.
      axes: axes that carry units; the result has them, in this order.
      on: what counts as on.
      where: bool mask over the leading other axes of `x`, True where real.
      statistics: names out of `STATISTICS`.
      path: of the kernel, for messages.

    Returns:
      Sums and maxima, and the count, all of the shape of `axes`.
    """
    x = lax.stop_gradient(x)
    rest = tuple(a for a in range(x.ndim) if a not in axes)
    valid = None if where is None else _valid(where, x.shape, rest, path)
    shape = [x.shape[a] for a in axes]
    count: jax.Array | float
    if valid is None:
        count = float(math.prod(x.shape[a] for a in rest))
    else:
        repeats = math.prod(x.shape[a] for a in rest if valid.shape[a] == 1)
        count = jnp.sum(valid, dtype=jnp.float32) * repeats
    raw = {"count": jnp.broadcast_to(jnp.asarray(count, jnp.float32), shape)}
    for name in statistics:
        values = _pointwise(name, x, on, valid)
        if valid is not None:
            values = jnp.where(valid, values, jnp.zeros((), values.dtype))
        if name in MAXIMA:
            reduced = jnp.max(values.astype(jnp.float32), axis=rest, initial=0.0)
        else:
            reduced = jnp.sum(values, axis=rest, dtype=jnp.float32)
        raw[name] = _in_order(reduced, axes)
    return raw


def _pointwise(name: str, x: jax.Array, on: On, valid: jax.Array | None) -> jax.Array:
    if name == "on_rate":
        everywhere = None if valid is None else jnp.broadcast_to(valid, x.shape)
        hit = on(x, everywhere) if isinstance(on, Above) else on(x)
        if jnp.shape(hit) != x.shape:
            raise ValueError(
                f"expected `on` to keep the shape {x.shape}, got {jnp.shape(hit)}; it "
                "must be elementwise, from values to [0, 1]"
            )
        return _poisoned(hit, x)
    if name == "zero_share":
        return _poisoned(x == 0, x)
    wide = x.astype(jnp.float32)
    return jnp.square(wide) if name == "mean_square" else jnp.abs(wide)


def _poisoned(share: jax.Array, x: jax.Array) -> jax.Array:
    """NaN where `x` is not finite: a broken batch must not pass for a silent one."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return share
    return jnp.where(jnp.isfinite(x), share.astype(jnp.float32), jnp.nan)


def _valid(
    where: jax.Array, shape: tuple[int, ...], rest: tuple[int, ...], path: str
) -> jax.Array:
    """The padding mask, with size-1 axes, ready to meet an array of `shape`."""
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


def _in_order(reduced: jax.Array, axes: Sequence[int]) -> jax.Array:
    order = sorted(axes)
    perm = [order.index(a) for a in axes]
    return reduced if perm == list(range(len(perm))) else jnp.transpose(reduced, perm)


def statistics_of(needs: Sequence[str]) -> tuple[str, ...]:
    """Names of the statistics to measure so that `needs` are met.

    Args:
      needs: names of statistics, with or without the side they are wanted for
        (`"inputs.mean_square"`); `"grads"` asks for nothing here. On-rates are always
        measured.

    Raises:
      ValueError: an unknown name.
    """
    wanted = {"on_rate"}
    for need in needs:
        name = need.split(".")[-1]
        if name in STATISTICS:
            wanted.add(name)
        elif name != "grads":
            raise ValueError(
                f"expected statistics out of {STATISTICS}, got {need!r}; a rule names "
                "what it reads in rule.needs"
            )
    return tuple(s for s in STATISTICS if s in wanted)


def combine(first: Raw, second: Raw) -> Raw:
    """Two partial measurements as one."""
    return {
        name: jnp.maximum(first[name], second[name])
        if name in MAXIMA
        else first[name] + second[name]
        for name in first
    }


def over_iterations(raw: Raw) -> Raw:
    """Partial measurements stacked on axis 0 as one."""
    return {
        name: jnp.max(value, axis=0) if name in MAXIMA else jnp.sum(value, axis=0)
        for name, value in raw.items()
    }


def finish(raw: Raw) -> Statistics:
    """From sums and counts to means."""
    count = raw["count"]
    share = jnp.where(count > 0, 1.0 / jnp.maximum(count, 1.0), 0.0)
    values = {
        name: value if name in MAXIMA else value * share
        for name, value in raw.items()
        if name != "count"
    }
    return Statistics(count=count, **values)
