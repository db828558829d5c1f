"""Budgets: a density as an exact number of edges.

    budget = round(density * edges), halves to even

In float32, the only float of a compiled program by default, the product of a density
and 3e8 edges is off by up to 8. So the product is taken in integers: a float32 density
is exactly mantissa / 2**(shift + 1) with a mantissa of 24 bits, the product with 31
bits of edges has 55, and two 32-bit words hold it.

Shapes: the budget has the shape of the density; the edges are a static int, or an array
that broadcasts with it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Real, UInt32

from bbjax.model.numbers import are_numbers


def check_density(density: Real[ArrayLike, "..."], shape: tuple[int, ...] = ()) -> None:
    """Raises an error if a density has a wrong shape or value.

    Raises:
        TypeError: no number.
        ValueError: neither a scalar nor of `shape`, or outside (0, 1]. The value of a
            tracer is not checked.

    Example:
        >>> check_density(0.7)
    """
    if not are_numbers(density):
        raise TypeError(
            f"density: expected a number in (0, 1], got {density!r}; pass the fraction "
            "of edges to keep, e.g. 0.7"
        )
    if np.shape(density) not in ((), shape):
        raise ValueError(
            f"density: expected a scalar or shape {shape}, got {np.shape(density)}; "
            "pass one density, or one per slice"
        )
    if isinstance(density, jax.core.Tracer):
        return
    values = np.asarray(density, np.float64)
    if not np.all((values > 0) & (values <= 1)):
        raise ValueError(
            f"density: expected a number in (0, 1], got {density!r}; pass the fraction "
            "of edges to keep, e.g. 0.7"
        )


def _product(
    a: UInt32[Array, "*#shape"], b: UInt32[Array, "*#shape"]
) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """The 64-bit product of a < 2**24 and b < 2**31 as uint32 (high, low)."""
    a0, a1 = a & 0xFFFF, a >> 16
    b0, b1 = b & 0xFFFF, b >> 16
    low, middle = a0 * b0, a0 * b1 + a1 * b0
    whole = low + (middle << 16)
    carry = (whole < low).astype(jnp.uint32)
    return a1 * b1 + (middle >> 16) + carry, whole


def _round_product(
    density: Float[Array, "*#shape"], edges: Int[ArrayLike, "*#shape"]
) -> Int[Array, "*shape"]:
    """Round-half-even of density * edges, exact for float32 density in [0, 1]."""
    density = lax.optimization_barrier(density)  # as in `bbjax.arrays.topk`
    bits = lax.bitcast_convert_type(density, jnp.uint32)
    exponent, fraction = bits >> 23, bits & 0x7FFFFF
    mantissa = jnp.where(exponent > 0, fraction | (1 << 23), fraction)
    high, low = _product(mantissa, jnp.asarray(edges).astype(jnp.uint32))
    # density = mantissa / 2**(shift + 1). Past 56 bits the quotient is 0 anyway.
    shift = jnp.minimum(149 - jnp.maximum(exponent, 1), 56)
    wide, short = jnp.maximum(shift, 32) - 32, jnp.minimum(shift, 31)
    one = jnp.uint32(1)
    below = jnp.where(shift < 32, low & ((one << short) - 1), low)
    below |= jnp.where(shift < 32, 0, high & ((one << wide) - 1))
    near = (high << (32 - short)) | (low >> short)
    twice = jnp.where(shift < 32, near, high >> wide)  # floor of 2 * density * edges
    up = (twice & 1) & ((below > 0) | ((twice >> 1) & 1 > 0)).astype(jnp.uint32)
    return ((twice >> 1) + up).astype(jnp.int32)


def mean_degree(
    budget: Int[ArrayLike, "*stack"], units: int | Int[Array, "*#stack"]
) -> Float[Array, "*stack"]:
    """Edges of a unit on average: float32 of the shape of the budget.

    The same number in compiled and eager code: a compiler would replace the division by
    a constant by a product with its rounded reciprocal, and a floor of the mean could
    lose an edge.

    Example:
        >>> float(mean_degree(jnp.int32(30), 4))
        7.5
    """
    count = lax.optimization_barrier(jnp.asarray(units).astype(jnp.float32))
    return jnp.asarray(budget).astype(jnp.float32) / count


def exact_budget(
    density: Real[ArrayLike, "*#shape"], edges: Int[ArrayLike, "*#shape"]
) -> Int[Array, "*shape"]:
    """The number of edges to keep: density * edges, rounded half to even.

    Two Python numbers give Python's own `round(density * edges)`. An array or tracer
    gives the rounded exact product of its float32 value, by integer arithmetic: a
    float32 product would be off by up to 8 at 3e8 edges. Float64 (under x64) uses
    float64.

    Args:
        density: kept fraction in [0, 1], any shape. In arrays values above 1 and NaN
            count as 1, values below 0 as 0.
        edges: int in [0, 2**31 - 1], or an array of such, possibly traced, that
            broadcasts with `density`.

    Returns:
        int32 of the shape of both.

    Example:
        >>> int(exact_budget(0.7, 1000))
        700
        >>> int(exact_budget(jnp.float32(0.7), 300_000_000))  # float32(0.7) < 0.7
        209999996
    """
    if isinstance(density, int | float) and isinstance(edges, int):
        return jnp.asarray(round(density * edges), jnp.int32)
    value = jnp.asarray(density)
    if value.dtype != jnp.float64:
        value = value.astype(jnp.float32)
    value = jnp.maximum(jnp.where(value <= 1, value, 1), 0)
    if value.dtype == jnp.float64:
        return jnp.round(value * edges).astype(jnp.int32)
    return _round_product(value, edges)
