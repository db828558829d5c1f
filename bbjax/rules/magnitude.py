"""Magnitude pruning: the largest weights stay, among those they compete with.

    unit     k = budget / units, each unit keeps its k largest |w| (one more for the
             first units while some are left)
    layer    the budget of a stack slice, over all its edges
    global   one budget, over all edges of all kernels
    pools    one budget for the kernels of each path pattern

The score |w| of an edge of a convolution is the sum over its window; `score` takes
another one (`bbjax.rules.parts.scores`). Budgets count all edges, not those that are
left: after any number of refreshes the density is what was asked for. Unit scope is the
control for every rule that gives units different degrees. Reference: Han et al., arXiv
1506.02626.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from bbjax.budgets import laws
from bbjax.model.text import regular
from bbjax.rules.base import Chosen, Group, JointSelect, Rule
from bbjax.rules.parts.hysteresis import Score, scored
from bbjax.rules.parts.pools import competing, in_slices
from bbjax.rules.parts.scores import Name, score_called
from bbjax.rules.parts.selection import pooled_over, select_by_law

Scope = Literal["unit", "layer", "global"] | Sequence[str]


def magnitude(*, scope: Scope = "unit", score: Name = "magnitude") -> Rule:
    """Keeps the largest |w| of every unit, slice, pool of kernels, or of all kernels.

    In every scope but "unit" each unit first keeps its `k_min` largest weights;
    `k_min=0` gives the plain published baseline. Where a pool is too small for its
    floors, the budget counts. Weights of different kernels are compared as they are:
    layers with small weights lose most of their edges under "global".

    Args:
      scope: `"unit"`: each unit has its own share of the budget; `"layer"`: all edges
        of a stack slice compete for its budget; `"global"`: all edges of all budgeted
        kernels, slices of a stack included, compete for one budget; a tuple of regular
        expressions: the edges of all kernels whose path matches the same one compete
        (the first match counts), and a kernel that none matches is a layer.
      score: what an edge is worth: `"magnitude"`, |w|; `"wanda"`, |w| times the root
        mean square of its input; `"scaled"`, |w| times the square root of that where
        inputs are raw, |w| elsewhere; `"ria"`, that of `bb.rules.ria()`.

    Returns:
      A rule that needs no activity, but for what the score reads.

    Raises:
      TypeError: scope is no text and no sequence of texts.
      ValueError: unknown scope or score, no pattern or one that is no regular
        expression. When kernels are chosen from: a pattern that is left with none.

    Example:
      >>> magnitude(scope="global").joint, magnitude(scope="layer").joint
      (True, False)
      >>> magnitude(scope=("attention/", "mlp/")).name
      'magnitude[pools]'
      >>> magnitude(scope="layer", score="scaled").needs
      ('inputs.mean_square',)
    """
    of, needs = score_called(score)
    tail = "" if score == "magnitude" else f", {score}"
    if scope == "unit":
        name = "magnitude" if not tail else f"magnitude[{score}]"
        return Rule(name, select_by_law(laws.uniform(), of), needs)
    if scope == "layer" or scope == "global":
        name, joint = f"magnitude[{scope}{tail}]", scope == "global"
        return competing(name, of, needs, joint=joint)
    pooled = _in_pools(_checked(scope), of)
    return Rule(f"magnitude[pools{tail}]", pooled, needs, joint=True)


def _in_pools(patterns: Sequence[str], of: Score) -> JointSelect:
    in_layer = in_slices(of)

    def select(group: Group) -> list[Chosen]:
        masks: dict[int, Chosen] = {}
        for which in _pools([seen.kernel.path for seen in group.members], patterns):
            sizes = [scored(group.members[i], of) for i in which]
            masks |= zip(which, pooled_over(group, which, sizes), strict=True)
        return [
            masks[i] if i in masks else in_layer(seen)
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
        regular(pattern)
    return tuple(scope)
