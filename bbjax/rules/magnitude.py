"""Magnitude pruning: the largest weights stay, among those they compete with.

    unit     k = budget / units, each unit keeps its k largest |w| (one more for the
             first units while some are left)
    layer    the budget of a stack slice, over all its edges
    global   one budget, over all edges of all kernels
    pools    one budget for the kernels of each path pattern

The score |w| of an edge of a convolution is the sum over its window. Budgets count all
edges, not those that are left: after any number of refreshes the density is what was
asked for. Unit scope is the control for every rule that gives units different degrees.
Reference: Han et al., arXiv 1506.02626.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

import jax

from bbjax import laws
from bbjax.rules.base import Group, JointSelect, Rule
from bbjax.rules.scoped import in_slices, over_all
from bbjax.rules.scores import magnitude as size
from bbjax.rules.selection import pooled_over, select_by_law
from bbjax.rules.stay import scored

Scope = Literal["unit", "layer", "global"] | Sequence[str]


def magnitude(*, scope: Scope = "unit") -> Rule:
    """Keeps the largest |w| of every unit, slice, pool of kernels, or of all kernels.

    In every scope but "unit" each unit first keeps its `k_min` largest weights;
    `k_min=0` gives the plain published baseline. Where a pool is too small for its
    floors, the budget counts. Weights of different kernels are compared as they are:
    layers with small weights lose most of their edges under "global".

    Args:
      scope: `"unit"`: each unit has its own share of the budget; `"layer"`: all edges
        of a stack slice compete for its budget; `"global"`: all edges of all budgeted
        kernels, slices of a stack included, compete for one budget; a tuple of regular
        expressions: so do the edges of the kernels whose path matches the same one
        (the first match counts), and a kernel that none matches is a layer.

    Returns:
      A rule that needs no activity.

    Raises:
      TypeError: scope is no text and no sequence of texts.
      ValueError: unknown scope, no pattern or one that is no regular expression. When
        kernels are chosen from: a pattern that is left with none.

    Example:
      >>> magnitude(scope="global").joint, magnitude(scope="layer").joint
      (True, False)
      >>> magnitude(scope=("attention/", "mlp/")).name
      'magnitude[pools]'
    """
    if scope == "unit":
        return Rule("magnitude", select_by_law(laws.uniform()))
    if scope == "layer":
        return Rule("magnitude[layer]", _in_layer)
    if scope == "global":
        return Rule("magnitude[global]", _everywhere, joint=True)
    return Rule("magnitude[pools]", _in_pools(_checked(scope)), joint=True)


_in_layer, _everywhere = in_slices(size), over_all(size)


def _in_pools(patterns: Sequence[str]) -> JointSelect:
    def select(group: Group) -> list[jax.Array]:
        masks: dict[int, jax.Array] = {}
        for which in _pools([seen.kernel.path for seen in group.members], patterns):
            sizes = [scored(group.members[i], size) for i in which]
            masks |= zip(which, pooled_over(group, which, sizes), strict=True)
        return [
            masks[i] if i in masks else _in_layer(seen)
            for i, seen in enumerate(group.members)
        ]

    return select


def _pools(paths: Sequence[str], patterns: Sequence[str]) -> Iterator[list[int]]:
    """Positions of the kernels of each pattern."""
    left = list(range(len(paths)))
    for pattern in patterns:
        which = [i for i in left if re.search(pattern, paths[i])]
        if not which:
            raise ValueError(
                f"expected patterns that each match a budgeted kernel, got {pattern!r},"
                f" which matches none of {[paths[i] for i in left]} (of all kernels, "
                "those that no pattern before it took); correct it or leave it out"
            )
        left = [i for i in left if i not in which]
        yield which


def _checked(scope: Scope) -> tuple[str, ...]:
    wanted = 'expected scope "unit", "layer", "global" or a tuple of path patterns'
    remedy = 'e.g. scope="layer" or scope=("attention/", "mlp/")'
    if isinstance(scope, str) or (isinstance(scope, Sequence) and not scope):
        raise ValueError(f"{wanted}, got {scope!r}; {remedy}")
    if not isinstance(scope, Sequence) or not all(isinstance(p, str) for p in scope):
        raise TypeError(f"{wanted}, got {scope!r}; {remedy}")
    for pattern in scope:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"expected a regular expression, got {pattern!r} ({error}); escape "
                "special characters with a backslash"
            ) from error
    return tuple(scope)
