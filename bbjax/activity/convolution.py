"""Contributions of the edges of a convolution: norms of `|K| * |x|`, edge by edge.

An edge (i, j) of a convolution is a whole window K_ij. Its contribution to output unit
j on sample n is the map `|K_ij| * |x_i^n|` over the output positions, and its size is a
norm of that map (NNrelief, arXiv 2109.10795). Three sizes are in use:

    fro_of_mean     || |K_ij| * mean_n |x_i^n| ||_F
    mean_of_fro     mean_n || |K_ij| * |x_i^n| ||_F
    l1              mean_n || |K_ij| * |x_i^n| ||_1

The maps of one input unit to all its output units are one convolution of a single
channel. So a loop over input units costs as much as the layer itself, and never holds
more than the output of the layer. `Geometry` describes the layer. In the arrays here
positions stand before channels, and windows come last.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bbjax.model.units import Kernel


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How a kernel moves over positions; for a matrix product, the kernel alone.

    Attributes:
      kernel: the kernel.
      inside: numbers of input positions, one per window axis.
      outside: numbers of output positions.
      strides: of the window.
      padding: low and high padding of each axis of positions.
      lhs_dilation: dilation of the input (transposed convolutions).
      rhs_dilation: dilation of the window.
      window: axis of the kernel that each window axis is, and -1 where it is reversed.
    """

    kernel: Kernel
    inside: tuple[int, ...] = ()
    outside: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    lhs_dilation: tuple[int, ...] = ()
    rhs_dilation: tuple[int, ...] = ()
    window: tuple[tuple[int, int], ...] = ()

    @property
    def positions(self) -> int:
        """Number of output positions of one sample; 1 for a matrix product."""
        return math.prod(self.outside)

    @property
    def is_conv(self) -> bool:
        """Whether the kernel is a convolution's."""
        return self.kernel.op == "conv_general_dilated"


def edge_norms(
    x: Float[Array, "samples *positions groups in"],
    w: Float[Array, " groups in out *window"],
    geometry: Geometry,
    order: int,
) -> Float[Array, " groups in out"]:
    """Sums the norms of the contributions of every edge over samples.

    Args:
      x: non-negative maps, float32, shape `(samples, *positions, groups, in)`.
      w: non-negative windows, float32, shape `(groups, in, out, *window)`.
      geometry: of the convolution.
      order: 2 for the Frobenius norm over output positions, 1 for their sum.

    Returns:
      Float32 array of shape `(groups, in, out)`.
    """
    groups, _, out, *window = w.shape
    n = len(window)
    last, first = n + 1, tuple(range(1, n + 1))
    numbers = lax.ConvDimensionNumbers(
        (0, last, *first), (0, 1, *range(2, n + 2)), (0, last, *first)
    )

    def of_one_unit(operands: tuple[Array, Array]) -> Float[Array, " out"]:
        maps, windows = operands
        made = lax.conv_general_dilated(
            maps,
            jnp.reshape(windows, (groups * out, 1, *window)),
            geometry.strides,
            geometry.padding,
            geometry.lhs_dilation,
            geometry.rhs_dilation,
            numbers,
            feature_group_count=groups,
            precision=lax.Precision.HIGHEST,
        )
        if order == 1:
            return jnp.sum(made, axis=(0, *first))
        return jnp.sum(jnp.sqrt(jnp.sum(jnp.square(made), axis=first)), axis=0)

    per_unit = (jnp.moveaxis(x, -1, 0), jnp.moveaxis(w, 1, 0))
    norms = lax.map(of_one_unit, per_unit)
    return jnp.moveaxis(jnp.reshape(norms, (-1, groups, out)), 0, 1)


def fro_of_mean(
    mean: Float[Array, "..."], windows: Float[Array, "..."], geometry: Geometry
) -> Float[Array, "*edges"]:
    """The size of the mean map of every edge, in the kernel's own order.

    Args:
      mean: mean map of |x|, shape `stack + positions + in units`.
      windows: |K| as the convolution reads it, shape `edge_shape + window`.
      geometry: of the convolution.

    Returns:
      `|| |K_ij| * mean_i ||_F`, shape `kernel.edge_shape`.
    """
    kernel = geometry.kernel
    order = [a for r in ("stack", "group", "in", "out") for a in kernel.axes(r)]
    sizes = [kernel.edge_shape[a] for a in order]
    window = tuple(range(len(order), windows.ndim))
    slices, groups = math.prod(kernel.stack_shape), kernel.groups
    inputs = math.prod(kernel.in_units) // groups
    w = jnp.reshape(
        jnp.transpose(windows, (*order, *window)),
        (slices, groups, inputs, -1, *windows.shape[len(order) :]),
    )
    x = jnp.reshape(mean, (slices, 1, *geometry.inside, groups, inputs))
    norms = lax.map(lambda xw: edge_norms(xw[0], xw[1], geometry, 2), (x, w))
    back = [order.index(a) for a in range(len(order))]
    return jnp.transpose(jnp.reshape(norms, sizes), back)
