"""Kernels as plain matrices `(slices, in, out)`: matrix products and 1x1 convolutions.

For methods that use the Gram matrix of the inputs of a unit. The matrices are whole on
every device: pruning in one shot may gather weights, training does not.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from bbjax.arrays import sharding
from bbjax.model.kernel import Kernel
from bbjax.rules.base import Candidates


def matrices(
    kernel: Kernel, edges: Shaped[Array, "*edges"]
) -> Shaped[Array, " slices in out"]:
    """An array per edge as matrices: `edge_shape -> (slices, in, out)`.

    Example:
      >>> kernel = Kernel("w", (4, 2, 3), stack=(1,), fan_in=(2,), fan_out=(0,))
      >>> matrices(kernel, jnp.zeros((4, 2, 3))).shape
      (2, 3, 4)
    """
    sizes = (-1, math.prod(kernel.in_units), math.prod(kernel.out_units))
    return jnp.reshape(jnp.transpose(sharding.whole(edges), _order(kernel)), sizes)


def per_edge(
    kernel: Kernel, these: Shaped[Array, " slices in out"]
) -> Shaped[Array, "*edges"]:
    """The inverse of `matrices`."""
    order = _order(kernel)
    split = jnp.reshape(these, [kernel.edge_shape[a] for a in order])
    return jnp.transpose(split, [order.index(a) for a in range(len(order))])


def refuse_windows(kernel: Kernel, purpose: str, remedy: str) -> None:
    """Raises an error if a kernel is no matrix.

    Raises:
      ValueError: if it is grouped, or has a window.

    Example:
      >>> refuse_windows(Kernel("w", (2, 3), fan_in=(0,), fan_out=(1,)), "", "")
    """
    pairs = zip(kernel.split, kernel.roles, strict=True)
    window = tuple(n for n, role in pairs if role == "spatial")
    if kernel.groups > 1 or math.prod(window) > 1:
        what = f"{kernel.groups} groups" if kernel.groups > 1 else f"window {window}"
        raise ValueError(
            f"expected a matrix product or a 1x1 convolution {purpose}, got "
            f"{kernel.path!r} with {what}; leave it out or {remedy}"
        )


def refuse_outgoing(seen: Candidates, why: str) -> None:
    """Raises an error if outgoing edges are counted.

    Raises:
      ValueError: if so; `why` tells what the rule does to a unit.
    """
    if seen.actuators != ("in",):
        raise ValueError(
            f"expected actuator 'in' for {seen.kernel.path!r}, got "
            f"{' and '.join(map(repr, seen.actuators))}: {why}; select with "
            "actuator='in'"
        )


def _order(kernel: Kernel) -> tuple[int, ...]:
    return kernel.axes("stack") + kernel.axes("in") + kernel.axes("out")
