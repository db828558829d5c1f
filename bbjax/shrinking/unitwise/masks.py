"""Masks without the units of the lowest scores."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from bbjax.model.checks import check_values
from bbjax.model.groups import Group
from bbjax.model.numbers import check_int
from bbjax.model.units import Units
from bbjax.shrinking.unitwise.groups import free_groups

_MOST = 2**31 - 1


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
      TypeError: scores that are no numbers; scores or densities without values.

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
    """
    known = free_groups(units)
    scores = {name: _numbers(known, name, s) for name, s in _by_name(scores).items()}
    _check(scores, density, least, scope)
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


def _by_name(scores: Any) -> Mapping[str, Any]:
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"expected scores by name of group, got {type(scores).__name__}; pass what "
            "bb.unitwise.group_magnitude, activity or traffic returned"
        )
    check_values(scores, "scores")
    return scores


def _numbers(known: Mapping[str, Group], name: str, score: Any) -> np.ndarray:
    """The scores of a group as float64: of unsigned integers none is below 0."""
    if name not in known:
        raise ValueError(
            f"expected scores of groups that can shrink, got {name!r}; they are "
            f"{list(known)[:8]}"
        )
    shape = (*known[name].layers, known[name].size)
    if np.shape(score) != shape:
        raise ValueError(
            f"expected scores of shape {shape} for {name!r}, got {np.shape(score)}; "
            "one per unit"
        )
    kind = np.asarray(score).dtype
    if kind.kind not in "biuf" and not jnp.issubdtype(kind, jnp.floating):
        raise TypeError(f"expected scores that are numbers for {name!r}, got {kind}")
    found = np.asarray(score).astype(np.float64)
    if np.isnan(found).any():
        raise ValueError(
            f"expected scores that are numbers for {name!r}, got NaN; look at the "
            "parameters or statistics they come from"
        )
    return found


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
    if not scores:
        return {}
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
    scores: Mapping[str, np.ndarray], density: Any, least: Any, scope: str
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
    if least is not None and (not _is_number(least) or np.isnan(float(least))):
        raise ValueError(
            f"expected a number as the least score, got {least!r}; units with lower "
            "scores go"
        )
    shares = _shares(scores, density)
    check_values(shares, "densities")
    if unknown := sorted(shares.keys() - scores.keys()):
        raise ValueError(
            f"expected densities of groups that have scores, got some of {unknown}; "
            f"they are {list(scores)[:8]}"
        )
    for name in scores:
        share: Any = shares.get(name) if least is None else 1.0
        if not _is_number(share) or not 0.0 <= float(share) <= 1.0:
            raise ValueError(
                f"expected a density in [0, 1] for {name!r}, got {share!r}; it is the "
                f"share of units that stay, for all groups or for each: {list(scores)}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
