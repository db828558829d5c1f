"""From masks and on-rates to the figures of a report: arrays in, numbers out.

For the units of one side of a kernel with edges `m` (True = kept) and on-rates `a`

    degree    k = sum of m over the other side
    dead      k = 0, or a <= 0.001
    line      log((1 - a) / a) = beta (k - d0), least squares over the units off their
              bounds; slope and R2 by `bbjax.training.metrics`, d0 so that it meets
              their means
    no path   output units with k > 0, but k = 0 after `bbjax.model.removal.sweep`

A picture of a mask holds means over blocks of edges. With `b` bytes a value, a model
takes

    dense     sum of b over all parameters
    stored    1 bit per edge + b per kept weight for kernels, the rest as it is
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.files.encoding import nonzero
from bbjax.model import removal
from bbjax.model.checks import refuse_stray
from bbjax.model.kernel import Actuator, Kernel, Side
from bbjax.model.leaves import Leaves
from bbjax.model.units import Units
from bbjax.oneshot.sensitivity import Sensitivity
from bbjax.reporting.data import (
    Histogram,
    Hub,
    Ints,
    KernelFacts,
    LossFacts,
    LossRow,
    Measures,
    ModelSize,
    Picture,
    SideFacts,
)
from bbjax.reporting.formats import shape
from bbjax.reporting.sources import SIDES, MaskedKernel, Source, per_edge
from bbjax.training.metrics import log_odds, off_bounds, summary
from bbjax.training.state import UNOBSERVED

TOP = 5  # hub units listed
BINS = 32  # bars of a histogram
LAYERS = 4  # layers of a stack that are drawn
MANY = 24  # kernels beyond which pictures are smaller, and fewer
PIXELS = (256, 128)  # of a picture, at most, down and across; the latter beside many
ACTUATORS: dict[Side, Actuator] = {"outputs": "in", "inputs": "out"}


def loss_facts(found: Sensitivity) -> LossFacts:
    """The losses of a sensitivity analysis, as increases over the dense one."""
    rows = (
        LossRow(
            name=row.name,
            group=row.group,
            layer=row.at,
            edges=row.edges,
            increases=tuple((row.losses - found.dense).tolist()),
        )
        for row in found.rows
    )
    return LossFacts(found.dense, found.densities, tuple(rows))


def kernel_facts(
    source: Source, units: Units | None, params: Leaves | None
) -> tuple[KernelFacts, ...]:
    """The figures of each kernel.

    Raises:
      ValueError: parameters without one of the kernels, with another shape, or with
        pruned weights that are not 0.
    """
    if params is not None and source.updates != 0:  # masks act from the first update on
        refuse_stray({m.kernel.path: _stray(m, params) for m in source.kernels})
    no_path = {} if units is None else without_path(units, source.kernels)
    return tuple(
        _kernel(masked, source, no_path.get(masked.kernel.path), params)
        for masked in source.kernels
    )


def _stray(masked: MaskedKernel, params: Leaves) -> tuple[int, int]:
    """How many pruned weights are not 0, and how many are pruned."""
    pruned = np.asarray(params.get(masked.kernel, "parameter"))[~masked.mask()]
    return nonzero(pruned), pruned.size


def _kernel(
    masked: MaskedKernel, source: Source, no_path: int | None, params: Leaves | None
) -> KernelFacts:
    kernel, mask = masked.kernel, masked.mask()
    itemsize = jnp.dtype(kernel.dtype).itemsize
    if params is not None:
        itemsize = np.asarray(params.get(kernel, "parameter")).itemsize
    edges = _by_role(kernel, per_edge(kernel, mask))
    kept = tuple(int(n) for n in np.count_nonzero(edges, axis=(1, 2, 3)))
    weights = int(np.count_nonzero(mask))
    counted = [side for side in SIDES if ACTUATORS[side] in masked.actuators]
    order = counted + [side for side in SIDES if side not in counted]
    return KernelFacts(
        path=kernel.path,
        shape=kernel.shape,
        kind=kind(kernel),
        stack_shape=kernel.stack_shape,
        actuators=masked.actuators,
        edges=edges.size,
        kept=sum(kept),
        kept_by_layer=kept,
        kept_weights=weights,
        stray=masked.stray,
        asked=masked.asked,
        flipped=masked.flipped,
        no_path=no_path,
        dense_bytes=math.prod(kernel.shape) * itemsize,
        sparse_bytes=-(-edges.size // 8) + weights * itemsize,
        sides=tuple(_side(masked, edges, side, source.no_activity) for side in order),
        pictures=_pictures(kernel, edges, PIXELS[len(source.kernels) > MANY]),
    )


def kind(kernel: Kernel) -> str:
    """A kernel in words.

    Example:
      >>> kind(Kernel("w", (3, 3, 8, 16), fan_in=(2,), fan_out=(3,), spatial=(0, 1)))
      '3 x 3 convolution, 8 to 16 units'
    """
    sizes = zip(kernel.split, kernel.roles, strict=True)
    window = [size for size, role in sizes if role == "spatial"]
    name = f"{shape(window)} convolution" if window else "matrix"
    groups = f" in {kernel.groups} groups" if kernel.groups > 1 else ""
    layers = math.prod(kernel.stack_shape)
    stacked = f", {layers} layers" if kernel.stack_shape else ""
    ends = (math.prod(kernel.in_units), math.prod(kernel.out_units))
    return f"{name}, {ends[0]} to {ends[1]} units{groups}{stacked}"


# Units ---------------------------------------------------------------------------
def _side(masked: MaskedKernel, edges: np.ndarray, side: Side, why: str) -> SideFacts:
    kernel, actuator = masked.kernel, ACTUATORS[side]
    over = 2 if side == "outputs" else 3  # the axis of the other side
    degree = _by_layer(kernel, np.count_nonzero(edges, axis=over))
    rate, unobserved = None, 0
    if (rates := masked.rates.get(side)) is not None:
        rate = _by_layer(kernel, np.nan_to_num(rates, nan=UNOBSERVED))
        unobserved = int(np.count_nonzero(np.isnan(rates)))
    assumed = np.full(degree.shape, UNOBSERVED, np.float32) if rate is None else rate
    fan = kernel.fan(actuator)
    free = np.asarray(off_bounds(degree, assumed, masked.k_min, fan))
    all_rates = None if rate is None else rate.reshape(1, -1)
    counted = actuator in masked.actuators
    if not counted and masked.actuators:
        why = "the budget does not count these edges, so on-rates are not kept"
    alike = degree.min() == degree.max()
    return SideFacts(
        side=side,
        actuator=actuator,
        counted=counted,
        fan=fan,
        degree=degree,
        rate=rate,
        unobserved=unobserved,
        free=free,
        whole=_measured(degree.reshape(1, -1), all_rates, free.reshape(1, -1))[0],
        layers=_measured(degree, rate, free) if kernel.stack_shape else (),
        histogram=histogram(degree),
        busiest=() if rate is None else _top(kernel, side, degree, rate, degree * rate),
        widest=() if alike else _top(kernel, side, degree, rate, degree),
        why_no_activity="" if rate is not None else why,
    )


def _by_layer(kernel: Kernel, per_unit: np.ndarray) -> np.ndarray:
    return per_unit.reshape(math.prod(kernel.stack_shape), -1)


def _measured(
    degree: np.ndarray, rate: np.ndarray | None, free: np.ndarray
) -> tuple[Measures, ...]:
    """Figures of each row of units."""
    found: list[Measures] = []
    for k in degree:
        no_edges = int(np.count_nonzero(k == 0))
        ends = (int(k.min()), float(k.mean()), int(k.max()))
        found.append(Measures(len(k), *ends, no_edges=no_edges, dead=no_edges))
    if rate is None:
        return tuple(found)
    part = {"degree": degree.astype(np.float32), "rate": rate, "free": free}
    # `summary` also gives shares of edges, for which it needs these; they are not used.
    one = np.ones((len(degree), 1), np.float32)
    part |= {"edges": one, "asked": one, "flipped": one, "stray": one}
    values = {k: np.asarray(v) for k, v in _summaries(part).items()}
    odds = np.asarray(log_odds(rate), np.float64)
    for i, row in enumerate(found):
        slope, r2 = (_finite(values[f"balance_{name}"][i]) for name in ("slope", "r2"))
        dead = int(values["dead_units"][i])
        found[i] = row._replace(
            dead=dead,
            inactive=dead - row.no_edges,
            traffic=float(values["traffic"][i]),
            entropy=float(values["coding_entropy"][i]),
            slope=slope,
            d0=_d0(degree[i][free[i]], odds[i][free[i]], slope),
            r2=r2,
        )
    return tuple(found)


_summaries = jax.jit(jax.vmap(summary))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _d0(degree: np.ndarray, odds: np.ndarray, slope: float | None) -> float | None:
    """Where the fitted line has log-odds 0: it goes through the means."""
    return float(degree.mean() - odds.mean() / slope) if slope else None


def _top(
    kernel: Kernel,
    side: Side,
    degree: np.ndarray,
    rate: np.ndarray | None,
    by: np.ndarray,
) -> tuple[Hub, ...]:
    """The units with the largest `by`, ties to the first."""
    stack, found = len(kernel.stack_shape), []
    for flat in np.argsort(-by.ravel(), kind="stable")[:TOP]:
        place = np.unravel_index(flat, kernel.per_unit_shape(side))
        index = tuple(int(i) for i in place)
        k = int(degree.ravel()[flat])
        a = None if rate is None else float(rate.ravel()[flat])
        traffic = None if a is None else a * k
        found.append(Hub(index[:stack], index[stack:], k, a, traffic))
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
    sizes = block_sizes(values.shape, block).astype(np.float32)
    return block_sums(values.astype(np.float32), block) / sizes


def block_sums(values: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Sums over blocks of a matrix."""
    for axis, step in enumerate(block):
        starts = np.arange(0, values.shape[axis], step)
        values = np.add.reduceat(values, starts, axis=axis)
    return values


