"""Scores of the units of every group.

References: group magnitude as in DepGraph (Fang et al., arXiv 2301.12900); activity as
in Fine-Pruning (arXiv 2602.18507) and APoZ (arXiv 1607.03250); traffic is that of
Budgeted Broadcast (arXiv 2510.01263), for units that keep all their edges or none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from bbjax.model.checks import (
    Masks,
    check_values,
    meant,
    on_host,
    refuse_misnamed,
)
from bbjax.model.groups import Group, Member, of_units, on_axes
from bbjax.model.leaves import Leaves
from bbjax.model.units import Units
from bbjax.shrinking.unitwise.groups import free_groups

Scores = dict[str, np.ndarray]


def group_magnitude(units: Units, params: Any) -> Scores:
    """Mean square norm of all parameters of a unit.

    For every parameter with an axis of the group, the squared norm of the unit's slice
    over the mean of these norms in the group, so that large and small arrays count the
    same; then the mean over the parameters. An average unit has score 1.

    Args:
      units: from `bb.trace`.
      params: the parameters that were traced.

    Raises:
      ValueError: a parameter that is missing, or has another shape.
      TypeError: parameters without values (traced, or shapes).

    Example:
      >>> import bbjax as bb, jax, jax.numpy as jnp
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.array([[1.0, 3.0]]), "down": jnp.ones((2, 1))}
      >>> units = bb.trace(net, params, jnp.ones((5, 1)))
      >>> group_magnitude(units, params)["up[1]"]
      array([0.6, 1.4])
    """
    leaves = Leaves.of(params)
    check_values(leaves.named(), "parameters")
    found = {}
    for name, group in free_groups(units).items():
        each = []
        for member in group.members:
            if member.path not in leaves.by_path:
                raise ValueError(
                    f"expected parameters with {member.path!r}, got a tree without it"
                    f"{meant(member.path, leaves.by_path)}; pass the parameters that "
                    "were traced"
                )
            if jnp.shape(leaves.at(member.path)) != member.shape:
                raise ValueError(
                    f"expected {member.path!r} of shape {member.shape}, got "
                    f"{jnp.shape(leaves.at(member.path))}; pass units and parameters "
                    "of one model (small.units and small.params after bb.shrink)"
                )
            array = np.asarray(leaves.at(member.path)).astype(np.float64)
            norms = of_units(group, member, np.square(array))
            mean = norms.mean(axis=-1, keepdims=True)
            each.append(
                np.divide(norms, mean, out=np.ones_like(norms), where=mean != 0)
            )
        found[name] = np.mean(each, axis=0)
    return found


def activity(
    units: Units,
    stats: Mapping[str, Any],
    statistic: Literal["mean_abs", "mean_square", "on_rate", "max_abs"] = "mean_abs",
) -> Scores:
    """Activity of every unit, as measured on the outputs of the kernels that make it.

    Fine-Pruning removes the units with the lowest `"mean_abs"`. The units with the
    lowest `"on_rate"` have the largest share of zeros after a ReLU; APoZ removes these.
    If several kernels make the units of a group, the largest activity counts. Groups
    that no kernel makes, as the columns of an embedding, have no activity and no score;
    `bb.unitwise.cut` leaves them whole.

    Args:
      units: from `bb.trace`.
      stats: from `bb.calibrate` of all kernels, with the statistic.
      statistic: of the outputs.

    Raises:
      ValueError: a kernel without the statistic.

    Example:
      >>> import bbjax as bb, jax, jax.numpy as jnp
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.array([[1.0, -3.0]]), "down": jnp.ones((2, 1))}
      >>> units = bb.trace(net, params, jnp.ones((5, 1)))
      >>> stats = bb.calibrate(
      ...     net, units, params, [(jnp.ones((5, 1)),)], needs=("mean_abs",)
      ... )
      >>> activity(units, stats)["up[1]"]
      array([1., 0.])
    """
    if not isinstance(stats, Mapping):
        raise TypeError(
            f"expected activity by path, got {type(stats).__name__}; pass what "
            "bb.calibrate returned"
        )
    found = {}
    for name, group in free_groups(units).items():
        makers = group.having("makes")
        if not makers:  # an embedding's columns: nothing measures them
            continue
        each = []
        for member in makers:
            outputs = getattr(stats.get(member.path), "outputs", None)
            values = getattr(outputs, statistic, None)
            if values is None:
                raise ValueError(
                    f"expected {statistic} of the outputs of {member.path!r}, got "
                    "statistics without it; name it in the needs of bb.calibrate, and "
                    "calibrate units without a selection, which would leave out others"
                )
            each.append(_of_outputs(units, group, member, np.asarray(values)))
        found[name] = np.max(each, axis=0)
    return found


def traffic(
    units: Units, stats: Mapping[str, Any], masks: Masks | None = None
) -> Scores:
    """Budgeted Broadcast for whole units: minus the traffic `a * k`.

    The units with the most traffic have the lowest scores. `k` is the number of
    outgoing edges of a unit, in all kernels that read it. A unit that is never on has
    no traffic and no effect; its score is `-inf`.

    Args:
      units: from `bb.trace`.
      stats: from `bb.calibrate`, with `on_rate`.
      masks: by path; edges that are already cut do not count.

    Raises:
      ValueError: a kernel without on-rates, or a mask of another shape.

    Example:
      >>> import bbjax as bb, jax, jax.numpy as jnp
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.array([[1.0, -3.0]]), "down": jnp.ones((2, 4))}
      >>> units = bb.trace(net, params, jnp.ones((5, 1)))
      >>> stats = bb.calibrate(
      ...     net, units, params, [(jnp.ones((5, 1)),)], needs=("on_rate",)
      ... )
      >>> traffic(units, stats)["up[1]"]
      array([ -4., -inf])
    """
    rates = activity(units, stats, "on_rate")
    kept = {} if masks is None else on_host(masks)
    refuse_misnamed(kept, units.paths)
    found = {}
    groups = free_groups(units)
    for name, rate in rates.items():
        group = groups[name]
        degree = np.zeros((*group.layers, group.size))
        for member in group.having("reads"):
            kernel = units[member.path]
            mask = kept.get(member.path, np.ones(kernel.shape, bool))
            if mask.shape != kernel.shape:
                raise ValueError(
                    f"expected a mask of shape {kernel.shape} for {member.path!r}, got "
                    f"{mask.shape}; use masks and the trace of one model"
                )
            window = math.prod(kernel.shape[a] for a in kernel.spatial)
            degree += of_units(group, member, mask.astype(np.float64)) / window
        found[name] = np.where(rate > 0, -rate * degree, -np.inf)
    return found


def _of_outputs(
    units: Units, group: Group, member: Member, values: np.ndarray
) -> np.ndarray:
    """Mean over the outputs that one unit of a group has (dimensions of a head)."""
    kernel = units[member.path]
    axes = (*kernel.stack, *kernel.fan_out)
    each = values.astype(np.float64).reshape([kernel.shape[a] for a in axes])
    full = on_axes(each, axes, len(kernel.shape))
    return of_units(group, member, full) / of_units(group, member, np.ones_like(full))
