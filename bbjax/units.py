"""Units and kernels: where a model's edges are, as frozen data.

A *kernel* is a weight array that multiplies activations. Its axes play one of five
roles, and everything bbjax does to it is written in these roles:

    stack    layers of a scan, experts, ensembles: each slice has its own budget
    group    groups of a grouped convolution: an edge never crosses them
    fan_in   contracted with input units
    fan_out  make output units
    spatial  positions of a convolution window: one edge is the whole slice

`Kernel.edges(w)` is the *edge view* of a kernel: the same array with grouped axes
split and spatial axes last, so that `(stack, group, in, out)` can be addressed by axis
numbers without moving data. Reference: the layout follows Flax, `(in, out)` for dense
kernels and `(*spatial, in, out)` for convolutions, but any other order works as well.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp

Actuator = Literal["in", "out"]
Side = Literal["inputs", "outputs"]


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
      op: primitive that uses the kernel, `"dot_general"` or
        `"conv_general_dilated"`.
      uses: how often the traced function reads the kernel.
      nonlinearity: name of the nonlinearity between the kernel and the measured value
        of its output units; empty if there is none (`outputs` is then the sign
        statistic of the raw output).
      hidden: whether another kernel reads its output units, directly or not.
      reads: paths of the kernels whose output units are this kernel's input units.
      split: shape of the array once grouped axes are split.
      roles: role of each axis of `split`, `"stack"`, `"group"`,
        `"in"`, `"out"` or `"spatial"`.

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

    def sum_spatial(self, edges: jax.Array) -> jax.Array:
        """Sums a `split`-shaped array over its window: one number per edge."""
        axes = self._spatial_axes
        return jnp.sum(edges, axis=axes) if axes else edges

    def over_spatial(self, per_edge: jax.Array) -> jax.Array:
        """Gives a per-edge array size-1 window axes, so that it meets `edges(w)`."""
        axes = self._spatial_axes
        return jnp.expand_dims(per_edge, axes) if axes else per_edge

    def spread(self, per_unit: jax.Array, side: Side) -> jax.Array:
        """Puts a `stack + units` array on the edge view, size 1 on the other side.

        Args:
          per_unit: shape `stack_shape + in_units` or `stack_shape + out_units`.
          side: `"inputs"` or `"outputs"`, which units `per_unit` speaks of.

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


@dataclasses.dataclass(frozen=True)
class Selected:
    """A kernel chosen for a budget: its path and the side that the budget counts."""

    path: str
    actuator: Actuator


