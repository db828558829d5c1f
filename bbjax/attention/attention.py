"""Dot-product attention over the pairs that a budget keeps."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from bbjax.attention.pairs import RANKS, Rank, kept_pairs, loudness, ranked
from bbjax.budgets import laws
from bbjax.budgets.exact import check_density
from bbjax.budgets.laws.base import check_law

BALANCE = laws.log_odds(dead=-1.0)  # a quiet token is not a dead unit
Pairs = Bool[Array, "*batch heads queries keys"]


def budgeted_attention(
    query: Float[ArrayLike, "*batch queries heads depth"],
    key: Float[ArrayLike, "*batch keys heads depth"],
    value: Float[ArrayLike, "*batch keys heads width"],
    bias: Float[ArrayLike, "..."] | None = None,
    mask: Real[ArrayLike, "..."] | Bool[ArrayLike, "..."] | None = None,
    *,
    density: float | Real[Array, ""],
    law: laws.Law | None = None,
    rank: Rank = "score",
    is_causal: bool = False,
    broadcast_dropout: bool = True,
    dropout_rng: Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
) -> Float[Array, "*batch queries heads width"]:
    """Attention in which each head of each sequence keeps an exact number of pairs.

    Every key token gets a budget of queries: the louder it is (the larger its norm),
    the fewer. Of the queries that may see it, those of the highest scores keep it.
    Softmax runs over what a query keeps, and gradients flow through that alone; which
    pairs are kept has none. Takes the time and memory of dense attention, and a
    selection more.

    The choice looks at the whole sequence. Under a causal mask, too, which pairs a
    query keeps depends on later tokens. So do not train it to predict the next token:
    its loss would use what it is to predict. It is for encoders, which see all tokens.

    It goes in the place of Flax's `dot_product_attention`, in linen and in NNX:

        nn.MultiHeadDotProductAttention(
            num_heads=8,
            attention_fn=functools.partial(bb.budgeted_attention, density=0.25),
        )

    Args:
      query: the queries.
      key: the keys.
      value: the values.
      bias: added to the scores, broadcastable to `(*batch, heads, queries, keys)`.
      mask: pairs that there are, not 0 or True, broadcastable likewise; None allows
        all.
      density: share of the allowed pairs to keep, in (0, 1]; may be traced. Counts as
        the float32 nearest to it.
      law: from loudness to relative degrees; None is `bb.laws.log_odds(dead=-1.0)`,
        `bb.laws.uniform()` gives all tokens the same number as far as they are seen.
        The floor of a law does not hold here: the best pair of each query does.
      rank: by what a token ranks its queries: "score", the scaled product with the
        bias, or "weight", its share of the query's whole attention.
      is_causal: allow no key behind its query, as well.
      broadcast_dropout: drop the same pairs in all of a batch.
      dropout_rng: key of the dropout.
      dropout_rate: share of the weights to drop, after the selection.
      deterministic: no dropout.
      dtype: of the computation; None promotes the three arrays.
      precision: of the products, as for `jax.numpy.einsum`.
      module: a Flax module that stores the weights, as Flax does with `sow_weights`.

    Returns:
      For every query the mean of the values that it keeps, by weight; 0 for a query to
      which no key is allowed.

    Raises:
      TypeError: `law` is no law, `density` no number.
      ValueError: a density outside (0, 1], arrays whose shapes do not fit, an unknown
        `rank`, dropout without a key.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> query, key, value = (jax.random.normal(k, (2, 16, 4, 8)) for k in keys)
      >>> out = budgeted_attention(query, key, value, density=0.25, is_causal=True)
      >>> out.shape
      (2, 16, 4, 8)
    """
    dtype = dtype or jnp.result_type(query, key, value)
    query, key, value = (jnp.asarray(x, dtype) for x in (query, key, value))
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            f"value: expected {key.shape[:-1]} before its last axis, as the keys have, "
            f"got {value.shape[:-1]}; give one value to every key"
        )
    scores, allowed = _scores(query, key, bias, mask, is_causal, precision)
    kept = _kept(scores, key, allowed, density, law, rank)
    least = jnp.finfo(scores.dtype).min
    weights = jax.nn.softmax(jnp.where(kept, scores, least), axis=-1)
    weights = jnp.where(kept, weights, 0).astype(dtype)
    if module is not None:
        module.sow("intermediates", "attention_weights", weights)
    if not deterministic and dropout_rate > 0:
        weights = _dropped(weights, dropout_rng, dropout_rate, broadcast_dropout)
    out: Array = jnp.einsum(
        "...hqk,...khd->...qhd", weights, value, precision=precision
    )
    return out


def budgeted_pairs(
    query: Float[ArrayLike, "*batch queries heads depth"],
    key: Float[ArrayLike, "*batch keys heads depth"],
    bias: Float[ArrayLike, "..."] | None = None,
    mask: Real[ArrayLike, "..."] | Bool[ArrayLike, "..."] | None = None,
    *,
    density: float | Real[Array, ""],
    law: laws.Law | None = None,
    rank: Rank = "score",
    is_causal: bool = False,
    precision: Any = None,
) -> Pairs:
    """The pairs that `budgeted_attention` keeps, for the same arguments.

    Args:
      query: the queries.
      key: the keys.
      bias: as there.
      mask: as there.
      density: as there.
      law: as there.
      rank: as there.
      is_causal: as there.
      precision: as there.

    Returns:
      Bool array; in each head of each sequence `round(density * allowed pairs)` are
      True, or one for every query that has any, if that is more.

    Raises:
      TypeError: as there.
      ValueError: as there.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> query, key = (jax.random.normal(k, (2, 16, 4, 8)) for k in keys)
      >>> pairs = budgeted_pairs(query, key, density=0.25, is_causal=True)
      >>> pairs.sum((-2, -1)).tolist()  # a quarter of 16 * 17 / 2
      [[34, 34, 34, 34], [34, 34, 34, 34]]
    """
    query, key = jnp.asarray(query), jnp.asarray(key)
    scores, allowed = _scores(query, key, bias, mask, is_causal, precision)
    return _kept(scores, key, allowed, density, law, rank)


def _kept(
    scores: Array, key: Array, allowed: Array, density: Any, law: Any, rank: Any
) -> Array:
    """The kept pairs; nothing flows back through the choice."""
    check_density(density)
    law = BALANCE if law is None else law
    check_law(law, "log_odds")
    if rank not in RANKS:
        raise ValueError(f"rank: expected one of {RANKS}, got {rank!r}")
    scores, key = jax.lax.stop_gradient((scores, key))
    return kept_pairs(
        ranked(scores, allowed, rank),
        loudness(key, allowed),
        allowed,
        density=density,
        law=law,
    )


def _scores(
    query: Array, key: Array, bias: Any, mask: Any, is_causal: bool, precision: Any
) -> tuple[Array, Array]:
    """Scores in float32, and which pairs there are."""
    if query.ndim < 3 or query.ndim != key.ndim:
        raise ValueError(
            "query, key: expected (*batch, tokens, heads, depth) both, got "
            f"{query.shape} and {key.shape}"
        )
    same = (*query.shape[:-3], *query.shape[-2:]), (*key.shape[:-3], *key.shape[-2:])
    if same[0] != same[1]:
        raise ValueError(
            "query, key: expected the same batch, heads and depth, got "
            f"{query.shape} and {key.shape}; repeat keys that several heads share"
        )
    scaled = query / jnp.asarray(math.sqrt(query.shape[-1]), query.dtype)
    scores = jnp.einsum("...qhd,...khd->...hqk", scaled, key, precision=precision)
    if scores.dtype.itemsize < 4:
        scores = scores.astype(jnp.float32)
    if bias is not None:
        scores = scores + _onto("bias", bias, scores).astype(scores.dtype)
    allowed = jnp.ones(scores.shape, bool)
    if mask is not None:
        allowed &= _onto("mask", mask, scores).astype(bool)
    if is_causal:
        past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        allowed &= jnp.broadcast_to(past, scores.shape)
    return scores, allowed


def _onto(name: str, given: Any, scores: Array) -> Array:
    try:
        return jnp.broadcast_to(given, scores.shape)
    except ValueError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to (*batch, heads, queries, "
            f"keys) = {scores.shape}, got {jnp.shape(given)}"
        ) from None


def _dropped(weights: Array, key: Any, rate: float, broadcast: bool) -> Array:
    """Weights of which a share is 0 and the others are larger by as much."""
    if key is None:
        raise ValueError(
            "dropout_rng: expected a key as dropout_rate is above 0, got None; give "
            "one, or deterministic=True"
        )
    shape = weights.shape
    if broadcast:  # over batch and heads, as Flax does
        shape = (1,) * (len(shape) - 2) + shape[-2:]
    stays = jax.random.bernoulli(key, 1 - rate, shape).astype(weights.dtype)
    dropped: Array = weights * (stays / jnp.asarray(1 - rate, weights.dtype))
    return dropped
