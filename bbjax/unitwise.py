"""Whole units: scores for every unit of every group, and masks without the lowest.

A group of `units.graph` is one set of units on many axes. Here a unit goes with all of
it, so that `bb.shrink` makes the model smaller by exactly what was cut:

    scores = bb.unitwise.group_magnitude(units, params)     one array per group
    masks  = bb.unitwise.cut(units, scores, density=0.5)    half of every group goes
    small  = bb.shrink(fn, params, masks, *args)

Scores are float64 numpy arrays of shape `layers + (units,)` by the name of the group,
for the groups that can shrink. Everything is computed once, on the host. References:
group magnitude as in DepGraph (Fang et al., arXiv 2301.12900); activity as in
Fine-Pruning (arXiv 2602.18507) and APoZ (arXiv 1607.03250); traffic is Budgeted
Broadcast's (arXiv 2510.01263), for units that speak to all or to none.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from bbjax.axes.groups import Group, Member
from bbjax.budget import check_int
from bbjax.host import check_values, on_host
from bbjax.leaves import Leaves
from bbjax.units import Units

__all__ = ["activity", "cut", "group_magnitude", "traffic"]

Scores = dict[str, np.ndarray]
_MOST = 2**31 - 1


def free_groups(units: Units) -> dict[str, Group]:
    """The groups that can shrink, by name; a name that comes twice gets a number.

    Example:
      >>> import bbjax as bb, jax, jax.numpy as jnp
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
      >>> list(free_groups(bb.trace(net, params, jnp.ones((5, 3)))))
      ['up[1]']
    """
    if not isinstance(units, Units):
        raise TypeError(
            f"expected units as bb.trace makes them, got {type(units).__name__}; they "
            "come first, before parameters, statistics or scores"
        )
    found: dict[str, Group] = {}
    for group in units.graph:
        if not group.fixed:
            name, number = group.name, 1
            while name in found:
                number += 1
                name = f"{group.name}#{number}"
            found[name] = group
    return found


# Scores --------------------------------------------------------------------------
def group_magnitude(units: Units, params: Any) -> Scores:
    """Mean square norm of all that belongs to a unit, wherever it is.

    For every parameter with an axis of the group, the squared norm of the unit's slice
    over its mean in the group (so that large arrays do not outvote small ones); then
    the mean of these. 1 is an average unit.

    Args:
      units: from `bb.trace`.
      params: the parameters that were traced.

    Raises:
      ValueError: a parameter that is not there.
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
                    f"expected parameters with {member.path!r}, got a tree without it; "
                    "pass the parameters that were traced"
                )
            array = np.asarray(leaves.at(member.path)).astype(np.float64)
            norms = _of_units(group, member, np.square(array))
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
    """Activity of every unit, as measured behind the kernels that make it.

    Fine-Pruning removes units of the lowest `"mean_abs"`; with `"on_rate"` these are
    the units with the highest share of zeros after a ReLU, as APoZ removes them. Where
    several kernels make the units of a group, the largest activity counts.

    Args:
      units: from `bb.trace`.
      stats: from `bb.calibrate`, with the statistic.
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
    found = {}
    for name, group in free_groups(units).items():
        each = []
        for member in group.having("makes"):
            outputs = getattr(stats.get(member.path), "outputs", None)
            values = getattr(outputs, statistic, None)
            if values is None:
                raise ValueError(
                    f"expected {statistic} of the outputs of {member.path!r}, got "
                    "statistics without it; name it in the needs of bb.calibrate"
                )
            each.append(_of_outputs(units, group, member, np.asarray(values)))
        found[name] = np.max(each, axis=0)
    return found


def traffic(
    units: Units, stats: Mapping[str, Any], masks: Mapping[str, Any] | None = None
) -> Scores:
    """Budgeted Broadcast for whole units: minus the traffic `a * k`, so busy ones go.

    `k` counts the edges that listen to a unit, of all readers. A unit that is never on
    has no traffic and nothing to say; its score is lowest.

    Args:
      units: from `bb.trace`.
      stats: from `bb.calibrate`, with `on_rate`.
      masks: by path; edges that are cut already do not count.

    Raises:
      ValueError: a kernel without on-rates.

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
    found = {}
    for name, group in free_groups(units).items():
        degree = np.zeros((*group.layers, group.size))
        for member in group.having("reads"):
            kernel = units[member.path]
            mask = kept.get(member.path, np.ones(kernel.shape, bool))
            window = math.prod(kernel.shape[a] for a in kernel.spatial)
            degree += _of_units(group, member, mask.astype(np.float64)) / window
        rate = rates[name]
        found[name] = np.where(rate > 0, -rate * degree, -np.inf)
    return found


