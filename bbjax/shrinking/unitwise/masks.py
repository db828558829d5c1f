"""Masks without the units of the lowest scores."""

from __future__ import annotations

import numbers
from collections.abc import Collection, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from bbjax.model.checks import check_values, meant
from bbjax.model.groups import Group, on_axes
from bbjax.model.numbers import INT32, check_int
from bbjax.model.units import Units
from bbjax.shrinking.unitwise.budget import Given, Scope, counted, ranking, within
from bbjax.shrinking.unitwise.groups import free_groups
from bbjax.shrinking.unitwise.model_costs import Costs


def cut(
    units: Units,
    scores: Mapping[str, np.ndarray],
    density: float | Mapping[str, float] | None = None,
    *,
    least: float | None = None,
    budget: Mapping[Literal["params", "flops", "bytes"], float] | None = None,
    costs: Costs | None = None,
    scope: Literal["group", "global"] = "group",
    multiple_of: int | Mapping[str, int] = 1,
) -> dict[str, np.ndarray]:
    """Masks that cut the units of the lowest scores, with all their parameters.

    Args:
      units: from `bb.trace`.
      scores: by name of group; groups without scores stay whole. Of equal scores the
        first ones stay. At least one unit of every group and layer stays.
      density: share of units that stay, `round(density * units)` of them; by name of
        group, or for all.
      least: the lowest score that stays; in place of a density. Units over a traffic
        budget `b` have a `traffic` score below `-b`.
      budget: in place of a density, the share of the whole model's parameters, of the
        operations of its products, or of the bytes of its parameters that may be left,
        in (0, 1]: `{"flops": 0.5}`. Of several, all hold. As many units stay as the
        budget allows: one more step (the next share of units for all groups, or under
        `"global"` the next unit) would exceed it.
      costs: from `bb.unitwise.costs`, with a budget. Groups in `costs.whole`, which
        `bb.shrink` would leave whole, keep all units, and so does any group that it
        would leave whole at the numbers of units that are found: the function is traced
        once more to check them.
      scope: `"group"`: every group and layer by itself; `"global"`: units of all groups
        compete, and the density holds for all together. Layers of a scan keep the same
        number of units.
      multiple_of: for sizes that hardware computes fast: the number of units that stay
        is rounded up to a multiple, at most to all; for all groups, or by name of group
        (a unit of a group of heads is a head).

    Returns:
      By path, bool arrays of the parameters' shapes, for `bb.shrink`, `bb.hold` and
      `bb.apply_masks`.

    Raises:
      ValueError: no group can shrink, with the reasons; none or several of density,
        least and budget, a density outside [0, 1], an unknown group or scope, scores of
        another shape or NaN, a multiple below 1; a budget outside (0, 1], of an unknown
        kind, or that the smallest model exceeds, with what cannot shrink.
      TypeError: scores that are no numbers; scores or densities without values; a
        budget that is not by kind of cost, or without costs.

    Example:
      >>> import bbjax as bb, jax, jax.numpy as jnp
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.array([[1.0, 3.0]]), "down": jnp.ones((2, 1))}
      >>> units = bb.trace(net, params, jnp.ones((5, 1)))
      >>> scores = bb.unitwise.group_magnitude(units, params)
      >>> masks = cut(units, scores, 0.5)
      >>> masks["up"].tolist(), masks["down"].tolist()
      ([[False, True]], [[False], [True]])
      >>> costs = bb.unitwise.costs(net, units, params, jnp.ones((5, 1)))
      >>> masks = cut(units, scores, budget={"flops": 0.5}, costs=costs)
      >>> masks["up"].tolist()
      [[False, True]]
    """
    known = free_groups(units)
    if not known:
        reasons = [f"{group.name}: {group.fixed}" for group in units.graph]
        raise ValueError(
            "expected a group of units that can shrink, got none: "
            + ("; ".join(reasons[:8]) or "the trace found no groups")
            + "; print(units.graph) lists all"
            + (f"\n{units.graph.note}" if units.graph.note else "")
        )
    scores = _checked(scores, known)
    shares: dict[str, Any] = dict.fromkeys(scores)
    shares |= _each(density, scores, "densities of groups that have scores")
    _check(shares, density, least, budget, scope)
    if budget is None and costs is not None:
        raise ValueError(
            "expected costs with a budget, got them alone; pass budget={...}, as "
            '{"flops": 0.5}'
        )
    steps = dict.fromkeys(known, 1)
    steps |= _each(multiple_of, known, "multiples of groups that can shrink")
    for name, step in steps.items():
        check_int("multiple_of", step, 1, INT32, f"got it for the units of {name!r}")
    ranks = {name: _rank(score) for name, score in scores.items()}
    given = Given(scores, ranks, steps)
    if budget is not None:
        sizes = within(budget, costs, units, given, scope)
    else:
        sizes = given.rounded(_counts(scores, shares, least, scope))
    masks: dict[str, np.ndarray] = {}
    for name, rank in ranks.items():
        _mask(known[name], rank < sizes[name], masks)
    return masks


