"""A followed function with its parameters: what every step of shrinking looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bbjax.model.groups import Group
from bbjax.model.kernel import Kernel
from bbjax.tracing.axes.extents import Dims
from bbjax.tracing.axes.program import Program


@dataclasses.dataclass(frozen=True)
class Model:
    """A followed function with its parameters.

    Attributes:
      program: the axes of all its arrays.
      paths: of the parameters.
      arrays: the parameters.
      masks: by number of the parameter, True where kept.
      kernels: by number of the parameter.
      groups: by whole factor, in the order of `units.graph`.
      scans: by whole factor, the scans whose layers have units of their own.
    """

    program: Program
    paths: tuple[str, ...]
    arrays: Sequence[Any]
    masks: Mapping[int, np.ndarray]
    kernels: Mapping[int, Kernel]
    groups: Mapping[int, Group]
    scans: Mapping[int, Dims]