def block_sizes(shape: Sequence[int], block: tuple[int, int]) -> np.ndarray:
    """Entries in each block."""
    down, across = (
        np.diff(np.append(np.arange(0, total, step), total))
        for total, step in zip(shape, block, strict=True)
    )
    return np.outer(down, across)


# Everything together -------------------------------------------------------------
def without_path(units: Units, kernels: Sequence[MaskedKernel]) -> dict[str, int]:
    """Output units with incoming edges but no path over kept edges to the output.

    Of several seeds or replicas (stack axes that the kernels in `units` do not have),
    each is a model of its own.

    Returns:
      Their number by path, for masked kernels whose readers are all known and masked.
    """
    readers = removal.consumers(units)

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

    known = [masked for masked in kernels if masked.kernel.path in units]
    masks = {masked.kernel.path: masked.mask() for masked in known}
    leads = {mask.ndim - len(units[path].shape) for path, mask in masks.items()}
    if len(leads) != 1:
        return {}
    for _ in range(leads.pop()):
        counts = jax.vmap(counts)
    found = jax.jit(counts)(masks)  # one program, not one for every small operation
    return {path: int(np.sum(count)) for path, count in found.items()}


def model_size(params: Leaves, kernels: Sequence[KernelFacts]) -> ModelSize:
    """Sizes of all parameters, with the masked kernels as they are stored."""
    sizes = [(math.prod(jnp.shape(leaf)), leaf) for leaf in params.leaves]
    count = sum(size for size, _ in sizes)
    dense = sum(size * jnp.result_type(leaf).itemsize for size, leaf in sizes)
    saved = sum(kernel.dense_bytes - kernel.sparse_bytes for kernel in kernels)
    gone = sum(math.prod(k.shape) - k.kept_weights for k in kernels)
    return ModelSize(count, count - gone, dense, dense - saved)
