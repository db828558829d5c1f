"""Constants move into biases: what a unit says that hears nothing, it always says.

y = x W + b,  x[j] = c whatever the input   ->   y = x[-j] W[-j] + (b + c W[j])
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from bbjax.shrinking.model import Model
from bbjax.tracing.axes.extents import Dims
from bbjax.tracing.axes.scans import stack_axes


@dataclasses.dataclass(frozen=True)
class Fold:
    """Constants that units say, to be added to a reader's bias.

    Attributes:
      whole: the group of these units.
      leaf: the reading kernel.
      layer: iteration of each scan that reads it.
      scans: the axes that these run over.
      axis: of the kernel, that the units are on.
      bias: number of the parameter that they go into.
      value: one constant for each entry of the axis, 0 where nothing leaves.
      dtype: that the constants were computed in.
    """

    whole: int
    leaf: int
    layer: tuple[int, ...]
    scans: Dims
    axis: int
    bias: int
    value: np.ndarray
    dtype: Any

    def same(self, other: Fold) -> bool:
        """Whether it is another use of the kernel that says the same."""
        key = (self.leaf, self.layer, self.axis)
        return key == (other.leaf, other.layer, other.axis) and np.array_equal(
            self.value, other.value
        )


def holds(model: Model, leaf: int, bias: int) -> bool:
    """Whether a parameter has one entry per output of a kernel, in their order."""
    extents, dims = model.program.extents, model.program.leaves
    kernel = model.kernels.get(leaf)
    if kernel is None or kernel.groups > 1:
        return False
    axes = [dims[leaf][axis] for axis in (*kernel.stack, *kernel.fan_out)]
    outputs, own = (
        [factor for dim in its for factor in extents.factors(dim)]
        for its in (axes, dims[bias])
    )
    return outputs == own and len(set(own)) == len(own)


def folded(model: Model, fold: Fold, bias: Any) -> Any:
    """The bias of a reader with what units add to it; summed in float64."""
    kernel = model.kernels[fold.leaf]
    weights = np.asarray(model.arrays[fold.leaf]).astype(np.float64)
    if fold.leaf in model.masks:
        weights = np.where(model.masks[fold.leaf], weights, 0.0)
    shape = [1] * weights.ndim
    shape[fold.axis] = len(fold.value)
    added = weights * fold.value.reshape(shape)
    for axis, layer in zip(
        stack_axes(model.program, fold.leaf, fold.scans), fold.layer, strict=True
    ):
        here = np.arange(added.shape[axis]) == layer
        added = added * np.expand_dims(
            here, tuple(i for i in range(added.ndim) if i != axis)
        )
    added = added.sum(axis=(*kernel.fan_in, *kernel.spatial))
    order = [a for a in range(weights.ndim) if a in (*kernel.stack, *kernel.fan_out)]
    units = [order.index(a) for a in (*kernel.stack, *kernel.fan_out)]
    added = added.transpose(units).reshape(bias.shape)
    found = (np.asarray(bias).astype(np.float64) + added).astype(bias.dtype)
    if not isinstance(bias, jax.Array):
        return found
    return jax.device_put(found, bias.sharding)
