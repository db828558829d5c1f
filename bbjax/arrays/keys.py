"""Floats as integers of the same order, their keys.

    key(x) < key(y)  if and only if  x < y        key(0.0) = key(-0.0) = 0

The key of a positive float is its bits, that of a negative one the bits of its size,
negated; NaN has the key below that of -inf. So a search over integers
(`bbjax.arrays.bracket`) is one over all floats.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int


def key(x: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """The keys of floats, in integers of their size (int32 for 16-bit floats).

    Example:
      >>> key(jnp.array([-0.0, 0.0, 1e-45, -1e-45])).tolist()
      [0, 0, 1, -1]
    """
    # XLA folds the bits of a transposed constant in the wrong order (jax 0.10.2, a jit
    # inside a jit): behind a barrier, which costs nothing, there is no constant.
    x = lax.optimization_barrier(x)
    bits = lax.bitcast_convert_type(x, _integer(x.dtype))
    size = bits & jnp.iinfo(bits.dtype).max
    top = top_key(x.dtype)
    keys = jnp.where(size > top, -top - 1, jnp.where(bits < 0, -size, size))
    # 16-bit keys are compared at half the speed of 32-bit ones on CPU.
    return keys.astype(jnp.int32) if keys.dtype.itemsize < 4 else keys


def from_key(keys: Int[Array, "*shape"], dtype: Any) -> Float[Array, "*shape"]:
    """The floats that have these keys: the inverse of `key`, 0.0 for both zeros.

    Example:
      >>> from_key(key(jnp.array([-2.5, 0.5])), jnp.float32).tolist()
      [-2.5, 0.5]
    """
    sign = jnp.iinfo(_integer(dtype)).min
    bits = jnp.where(keys < 0, jnp.abs(keys) | sign, keys)
    return lax.bitcast_convert_type(bits.astype(_integer(dtype)), dtype)


def top_key(dtype: Any) -> int:
    """The key of +inf; `-top_key(dtype)` is that of -inf."""
    return int(np.array(np.inf, dtype).view(_integer(dtype)))


def _integer(dtype: Any) -> jnp.dtype:
    """The integers of the size of a float."""
    return jnp.dtype(f"int{jnp.dtype(dtype).itemsize * 8}")
