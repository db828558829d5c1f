"""Updates of kept weights after any rule: `bb.reconstruct`.

    pruned, masks = bb.prune(params, units, rule, density=0.5, stats=stats)
    params, errors = bb.reconstruct(params, units, masks, stats)

The update is that of `bbjax.rules.parts.refit`, kernel by kernel, from Gram matrices of
the inputs. The masks stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.arrays import sharding
from bbjax.arrays.types import Number
from bbjax.model.leaves import Leaves
from bbjax.model.numbers import INT32, check_int, check_number
from bbjax.model.units import Kernel, Units
from bbjax.model.warn import warn
from bbjax.oneshot.masked import (
    OutputError,
    check_dense,
    gram_of,
    masked_kernels,
    matrix_of,
)
from bbjax.rules.parts.matrices import matrices, per_edge
from bbjax.rules.parts.refit import Method, flops, refit
from bbjax.training import arguments

_STEP = 32  # least squares is compiled for degrees that are multiples of it


def reconstruct(
    params: Any,
    units: Units,
    masks: Mapping[str, Any],
    stats: Any,
    *,
    method: Method = "admm",
    start: Any = None,
    damp: Number = 0.1,
    rounds: int = 20,
    limit: float = 1e12,
) -> tuple[Any, dict[str, OutputError]]:
    """Gives kept weights new values, so that each kernel's outputs stay close.

    For the masks of any rule. No unit has a larger error on the calibration data than
    before. With n inputs, m units that keep at most k edges, and s stack slices, it
    costs

    - `"admm"`: `s (2 n^3 + 2 (rounds + 2) n^2 m)` operations, memory for
      `2 n^2 + 6 n m` floats beside params and Gram matrices. For large kernels.
    - `"least_squares"`: `s m (k^3 / 3 + 4 n^2)` operations, memory for
      `3 n^2 + 4 n m` floats and 64 MiB (`k^2` floats, if that is more). The exact
      solution, for small kernels and low densities. Where all units of a slice keep
      the same inputs (whole units were cut, `bb.unitwise.cut`) it is the cheap method
      for kernels of any size: `s (k^3 / 3 + m (2 k^2 + 4 n^2))`.

    Args:
      params: the parameters before pruning.
      units: from `bb.trace`, with or without a selection.
      masks: of the kernels to update, by path, as `bb.prune` and `bb.masks` return
        them; masks of their biases are applied.
      stats: from `bb.calibrate(..., needs=["inputs.gram"])`, measured with `params`.
      method: `"admm"` or `"least_squares"`; both solve one problem
        (`bbjax.rules.parts.refit`), ADMM approximately.
      start: parameters after pruning, needed where they are not just `params` under
        `masks`: where the rule has set new weights (`sparsegpt`), or where kernels
        without a mask here are pruned, too. The result is these with new weights.
      damp: pull of the kept weights to their old values, as a share of each input's
        mean square, at least 0; may be traced. Larger values suit fewer samples.
      rounds: of ADMM, at least 1.
      limit: the most operations that least squares may take for a kernel; a CPU core
        does about 1e9 of them in a second.

    Returns:
      The parameters, pruned entries exactly 0, each kernel in its dtype (computed in
      float32); and for each kernel by path `before`, `after` and `total` errors.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a value out of range, masks or statistics that do not fit, params that
        were pruned already, weights that are not finite, a kernel with a window or with
        groups (it has no Gram matrix), or more operations than `limit`.

    Where a system cannot be solved (`damp=0` and few samples), the weights stay, and a
    warning names the kernel.

    Example:
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return x @ params["w"]
      >>> params = {"w": jnp.array([[1.0], [3.0]])}
      >>> x = jnp.array([[1.0, 1.0], [1.0, -1.0], [2.0, 2.0]])
      >>> units, rule = bb.trace(fn, params, x).select("w"), bb.rules.wanda()
      >>> needs = (*rule.needs, "inputs.gram")
      >>> stats = bb.calibrate(fn, units, params, [(x,)], needs=needs)
      >>> _, masks = bb.prune(params, units, rule, density=0.5, stats=stats)
      >>> new, errors = reconstruct(params, units, masks, stats, damp=0.0)
      >>> new["w"].tolist(), round(float(errors["w"].after / errors["w"].before), 4)
      ([[0.0], [3.6666...]], 0.5556)
    """
    _check_settings(units, method, damp, rounds, limit)
    dense, tree = Leaves.of(params), Leaves.of(params if start is None else start)
    kernels = masked_kernels(
        units, masks, dense, "to update its kept weights", "retrain it"
    )
    grams = {kernel.path: gram_of(kernel, stats) for kernel in kernels}
    check_dense(kernels, dense, masks)
    errors = {}
    for kernel in kernels:
        keep = jnp.asarray(masks[kernel.path])
        old = dense.get(kernel, "parameter")
        begun = tree.get(kernel, "parameter")
        keep_edges = matrices(kernel, kernel.edge_mask(keep))
        width, shared = keep_edges.shape[1], False  # only least squares reads them
        if method == "least_squares":
            width, shared = _width(keep_edges), _shared(keep_edges)
            _check_cost(kernel, width, shared, limit)
        done = refit(
            matrix_of(kernel, old), matrix_of(kernel, begun), grams[kernel.path],
            keep_edges, damp, rounds, method=method, width=width, shared=shared,
        )  # fmt: skip
        _name_unsound(kernel, done.sound, damp)
        edges = kernel.over_spatial(per_edge(kernel, done.weights))
        new = kernel.weights(jnp.reshape(edges, kernel.split))
        tree.put(kernel, sharding.match(new.astype(begun.dtype), jnp.asarray(begun)))
        errors[kernel.path] = OutputError.of(
            kernel, done.before, done.after, done.total
        )
        if kernel.bias in masks:
            tree.keep_at(kernel.bias, masks[kernel.bias])
    return tree.tree(), errors


def _width(keep: jax.Array) -> int:
    """The largest degree, rounded up; that of all inputs where masks are traced."""
    if isinstance(keep, jax.core.Tracer):
        return keep.shape[1]
    most = int(jnp.max(jnp.sum(keep, axis=1, dtype=jnp.int32), initial=0))
    return min(max(-(-most // _STEP), 1) * _STEP, keep.shape[1])


def _shared(keep: jax.Array) -> bool:
    """Whether all units of each slice keep the same inputs; False where traced."""
    if isinstance(keep, jax.core.Tracer):
        return False
    return bool(jnp.all(keep == keep[:, :, :1]))


# Checks --------------------------------------------------------------------------
def _check_settings(
    units: Any, method: Any, damp: Any, rounds: Any, limit: Any
) -> None:
    arguments.check_units(units)
    if method not in get_args(Method):
        names = " or ".join(f'"{name}"' for name in get_args(Method))
        raise ValueError(
            f"expected method {names}, got {method!r}; the first is for large kernels"
        )
    check_number("damp", damp, "[0, inf)", "it is a share, e.g. 0.1")
    check_int("rounds", rounds, 1, INT32, "20 are enough for most kernels")
    check_number("limit", limit, "(0, inf)", "it is a number of operations, e.g. 1e12")


def _check_cost(kernel: Kernel, width: int, shared: bool, limit: float) -> None:
    slices, n = math.prod(kernel.stack_shape), math.prod(kernel.in_units)
    count = math.prod(kernel.out_units)
    cost = slices * flops(n, count, width, "least_squares", 0, shared)
    systems = slices if shared else slices * count
    if cost > limit:
        raise ValueError(
            f"expected at most {limit:.2g} operations for a kernel (limit), got "
            f"{cost:.2g} for {kernel.path!r}: {systems} systems of up to "
            f'{width} edges; use method="admm", or raise limit'
        )


def _name_unsound(kernel: Kernel, sound: jax.Array, damp: Number) -> None:
    if isinstance(sound, jax.core.Tracer) or np.asarray(sound).all():
        return
    where = np.flatnonzero(~np.asarray(sound)).tolist()
    of = f" in {where} of {len(sound)} stack slices" * bool(kernel.stack)
    warn(
        f"not all units of {kernel.path!r}{of} could be updated with damp={damp!r}: "
        "their Gram matrices are not positive definite, and their weights stay; raise "
        "damp, e.g. to 0.1, or calibrate on more samples"
    )
