"""Outlier-weighted layer densities (OWL): more edges where large scores are more often.

A layer's share of outliers, and its density,

    D_l = share of |w| rms(x) above `outlier` times its mean in the layer
    density_l = density + 2 band (D_l - min D) / (max D - min D) - a mean

where the mean over all edges makes the densities add up to the budget. So densities lie
within a band of width `2 band`, and a layer with more outliers keeps more edges.

The paper has transformer blocks of one size for layers. Here layers may have any size,
the mean is over edges, and the total is met to the edge.

Reference: Yin, Wu, Zhang, Hsieh, Wang, Jia, Li, Liang, Pechenizkiy, Wang, Bendersky,
Wang, Liu, "Outlier Weighed Layerwise Sparsity (OWL)", arXiv 2310.05175.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bbjax.arrays.types import Number
from bbjax.budgets.allocation import Plain, Uneven
from bbjax.model.kernel import Kernel
from bbjax.model.leaves import Leaves
from bbjax.model.numbers import check_number
from bbjax.model.units import Units


def owl(
    density: Plain,
    params: Any,
    units: Units,
    stats: Any,
    *,
    outlier: Number = 5.0,
    band: float = 0.08,
    layers: str | None = None,
) -> Uneven:
    r"""Shares one budget out over layers by their outliers (OWL).

    Costs one pass over the weights, and memory for one score per edge of one kernel.

    Args:
      density: kept share of the edges of all kernels together, in (0, 1]; a number or a
        schedule of the step.
      params: the parameters before pruning.
      units: from `bb.trace`, with the selection that is pruned.
      stats: from `bb.calibrate(..., needs=["inputs.mean_square"])`.
      outlier: a score above this multiple of its layer's mean is an outlier, above 0;
        5 to 7 in the paper.
      band: the most that densities differ from `density` on either side if layers are
        symmetric around it, in [0, 0.5]; .08 in the paper.
      layers: a regular expression. Kernels in whose paths it finds the same text are
        one layer, slice by slice: `"layer_\d+"`, or `""` for the slices of a scanned
        stack. By default every kernel, and every slice of it, is a layer of its own.

    Returns:
      What `density=` of `bb.transform` and `bb.prune` takes, for the same kernels. A
      layer whose density would leave [0, 1] gets the bound (or the floor of its units),
      and the others share the rest in proportion.

    Raises:
      TypeError: an argument of the wrong kind, a call under jit.
      ValueError: a value out of range, statistics that are missing or of other shapes,
        weights that are not finite, a kernel in whose path `layers` finds nothing,
        kernels of one layer with unlike stacks.

    Example:
      >>> import bbjax as bb
      >>> def fn(params, x):
      ...     return x @ params["a"] + x @ params["b"]
      >>> params = {"a": jnp.ones((4, 8)), "b": jnp.ones((4, 8)).at[0, :2].set(99.0)}
      >>> units = bb.trace(fn, params, jnp.ones((1, 4))).select("a|b")
      >>> needs = ["inputs.mean_square"]
      >>> stats = bb.calibrate(fn, units, params, [(jnp.ones((1, 4)),)], needs=needs)
      >>> density = owl(0.5, params, units, stats, band=0.125)
      >>> _, masks = bb.prune(params, units, bb.rules.magnitude(), density)
      >>> int(masks["a"].sum()), int(masks["b"].sum())
      (12, 20)
    """
    if not isinstance(units, Units):
        raise TypeError(
            f"expected units from bb.trace, got {type(units).__name__}; call "
            "bb.trace(loss_fn, params, *args) first"
        )
    check_number("outlier", outlier, "(0, inf)", "it is a multiple of the mean, e.g. 5")
    check_number("band", band, "[0, 0.5]", "it is a difference of densities, e.g. 0.08")
    kernels = [units[path] for path in units.budgeted]
    tree = Leaves.of(params)
    members = by_layer(kernels, layers, "layers").values()
    found: dict[str, tuple[float, ...]] = {}
    for group in members:
        scores = [_scores(kernel, tree, stats) for kernel in group]
        counted = _outliers(scores, outlier)
        if isinstance(counted, jax.core.Tracer):
            raise TypeError(
                "expected params and stats with values, got traced ones; call bb.owl "
                "outside of jit"
            )
        shares = np.asarray(counted)
        if not np.isfinite(shares).all():
            raise ValueError(
                f"expected finite weights in {[k.path for k in group]}, got NaN or "
                "infinity; check the parameters"
            )
        found |= {kernel.path: tuple(shares.tolist()) for kernel in group}
    every = [share for shares in found.values() for share in shares]
    low, wide = min(every), max(every) - min(every)
    scale = 2 * band / wide if wide > 0 else 0.0
    raised = {
        path: tuple(scale * (share - low) for share in shares)
        for path, shares in found.items()
    }
    return Uneven(density, tuple(raised.items()))


def by_layer(
    kernels: Sequence[Kernel], pattern: str | None, argument: str
) -> dict[str, list[Kernel]]:
    """The kernels that are one layer, slice by slice, by what their paths share.

    Args:
      kernels: to be grouped.
      pattern: finds what the kernels of a layer share; None for kernels by themselves.
      argument: name of the argument that the pattern was passed as.

    Raises:
      ValueError: no regular expression, a kernel in whose path it finds nothing, or
        kernels of a layer with unlike stacks.
    """
    if pattern is None:
        return {kernel.path: [kernel] for kernel in kernels}
    try:
        search = re.compile(pattern).search
    except (TypeError, re.error) as error:
        raise ValueError(
            f"expected {argument} to be a regular expression, got {pattern!r}: {error}"
        ) from error
    groups: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        found = search(kernel.path)
        if found is None:
            raise ValueError(
                f"expected {argument}={pattern!r} to match every kernel, got no match "
                f"in {kernel.path!r}; widen it, e.g. to '{pattern}|.*'"
            )
        groups.setdefault(found.group(), []).append(kernel)
    for name, group in groups.items():
        if len({kernel.stack_shape for kernel in group}) > 1:
            stacks = {kernel.path: kernel.stack_shape for kernel in group}
            raise ValueError(
                f"expected kernels of layer {name!r} with the same stack axes, got "
                f"{stacks}; take a pattern that tells them apart"
            )
    return groups


def _scores(kernel: Kernel, tree: Leaves, stats: Any) -> Float[Array, "slices edges"]:
    """|w| rms(x) of every edge, slices first."""
    sides = stats.get(kernel.path) if isinstance(stats, Mapping) else None
    square = getattr(getattr(sides, "inputs", None), "mean_square", None)
    if square is None:
        raise ValueError(
            f"expected the mean square of the inputs of {kernel.path!r}, got none; "
            "calibrate with units that select the kernel, bb.calibrate(fn, units, "
            'params, batches, needs=["inputs.mean_square"])'
        )
    if jnp.shape(square) != kernel.per_unit_shape("inputs"):
        raise ValueError(
            f"expected the mean square of the inputs of {kernel.path!r} of shape "
            f"{kernel.per_unit_shape('inputs')}, got {jnp.shape(square)}; measure it "
            "with the units at hand"
        )
    weights = jnp.asarray(tree.get(kernel, "parameter"))
    size = kernel.sum_spatial(kernel.edges(jnp.abs(weights.astype(jnp.float32))))
    score = size * kernel.spread(jnp.sqrt(jnp.asarray(square)), "inputs")
    order = kernel.axes("stack") + kernel.axes("group", "in", "out")
    return jnp.reshape(
        jnp.transpose(score, order), (math.prod(kernel.stack_shape), kernel.edge_count)
    )


@jax.jit
def _outliers(
    scores: list[Float[Array, "slices _"]], outlier: Number
) -> Float[Array, " slices"]:
    """The share of outliers in each slice, over all kernels of a layer."""
    count = sum(score.shape[1] for score in scores)

    def over_all(parts: list[Array]) -> Float[Array, "slices 1"]:
        sums = [jnp.sum(part, axis=1, keepdims=True) for part in parts]
        return functools.reduce(operator.add, sums) / count

    mean = over_all(scores)
    bound = mean * jnp.asarray(outlier).astype(jnp.float32)
    above: list[Bool[Array, "slices _"]] = [score > bound for score in scores]
    share = over_all([part.astype(jnp.float32) for part in above])
    return jnp.where(jnp.isfinite(mean), share, mean)[:, 0]