@dataclasses.dataclass(frozen=True)
class Units:
    """The kernels of a model and the ones chosen for a budget. Frozen and hashable.

    Made by `bb.trace`; `select` chooses kernels and `+` joins selections.

    Attributes:
      kernels: every kernel that `trace` understands, in order of first use.
      problems: `(path, reason)` of parameters that reach a multiplication in a way
        that cannot be measured or masked; selecting one of them is an error.
      selection: what `select` chose; `None` until it is called.
    """

    kernels: tuple[Kernel, ...]
    problems: tuple[tuple[str, str], ...] = ()
    selection: tuple[Selected, ...] | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all kernels, in order of first use."""
        return tuple(k.path for k in self.kernels)

    def __getitem__(self, path: str) -> Kernel:
        for kernel in self.kernels:
            if kernel.path == path:
                return kernel
        raise KeyError(
            f"expected the path of a kernel, got {path!r}; {self._near(path)}"
        )

    def __contains__(self, path: object) -> bool:
        return path in self.paths

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.kernels)

    def select(self, pattern: str, actuator: Actuator = "in") -> Units:
        """Chooses the kernels whose path matches, for a budget on one side.

        Args:
          pattern: regular expression, searched anywhere in the path (`re.search`).
          actuator: `"in"` counts the incoming edges of a kernel's output units
            (SP-in), `"out"` the outgoing edges of its input units (SP-out).

        Returns:
          The same kernels with this selection; join two selections with `+`.

        Raises:
          ValueError: no kernel matches, `pattern` is not a regular expression,
            `actuator` is neither side, or a match cannot be measured.

        Example:
          >>> units = Units((Kernel("mlp/up", (2, 3), fan_in=(0,), fan_out=(1,)),))
          >>> units.select("up$").selected
          (Selected(path='mlp/up', actuator='in'),)
        """
        if actuator not in ("in", "out"):
            raise ValueError(
                f'expected actuator "in" or "out", got {actuator!r}; "in" limits the '
                'incoming edges of output units, "out" the outgoing edges of input '
                "units"
            )
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"expected a regular expression, got {pattern!r} ({error}); escape "
                "special characters with a backslash"
            ) from error
        self._refuse_problems(regex, pattern)
        found = tuple(
            Selected(p, actuator) for p in self.paths if regex.search(p) is not None
        )
        if not found:
            raise ValueError(
                f"expected a pattern that matches a kernel, got {pattern!r}, which "
                f"matches none; {self._near(pattern)}"
            )
        return dataclasses.replace(self, selection=found)

    def _refuse_problems(self, regex: re.Pattern[str], pattern: str) -> None:
        for path, reason in self.problems:
            if regex.search(path) is not None:
                raise ValueError(
                    f"expected kernels whose use can be measured, got {path!r} from "
                    f"pattern {pattern!r}: {reason}; narrow the pattern, or rewrite "
                    "the use"
                )

    def __add__(self, other: Units) -> Units:
        if not isinstance(other, Units):
            return NotImplemented
        if (self.kernels, self.problems) != (other.kernels, other.problems):
            raise ValueError(
                "expected two selections of the same trace, got different kernels; "
                "call select on one trace and add the results"
            )
        both = self.selected + other.selected
        return dataclasses.replace(self, selection=tuple(dict.fromkeys(both)))

    @property
    def selected(self) -> tuple[Selected, ...]:
        """What a transform takes: the selection, or the default one.

        The default is every hidden kernel that a nonlinearity follows, actuator "in";
        kernels whose units have a single incoming edge leave no choice and stay dense.
        """
        if self.selection is not None:
            return self.selection
        return tuple(
            Selected(k.path, "in")
            for k in self.kernels
            if k.hidden and k.nonlinearity and k.fan("in") > 1
        )

    @property
    def budgeted(self) -> dict[str, tuple[Actuator, ...]]:
        """Actuators of each selected kernel, by path."""
        chosen: dict[str, tuple[Actuator, ...]] = {}
        for item in self.selected:
            chosen[item.path] = (*chosen.get(item.path, ()), item.actuator)
        return chosen

    def _near(self, text: str) -> str:
        words = [w for w in re.split(r"[^A-Za-z0-9_]+", text) if w]
        close = difflib.get_close_matches(text, self.paths, n=5, cutoff=0.3)
        close += [p for p in self.paths if any(w.lower() in p.lower() for w in words)]
        close = list(dict.fromkeys(close))[:5] or list(self.paths)[:8]
        return f"near misses: {close}" if close else "the trace found no kernels"

    def __str__(self) -> str:
        chosen = self.budgeted
        head = ("kernel", "shape", "units in -> out", "budget", "outputs measured")
        rows: list[tuple[str, ...]] = [head]
        rows += [_row(k, chosen.get(k.path, ())) for k in self.kernels]
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
            for r in rows
        ]
        lines.insert(1, "  ".join("-" * w for w in widths))
        lines += [f"cannot be used: {p}: {why}" for p, why in self.problems]
        return "\n".join(lines)


def _row(kernel: Kernel, actuators: tuple[Actuator, ...]) -> tuple[str, ...]:
    units = f"{_size(kernel.in_units)} -> {_size(kernel.out_units)}"
    if kernel.stack:
        units += f"  x{math.prod(kernel.stack_shape)} stacked"
    if kernel.groups > 1:
        units += f"  {kernel.groups} groups"
    what = (
        f"after {kernel.nonlinearity}"
        if kernel.nonlinearity
        else "no nonlinearity: sign of the raw output"
    )
    return (kernel.path, _size(kernel.shape), units, "+".join(actuators), what)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"
