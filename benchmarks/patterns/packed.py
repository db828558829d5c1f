"""Kernels that keep 2 of every 4 weights, stored as these and where they stand.

    w [inputs, outputs]  ->  values [2, 2, inputs / 8, outputs]   first and second kept
                             places [inputs / 8, outputs] uint8   weight of each group

A group is 4 weights of one output at inputs 4 g to 4 g + 3; its two places take 2 bits
each. A byte holds those of two groups, g in its low half and g + inputs / 8 in its high
half, so that whoever unpacks neighbours needs no shuffle. Of B bytes a weight, 4 B are
left at 2 B + 1/2: in bfloat16 9/16, in float32 17/32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

GROUP = 4


class Packed(NamedTuple):
    """A kernel.

    Attributes:
      values: kept weights, `[kept, half, inputs / 8, outputs]`.
      places: where they stand, `[inputs / 8, outputs]`, uint8.
    """

    values: jax.Array
    places: jax.Array


def pack(weights: jax.Array, mask: jax.Array) -> Packed:
    """What is kept of a kernel.

    Args:
      weights: `[inputs, outputs]`, inputs a multiple of 8.
      mask: the same shape, True for exactly 2 of every 4.
    """
    inputs, outputs = weights.shape
    groups = (2, inputs // (2 * GROUP), GROUP, outputs)
    kept, split = mask.reshape(groups), weights.reshape(groups)
    first = jnp.argmax(kept, axis=2)
    second = GROUP - 1 - jnp.argmax(kept[:, :, ::-1], axis=2)
    values = [
        jnp.take_along_axis(split, at[:, :, None], axis=2)[:, :, 0]
        for at in (first, second)
    ]
    nibbles = (first | second << 2).astype(jnp.uint8)
    return Packed(jnp.stack(values), nibbles[0] | nibbles[1] << 4)


def places(packed: jax.Array) -> list[list[jax.Array]]:
    """Where values stand in their groups, `[kept][half]`, int32."""
    wide = packed.astype(jnp.int32)
    return [
        [wide >> shift & 3 for shift in (0, 4)],
        [wide >> shift & 3 for shift in (2, 6)],
    ]


def unpack(packed: Packed) -> jax.Array:
    """The kernel with its zeros."""
    _, _, groups, outputs = packed.values.shape
    found = places(packed.places)
    halves = []
    for half in (0, 1):
        rows = [
            sum(
                jnp.where(found[kept][half] == row, packed.values[kept, half], 0)
                for kept in (0, 1)
            )
            for row in range(GROUP)
        ]
        halves.append(jnp.stack(rows, axis=1).reshape(groups * GROUP, outputs))
    return jnp.concatenate(halves)


def by_place(x: jax.Array) -> jax.Array:
    """Inputs as the packed kernel meets them, `[half, place, batch, inputs / 8]`."""
    batch, inputs = x.shape
    split = x.reshape(batch, 2, inputs // (2 * GROUP), GROUP)
    return jnp.transpose(split, (1, 3, 0, 2))
