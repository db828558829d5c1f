"""Which pairs of a query and a key token are kept.

For every head and sequence, with `allowed` pairs (masks of padding, of the future):

    budget   = round(density * allowed pairs), at least one pair of every query
    a_j      = |k_j|^2 / (|k_j|^2 + mean |k|^2)           loudness of token j
    degrees  = law(a_j), queries that token j reaches: exactly the budget together, at
               most those that may see it
    kept     = for each token, its pairs of the highest scores

Means are over the tokens that some query may see; what is padded counts nowhere. The
log-odds of a loudness are `log(mean |k|^2 / |k_j|^2)`: with the default law a token of
twice the mean square reaches `spread * log 2` of the mean degree fewer. The best pair
of each query is kept before any other, so that no query is left with nothing. A query
that is left over goes to the quieter of two tokens with the same claim, under a law
that does not read loudness to the earlier one.

Shapes: scores, allowed and kept `(..., queries, keys)`; loudness `(..., keys)`.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Real

from bbjax.arrays.topk import top_k_mask
from bbjax.budgets import laws
from bbjax.budgets.degrees import solve
from bbjax.budgets.exact import exact_budget, mean_degree

Rank = Literal["score", "weight"]
RANKS = get_args(Rank)
_CLIP = 1e-2  # of loudness, as laws clip it


def kept_pairs(
    scores: Float[Array, "*batch queries keys"],
    loudness: Float[Array, "*batch keys"],
    allowed: Bool[Array, "*batch queries keys"],
    *,
    density: Real[Array, ""] | float,
    law: laws.Law,
) -> Bool[Array, "*batch queries keys"]:
    """Marks the pairs to keep.

    Args:
      scores: by which a token ranks its queries; NaN ranks last.
      loudness: of the key tokens, in [0, 1].
      allowed: pairs that there are.
      density: share of the allowed pairs to keep, in (0, 1]; may be traced.
      law: from loudness to degrees.

    Returns:
      The kept pairs: in every `queries x keys` exactly `round(density * allowed)`, or
      one for every query that has any, if that is more. The density counts as the
      float32 that is nearest to it.

    Example:
      >>> scores = jnp.array([[3.0, 1.0], [2.0, 1.0]])
      >>> loudness, allowed = jnp.array([0.9, 0.1]), jnp.ones((2, 2), bool)
      >>> law = laws.log_odds()
      >>> kept_pairs(scores, loudness, allowed, density=0.75, law=law).tolist()
      [[True, True], [True, False]]
    """
    least = jnp.finfo(scores.dtype).min
    scores = jnp.nan_to_num(scores, nan=least, neginf=least)
    scores = jnp.where(allowed, scores, -jnp.inf)
    best = jnp.argmax(scores, axis=-1, keepdims=True)
    index = lax.broadcasted_iota(best.dtype, scores.shape, scores.ndim - 1)
    first = (index == best) & allowed
    reach = jnp.sum(allowed, axis=-2, dtype=jnp.int32)
    owed = jnp.sum(first, axis=-2, dtype=jnp.int32)
    budget = exact_budget(jnp.asarray(density, jnp.float32), jnp.sum(reach, axis=-1))
    seen = jnp.maximum(jnp.sum(reach > 0, axis=-1), 1)
    profile = law.profile(loudness, mean_degree(budget, seen))
    ties = loudness if law.reads_activity else jnp.full_like(loudness, 0.5)
    degrees = solve(profile, law.combine, budget, reach, owed, ties)
    return top_k_mask(jnp.where(first, jnp.inf, scores), degrees, axis=-2)


def loudness(
    key: Float[Array, "*batch keys heads depth"],
    allowed: Bool[Array, "*batch heads queries keys"],
) -> Float[Array, "*batch heads keys"]:
    """Square norm of each key token as a share of itself and the mean of all.

    Args:
      key: the keys.
      allowed: pairs that there are; tokens that no query may see do not count for the
        mean.

    Returns:
      float32 in [0, 1]; one half for a token of the mean square. A token that no query
      may see has the mean log-odds of the others, so that it moves no mean of a law.

    Example:
      >>> key = jnp.array([[[1.0]], [[1.0]], [[2.0]]])
      >>> loudness(key, jnp.ones((1, 3, 3), bool)).tolist()
      [[0.3333..., 0.3333..., 0.6666...]]
    """
    square = jnp.sum(jnp.square(key.astype(jnp.float32)), axis=-1)
    square = jnp.moveaxis(square, -1, -2)
    seen = jnp.any(allowed, axis=-2)
    total = jnp.sum(jnp.where(seen, square, 0.0), axis=-1, keepdims=True)
    count = jnp.sum(seen.astype(jnp.float32), axis=-1, keepdims=True)
    mean = total / jnp.maximum(count, 1.0)
    both = square + mean
    share = jnp.where(both > 0, square / jnp.where(both > 0, both, 1.0), 0.5)
    inside = jnp.clip(share, _CLIP, 1 - _CLIP)
    odds = jnp.where(seen, jnp.log(inside / (1 - inside)), 0.0)
    middle = jnp.sum(odds, axis=-1, keepdims=True) / jnp.maximum(count, 1.0)
    return jnp.where(seen, share, jax.nn.sigmoid(middle))


def ranked(
    scores: Float[Array, "*batch queries keys"],
    allowed: Bool[Array, "*batch queries keys"],
    rank: Rank,
) -> Float[Array, "*batch queries keys"]:
    """Scores as they are, or as log weights of the whole attention of a query."""
    if rank == "score":
        return scores
    inside = jnp.where(allowed, scores, -jnp.inf)
    return scores - jax.nn.logsumexp(inside, axis=-1, keepdims=True)