def _rank(score: np.ndarray) -> np.ndarray:
    """The rank of every unit in its layer: the highest score first, ties by index."""
    best = np.argsort(-score, axis=-1, kind="stable")
    return np.argsort(best, axis=-1, kind="stable")


def _counts(
    scores: Mapping[str, np.ndarray],
    shares: Mapping[str, Any],
    least: float | None,
    scope: Scope,
) -> dict[str, int]:
    """How many units stay under a density or a least score."""
    if least is not None:
        return {n: (s >= least).sum(axis=-1).max() for n, s in scores.items()}
    if scope == "group":
        return {n: round(float(shares[n]) * s.shape[-1]) for n, s in scores.items()}
    names = ranking(scores)
    density = float(next(iter(shares.values()), 0.0))
    return counted(names[: round(density * len(names))], scores)


def _checked(scores: Any, known: Mapping[str, Group]) -> dict[str, np.ndarray]:
    """The scores as float64: unsigned integers could not be negated."""
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"expected scores by name of group, got {type(scores).__name__}; pass what "
            "bb.unitwise.group_magnitude, activity or traffic returned"
        )
    check_values(scores, "scores")
    scores = _each(scores, known, "scores of groups that can shrink")
    found = {name: np.asarray(score) for name, score in scores.items()}
    for name, score in found.items():
        shape = (*known[name].layers, known[name].size)
        if score.shape != shape:
            raise ValueError(
                f"expected scores of shape {shape} for {name!r}, got {score.shape}; "
                "one per unit"
            )
        kind = score.dtype
        if kind.kind not in "biuf" and not jnp.issubdtype(kind, jnp.floating):
            raise TypeError(
                f"expected scores that are numbers for {name!r}, got {kind}"
            )
        found[name] = score.astype(np.float64)
        if np.isnan(found[name]).any():
            raise ValueError(
                f"expected scores that are numbers for {name!r}, got NaN; check the "
                "parameters or statistics that they were computed from"
            )
    return found


def _each(given: Any, names: Collection[str], what: str) -> dict[str, Any]:
    """A value for all groups, or values by name, as values by name."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    if unknown := sorted(given.keys() - set(names)):
        raise ValueError(
            f"expected {what}, got some of {unknown}{meant(unknown[0], names)}; they "
            f"are {list(names)[:8]}"
        )
    return dict(given)


def _mask(group: Group, kept: np.ndarray, masks: dict[str, np.ndarray]) -> None:
    """Cuts all parameters of the units that do not stay."""
    for member in group.members:
        mine = np.where(member.units >= 0, kept[..., member.units], True)
        own = on_axes(mine, (*member.stack, member.axis), len(member.shape))
        mask = masks.get(member.path, np.ones(member.shape, bool))
        masks[member.path] = mask & own


def _check(
    shares: Mapping[str, Any], density: Any, least: Any, budget: Any, scope: str
) -> None:
    if sum(given is None for given in (density, least, budget)) != 2:
        raise ValueError(
            f"expected a density, a least score or a budget, got density={density!r}, "
            f"least={least!r} and budget={budget!r}; pass one of them"
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
    if least is not None and (not _is_number(least) or np.isnan(float(least))):
        raise ValueError(
            f"expected a number as the least score, got {least!r}; units with lower "
            "scores are cut"
        )
    check_values(shares, "densities")
    for name, share in shares.items() if density is not None else ():
        if not _is_number(share) or not 0.0 <= float(share) <= 1.0:
            raise ValueError(
                f"expected a density in [0, 1] for {name!r}, got {share!r}; it is the "
                f"share of units that stay, for all groups or for each: {list(shares)}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
