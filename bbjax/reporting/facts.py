"""From masks and on-rates to the figures of a report: arrays in, numbers out.

For the units of one side of a kernel with edges `m` (True = kept) and on-rates `a`

    degree    k = sum of m over the other side
    dead      k = 0, or a <= 0.001
    line      log((1 - a) / a) = beta (k - d0), least squares over the units off their
              bounds; slope and R2 by `bbjax.training.metrics`, d0 so that it meets
              their means
    unheard   k > 0 incoming, and nothing left of them after `bbjax.model.removal.sweep`

and of a mask picture the mean over blocks of edges. Nothing here draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.model import removal
from bbjax.model.kernel import Actuator, Kernel, Side
from bbjax.model.units import Units
from bbjax.reporting.data import (
    Histogram,
    Ints,
    KernelFacts,
    Measures,
    Picture,
    SideFacts,
    Unit,
)
from bbjax.reporting.sources import Look, per_edge
from bbjax.training.metrics import log_odds, off_bounds, summary

TOP = 5  # hub units listed
BINS = 32  # bars of a histogram
LAYERS = 4  # layers of a stack that are drawn
MANY = 24  # kernels beyond which pictures are smaller, and fewer
ACTUATORS: dict[Side, Actuator] = {"outputs": "in", "inputs": "out"}


class Context(NamedTuple):
    """What holds for all kernels of a report.

    Attributes:
      side_of_picture: pixels of a mask picture, at most, down and across.
      flipped: edges that changed, by path; where it has none, what the state says.
      unheard: number of unheard output units, by path.
      dtypes: of the parameters, by path; where it has none, the kernel's own.
      no_activity: why on-rates may be missing.
    """

    side_of_picture: int
    flipped: Mapping[str, int]
    unheard: Mapping[str, int]
    dtypes: Mapping[str, Any]
    no_activity: str


def kernel_facts(look: Look, context: Context) -> KernelFacts:
    """The figures of one kernel."""
    kernel, mask = look.kernel, look.mask()
    edges = _by_role(kernel, per_edge(kernel, mask))
    kept = tuple(int(n) for n in np.count_nonzero(edges, axis=(1, 2, 3)))
    flipped = context.flipped.get(kernel.path)
    if flipped is None and look.churn is not None:
        flipped = round(look.churn * edges.size)
    itemsize = jnp.dtype(context.dtypes.get(kernel.path, kernel.dtype)).itemsize
    weights = int(np.count_nonzero(mask))
    both: tuple[Side, Side] = ("outputs", "inputs")
    counted = [side for side in both if ACTUATORS[side] in look.actuators]
    order = counted + [side for side in both if side not in counted]
    return KernelFacts(
        path=kernel.path,
        shape=kernel.shape,
        kind=kind(kernel),
        stack_shape=kernel.stack_shape,
        actuators=look.actuators,
        edges=edges.size,
        kept=sum(kept),
        kept_by_layer=kept,
        kept_weights=weights,
        asked=look.asked,
        flipped=flipped,
        unheard=context.unheard.get(kernel.path),
        dense_bytes=math.prod(kernel.shape) * itemsize,
        sparse_bytes=-(-edges.size // 8) + weights * itemsize,
        sides=tuple(_side(look, edges, s, context.no_activity) for s in order),
        pictures=_pictures(kernel, edges, context.side_of_picture),
    )


def kind(kernel: Kernel) -> str:
    """A kernel in words.

    Example:
      >>> kind(Kernel("w", (3, 3, 8, 16), fan_in=(2,), fan_out=(3,), spatial=(0, 1)))
      '3 x 3 convolution, 8 to 16 units'
    """
    sizes = zip(kernel.split, kernel.roles, strict=True)
    window = " x ".join(str(size) for size, role in sizes if role == "spatial")
    name = f"{window} convolution" if window else "matrix"
    groups = f" in {kernel.groups} groups" if kernel.groups > 1 else ""
    layers = math.prod(kernel.stack_shape)
    stacked = f", {layers} layers" if kernel.stack_shape else ""
    ends = (math.prod(kernel.in_units), math.prod(kernel.out_units))
    return f"{name}, {ends[0]} to {ends[1]} units{groups}{stacked}"


# Units ---------------------------------------------------------------------------
def _side(look: Look, edges: np.ndarray, side: Side, missing: str) -> SideFacts:
    kernel, actuator = look.kernel, ACTUATORS[side]
    over = 2 if side == "outputs" else 3  # the axis of the other side
    degree = _by_layer(kernel, np.count_nonzero(edges, axis=over))
    rates = look.rates.get(side)
    rate = None if rates is None else _by_layer(kernel, rates.rate)
    fan, low = kernel.fan(actuator), look.k_min
    assumed = np.full(degree.shape, 0.5, np.float32) if rate is None else rate
    free = np.asarray(off_bounds(degree, assumed, low, fan))
    whole, layers = _measures(kernel, degree, rate, free)
    counted = actuator in look.actuators
    return SideFacts(
        side=side,
        actuator=actuator,
        counted=counted,
        fan=fan,
        degree=degree,
        rate=rate,
        unobserved=0 if rates is None else int(np.count_nonzero(~rates.seen)),
        free=free,
        whole=whole,
        layers=layers,
        histogram=histogram(degree),
        busiest=() if rate is None else _top(kernel, side, degree, rate, degree * rate),
        widest=()
        if degree.min() == degree.max()
        else _top(kernel, side, degree, rate, degree),
        why_no_activity=""
        if rate is not None
        else missing
        if counted or not look.actuators
        else "the budget does not count these edges, so on-rates are not kept",
    )


def _by_layer(kernel: Kernel, per_unit: np.ndarray) -> np.ndarray:
    return per_unit.reshape(math.prod(kernel.stack_shape), -1)


def _measures(
    kernel: Kernel, degree: np.ndarray, rate: np.ndarray | None, free: np.ndarray
) -> tuple[Measures, tuple[Measures, ...]]:
    whole = _measured(*(_flat(x) for x in (degree, rate, free)))[0]
    layers = _measured(degree, rate, free) if kernel.stack_shape else []
    return whole, tuple(layers)


def _flat(per_unit: np.ndarray | None) -> Any:
    return None if per_unit is None else per_unit.reshape(1, -1)


def _measured(
    degree: np.ndarray, rate: np.ndarray | None, free: np.ndarray
) -> list[Measures]:
    """Figures of each row of units."""
    if rate is None:
        return [_unmeasured(k) for k in degree]
    part = {"degree": degree.astype(np.float32), "rate": rate, "free": free}
    edges = {name: np.ones((len(degree), 1), np.float32) for name in _EDGES}
    found = {k: np.asarray(v) for k, v in _summaries(part | edges).items()}
    odds = np.asarray(log_odds(rate), np.float64)
    rows = []
    for i, k in enumerate(degree):
        slope, r2 = (_finite(found[f"balance_{name}"][i]) for name in ("slope", "r2"))
        dead, no_edges = int(found["dead_units"][i]), int(np.count_nonzero(k == 0))
        row = _unmeasured(k)._replace(
            silent=dead - no_edges,
            dead=dead,
            traffic=float(found["traffic"][i]),
            entropy=float(found["coding_entropy"][i]),
            slope=slope,
            d0=None if slope is None else _d0(k[free[i]], odds[i][free[i]], slope),
            r2=r2,
        )
        rows.append(row)
    return rows


def _unmeasured(degree: np.ndarray) -> Measures:
    """What degrees alone say."""
    no_edges = int(np.count_nonzero(degree == 0))
    return Measures(
        units=len(degree),
        degree_min=int(degree.min()),
        degree_mean=float(degree.mean()),
        degree_max=int(degree.max()),
        no_edges=no_edges,
        silent=None,
        dead=no_edges,
        traffic=None,
        entropy=None,
        slope=None,
        d0=None,
        r2=None,
    )


_EDGES = ("edges", "asked", "flipped")  # shares of edges are exact, from whole numbers


@jax.jit
def _summaries(part: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.vmap(summary)(part)


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _d0(degree: np.ndarray, odds: np.ndarray, slope: float) -> float | None:
    """Where the fitted line has log-odds 0: it goes through the means."""
    return float(degree.mean() - odds.mean() / slope) if slope else None


def _top(
    kernel: Kernel,
    side: Side,
    degree: np.ndarray,
    rate: np.ndarray | None,
    by: np.ndarray,
) -> tuple[Unit, ...]:
    """The units with the largest `by`, ties to the first."""
    best = np.argsort(-by.ravel(), kind="stable")[:TOP]
    stack = len(kernel.stack_shape)
    found = []
    for flat in best:
        index = tuple(
            int(i) for i in np.unravel_index(flat, kernel.per_unit_shape(side))
        )
        k = int(degree.ravel()[flat])
        a = None if rate is None else float(rate.ravel()[flat])
        traffic = None if a is None else a * k
        found.append(Unit(index[:stack], index[stack:], k, a, traffic))
    return tuple(found)


def histogram(degree: np.ndarray) -> Histogram:
    """Units by degree, in at most 32 bins.

    Example:
      >>> histogram(np.array([1, 1, 3]))
      Histogram(start=1, width=1, counts=(2, 0, 1))
    """
    low, high = int(degree.min()), int(degree.max())
    width = -(-(high - low + 1) // BINS)
    counts = np.bincount((degree.ravel() - low) // width)
    return Histogram(low, width, tuple(int(n) for n in counts))


# Masks ---------------------------------------------------------------------------
def _by_role(kernel: Kernel, edges: np.ndarray) -> np.ndarray:
    """The edge view as `(layers, groups, inputs, outputs)`."""
    roles = ("stack", "group", "in", "out")
    order = [axis for role in roles for axis in kernel.axes(role)]
    sizes = [math.prod(edges.shape[a] for a in kernel.axes(role)) for role in roles]
    return np.transpose(edges, order).reshape(sizes)


def evenly(count: int, most: int) -> Ints:
    """At most so many of `range(count)`, evenly spread, the first and the last in it.

    Example:
      >>> evenly(24, 4), evenly(3, 6)
      ((0, 8, 15, 23), (0, 1, 2))
    """
    if count <= most:
        return tuple(range(count))
    return tuple(round(i * (count - 1) / (most - 1)) for i in range(most))


def _pictures(kernel: Kernel, edges: np.ndarray, pixels: int) -> tuple[Picture, ...]:
    """Pictures of some layers; groups lie one below the other."""
    found = []
    shown = evenly(len(edges), LAYERS)
    pixels = pixels if len(shown) == 1 else pixels // 2
    for layer in shown:
        matrix = edges[layer].reshape(-1, edges.shape[-1])
        size = (matrix.shape[0], matrix.shape[1])
        block = (-(-size[0] // pixels), -(-size[1] // pixels))
        at: Ints = ()
        if kernel.stack_shape:
            at = tuple(int(i) for i in np.unravel_index(layer, kernel.stack_shape))
        share = block_means(matrix, block)
        found.append(Picture(at, share, block, size, kernel.groups))
    return tuple(found)


def block_means(values: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Means over blocks of a matrix; those at the far edges may be smaller.

    Example:
      >>> block_means(np.array([[1, 0, 1], [1, 1, 1]]), (2, 2)).tolist()
      [[0.75, 1.0]]
    """
    total, size = values.astype(np.float32), np.ones_like(values, np.float32)
    for axis in (0, 1):
        starts = np.arange(0, values.shape[axis], block[axis])
        total = np.add.reduceat(total, starts, axis=axis)
        size = np.add.reduceat(size, starts, axis=axis)
    return total / size


# The graph -----------------------------------------------------------------------
def unheard(units: Units, looks: tuple[Look, ...]) -> dict[str, int]:
    """Output units with incoming edges that no reader hears, directly or by others.

    Returns:
      By path, for masked kernels whose readers are all known and masked.
    """
    readers = removal.consumers(units)

    @jax.jit  # one program, not one for every small operation
    def counts(masks: dict[str, jax.Array]) -> dict[str, jax.Array]:
        swept = removal.sweep(units, masks)
        found = {}
        for path, mask in masks.items():
            kernel = units[path]
            reached = all(reader in swept for reader, _ in readers[path])
            if kernel.closed and reached:
                before, after = (
                    kernel.gather(kernel.edge_mask(m), "outputs") > 0
                    for m in (mask, swept[path])
                )
                found[path] = jnp.sum(before & ~after, dtype=jnp.int32)
        return found

    known = [look for look in looks if look.kernel.path in units]
    found = counts({look.kernel.path: look.mask() for look in known})
    return {path: int(count) for path, count in found.items()}
