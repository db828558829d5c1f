"""How far edges compete by a score, and the rules whose score is a saliency.

    global    one budget for the edges of all kernels, slices of a stack included
    layer     the budget of every stack slice for its own edges

Each unit first keeps its `k_min` best edges. An edge whose score is NaN ranks below all
others. A saliency is made of weights and gradients, that of an edge of a convolution is
the sum over its window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bbjax.rules.base import Candidates, Group, JointSelect, Rule
from bbjax.rules.parts.hysteresis import Score, scored
from bbjax.rules.parts.selection import pooled, pooled_over

Scope = Literal["global", "layer"]


def in_slices(score: Score) -> Callable[[Candidates], Bool[Array, "*edges"]]:
    """Selection in which the edges of every slice compete for its budget."""
    return lambda seen: pooled(seen, scored(seen, score), seen.budget)


def over_all(score: Score) -> JointSelect:
    """Selection in which the edges of all kernels compete for one budget."""

    def select(group: Group) -> list[Bool[Array, "..."]]:
        everything = range(len(group.members))
        scores = [scored(seen, score) for seen in group.members]
        return pooled_over(group, everything, scores)

    return select


def check_scope(scope: Any, known: Sequence[str]) -> None:
    """Refuses a scope that is not known.

    Raises:
      ValueError: if so.
    """
    if scope not in known:
        names = " or ".join(f'"{name}"' for name in known)
        raise ValueError(
            f"expected scope {names}, got {scope!r}; it is how far edges compete"
        )


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
    check_scope(scope, get_args(Scope))

    def score(seen: Candidates) -> Float[Array, "*edges"]:
        assert seen.grads is not None
        w, g = seen.weights.astype(jnp.float32), seen.grads.astype(jnp.float32)
        return seen.kernel.sum_spatial(of(w * g))

    joint = scope == "global"
    select = over_all(score) if joint else in_slices(score)
    name = name if joint else f"{name}[{scope}]"
    return Rule(name, select, needs=("grads",), joint=joint, one_shot=one_shot)
