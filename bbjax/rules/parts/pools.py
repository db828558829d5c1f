"""Competition of edges by a score, and the rules that consist of it.

    layer     the edges of every stack slice, for its own budget
    global    the edges of all kernels, slices of a stack included, for one budget

Each unit first keeps its `k_min` best edges. An edge whose score is NaN ranks below all
others. A saliency is made of weights and gradients; that of an edge of a convolution is
the sum over its window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bbjax.rules.base import Candidates, Group, JointSelect, Rule, Select
from bbjax.rules.parts.hysteresis import Score, scored
from bbjax.rules.parts.selection import pooled, pooled_over

Scope = Literal["layer", "global"]


def in_slices(score: Score) -> Select:
    """Selection in which the edges of every slice compete for its budget."""
    return lambda seen: pooled(seen, scored(seen, score), seen.budget)


def over_all(score: Score) -> JointSelect:
    """Selection in which the edges of all kernels compete for one budget."""

    def select(group: Group) -> list[Bool[Array, "..."]]:
        everything = range(len(group.members))
        scores = [scored(seen, score) for seen in group.members]
        return pooled_over(group, everything, scores)

    return select


def check_scope(scope: Any) -> None:
    """Raises an error if a scope is not known.

    Raises:
      ValueError: if so.
    """
    if scope not in get_args(Scope):
        names = " or ".join(f'"{name}"' for name in get_args(Scope))
        raise ValueError(
            f"expected scope {names}, got {scope!r}; it is how far edges compete"
        )


def competing(
    name: str,
    score: Score,
    needs: tuple[str, ...],
    *,
    joint: bool,
    one_shot: bool = False,
) -> Rule:
    """A rule whose edges compete by a score.

    Args:
      name: of the rule.
      score: from candidates to a score per edge, higher is kept.
      needs: what the score reads, as `Rule.needs`.
      joint: over all kernels; otherwise in every slice.
      one_shot: as `Rule.one_shot`.
    """
    select = over_all(score) if joint else in_slices(score)
    return Rule(name, select, needs, joint=joint, one_shot=one_shot)


def by_saliency(
    name: str,
    of: Callable[[Float[Array, "*split"]], Float[Array, "*split"]],
    scope: Scope,
    *,
    one_shot: bool = False,
) -> Rule:
    """A rule that keeps the edges of the highest scores `of(w * g)`.

    Args:
      name: of the rule.
      of: from the products of weights and gradients to scores, elementwise.
      scope: how far edges compete.
      one_shot: whether `g` is something else than the gradient of the loss.

    Raises:
      ValueError: unknown scope.

    Example:
      >>> by_saliency("snip", jnp.abs, "layer").name
      'snip[layer]'
    """
    check_scope(scope)

    def score(seen: Candidates) -> Float[Array, "*edges"]:
        assert seen.grads is not None
        w, g = seen.weights.astype(jnp.float32), seen.grads.astype(jnp.float32)
        return seen.kernel.sum_spatial(of(w * g))

    joint = scope == "global"
    name = name if joint else f"{name}[{scope}]"
    return competing(name, score, ("grads",), joint=joint, one_shot=one_shot)
