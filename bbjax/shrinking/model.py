"""The traced function with its parameters, and what is left of them without some units.

Groups of units have the numbers of their factors (`bbjax.tracing.axes.extents`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bbjax.model.groups import Group, of_units, on_axes
from bbjax.model.kernel import Kernel
from bbjax.model.leaves import Leaves
from bbjax.model.units import Units
from bbjax.tracing.axes.extents import Dims
from bbjax.tracing.axes.program import Program
from bbjax.tracing.call import Prepared
from bbjax.tracing.graph.scans import stack_axes
from bbjax.tracing.trace import followed, grouped

Array = np.ndarray | jax.Array
# By group, which units are kept: bool, `(units,)` or `layers + (units,)`. A group that
# is not there keeps all.
Kept = Mapping[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TracedModel:
    """A traced function with its parameters.

    Attributes:
      program: the function, with the axes of all its arrays.
      paths: of the parameters.
      arrays: the parameters.
      masks: by number of the parameter, True where kept.
      units: of the trace.
      kernels: by number of the parameter.
      groups: by number of the group, in the order of `units.graph`.
      scans: by number of the group, the scans whose layers have units of their own.
    """

    program: Program
    paths: tuple[str, ...]
    arrays: Sequence[Array]
    masks: Mapping[int, np.ndarray]
    units: Units
    kernels: Mapping[int, Kernel]
    groups: Mapping[int, Group]
    scans: Mapping[int, Dims]

    @classmethod
    def of(
        cls, prepared: Prepared, params: Any, masks: Mapping[str, np.ndarray]
    ) -> TracedModel:
        """The model of a traced call with these parameters; masks are by path."""
        leaves = Leaves.of(params)
        number = {path: i for i, path in enumerate(prepared.paths)}
        arrays = [leaves.at(path) for path in prepared.paths]
        by_number = {number[path]: mask for path, mask in masks.items()}
        return cls._of(prepared, followed(prepared), arrays, by_number)

    def at(self, prepared: Prepared) -> TracedModel:
        """The same model with other arguments."""
        found = grouped(prepared, self.units)
        return self._of(prepared, found, self.arrays, self.masks)

    @classmethod
    def _of(cls, prepared, found, arrays, masks) -> TracedModel:
        number = {path: i for i, path in enumerate(prepared.paths)}
        return cls(
            found.program,
            prepared.paths,
            arrays,
            masks,
            found.units,
            {number[k.path]: k for k in found.units.kernels},
            {group: found.units.graph[n] for group, n in found.numbers.items()},
            found.scans,
        )

    def masked_units(self, group: int) -> np.ndarray:
        """Units all of whose weights are masked: bool, `layers + (units,)`."""
        found = self.groups[group]
        members = [m for m in found.members if m.role != "beside"] or found.members
        number = {path: i for i, path in enumerate(self.paths)}
        masked = np.ones((*found.layers, found.size), bool)
        for member in members:
            mask = self.masks.get(number[member.path])
            if mask is None:
                return np.zeros_like(masked)
            masked &= of_units(found, member, mask) == 0
        return masked

    def kept_along(
        self, leaf: int, axis: int, kept: Kept
    ) -> tuple[tuple[int, ...], np.ndarray] | None:
        """Which entries along an axis of a parameter are kept.

        Returns:
          Axes of the layers, and bool of shape `layers + (size,)`; None if the axis
          keeps all.
        """
        extents = self.program.extents
        dims = self.program.leaves[leaf]
        groups = [group for group in extents.wholes(dims[axis]) if group in kept]
        if not groups:
            return None
        keep = extents.select(dims[axis], kept)
        scans = max((self.scans.get(group, ()) for group in groups), key=len)
        return stack_axes(self.program, leaf, scans[: keep.ndim - 1]), keep

    def kept_entries(self, leaf: int, kept: Kept) -> np.ndarray | None:
        """A mask of the kept entries of a parameter; None if it keeps all."""
        shape = tuple(map(self.program.extents.size, self.program.leaves[leaf]))
        mask = None
        for axis in range(len(shape)):
            found = self.kept_along(leaf, axis, kept)
            if found is not None:
                layers, keep = found
                own = on_axes(keep, (*layers, axis), len(shape))
                mask = own if mask is None else mask & own
        return None if mask is None else np.broadcast_to(mask, shape)
