"""A product that reads a packed kernel: Pallas, for GPUs.

    y[b, o] = sum over halves, groups g, places p of  x[half, p, b, g] w_p[half, g, o]
    w_p     = where(place == p, value, 0), both kept values added

The order of a sum is free, so inputs are sorted by their place in the group, once, and
weights need no shuffle: for each of 4 places a tile is made in registers and
multiplied. Memory sees 9/16 of the bytes of a bfloat16 kernel. A program takes
`OUTPUTS` outputs and one part of the groups (a decoding step has too few outputs to
fill a GPU); parts are added afterwards.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from benchmarks.patterns.packed import GROUP, Packed, by_place, places

OUTPUTS = 64  # of a program
ROWS = 32  # groups at a time
LEAST = 16  # rows of the smallest product that tensor cores take
PROGRAMS = 512  # enough to fill a GPU


def matmul(x: jax.Array, packed: Packed, *, interpret: bool = False) -> jax.Array:
    """`x @ w` for a packed `w`.

    Args:
      x: `[batch, inputs]`.
      packed: inputs a multiple of 256, outputs of 64.
      interpret: run on any backend, slowly.

    Raises:
      ValueError: another shape.
    """
    batch, inputs = x.shape
    groups, outputs = packed.places.shape
    if inputs != 2 * GROUP * groups or groups % ROWS or outputs % OUTPUTS:
        raise ValueError(
            f"expected inputs in multiples of {2 * GROUP * ROWS} and outputs of "
            f"{OUTPUTS}, got x of {x.shape} and a kernel of "
            f"{(2 * GROUP * groups, outputs)}"
        )
    rows = max(LEAST, 1 << (batch - 1).bit_length())
    sorted_ = by_place(jnp.pad(x, ((0, rows - batch), (0, 0))))
    parts = _parts(groups // ROWS, outputs // OUTPUTS)
    each = groups // parts
    program = pl.pallas_call(
        functools.partial(_program, steps=each // ROWS),
        grid=(outputs // OUTPUTS, parts),
        in_specs=[
            pl.BlockSpec((2, GROUP, rows, each), lambda n, k: (0, 0, 0, k)),
            pl.BlockSpec((2, 2, each, OUTPUTS), lambda n, k: (0, 0, k, n)),
            pl.BlockSpec((each, OUTPUTS), lambda n, k: (k, n)),
        ],
        out_specs=pl.BlockSpec((None, rows, OUTPUTS), lambda n, k: (k, 0, n)),
        out_shape=jax.ShapeDtypeStruct((parts, rows, outputs), jnp.float32),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
    )
    return program(sorted_, *packed).sum(axis=0)[:batch].astype(x.dtype)


def _parts(steps: int, programs: int) -> int:
    """How many programs share the groups: a divisor of the steps."""
    wanted = max(1, PROGRAMS // programs)
    return max(n for n in range(1, steps + 1) if steps % n == 0 and n <= wanted)


def _program(x_ref: Any, values_ref: Any, places_ref: Any, out_ref: Any, *, steps: int):
    def step(number: Any, total: jax.Array) -> jax.Array:
        at = pl.ds(number * ROWS, ROWS)
        found = places(places_ref[at, :])
        for half in (0, 1):
            values = [values_ref[kept, half, at, :] for kept in (0, 1)]
            for place in range(GROUP):
                tile = sum(
                    jnp.where(found[kept][half] == place, values[kept], 0)
                    for kept in (0, 1)
                )
                x = x_ref[half, place, :, at]
                total += jnp.dot(x, tile, preferred_element_type=jnp.float32)
        return total

    start = jnp.zeros(out_ref.shape, jnp.float32)
    out_ref[...] = jax.lax.fori_loop(0, steps, step, start)
