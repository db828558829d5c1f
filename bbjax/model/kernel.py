"""Kernels: the weight arrays that can be pruned, and the units on their axes.

A *kernel* is a weight array that multiplies activations. Each of its axes has one of
five roles, and everything bbjax does to it is written in these roles:

    stack    layers of a scan, experts, ensembles: each slice has its own budget
    group    groups of a grouped convolution: no edge joins two groups
    fan_in   contracted with input units
    fan_out  make output units
    spatial  positions of a convolution window: one edge is the whole slice

`Kernel.edges(w)` is the *edge view* of a kernel: the same array with grouped axes
split, so that `(stack, group, in, out)` can be addressed by axis numbers without moving
data. The examples follow the layouts of Flax, `(in, out)` for dense kernels and
`(*spatial, in, out)` for convolutions; any other order works as well.

Output units are numbered row-major over `stack + out_units`, input units over `stack +
in_units`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Literal

import jax
import jax.numpy as jnp

Actuator = Literal["in", "out"]
Side = Literal["inputs", "outputs"]
RAW = "raw"  # in `Kernel.nonlinearity`: a range of units that has none


def unnumbered(path: str) -> str:
    """A path with `*` in place of every number: equal for layers of one kind.

    Example:
      >>> unnumbered("layer_3/up")
      'layer_*/up'
    """
    return re.sub(r"\d+", "*", path)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One weight array that multiplies activations, and what its axes mean.

    Attributes:
      path: `/`-joined keys of the array in the parameter tree.
      shape: shape of the array.
      dtype: name of its dtype.
      fan_in: axes contracted with input units.
      fan_out: axes that make output units.
      spatial: window axes of a convolution; an edge is the whole spatial slice.
      stack: axes with one budget per index (scanned layers, experts, ensembles).
      groups: number of groups of a grouped convolution, else 1.
      op: primitive that uses the kernel, `"dot_general"`, `"conv_general_dilated"` or
        `"ragged_dot_general"`.
      uses: how often the traced function reads the kernel.
      nonlinearity: name of the nonlinearity between the kernel and the measured value
        of its output units; empty if there is none (`outputs` is then the sign
        statistic of the raw output). Where the output is sliced and its ranges, or
        several uses, have different ones, they are joined by "/"; a range without one
        is "raw".
      hidden: whether another kernel reads its output units, directly or not.
      reads: paths of the kernels whose output units are this kernel's input units.
      split: shape of the array once grouped axes are split.
      roles: role of each axis of `split`, `"stack"`, `"group"`,
        `"in"`, `"out"` or `"spatial"`.
      bias: path of the parameter added to the raw output, one entry per output unit in
        their own order; empty if there is none.
      companions: paths of all parameters with entries for the output units (bias, scale
        and bias of norms), in order of use.
      closed: whether every output unit can be removed: without its edges, in and out,
        and without its entries in the companions, the function computes what it does
        with the unit at 0. `units.graph.sets` has what goes with a unit.
      why_not: why `closed` is False; empty if it is True or nothing is known.
      stream: paths of the other kernels that make the same units. A unit is removed
        from all of these kernels or from none.

    Example:
      >>> kernel = Kernel("w", (3, 4), fan_in=(0,), fan_out=(1,))
      >>> kernel.in_units, kernel.out_units, kernel.edge_count
      ((3,), (4,), 12)
    """

    path: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    fan_in: tuple[int, ...] = ()
    fan_out: tuple[int, ...] = ()
    spatial: tuple[int, ...] = ()
    stack: tuple[int, ...] = ()
    groups: int = 1
    op: str = "dot_general"
    uses: int = 1
    nonlinearity: str = ""
    hidden: bool = False
    reads: tuple[str, ...] = ()
    split: tuple[int, ...] = ()
    roles: tuple[str, ...] = ()
    bias: str = ""
    # These fields count for `==` but not for the hash, which every call computes.
    companions: tuple[str, ...] = dataclasses.field(default=(), hash=False)
    closed: bool = dataclasses.field(default=False, hash=False)
    why_not: str = dataclasses.field(default="", hash=False)
    stream: tuple[str, ...] = dataclasses.field(default=(), hash=False)

    def __post_init__(self):
        if not self.roles:
            by_axis = dict.fromkeys(self.fan_in, "in")
            by_axis |= dict.fromkeys(self.fan_out, "out")
            by_axis |= dict.fromkeys(self.spatial, "spatial")
            by_axis |= dict.fromkeys(self.stack, "stack")
            if sorted(by_axis) != list(range(len(self.shape))):
                raise ValueError(
                    f"expected every axis of {self.shape} in one of fan_in, fan_out, "
                    f"spatial and stack, got {sorted(by_axis)} for {self.path!r}; name "
                    "each axis once"
                )
            roles = tuple(by_axis[a] for a in range(len(self.shape)))
            object.__setattr__(self, "roles", roles)
            object.__setattr__(self, "split", self.shape)

    # Sizes -----------------------------------------------------------------------
    def _sizes(self, *roles: str) -> tuple[int, ...]:
        return tuple(
            n for n, r in zip(self.split, self.roles, strict=True) if r in roles
        )

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """Sizes of the stack axes: one budget per index."""
        return self._sizes("stack")

    @property
    def in_units(self) -> tuple[int, ...]:
        """Shape of the input units of one stack slice."""
        return self._unit_shape("in")

    @property
    def out_units(self) -> tuple[int, ...]:
        """Shape of the output units of one stack slice."""
        return self._unit_shape("out")

    def _unit_shape(self, role: str) -> tuple[int, ...]:
        own = self._sizes(role)
        if self.groups == 1:
            return own
        return (self.groups * math.prod(own),)

    def per_unit_shape(self, side: Side) -> tuple[int, ...]:
        """Shape of an array with one entry per unit of a side: `stack + units`."""
        units = self.in_units if side == "inputs" else self.out_units
        return self.stack_shape + units

    @property
    def place(self) -> str:
        """Where the value of an output unit is taken, in words.

        Example:
          >>> Kernel("w", (3, 4), fan_in=(0,), fan_out=(1,), nonlinearity="relu").place
          'after relu'
        """
        if not self.nonlinearity:
            return "at the raw output"
        return f"after {self.nonlinearity}"

    @property
    def edge_count(self) -> int:
        """Number of edges in one stack slice."""
        return math.prod(self._sizes("group", "in", "out"))

    def unit_count(self, actuator: Actuator) -> int:
        """Number of units, per stack slice, whose edges the actuator counts."""
        return math.prod(self.out_units if actuator == "in" else self.in_units)

    def fan(self, actuator: Actuator) -> int:
        """Full degree of such a unit: fan-in for "in", fan-out for "out"."""
        return self.edge_count // self.unit_count(actuator)

    # Views -----------------------------------------------------------------------
    @property
    def edge_roles(self) -> tuple[str, ...]:
        """Role of each axis of the edge view without its spatial axes."""
        return tuple(r for r in self.roles if r != "spatial")

    @property
    def edge_shape(self) -> tuple[int, ...]:
        """Shape of an array with one entry per edge (masks, scores)."""
        return self._sizes("stack", "group", "in", "out")

    def axes(self, *roles: str) -> tuple[int, ...]:
        """Axes of the edge view that play one of `roles`."""
        return tuple(i for i, r in enumerate(self.edge_roles) if r in roles)

    @property
    def _spatial_axes(self) -> tuple[int, ...]:
        return tuple(i for i, r in enumerate(self.roles) if r == "spatial")

    def edges(self, weights: jax.Array) -> jax.Array:
        """Splits grouped axes: `shape -> split`. No data moves."""
        if weights.shape == self.split:
            return weights
        return jnp.reshape(weights, self.split)

    def weights(self, edges: jax.Array) -> jax.Array:
        """The inverse of `edges`: `split -> shape`."""
        return edges if edges.shape == self.shape else jnp.reshape(edges, self.shape)

    @functools.cached_property
    def form(self) -> Kernel:
        """The kernel without what tells it apart from others of its form.

        Paths have `*` in place of every number, and whether another kernel reads its
        output units is left open (False). Programs that see the form of a kernel alone
        are the same for all layers of a model that are alike.

        Example:
          >>> Kernel("layer_3/up", (3, 4), fan_in=(0,), fan_out=(1,)).form.path
          'layer_*/up'
        """

        def all_of(paths: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(sorted({unnumbered(path) for path in paths}))

        return dataclasses.replace(
            self,
            path=unnumbered(self.path),
            reads=all_of(self.reads),
            bias=unnumbered(self.bias),
            companions=all_of(self.companions),
            stream=all_of(self.stream),
            why_not="",
            hidden=False,
        )

    def behind(self, sizes: tuple[int, ...]) -> Kernel:
        """The kernel with more stack axes in front, as for several seeds.

        Example:
          >>> kernel = Kernel("w", (3, 4), fan_in=(0,), fan_out=(1,)).behind((2,))
          >>> kernel.shape, kernel.roles, kernel.edge_count
          ((2, 3, 4), ('stack', 'in', 'out'), 12)
        """
        lead = len(sizes)

        def moved(axes: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(axis + lead for axis in axes)

        return dataclasses.replace(
            self,
            shape=sizes + self.shape,
            fan_in=moved(self.fan_in),
            fan_out=moved(self.fan_out),
            spatial=moved(self.spatial),
            stack=(*range(lead), *moved(self.stack)),
            split=sizes + self.split,
            roles=("stack",) * lead + self.roles,
        )

    def sum_spatial(self, edges: jax.Array) -> jax.Array:
        """Sums a `split`-shaped array over its window: one number per edge."""
        axes = self._spatial_axes
        return jnp.sum(edges, axis=axes) if axes else edges

    def edge_mask(self, mask: jax.Array) -> jax.Array:
        """A mask of the array as one per edge: `shape -> edge_shape`, bool.

        An edge of a convolution is kept if any entry of its window is.

        Example:
          >>> kernel = Kernel("w", (3, 1, 2), fan_in=(1,), fan_out=(2,), spatial=(0,))
          >>> window = [[True, False], [False, False], [True, False]]
          >>> kernel.edge_mask(jnp.array(window)[:, None]).tolist()
          [[True, False]]
        """
        return self.sum_spatial(self.edges(mask).astype(jnp.int32)) > 0

    def over_spatial(self, per_edge: jax.Array) -> jax.Array:
        """A per-edge array with window axes of size 1, for sums with `edges(w)`."""
        axes = self._spatial_axes
        return jnp.expand_dims(per_edge, axes) if axes else per_edge

    def full(self, per_edge: jax.Array) -> jax.Array:
        """A per-edge array in the shape of the kernel, repeated along its window."""
        return self.weights(jnp.broadcast_to(self.over_spatial(per_edge), self.split))

    def spread(self, per_unit: jax.Array, side: Side) -> jax.Array:
        """Puts a `stack + units` array on the edge view, size 1 on the other side.

        Args:
          per_unit: shape `stack_shape + in_units` or `stack_shape + out_units`.
          side: `"inputs"` or `"outputs"`, the units of `per_unit`.

        Returns:
          Array that broadcasts against one of shape `edge_shape`.
        """
        own = "in" if side == "inputs" else "out"
        order = self.axes("stack") + self.axes("group") + self.axes(own)
        sizes = [self.edge_shape[a] for a in order]
        if list(per_unit.shape) != sizes:
            per_unit = jnp.reshape(per_unit, sizes)
        rank = sorted(range(len(order)), key=lambda i: order[i])
        if rank != list(range(len(order))):
            per_unit = jnp.transpose(per_unit, rank)
        others = tuple(a for a in range(len(self.edge_shape)) if a not in order)
        return jnp.expand_dims(per_unit, others)

    def gather(self, per_edge: jax.Array, side: Side) -> jax.Array:
        """Sums a per-edge array over the other side: `stack_shape + units`."""
        own, other = ("in", "out") if side == "inputs" else ("out", "in")
        summed = jnp.sum(per_edge, axis=self.axes(other))
        kept = [a for a in range(len(self.edge_shape)) if a not in self.axes(other)]
        order = self.axes("stack") + self.axes("group") + self.axes(own)
        perm = [kept.index(a) for a in order]
        if perm != list(range(len(perm))):
            summed = jnp.transpose(summed, perm)
        shape = self.per_unit_shape(side)
        return summed if summed.shape == shape else jnp.reshape(summed, shape)
