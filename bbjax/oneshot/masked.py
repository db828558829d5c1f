"""Kernels under masks, with Gram matrices of their inputs.

What `bb.reconstruct` and `bb.refine` take, check and return alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bbjax.arrays import sharding
from bbjax.model.checks import meant
from bbjax.model.leaves import Leaves
from bbjax.model.units import Kernel, Units
from bbjax.rules.parts.matrices import matrices, refuse_windows
from bbjax.training import observations


class OutputError(NamedTuple):
    """Mean square change of a kernel's outputs, summed over its units.

    Measured on the calibration data; float32 of the shape of the stack axes.

    Attributes:
      before: with the masks alone, or with `start`.
      after: with the new weights, or the new masks.
      total: mean square of the outputs of the dense kernel, to compare with.
    """

    before: jax.Array
    after: jax.Array
    total: jax.Array

    @classmethod
    def of(cls, kernel: Kernel, *slices: jax.Array) -> OutputError:
        """The errors of a kernel, from those of its slices in a row."""
        return cls(*(jnp.reshape(each, kernel.stack_shape) for each in slices))


def matrix_of(kernel: Kernel, weights: Any) -> jax.Array:
    """The weights of a kernel as matrices, `(slices, in, out)`."""
    return matrices(kernel, kernel.sum_spatial(kernel.edges(jnp.asarray(weights))))


# Checks --------------------------------------------------------------------------
def masked_kernels(
    units: Units, masks: Any, tree: Leaves, purpose: str, remedy: str
) -> list[Kernel]:
    """The kernels that have a mask, in the order of the model.

    Args:
      units: from `bb.trace`.
      masks: by path, of kernels and of their biases.
      tree: the parameters.
      purpose: what the kernels are needed for, for messages.
      remedy: what to do with kernels that have a window or groups, likewise.

    Raises:
      TypeError: masks that are not by path.
      ValueError: masks that do not fit, kernels that are no matrices of real numbers.
    """
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"expected masks by path, got {type(masks).__name__}; pass those of "
            "bb.prune or bb.masks"
        )
    kernels = [units[path] for path in units.paths if path in masks]
    biases = {kernel.bias for kernel in kernels if kernel.bias}
    others = [p for p in masks if p not in {k.path for k in kernels} | biases]
    if others or not kernels:
        got = "none" if not masks else f"{others}"
        hint = "".join(meant(path, units.paths) for path in others[:1])
        raise ValueError(
            f"expected masks of kernels of the trace, and of their biases, got {got}"
            f"{hint}; it has {list(units.paths)}"
        )
    wrong = []
    for kernel in kernels:
        refuse_windows(kernel, purpose, remedy)
        if kernel.dtype.startswith("complex"):
            raise ValueError(
                f"expected real weights for {kernel.path!r}, got {kernel.dtype}; leave "
                "its mask out"
            )
        shape = jnp.shape(masks[kernel.path])
        if shape != jnp.shape(tree.get(kernel, "parameter")):
            wrong.append(f"{kernel.path!r}: {shape}, not {kernel.shape}")
    if wrong:
        raise ValueError(
            f"expected masks of the shapes of their kernels, got {'; '.join(wrong)}; "
            "pass those of bb.prune or bb.masks of this model"
        )
    return kernels


def gram_of(kernel: Kernel, stats: Any) -> jax.Array:
    """The Gram matrices of a kernel's inputs, `(slices, in, in)`.

    Raises:
      ValueError: they were not measured, or do not fit.
    """
    gram = observations.of_inputs(kernel, "gram", "the Gram matrix", stats)
    n = math.prod(kernel.in_units)
    return jnp.reshape(sharding.whole(jnp.asarray(gram)), (-1, n, n))


def check_dense(kernels: list[Kernel], tree: Leaves, masks: Mapping[str, Any]) -> None:
    """Refuses weights that are not finite, and params that are pruned already.

    Raises:
      ValueError: if so, where values are known (outside jit).
    """
    gone = lost = False
    for kernel in kernels:
        weights, mask = tree.get(kernel, "parameter"), masks[kernel.path]
        if any(isinstance(a, jax.core.Tracer) for a in (weights, mask)):
            return
        if not bool(jnp.all(jnp.isfinite(weights))):
            raise ValueError(
                f"expected finite weights in {kernel.path!r}, got NaN or infinity; "
                "check the parameters"
            )
        pruned = ~jnp.asarray(mask, bool)
        gone = gone or bool(jnp.any(pruned))
        lost = lost or bool(jnp.any(pruned & (jnp.asarray(weights) != 0)))
    if gone and not lost:
        raise ValueError(
            "expected the parameters before pruning, got 0 wherever the masks prune; "
            "pass the dense ones, whose outputs are to be kept, and the pruned ones as "
            "start="
        )
