"""Better masks after any rule: `bb.refine`.

    _, masks = bb.prune(params, units, rule, density=0.5, stats=stats)
    pruned, masks, errors = bb.refine(params, units, masks, stats)

Units swap a kept edge for a pruned one where that lowers the error of their outputs on
the calibration data (`bbjax.rules.parts.swaps`). Degrees stay, and so does every
budget. Weights are the dense ones; `bb.reconstruct` can update them afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.arrays import sharding
from bbjax.model.leaves import Leaves
from bbjax.model.numbers import INT32, check_int
from bbjax.model.units import Kernel, Units
from bbjax.oneshot.masked import (
    OutputError,
    check_dense,
    gram_of,
    masked_kernels,
    matrix_of,
)
from bbjax.oneshot.prune import Masks
from bbjax.rules.parts.matrices import matrices, per_edge
from bbjax.rules.parts.swaps import swap
from bbjax.rules.patterns import Pattern, check_pattern
from bbjax.training import arguments


def refine(
    params: Any,
    units: Units,
    masks: Mapping[str, Any],
    stats: Any,
    *,
    start: Any = None,
    rounds: int = 20,
    shortlist: int | None = 32,
    pattern: Pattern | None = None,
) -> tuple[Any, Masks, dict[str, OutputError]]:
    """Swaps kept edges for pruned ones, so that each kernel's outputs stay close.

    For the masks of any rule. A unit makes the best swap as long as one lowers the mean
    square change of its output. No unit has a larger error on the calibration data than
    before, and each keeps its number of incoming edges. So densities are met as before.
    Where a rule has counted outgoing edges (actuator "out"), the numbers of outgoing
    edges of the input units change.

    For each kernel, with n inputs, m units, s stack slices and a shortlist of l edges,
    a round costs `s m (2 n^2 + 16 l^2)` operations and each swap `16 s m l^2`; all
    pairs cost `2 n^2` per swap and unit. Memory: `4 n m` floats beside params and Gram
    matrices, and 64 MiB. Two CPU cores take about a second for a 576 x 1536 kernel at
    density .5, and seven for all of its pairs.

    Args:
      params: the parameters before pruning.
      units: from `bb.trace`, with or without a selection.
      masks: of the kernels to refine, by path, as `bb.prune` and `bb.masks` return
        them; masks of their biases are applied.
      stats: from `bb.calibrate(..., needs=["inputs.gram"])`, measured with `params`.
      start: parameters that the result takes everything else from, as where kernels
        without a mask here are pruned, too. Kept weights of the kernels that are
        refined are those of `params`, even where a rule has set new ones.
      rounds: the most shortlists that a unit takes, at least 1. Few units need more
        than 10.
      shortlist: edges on each side, kept and pruned, whose pairs are evaluated; at
        least 1. They are those that cost least to prune, and that gain most if kept,
        each by itself. None evaluates all pairs: the best swap every time.
      pattern: groups that edges are kept in, e.g. `bb.n_m(2, 4)`; swaps stay inside
        them, and `shortlist` has no effect.

    Returns:
      The parameters, pruned entries exactly 0; the masks, new ones for kernels and
      those of biases as they were; and for each kernel by path `before`, `after` and
      `total` errors.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a value out of range, masks or statistics that do not fit, params that
        were pruned already, weights that are not finite, a kernel with a window or with
        groups (it has no Gram matrix), masks that do not keep the pattern along the
        inputs.

    The idea is that of "SparseSwaps" (arXiv 2512.10922).

    Example:
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return x @ params["w"]
      >>> params = {"w": jnp.array([[2.0], [3.0], [-3.0]])}
      >>> x = jnp.array([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [1.0, 2.0, 2.0]])
      >>> units, rule = bb.trace(fn, params, x).select("w"), bb.rules.wanda()
      >>> needs = (*rule.needs, "inputs.gram")
      >>> stats = bb.calibrate(fn, units, params, [(x,)], needs=needs)
      >>> _, masks = bb.prune(params, units, rule, density=1 / 3, stats=stats)
      >>> new, better, errors = refine(params, units, masks, stats)
      >>> masks["w"][:, 0].tolist(), better["w"][:, 0].tolist()
      ([False, True, False], [True, False, False])
      >>> round(float(errors["w"].before), 4), round(float(errors["w"].after), 4)
      (14.0, 0.0)
    """
    rounds, shortlist = _check_settings(units, rounds, shortlist, pattern)
    dense, tree = Leaves.of(params), Leaves.of(params if start is None else start)
    kernels = masked_kernels(units, masks, dense, "to swap its edges", "keep its mask")
    grams = {kernel.path: gram_of(kernel, stats) for kernel in kernels}
    check_dense(kernels, dense, masks)
    if pattern is not None:
        for kernel in kernels:
            _check_groups(kernel, masks[kernel.path], pattern)
    found: Masks = {path: jnp.asarray(mask) for path, mask in masks.items()}
    errors = {}
    for kernel in kernels:
        tree.get(kernel, "parameter")  # checks the shape
        old, mask = jnp.asarray(dense.get(kernel, "parameter")), found[kernel.path]
        done = swap(
            matrix_of(kernel, old), grams[kernel.path], _edges(kernel, mask), rounds,
            shortlist=shortlist, m=None if pattern is None else pattern.m,
        )  # fmt: skip
        keep = kernel.full(per_edge(kernel, done.mask))
        found[kernel.path], kept = (
            sharding.like(keep, one, range(keep.ndim)) for one in (mask, old)
        )
        tree.put(kernel, jnp.where(kept, old, jnp.zeros_like(old)))
        errors[kernel.path] = OutputError.of(
            kernel, done.before, done.after, done.total
        )
        if kernel.bias in masks:
            tree.keep_at(kernel.bias, masks[kernel.bias])
    return tree.tree(), found, errors


def _edges(kernel: Kernel, mask: Any) -> jax.Array:
    return matrices(kernel, kernel.edge_mask(jnp.asarray(mask)))


# Checks --------------------------------------------------------------------------
def _check_settings(
    units: Any, rounds: Any, shortlist: Any, pattern: Any
) -> tuple[int, int | None]:
    arguments.check_units(units)
    rounds = check_int("rounds", rounds, 1, INT32, "20 are enough for most kernels")
    if shortlist is not None:
        remedy = "it is a number of edges, e.g. 32, or None for all of them"
        shortlist = check_int("shortlist", shortlist, 1, INT32, remedy)
    if pattern is not None:
        arguments.check_pattern_kind(pattern)
    return rounds, shortlist


def _check_groups(kernel: Kernel, mask: Any, pattern: Pattern) -> None:
    """Refuses masks without a pattern along the inputs, where they are known."""
    check_pattern(kernel, ("in",), pattern)
    if isinstance(mask, jax.core.Tracer):
        return
    edges = np.asarray(_edges(kernel, mask))
    slices, n, units = edges.shape
    kept = edges.reshape(slices, n // pattern.m, pattern.m, units).sum(2)
    least, most = kept.min(1), kept.max(1)
    if (least != most).any():
        one = tuple(np.argwhere(least != most)[0])
        raise ValueError(
            f"expected a mask of {kernel.path!r} that keeps the same number of edges "
            f"in all groups of {pattern.m} inputs of a unit, got {least[one]} to "
            f"{most[one]} in unit {one[-1]}; make it with pattern=bb.n_m({pattern.n}, "
            f"{pattern.m}) and actuator 'in', or leave the pattern out"
        )
