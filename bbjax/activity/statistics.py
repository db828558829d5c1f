"""Statistics of activity: definitions, and how partial measurements are combined.

Per unit, over the batch and all positions that are not padding (`stack + units`):

    on_rate      mean of on(x)            mean_abs     mean of |x|
    mean_square  mean of x**2             zero_share   mean of (x == 0)
    max_abs      maximum of |x|           mean         mean of x
    count        entries measured

Larger statistics, measured only on the side that is named with them:

    inputs.gram        mean of x x^T over the input units of a matrix product
    inputs.abs_map     mean over samples of |x|, positions kept (also outputs.abs_map)
    inputs.fro_of_mean, inputs.mean_of_fro, inputs.l1
                       contribution of each edge (`bbjax.activity.convolution`), of
                       shape `kernel.edge_shape`; |w| * mean |x| in a matrix product
    outputs.positions  output positions of one sample, 1 in a matrix product: a bias b
                       contributes |b| * sqrt(positions) beside the first two sizes of
                       an edge, |b| * positions beside l1

A sample of a convolution is an entry of the batch, and padding is 0 in its map; a
sample of a matrix product is an entry of the batch at a position that is not padding.

A partial measurement is a sum (or a maximum) and a count, in float32. Counts of 0/1
values are exact below 2**24 samples, so the result does not depend on how the batch is
split over devices. Branches that did not run contribute a count of 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, get_args, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bbjax.activity.convolution import Geometry, fro_of_mean
from bbjax.model.units import Side

MEANS = ("on_rate", "mean", "mean_abs", "mean_square", "zero_share")
PER_UNIT = (*MEANS, "max_abs")
PER_EDGE = ("fro_of_mean", "mean_of_fro", "l1")
SIDED: dict[str, tuple[Side, ...]] = {  # measured on these sides, and only if asked for
    "gram": ("inputs",),
    "abs_map": ("inputs", "outputs"),
    **dict.fromkeys(PER_EDGE, ("inputs",)),
    "positions": ("outputs",),
}
STATISTICS = (*PER_UNIT, *SIDED)
BY_SAMPLE = ("abs_map", *PER_EDGE)  # means over samples, not over entries
SAME = ("max_abs", "windows", "positions")  # the larger one is taken, or all are equal
Raw = dict[str, Float[Array, "..."]]  # statistic -> sum or maximum; "count" -> entries
Asked = dict[Side, tuple[str, ...]]


@no_type_check  # `jax.tree.map` makes objects of this class with anything in its fields
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of one side of a kernel: float32 arrays, `stack + units` if not said.

    Attributes:
      on_rate: mean of "is on", in [0, 1].
      count: number of entries each unit was measured on.
      mean: mean of `x`, where asked for.
      mean_abs: mean of `|x|`, where asked for.
      mean_square: mean of `x**2`, where asked for.
      zero_share: mean of `x == 0`, where asked for.
      max_abs: maximum of `|x|`, where asked for.
      gram: mean of `x x^T`, shape `stack + (n, n)`, where asked for; the `n` input
        units of a stack slice are in the kernel's own order.
      abs_map: mean of `|x|` over samples, `stack + positions + units`, where asked for.
      fro_of_mean: size of each edge's mean map, `kernel.edge_shape`, where asked for.
      mean_of_fro: mean size of each edge's map, likewise.
      l1: mean sum of each edge's map, likewise.
      positions: number of output positions of a sample, where asked for.
      samples: number of samples behind a map or what edges contribute.
      windows: `|K|` as the convolution reads it, `edge_shape + window`, kept beside
        `fro_of_mean` so that two measurements can be merged.
      geometry: how the kernel moves, beside maps and what edges contribute.

    A unit that was not measured (its branch did not run, everything was padding) has
    count 0 and statistics 0.
    """

    on_rate: Float[Array, "*units"] | None = None
    count: Float[Array, "*units"] | None = None
    mean: Float[Array, "*units"] | None = None
    mean_abs: Float[Array, "*units"] | None = None
    mean_square: Float[Array, "*units"] | None = None
    zero_share: Float[Array, "*units"] | None = None
    max_abs: Float[Array, "*units"] | None = None
    gram: Float[Array, "*stack n n"] | None = None
    abs_map: Float[Array, "..."] | None = None
    fro_of_mean: Float[Array, "*edges"] | None = None
    mean_of_fro: Float[Array, "*edges"] | None = None
    l1: Float[Array, "*edges"] | None = None
    positions: Float[Array, "*units"] | None = None
    samples: Float[Array, "*units"] | None = None
    windows: Float[Array, "..."] | None = None
    geometry: Geometry | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    def arrays(self) -> dict[str, Float[Array, "..."]]:
        """What was measured, by name."""
        fields = (f.name for f in dataclasses.fields(self) if f.name != "geometry")
        held = {name: getattr(self, name) for name in fields}
        return {name: value for name, value in held.items() if value is not None}


