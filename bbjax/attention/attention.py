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

_FORBIDS = -1e9  # a bias that no score makes up for
BALANCE = laws.log_odds(dead=-1.0)  # a quiet token is not a dead unit
Pairs = Bool[Array, "*batch heads queries keys"]


def budgeted_attention(
    query: Float[ArrayLike, "*batch queries heads depth"],
    key: Float[ArrayLike, "*batch keys shared depth"],
    value: Float[ArrayLike, "*batch keys shared width"],
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
    the fewer. Of the queries that may see it, those of the highest scores keep it. The
    best pair of each query is kept before any other: below some 3 pairs a query these
    are most of all, and loud tokens, which are the best for many, reach more queries
    than quiet ones. Softmax runs over what a query keeps, and gradients flow through
    that alone; which pairs are kept has none. Takes the time and memory of dense
    attention, and a selection more. Where the batch is split over devices, the loops of
    the selection end together: some 80 all-reduces of one number a call, and none where
    the call stands in a `jax.shard_map` over the batch.

    The choice looks at the whole sequence. Under a causal mask, too, which pairs a
    query keeps depends on later tokens. So do not train it to predict the next token:
    its loss would use what it is to predict. It is for encoders, which see all tokens,
    and not for decoding token by token: one query has nothing to rank.

    It goes in the place of Flax's `dot_product_attention`, in linen and in NNX:

        nn.MultiHeadDotProductAttention(
            num_heads=8,
            attention_fn=functools.partial(bb.budgeted_attention, density=0.25),
        )

    Begin with all pairs and let the density fall (`benchmarks/domains/attention` found
    that a net with a tenth of them from the start learns nothing). In linen, give the
    net `bb.ramp(0.25, 0, 5000)(step)` as the density where the loss is computed; it
    may be traced, so the step is compiled once. An NNX module that keeps the density in
    an attribute is compiled anew for each.

    Args:
      query: the queries.
      key: the keys; each may serve several heads of the queries in a row.
      value: the values, as many as keys.
      bias: added to the scores, broadcastable to `(*batch, heads, queries, keys)`. Up
        to -1e9, or half of its dtype's least number, it forbids a pair as `mask` does.
      mask: nonzero or True where a pair is allowed, broadcastable likewise; None allows
        all. The density is a share of these pairs, so leave out padded queries as well
        as padded keys: `nn.make_attention_mask(real, real)`.
      density: share of the allowed pairs to keep, in (0, 1]; may be traced. Counts as
        the float32 nearest to it.
      law: from loudness to relative degrees; None is `bb.laws.log_odds(dead=-1.0)`,
        `bb.laws.uniform()` gives all tokens the same number, but for rounding, as far
        as they are seen and are not the best of more queries.
        The floor of a law does not hold here: the best pair of each query does.
      rank: by what a token ranks its queries: "score", the scaled product with the
        bias, or "weight", its share of the query's whole attention.
      is_causal: allow no key that comes after its query, as well.
      broadcast_dropout: drop the same pairs in all of a batch.
      dropout_rng: key of the dropout.
      dropout_rate: share of the weights to drop, after the selection.
      deterministic: no dropout.
      dtype: of the computation; None promotes the three arrays. Scores are summed in
        float32 at least.
      precision: of the products, as for `jax.numpy.einsum`.
      module: a Flax module that stores the weights, as Flax does with `sow_weights`.

    Returns:
      For every query the mean of the values that it keeps, by weight; 0 for a query to
      which no key is allowed.

    Raises:
      TypeError: `law` is no law, `density` no number.
      ValueError: a density outside (0, 1], arrays whose shapes do not fit, one query
        and several keys, an unknown `rank`, dropout without a key.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> query, key, value = (jax.random.normal(k, (2, 16, 4, 8)) for k in keys)
      >>> real = jnp.arange(16)[None] < jnp.array([[16], [9]])  # a padded sequence
      >>> mask = real[:, None, :, None] & real[:, None, None, :]
      >>> out = budgeted_attention(query, key, value, mask=mask, density=0.25)
      >>> out.shape
      (2, 16, 4, 8)
    """
    dtype = dtype or jnp.result_type(query, key, value)
    query, key, value = (jnp.asarray(x, dtype) for x in (query, key, value))
    _check_shapes(query, key)
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            f"value: expected {key.shape[:-1]} before its last axis, as the keys have, "
            f"got {value.shape[:-1]}; give one value to every key"
        )
    key, value = (_for_heads(query, x) for x in (key, value))
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
    key: Float[ArrayLike, "*batch keys shared depth"],
    bias: Float[ArrayLike, "..."] | None = None,
    mask: Real[ArrayLike, "..."] | Bool[ArrayLike, "..."] | None = None,
    *,
    density: float | Real[Array, ""],
    law: laws.Law | None = None,
    rank: Rank = "score",
    is_causal: bool = False,
    dtype: Any = None,
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
      dtype: as there, but that there the dtype of `value` counts as well.
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
    dtype = dtype or jnp.result_type(query, key)
    query, key = (jnp.asarray(x, dtype) for x in (query, key))
    _check_shapes(query, key)
    key = _for_heads(query, key)
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


def _check_shapes(query: Array, key: Array) -> None:
    """Raises an error if queries and keys do not fit."""
    if query.ndim < 3 or query.ndim != key.ndim:
        raise ValueError(
            "query, key: expected (*batch, tokens, heads, depth) both, got "
            f"{query.shape} and {key.shape}"
        )
    same = (*query.shape[:-3], query.shape[-1]), (*key.shape[:-3], key.shape[-1])
    if same[0] != same[1] or not key.shape[-2] or query.shape[-2] % key.shape[-2]:
        raise ValueError(
            "query, key: expected the same batch and depth, and as many heads or a "
            f"multiple for the queries, got {query.shape} and {key.shape}"
        )
    queries, keys = query.shape[-3], key.shape[-3]
    if not keys or queries == 1 < keys:
        raise ValueError(
            f"query, key: expected several queries that share the keys, got {queries} "
            f"and {keys} tokens: a key's budget is a number of queries; use dense "
            "attention to decode token by token"
        )


def _for_heads(query: Array, shared: Array) -> Array:
    """Keys or values for every head of the queries; heads in a row share theirs."""
    times = query.shape[-2] // shared.shape[-2]
    return shared if times == 1 else jnp.repeat(shared, times, axis=-2)


def _scores(
    query: Array, key: Array, bias: Any, mask: Any, is_causal: bool, precision: Any
) -> tuple[Array, Array]:
    """Scores in float32 at least, and which pairs there are."""
    scores = jnp.einsum(
        "...qhd,...khd->...hqk",
        query,
        key,
        precision=precision,
        preferred_element_type=jnp.float32 if query.dtype.itemsize < 4 else query.dtype,
    ) * (1 / math.sqrt(query.shape[-1]))
    allowed = jnp.ones(scores.shape, bool)
    if bias is not None:
        bias = _onto("bias", bias, scores)
        scores = scores + bias.astype(scores.dtype)
        if jnp.issubdtype(bias.dtype, jnp.floating):
            least = float(jnp.finfo(bias.dtype).min) / 2
            allowed &= ~(bias <= max(least, _FORBIDS))
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
