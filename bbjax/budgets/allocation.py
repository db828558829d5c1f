"""Allocation: from one density to a number of edges for every kernel.

    a number, a schedule      the same share of every kernel and stack slice
    {pattern: density, ...}   a share for the kernels whose path matches
    erk(density)              wide kernels sparser, small ones denser, one total
    owl(density, ...)         layers with more outliers denser, one total
                              (`bbjax.budgets.outliers`)
    bb.sensitivity(...)       layers whose pruning costs most denser, one total
      .allocate(density)      (`bbjax.budgets.curves`)

Erdos-Renyi-Kernel: the density of a kernel falls with the size of its array,

    density_l = min(1, c * sum(shape_l) / prod(shape_l))

with the largest `c` whose whole edges fit the budget of all kernels together. The edges
that are left over go, one each, to the first kernels that take one at the next larger
`c`. `pool` is the budget of several kernels together, for rules whose edges compete
across kernels. Everything may be traced.

References: Mocanu et al., 2018 (Erdos-Renyi); Evci et al., arXiv 1911.11134 (with the
window of a convolution).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from bbjax.arrays.types import Number
from bbjax.budgets.degrees import solve
from bbjax.budgets.exact import exact_budget
from bbjax.model.text import regular
from bbjax.model.units import Kernel

Plain = Number | Callable[[Int[Array, ""]], Number]


@dataclasses.dataclass(frozen=True)
class Erk:
    """A density over all kernels, shared out by their shapes; made by `erk`."""

    density: Plain


@dataclasses.dataclass(frozen=True)
class Uneven:
    """A density over all kernels, with a share for every slice.

    Made by `owl` and by `allocate` of `bb.sensitivity`.

    Attributes:
      density: of all kernels together.
      raised: path of each kernel, and for each of its slices how dense it is, up to one
        number for all slices: the mean over all edges is moved to `density`.
    """

    density: Plain
    raised: tuple[tuple[str, tuple[float, ...]], ...]


def erk(density: Plain) -> Erk:
    """Shares one budget out over kernels: Erdos-Renyi-Kernel.

    Args:
      density: kept share of the edges of all kernels together, in (0, 1]; a number or
        a schedule of the step.

    Returns:
      What `density=` of `bb.transform` and `bb.prune` takes.

    Example:
      >>> import bbjax as bb
      >>> up = bb.Kernel("up", (10, 100), fan_in=(0,), fan_out=(1,))
      >>> down = bb.Kernel("down", (100, 10), fan_in=(0,), fan_out=(1,))
      >>> out = bb.Kernel("out", (10, 10), fan_in=(0,), fan_out=(1,))
      >>> [int(n) for n in budgets(erk(0.1), [up, down, out], jnp.int32(0)).edges]
      [97, 96, 17]
    """
    return Erk(density)


Together = Erk | Uneven  # one budget of all kernels, shared out over layers
Density = Plain | Mapping[str, Plain] | Together | None


class Budgets(NamedTuple):
    """Edges to keep.

    Attributes:
      edges: for each kernel, int32 of its stack shape.
      asked: for each kernel, the share that was asked for, float32 scalar; NaN where
        the density is an outcome.
      pool: from positions of kernels to the edges they keep together, int32 scalar.
    """

    edges: tuple[Int[Array, "..."], ...]
    asked: tuple[Float[Array, ""], ...]
    pool: Callable[[Sequence[int]], Int[Array, ""]]


def budgets(
    density: Density, kernels: Sequence[Kernel], step: Int[Array, ""], k_min: Any = 0
) -> Budgets:
    """The budget of every kernel at a step.

    Args:
      density: number, schedule, mapping from path patterns, `erk(...)`, `owl(...)` or
        what `bb.sensitivity` allocates; None keeps everything, for rules whose density
        is an outcome.
      kernels: the budgeted kernels.
      step: int32, for schedules.
      k_min: for each kernel the least number of edges of a slice, for budgets of all
        kernels together.
    """
    if isinstance(density, Together):
        return _shared_out(density, at(density.density, step), kernels, k_min)
    if density is None:
        edges = tuple(_everywhere(k, k.edge_count) for k in kernels)
        asked = tuple(jnp.float32(math.nan) for _ in kernels)
        return Budgets(edges, asked, _sum_of(edges))
    shares = [at(d, step) for d in per_kernel(density, kernels)]
    edges = tuple(
        _everywhere(k, exact_budget(d, k.edge_count))
        for k, d in zip(kernels, shares, strict=True)
    )
    asked = tuple(jnp.asarray(d).astype(jnp.float32) for d in shares)
    if isinstance(density, Mapping):
        return Budgets(edges, asked, _sum_of(edges))
    return Budgets(edges, asked, _rounded_once(shares[0], kernels))


def at(density: Plain, step: Int[Array, ""]) -> Number:
    """The value of a density at a step."""
    return density(step) if callable(density) else density


def per_kernel(
    density: Plain | Mapping[str, Plain], kernels: Sequence[Kernel]
) -> list[Plain]:
    """The density of each kernel; of a mapping, that of the first pattern to match.

    Raises:
      ValueError: a kernel without a density, a pattern that matches none, or one that
        is not a regular expression.
    """
    if not isinstance(density, Mapping):
        return [density] * len(kernels)
    patterns = [(regular(p), d) for p, d in density.items()]
    paths = [k.path for k in kernels]
    idle = [p.pattern for p, _ in patterns if not any(map(p.search, paths))]
    if idle:
        raise ValueError(
            f"expected patterns that match a budgeted kernel, got {idle}, which match "
            f"none of {paths}; remove them or correct them"
        )
    found = [[d for p, d in patterns if p.search(path)] for path in paths]
    left = [path for path, ds in zip(paths, found, strict=True) if not ds]
    if left:
        raise ValueError(
            f"expected a density for every budgeted kernel, got none for {left}; add a "
            'pattern for them, e.g. ".*" as the last one'
        )
    return [ds[0] for ds in found]


def _everywhere(kernel: Kernel, budget: Int[ArrayLike, ""]) -> Int[Array, "*stack"]:
    return jnp.broadcast_to(jnp.asarray(budget, jnp.int32), kernel.stack_shape)


def _sum_of(
    edges: Sequence[Int[Array, "..."]],
) -> Callable[[Sequence[int]], Int[Array, ""]]:
    def pool(which: Sequence[int]) -> Int[Array, ""]:
        zero = jnp.zeros((), jnp.int32)
        return sum((jnp.sum(edges[i], dtype=jnp.int32) for i in which), zero)

    return pool


def _rounded_once(
    density: Number, kernels: Sequence[Kernel]
) -> Callable[[Sequence[int]], Int[Array, ""]]:
    def pool(which: Sequence[int]) -> Int[Array, ""]:
        return exact_budget(density, sum(all_edges(kernels[i]) for i in which))

    return pool


def all_edges(kernel: Kernel) -> int:
    """Edges of a kernel, over all stack slices."""
    return math.prod(kernel.edge_shape)


def _shared_out(
    how: Together, density: Number, kernels: Sequence[Kernel], k_min: Any
) -> Budgets:
    """Every stack slice is a layer of its own."""
    counts = [math.prod(k.stack_shape) for k in kernels]
    sizes = [k.edge_count for k in kernels]
    least = k_min if isinstance(k_min, Sequence) else [k_min] * len(kernels)
    layers = [
        (size, low)
        for n, size, low in zip(counts, sizes, least, strict=True)
        for _ in range(n)
    ]
    cap, floor = (jnp.asarray(column) for column in zip(*layers, strict=True))
    weight = _weights(how, density, kernels)
    total = exact_budget(density, sum(size for size, _ in layers))
    same = jnp.full(weight.shape, 0.5, jnp.float32)
    shares = solve(weight, "scale", total, cap, floor, same)
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    edges = tuple(
        jnp.reshape(shares[end - n : end], k.stack_shape)
        for k, n, end in zip(kernels, counts, ends, strict=True)
    )
    asked = tuple(
        jnp.mean(e.astype(jnp.float32)) / size
        for e, size in zip(edges, sizes, strict=True)
    )
    return Budgets(edges, asked, _sum_of(edges))


def _weights(
    how: Together, density: Number, kernels: Sequence[Kernel]
) -> Float[Array, " layers"]:
    """Edges of each layer, up to a factor of all of them."""
    sizes = [
        (k, k.edge_count) for k in kernels for _ in range(math.prod(k.stack_shape))
    ]
    if isinstance(how, Erk):
        return jnp.asarray([_erdos_renyi(k) * n for k, n in sizes], jnp.float32)
    raised = [share for k in kernels for share in _raised(how, k)]
    edges = [n for _, n in sizes]
    mean = math.fsum(r * n for r, n in zip(raised, edges, strict=True)) / sum(edges)
    above = jnp.asarray([r - mean for r in raised], jnp.float32)
    share = jnp.asarray(density).astype(jnp.float32) + above
    return jnp.asarray(edges, jnp.float32) * jnp.clip(share, 0.0, 1.0)


def _raised(how: Uneven, kernel: Kernel) -> tuple[float, ...]:
    """How dense each slice of a kernel is, up to one number for all."""
    found = dict(how.raised).get(kernel.path, ())
    if len(found) != math.prod(kernel.stack_shape):
        got = f"{len(found)} slices" if found else f"only {list(dict(how.raised))}"
        raise ValueError(
            f"expected densities of {math.prod(kernel.stack_shape)} slices of "
            f"{kernel.path!r}, got {got}; call bb.owl or bb.sensitivity with the units "
            "that are pruned"
        )
    return found


def _erdos_renyi(kernel: Kernel) -> float:
    """`sum(shape) / prod(shape)` of one slice, window included."""
    own = [n for n, r in zip(kernel.split, kernel.roles, strict=True) if r != "stack"]
    return sum(own) / math.prod(own)