class Activity(NamedTuple):
    """Activity around one kernel: of its input units and of its output units."""

    inputs: Statistics
    outputs: Statistics


def asked_for(needs: Sequence[str]) -> Asked:
    """The statistics to measure on each side, for the needs of a rule.

    Args:
      needs: names of statistics: `"inputs.<name>"` or `"outputs.<name>"` for one side,
        a bare name for both. Larger statistics need the side. `"grads"` is ignored;
        on-rates are always measured.

    Raises:
      ValueError: an unknown name, or one without its side.

    Example:
      >>> asked_for(["inputs.mean_square"])
      {'inputs': ('on_rate', 'mean_square'), 'outputs': ('on_rate',)}
    """
    both: tuple[Side, ...] = get_args(Side)
    wanted = {side: {"on_rate"} for side in both}
    for need in needs:
        side, _, name = need.rpartition(".")
        known = SIDED.get(name, both)
        if need == "grads":
            continue
        if name not in STATISTICS or side not in ("", *both):
            raise ValueError(
                f"expected statistics out of {STATISTICS}, got {need!r}; a rule names "
                "what it reads in rule.needs"
            )
        if name in SIDED and side not in known:
            raise ValueError(
                f"expected {' or '.join(repr(f'{s}.{name}') for s in known)}, got "
                f"{need!r}; it is measured only on the side that is named"
            )
        for one in (side,) if side else known:
            wanted[one].add(name)  # type: ignore[index]
    return {
        s: tuple(n for n in STATISTICS if n in names) for s, names in wanted.items()
    }


def combine(first: Raw, second: Raw) -> Raw:
    """Two partial measurements as one."""
    return {
        name: jnp.maximum(first[name], second[name])
        if name in SAME
        else first[name] + second[name]
        for name in first
    }


def over_iterations(raw: Raw) -> Raw:
    """Partial measurements stacked on axis 0 as one."""
    return {
        name: jnp.max(value, axis=0) if name in SAME else jnp.sum(value, axis=0)
        for name, value in raw.items()
    }


def finish(raw: Raw, geometry: Geometry | None = None) -> Statistics:
    """From sums and counts to means, in the kernel's own order.

    Args:
      raw: sums, maxima, `count` and, beside maps and edges, `samples`.
      geometry: of the kernel; needed beside `samples`.
    """
    values = dict(raw)
    for name in raw.keys() - {"count", "samples", *SAME}:
        values[name] = raw[name] / jnp.maximum(_behind(name, raw, geometry), 1.0)
    if "windows" in raw:
        assert geometry is not None
        values["fro_of_mean"] = fro_of_mean(values["abs_map"], raw["windows"], geometry)
    return Statistics(geometry=geometry, **values)


def unfinished(statistics: Statistics, geometry: Geometry | None = None) -> Raw:
    """From means back to sums and counts: `finish` undone."""
    raw = statistics.arrays()
    if "windows" in raw:
        del raw["fro_of_mean"]
    means = {
        name: value * _behind(name, raw, geometry)
        for name, value in raw.items()
        if name not in {"count", "samples", *SAME}
    }
    return raw | means


def _behind(name: str, raw: Raw, geometry: Geometry | None) -> Float[Array, "..."]:
    """The number of samples of each entry of a mean."""
    if name == "gram":  # units of a slice are all measured on the same entries
        slices = raw[name].shape[:-2]
        return jnp.reshape(raw["count"], (*slices, -1))[..., :1, None]
    if name not in BY_SAMPLE:
        return raw["count"]
    assert geometry is not None
    samples, kernel = raw["samples"], geometry.kernel
    if name in PER_EDGE:
        return kernel.spread(samples, "inputs")
    stack = len(kernel.stack_shape)
    positions = raw[name].ndim - samples.ndim
    return jnp.expand_dims(samples, range(stack, stack + positions))
