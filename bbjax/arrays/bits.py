"""Masks as bits: eight entries along one axis in each byte.

Byte `r` along `axis` holds the entries `8 r ... 8 r + 7`, the first in the lowest bit:

    byte[r] = sum_j mask[8 r + j] << j,   mask[i] = byte[i // 8] >> (i % 8) & 1

and the entries past the end of the axis are 0. The axis keeps its place and need not
be the minor one. A byte holds neighbours, so an axis that is sharded in multiples of
eight is packed and unpacked on each device by itself, with shifts and no gathers.
Shapes: mask `(..., n, ...)`, bits `(..., ceil(n / 8), ...)` in uint8.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Int, Shaped, UInt8


def pack(mask: Bool[ArrayLike, "..."], axis: int) -> UInt8[Array, "..."]:
    """Packs a mask along one axis.

    Args:
      mask: bool array of any shape but ().
      axis: the axis to pack, of `n` entries.

    Returns:
      uint8 array of the same shape but `ceil(n / 8)` along `axis`.

    Raises:
      TypeError: mask is not bool, or axis not an int.
      ValueError: axis out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> pack(jnp.array([True, False, True]), 0).tolist()
      [5]
    """
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"expected a bool mask, got {mask.dtype}; compare it with 0")
    axis = _axis(axis, mask.ndim)
    if short := -mask.shape[axis] % 8:
        mask = jnp.pad(mask, [(0, short * (a == axis)) for a in range(mask.ndim)])
    shape = mask.shape[:axis] + (mask.shape[axis] // 8, 8) + mask.shape[axis + 1 :]
    # `jnp.packbits` gives the same bits as fast, but moves the axis to the end and
    # back: a step without a refresh would then copy all masks to change their layout.
    shifted = mask.reshape(shape).astype(jnp.uint8) << _places(len(shape), axis + 1)
    return jnp.sum(shifted, axis + 1, dtype=jnp.uint8)


def unpack(bits: UInt8[ArrayLike, "..."], axis: int, size: int) -> Bool[Array, "..."]:
    """Unpacks what `pack` packed.

    Args:
      bits: uint8 array made by `pack`.
      axis: the packed axis.
      size: entries of the mask along `axis`.

    Returns:
      Bool array of the shape of `bits` but `size` along `axis`.

    Raises:
      TypeError: bits are not uint8, or axis not an int.
      ValueError: axis out of range, or `size` does not take that many bytes.

    Example:
      >>> import jax.numpy as jnp
      >>> unpack(jnp.array([5], jnp.uint8), 0, 3).tolist()
      [True, False, True]
    """
    bits = jnp.asarray(bits)
    _check_bits(bits)
    axis = _axis(axis, bits.ndim)
    rows = bits.shape[axis]
    if -(-size // 8) != rows:
        raise ValueError(
            f"expected size from {8 * rows - 7} to {8 * rows} for the {rows} bytes "
            f"along axis {axis}, got {size}; give the size that was packed"
        )
    split = jnp.expand_dims(bits, axis + 1)
    # Testing a bit in place vectorises where shifting it down does not.
    hit = (split & (1 << _places(split.ndim, axis + 1)).astype(np.uint8)) != 0
    shape = bits.shape[:axis] + (8 * rows,) + bits.shape[axis + 1 :]
    return lax.slice_in_dim(hit.reshape(shape), 0, size, axis=axis)


def count(
    bits: UInt8[ArrayLike, "..."], axes: int | Sequence[int] | None = None
) -> Int[Array, "..."]:
    """Counts the True entries of a packed mask.

    Args:
      bits: uint8 array made by `pack`.
      axes: the axes to sum over, all by default.

    Returns:
      int32 array of the shape of the other axes.

    Raises:
      TypeError: bits are not uint8.

    Example:
      >>> import jax.numpy as jnp
      >>> int(count(jnp.array([5, 255], jnp.uint8)))
      10
    """
    bits = jnp.asarray(bits)
    _check_bits(bits)
    axes = axes if axes is None or isinstance(axes, int) else tuple(axes)
    return jnp.sum(lax.population_count(bits), axes, dtype=jnp.int32)


def _places(ndim: int, axis: int) -> UInt8[np.ndarray, "..."]:
    """0 ... 7 along one axis of many."""
    shape = [8 if a == axis else 1 for a in range(ndim)]
    return np.arange(8, dtype=np.uint8).reshape(shape)


def _check_bits(bits: Shaped[Array, "..."]) -> None:
    if bits.dtype != jnp.uint8:
        raise TypeError(f"expected uint8 bits, got {bits.dtype}; make them with pack")


def _axis(axis: Any, ndim: int) -> int:
    try:
        axis = operator.index(axis)
    except TypeError:
        raise TypeError(
            f"expected axis to be an int, got {axis!r}; name one axis of the mask"
        ) from None
    if not -ndim <= axis < ndim:
        raise ValueError(
            f"expected an axis of a mask with {ndim} axes, got {axis}; give one from "
            f"{-ndim} to {ndim - 1}"
        )
    return axis % ndim
