"""N:M patterns: edges kept in small groups, as sparse hardware and kernels need them.

The edges of a unit are cut into groups of `m` neighbours along its own edges: along the
contracted axis for actuator "in", along the output axis for "out". The trace says which
axis of the array that is. A rule with the same degree for every unit keeps exactly `n`
of each group. A rule with different degrees gives unit `i` a number `N_i` of edges per
group, with `sum_i N_i` fixed by the budget:

    degree_i = N_i * groups,   sum_i N_i = round(density * m * units)

so that with density `n / m` the kept edges are exactly the budget again. A group never
spans two stack slices, groups of a convolution or axes of a contraction over several
axes. Reference: Mishra et al., arXiv 2104.08378 (2:4); for N of its own per unit,
arXiv 2510.01263 ("G4").
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from bbjax.model.numbers import check_int
from bbjax.model.units import Actuator, Kernel

_MOST = 2**16


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Keep `n` out of every `m` neighbouring edges of a unit; made by `n_m`.

    Attributes:
      n: edges kept of each group, on average over the units.
      m: edges in a group.
    """

    n: int
    m: int

    @property
    def density(self) -> float:
        """Kept fraction."""
        return self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def n_m(n: int, m: int) -> Pattern:
    """The pattern "n of every m", e.g. `n_m(2, 4)`.

    Args:
      n: edges kept of each group, in [1, m].
      m: edges in a group, at least 1.

    Raises:
      TypeError: `n` or `m` is no int.
      ValueError: out of range.

    Example:
      >>> n_m(2, 4).density
      0.5
    """
    m = check_int("m", m, 1, _MOST, "it is the number of edges in a group, e.g. 4")
    n = check_int("n", n, 1, m, "it is how many of each m edges are kept, e.g. 2 of 4")
    return Pattern(n, m)


def row_axes(kernel: Kernel, actuator: Actuator) -> tuple[int, ...]:
    """Axes of the edge view along which the edges of a unit lie."""
    return kernel.axes("in" if actuator == "in" else "out")


def check_pattern(
    kernel: Kernel, actuators: tuple[Actuator, ...], pattern: Pattern
) -> None:
    """Raises an error if the edges of a kernel cannot be cut into groups.

    Raises:
      ValueError: both sides are budgeted, or an axis is no multiple of `m`.
    """
    if len(actuators) > 1:
        raise ValueError(
            f"expected one actuator for {kernel.path!r} with the pattern {pattern}, "
            f"got {' and '.join(actuators)}: groups lie along the edges of one side; "
            "select one of the two"
        )
    axes = row_axes(kernel, actuators[0])
    size = kernel.edge_shape[axes[-1]]
    if size % pattern.m:
        raise ValueError(
            f"expected the edges of each unit of {kernel.path!r} (actuator "
            f"{actuators[0]!r}) along an axis whose size is a multiple of {pattern.m} "
            f"for the pattern {pattern}, got size {size}; leave this kernel out or "
            "choose another m"
        )


def groups_per_unit(kernel: Kernel, actuator: Actuator, pattern: Pattern | None) -> int:
    """Number of groups that the edges of one unit make, 1 without a pattern."""
    return 1 if pattern is None else kernel.fan(actuator) // pattern.m


def split_groups(
    kernel: Kernel,
    per_edge: Shaped[Array, "*edges"],
    actuator: Actuator,
    pattern: Pattern,
) -> tuple[Shaped[Array, "..."], int]:
    """Cuts the edges of every unit into groups.

    Args:
      kernel: the kernel.
      per_edge: array of shape `kernel.edge_shape`.
      actuator: side whose units' edges are cut.
      pattern: the pattern.

    Returns:
      The array with the row's last axis split in two, (groups, m), and the number of
      the new axis of size m.
    """
    axis = row_axes(kernel, actuator)[-1]
    shape = per_edge.shape
    cut = (*shape[:axis], shape[axis] // pattern.m, pattern.m, *shape[axis + 1 :])
    return jnp.reshape(per_edge, cut), axis + 1


def join_groups(
    kernel: Kernel, in_groups: Shaped[Array, "..."]
) -> Shaped[Array, "*edges"]:
    """The inverse of `split_groups`."""
    return jnp.reshape(in_groups, kernel.edge_shape)