def _of_outputs(
    units: Units, group: Group, member: Member, values: np.ndarray
) -> np.ndarray:
    """Mean over what a unit of a group is several outputs of (dimensions of a head)."""
    kernel = units[member.path]
    axes = (*kernel.stack, *kernel.fan_out)
    order = np.argsort(axes)
    shape = [kernel.shape[a] for a in axes]
    spread = np.transpose(values.astype(np.float64).reshape(shape), order)
    others = [a for a in range(len(kernel.shape)) if a not in axes]
    full = np.expand_dims(spread, others)
    ones = np.ones_like(full)
    return _of_units(group, member, full) / _of_units(group, member, ones)


def _of_units(group: Group, member: Member, array: np.ndarray) -> np.ndarray:
    """Sums of an array over all that is a unit's, `layers + (units,)`."""
    lead = (*member.stack, member.axis)
    moved = np.moveaxis(array, lead, range(len(lead)))
    flat = moved.reshape(*moved.shape[: len(lead)], -1).sum(axis=-1)
    found = np.zeros((*flat.shape[:-1], group.size))
    mine = member.units >= 0
    np.add.at(
        np.moveaxis(found, -1, 0), member.units[mine], np.moveaxis(flat, -1, 0)[mine]
    )
    return found


# Masks ---------------------------------------------------------------------------
def cut(
    units: Units,
    scores: Mapping[str, np.ndarray],
    density: float | Mapping[str, float] | None = None,
    *,
    least: float | None = None,
    scope: Literal["group", "global"] = "group",
    multiple_of: int | Mapping[str, int] = 1,
) -> dict[str, np.ndarray]:
    """Masks without the units of the lowest scores, all that belongs to them cut.

    Args:
      units: from `bb.trace`.
      scores: by name of group; groups without scores stay whole. Equal scores stay in
        order of index. One unit of every group and layer stays whatever its score.
      density: share of units that stay, `round(density * units)` of them; by name of
        group, or for all.
      least: the lowest score that stays; in place of a density. Units over a traffic
        budget `b` have a `traffic` score below `-b`.
      scope: `"group"`: every group and layer by itself; `"global"`: units of all groups
        compete, and as many stay in all. Layers of a scan keep one number of units.
      multiple_of: numbers of units that hardware likes: the number that stays is the
        next such multiple, or all; for all groups, or by name of those it is for
        (units of a group of heads are heads).

    Returns:
      By path, bool arrays of the parameters' shapes, for `bb.shrink`, `bb.hold` and
      `bb.apply_masks`.

    Raises:
      ValueError: neither or both of density and least, a density outside [0, 1], an
        unknown group or scope, scores of another shape or NaN, a multiple below 1.
      TypeError: scores or densities without values (traced).

    Example:
      >>> import bbjax as bb, jax, jax.numpy as jnp
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.array([[1.0, 3.0]]), "down": jnp.ones((2, 1))}
      >>> units = bb.trace(net, params, jnp.ones((5, 1)))
      >>> masks = cut(units, group_magnitude(units, params), 0.5)
      >>> masks["up"].tolist(), masks["down"].tolist()
      ([[False, True]], [[False], [True]])
    """
    known = free_groups(units)
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"expected scores by name of group, got {type(scores).__name__}; pass what "
            "bb.unitwise.group_magnitude, activity or traffic returned"
        )
    _check(known, scores, density, least, scope)
    steps = _steps(known, multiple_of)
    if least is not None:
        counts = {n: (s >= least).sum(axis=-1).max() for n, s in scores.items()}
    elif scope == "global":
        counts = _shared(scores, density)
    else:
        shares = _shares(scores, density)
        counts = {n: round(float(shares[n]) * s.shape[-1]) for n, s in scores.items()}
    masks: dict[str, np.ndarray] = {}
    for name, score in scores.items():
        best = np.argsort(-score, axis=-1, kind="stable")
        rank = np.argsort(best, axis=-1, kind="stable")
        step, stay = steps[name], max(int(counts[name]), 1)
        _mask(known[name], rank < -(-stay // step) * step, masks)
    return masks


def _steps(known: Mapping[str, Group], multiple_of: Any) -> dict[str, int]:
    """What the number of units of every group is to be a multiple of."""
    by_name = isinstance(multiple_of, Mapping)
    steps = dict.fromkeys(known, 1 if by_name else multiple_of)
    if by_name:
        if unknown := sorted(multiple_of.keys() - known.keys()):
            raise ValueError(
                f"expected multiples for groups that can shrink, got {unknown}; they "
                f"are {list(known)[:8]}"
            )
        steps |= multiple_of
    for name, step in steps.items():
        check_int("multiple_of", step, 1, _MOST, f"got it for the units of {name!r}")
    return steps


def _shares(scores: Mapping[str, np.ndarray], density: Any) -> Mapping[str, Any]:
    return density if isinstance(density, Mapping) else dict.fromkeys(scores, density)


def _shared(scores: Mapping[str, np.ndarray], density: Any) -> dict[str, int]:
    """How many units every group keeps where all compete.

    A group of a scan competes with the mean over its layers, rank by rank.
    """
    ranked = {
        name: np.sort(score, axis=-1)[..., ::-1].reshape(-1, score.shape[-1]).mean(0)
        for name, score in scores.items()
    }
    names = np.concatenate([[n] * len(s) for n, s in ranked.items()])
    values = np.concatenate([np.r_[np.inf, s[1:]] for s in ranked.values()])
    best = np.argsort(-values, kind="stable")[: round(float(density) * len(values))]
    return {name: int((names[best] == name).sum()) for name in ranked}


def _mask(group: Group, kept: np.ndarray, masks: dict[str, np.ndarray]) -> None:
    """Cuts everything of the units that go."""
    for member in group.members:
        mine = np.where(member.units >= 0, kept[..., member.units], True)
        axes = (*member.stack, member.axis)
        spread = np.transpose(mine, np.argsort(axes))
        others = [a for a in range(len(member.shape)) if a not in axes]
        full = np.expand_dims(spread, others)
        mask = masks.get(member.path, np.ones(member.shape, bool))
        masks[member.path] = mask & full


def _check(
    known: Mapping[str, Group],
    scores: Mapping[str, np.ndarray],
    density: Any,
    least: Any,
    scope: str,
) -> None:
    if (density is None) == (least is None):
        raise ValueError(
            f"expected a density or a least score, got density={density!r} and "
            f"least={least!r}; pass one of them"
        )
    if scope not in ("group", "global"):
        raise ValueError(
            f'expected scope "group" or "global", got {scope!r}; under the second all '
            "groups compete"
        )
    if scope == "global" and isinstance(density, Mapping):
        raise ValueError(
            "expected one density for all groups where they compete, got one for each; "
            'pass scope="group"'
        )
    shares = _shares(scores, density)
    check_values(scores, "scores")
    check_values(shares, "densities")
    for name, score in scores.items():
        if name not in known:
            raise ValueError(
                f"expected scores of groups that can shrink, got {name!r}; they are "
                f"{list(known)[:8]}"
            )
        group = known[name]
        if np.shape(score) != (*group.layers, group.size):
            raise ValueError(
                f"expected scores of shape {(*group.layers, group.size)} for {name!r}, "
                f"got {np.shape(score)}; one per unit"
            )
        if np.isnan(score).any():
            raise ValueError(
                f"expected scores that are numbers for {name!r}, got NaN; look at the "
                "parameters or statistics they come from"
            )
        share: Any = shares.get(name) if least is None else 1.0
        if not _is_number(share) or not 0.0 <= float(share) <= 1.0:
            raise ValueError(
                f"expected a density in [0, 1] for {name!r}, got {share!r}; it is the "
                f"share of units that stay, for all groups or for each: {list(scores)}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
