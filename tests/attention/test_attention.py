"""Budgeted attention against loops in numpy, and in the place of Flax's attention."""

import functools
import heapq
from fractions import Fraction

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import bbjax as bb
from bbjax.attention.pairs import RANKS, loudness

BATCH, TOKENS, HEADS, DEPTH = 2, 12, 3, 4
LAWS = (bb.laws.log_odds(dead=-1.0), bb.laws.uniform())
DENSITIES = (0.05, 0.3, 0.7, 1.0)


def arrays(seed, *, keys=TOKENS, dtype=np.float32):
    random = np.random.default_rng(seed)
    query = random.normal(size=(BATCH, TOKENS, HEADS, DEPTH))
    key, value = random.normal(size=(2, BATCH, keys, HEADS, DEPTH))
    key *= random.lognormal(size=(BATCH, keys, HEADS, 1))  # some are loud
    return tuple(jnp.asarray(x.astype(np.float32), dtype) for x in (query, key, value))


def padded(lengths, keys=TOKENS):
    """A mask of keys of sequences of these lengths, for all queries."""
    seen = np.arange(keys) < np.array(lengths)[:, None]
    return seen[:, None, None, :]


def real(lengths, tokens=TOKENS):
    """A mask of sequences of these lengths: padding neither asks nor is seen."""
    seen = np.arange(tokens) < np.array(lengths)[:, None]
    return seen[:, None, :, None] & seen[:, None, None, :]


def shares(square, seen):
    """Loudness of tokens of these square norms, and profiles by law; in float64."""
    mean = square[seen].mean() if seen.any() else 0.0
    loud = square / (square + mean)
    odds = np.log(1 / np.clip(loud, 0.01, 0.99) - 1)
    middle = odds[seen].mean() if seen.any() else 0.0
    return loud, 0.1 * np.clip(odds - middle, -2, 2)


def in_turn(profile, budget, low, cap, rate):
    """Degrees: the next query to the token that gets it at the smallest c."""
    degrees = list(map(int, low))
    waiting = [
        (degrees[i] + 1 - Fraction(float(profile[i])), rate[i], i)
        for i in range(len(degrees))
        if degrees[i] < cap[i]
    ]
    heapq.heapify(waiting)
    for _ in range(budget - sum(degrees)):
        *_, i = heapq.heappop(waiting)
        degrees[i] += 1
        if degrees[i] < cap[i]:
            after = degrees[i] + 1 - Fraction(float(profile[i]))
            heapq.heappush(waiting, (after, rate[i], i))
    return degrees


def oracle(scores, allowed, square, density, law):
    """Kept pairs of one head of one sequence, (queries, keys)."""
    inside = np.where(allowed, scores, -np.inf)
    asks, seen = np.flatnonzero(allowed.any(1)), allowed.any(0)
    best = {(i, int(np.argmax(inside[i]))) for i in asks}
    budget = round(Fraction(float(np.float32(density))) * int(allowed.sum()))
    budget = max(budget, len(best))
    owed = [sum(j == k for _, k in best) for j in range(scores.shape[1])]
    loud, profile = shares(square.astype(np.float64), seen)
    profile = profile * budget / max(seen.sum(), 1)
    if law.name == "uniform":
        loud, profile = np.full_like(loud, 0.5), np.zeros_like(profile)
    degrees = in_turn(profile, budget, owed, allowed.sum(0), loud)
    kept = np.zeros_like(allowed)
    for j, degree in enumerate(degrees):
        order = sorted(
            np.flatnonzero(allowed[:, j]),
            key=lambda i, j=j: ((i, j) not in best, -scores[i, j], i),
        )
        kept[order[:degree], j] = True
    return kept


MASKS = {
    "all": None,
    "causal": np.tril(np.ones((TOKENS, TOKENS), bool)),
    "padding": real([TOKENS, 5]),
    "padded keys": padded([TOKENS, 5]),
    "padding of one": padded([TOKENS, 0]),
    "more keys": np.ones((TOKENS, 2 * TOKENS), bool),
}


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_pairs_are_those_of_a_loop(law, rank, mask, density):
    shown = True if MASKS[mask] is None else MASKS[mask]
    query, key, _ = arrays(0, keys=np.shape(shown)[-1] if mask != "all" else TOKENS)
    kept = bb.budgeted_pairs(
        query, key, mask=MASKS[mask], density=density, law=law, rank=rank
    )
    scores = np.einsum("bqhd,bkhd->bhqk", np.float32(query), np.float32(key))
    scores = np.asarray(scores / np.float32(2), np.float32)
    allowed = np.broadcast_to(shown, scores.shape)
    square = np.square(np.asarray(key)).sum(-1).transpose(0, 2, 1)
    if rank == "weight":
        whole = np.where(allowed, np.exp(scores.astype(np.float64)), 0).sum(-1)
        scores = scores - np.log(np.where(whole > 0, whole, 1))[..., None]
    for at in np.ndindex(BATCH, HEADS):
        want = oracle(scores[at], allowed[at], square[at], density, law)
        np.testing.assert_array_equal(kept[at], want)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_what_is_padded_changes_nothing(law):
    query, key, _ = arrays(9)
    kept = functools.partial(bb.budgeted_pairs, density=0.3, law=law)
    want = kept(query[:, :7], key[:, :7])
    for loud in (1.0, 1000.0):
        other = key.at[:, 7:].multiply(loud)
        got = np.asarray(kept(query, other, mask=real([7, 7])))
        np.testing.assert_array_equal(got[..., :7, :7], want)
        assert got.sum() == np.sum(want)


def test_equal_degrees_do_not_depend_on_loudness():
    query, key, _ = arrays(10)
    kept = np.asarray(bb.budgeted_pairs(query, key, density=0.6, law=bb.laws.uniform()))
    # .6 of 144 pairs are 86, two more than 7 for each of 12 tokens.
    best = np.asarray(bb.budgeted_pairs(query, key, density=0.01)).sum(-2)
    for at in np.ndindex(BATCH, HEADS):
        free = kept[at].sum(-2)[best[at] <= 6]
        assert free.max() - free.min() <= 1 and (np.diff(free) <= 0).all()


def test_the_loud_reach_fewer_queries():
    query, key, _ = arrays(1)
    kept = np.asarray(bb.budgeted_pairs(query, key, density=0.5))
    square = np.square(np.asarray(key)).sum(-1).transpose(0, 2, 1)
    share = square / (square + square.mean(-1, keepdims=True))
    np.testing.assert_allclose(loudness(key, jnp.ones(kept.shape, bool)), share, 1e-5)
    best = np.asarray(bb.budgeted_pairs(query, key, density=0.01)).sum(-2)
    reach = kept.sum(-2)
    for at in np.ndindex(BATCH, HEADS):
        free = reach[at] > best[at]  # the others have the best pairs of queries alone
        order = np.argsort(share[at][free])
        assert (np.diff(reach[at][free][order]) <= 0).all()


@given(
    seed=st.integers(0, 2**16),
    density=st.floats(1e-3, 1.0),
    lengths=st.lists(st.integers(0, TOKENS), min_size=BATCH, max_size=BATCH),
    causal=st.booleans(),
)
def test_counts_are_exact_and_a_query_keeps_its_best(seed, density, lengths, causal):
    query, key, _ = arrays(seed)
    mask = padded(lengths)
    kept = np.asarray(
        bb.budgeted_pairs(query, key, mask=mask, density=density, is_causal=causal)
    )
    allowed = np.broadcast_to(mask, kept.shape)
    if causal:
        allowed = allowed & np.tril(np.ones(kept.shape[-2:], bool))
    assert not (kept & ~allowed).any()
    pairs, asks = allowed.sum((-2, -1)), allowed.any(-1)
    exact = Fraction(float(np.float32(density)))
    wanted = np.vectorize(lambda n: round(exact * int(n)))(pairs)
    np.testing.assert_array_equal(kept.sum((-2, -1)), np.maximum(wanted, asks.sum(-1)))
    scores = np.where(allowed, np.einsum("bqhd,bkhd->bhqk", query, key), -np.inf)
    best = np.take_along_axis(kept, scores.argmax(-1)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(best, asks)


def test_all_pairs_are_dense_attention(lenient):
    query, key, value = arrays(2)
    mask = padded([TOKENS, 7])
    rng = jax.random.key(0)
    for options in (
        {},
        {"dropout_rng": rng, "dropout_rate": 0.3},
        {"dropout_rng": rng, "dropout_rate": 0.3, "broadcast_dropout": False},
        {"dropout_rate": 0.3, "deterministic": True},
        {"bias": jax.random.normal(rng, (HEADS, TOKENS, TOKENS))},
    ):
        got = bb.budgeted_attention(
            query, key, value, mask=mask, density=1.0, **options
        )
        want = nn.dot_product_attention(query, key, value, mask=mask, **options)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_softmax_runs_over_what_is_kept():
    query, key, value = arrays(3)
    out = bb.budgeted_attention(query, key, value, density=0.3, is_causal=True)
    kept = np.asarray(bb.budgeted_pairs(query, key, density=0.3, is_causal=True))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / 2
    weights = np.where(kept, np.exp(scores), 0)
    weights /= weights.sum(-1, keepdims=True)
    want = np.einsum("bhqk,bkhd->bqhd", weights, value)
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("least", [-np.inf, -1e9, np.finfo(np.float32).min])
def test_a_bias_that_forbids_pairs_is_a_mask(least):
    query, key, value = arrays(11)
    mask = real([TOKENS, 5])
    bias = jnp.where(mask, 0.0, least)
    for fn in (
        bb.budgeted_pairs,
        functools.partial(bb.budgeted_attention, value=value),
    ):
        want = fn(query, key, mask=mask, density=0.4)
        np.testing.assert_array_equal(fn(query, key, bias=bias, density=0.4), want)
    half = jnp.where(mask, 0.0, np.finfo(np.float16).min).astype(np.float16)
    got = bb.budgeted_pairs(query, key, bias=half, density=0.4)
    np.testing.assert_array_equal(
        got, bb.budgeted_pairs(query, key, mask=mask, density=0.4)
    )


def test_heads_in_a_row_may_share_their_keys():
    random = np.random.default_rng(12)
    query = jnp.asarray(random.normal(size=(2, 8, 6, 4)), jnp.float32)
    key, value = jnp.asarray(random.normal(size=(2, 2, 8, 2, 4)), jnp.float32)
    whole = [jnp.repeat(x, 3, axis=-2) for x in (key, value)]
    got = bb.budgeted_attention(query, key, value, density=0.3)
    want = bb.budgeted_attention(query, *whole, density=0.3)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(
        bb.budgeted_pairs(query, key, density=0.3),
        bb.budgeted_pairs(query, whole[0], density=0.3),
    )


def test_scores_are_summed_in_float32():
    query, key, value = arrays(13, dtype=jnp.bfloat16)
    got = bb.budgeted_pairs(query, key, density=0.3)
    wide = [x.astype(jnp.float32) for x in (query, key)]
    np.testing.assert_array_equal(got, bb.budgeted_pairs(*wide, density=0.3))
    big = jnp.full((1, 4, 1, 64), 200.0, jnp.float16)  # products of 2.6e6
    out = bb.budgeted_attention(big, big, jnp.ones_like(big), density=0.5)
    assert out.dtype == jnp.float16 and np.all(np.asarray(out) == 1)


def test_equal_scores_still_give_exact_counts():
    query, key, _ = arrays(14)
    kept = bb.budgeted_pairs(0 * query, key, density=0.3)
    assert (kept.sum((-2, -1)) == round(0.3 * TOKENS**2)).all()
    assert kept.any(-1).all()
    alone = bb.budgeted_pairs(query[:, :1], key[:, :1], density=0.3)
    assert alone.all()  # one token keeps itself
    none = bb.budgeted_pairs(query[:0], key[:0], density=0.3)
    assert none.shape == (0, HEADS, TOKENS, TOKENS)


def test_a_density_that_changes_is_compiled_once():
    query, key, value = arrays(15)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def counts(density):
        pairs = bb.budgeted_pairs(query, key, density=density)
        out = bb.budgeted_attention(query, key, value, density=density)
        return pairs.sum((-2, -1)), out

    for density in (1.0, 0.5, 0.25):
        found, out = counts(density)
        assert (found == round(density * TOKENS**2)).all()
        want = bb.budgeted_attention(query, key, value, density=density)
        np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)
    mapped = jax.vmap(lambda d: bb.budgeted_pairs(query, key, density=d).sum((-2, -1)))
    found = mapped(jnp.array([0.5, 0.25]))
    assert (found[0] == 72).all() and (found[1] == 36).all()


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_sequences_on_eight_devices_keep_the_same_pairs():
    mesh = jax.make_mesh((8,), ("data",))
    three = tuple(jnp.concatenate([x] * 4) for x in arrays(16))
    place = jax.NamedSharding(mesh, jax.P("data"))
    placed = tuple(jax.device_put(x, place) for x in three)
    pairs = jax.jit(functools.partial(bb.budgeted_pairs, density=0.3))
    np.testing.assert_array_equal(pairs(*placed[:2]), pairs(*three[:2]))
    attend = functools.partial(bb.budgeted_attention, density=0.3)
    specs = {"in_specs": jax.P("data"), "out_specs": jax.P("data")}
    by_hand = jax.shard_map(attend, mesh=mesh, **specs)
    # Each device chooses by itself.
    compiled = jax.jit(by_hand).lower(*placed).compile()
    assert "all-reduce" not in compiled.as_text()
    np.testing.assert_allclose(compiled(*placed), attend(*three), rtol=1e-4, atol=1e-5)

    def total(fn, *three):
        return jnp.sum(jnp.sin(fn(*three)))

    got = jax.jit(jax.grad(functools.partial(total, by_hand), (0, 1, 2)))(*placed)
    want = jax.grad(functools.partial(total, attend), (0, 1, 2))(*three)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_a_query_without_keys_gets_zero_and_its_gradients_are_finite():
    query, key, value = arrays(4)
    mask = padded([TOKENS, 0])

    def total(*three):
        out = bb.budgeted_attention(*three, mask=mask, density=0.5)
        return jnp.sum(jnp.square(out)), out

    grads, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)
    assert not out[1].any() and out[0].any()
    assert all(np.isfinite(g).all() and not g[1].any() for g in grads)


def test_gradients_are_those_of_attention_under_the_kept_pairs():
    query, key, value = arrays(5)
    kept = bb.budgeted_pairs(query, key, density=0.4)

    def budgeted(*three):
        return jnp.sum(jnp.sin(bb.budgeted_attention(*three, density=0.4)))

    def masked(query, key, value):
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / 2
        weights = jax.nn.softmax(jnp.where(kept, scores, -1e30), axis=-1)
        return jnp.sum(jnp.sin(jnp.einsum("bhqk,bkhd->bqhd", weights, value)))

    got = jax.grad(budgeted, (0, 1, 2))(query, key, value)
    want = jax.grad(masked, (0, 1, 2))(query, key, value)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_compiled_and_mapped_pairs_are_the_same(dtype):
    query, key, value = arrays(6, dtype=dtype)
    pairs = functools.partial(bb.budgeted_pairs, is_causal=True)
    want = pairs(query, key, density=0.25)
    compiled = jax.jit(lambda q, k, d: pairs(q, k, density=d))
    np.testing.assert_array_equal(compiled(query, key, 0.25), want)
    mapped = jax.vmap(lambda q, k: pairs(q, k, density=0.25))(query, key)
    np.testing.assert_array_equal(mapped, want)
    assert (want.sum((-2, -1)) == round(0.25 * TOKENS * (TOKENS + 1) / 2)).all()
    out = bb.budgeted_attention(query, key, value, density=0.25, is_causal=True)
    assert out.dtype == dtype


def test_scores_that_are_not_finite_cost_no_pair():
    query, key, _ = arrays(7)
    key = key.at[0, 3].set(jnp.nan).at[1, 2].set(jnp.inf)
    kept = np.asarray(bb.budgeted_pairs(query, key, density=0.5, is_causal=True))
    assert (kept.sum((-2, -1)) == TOKENS * (TOKENS + 1) // 4).all()
    assert not (kept & ~np.tril(np.ones((TOKENS, TOKENS), bool))).any()


def test_ranks_by_weight_keep_more_of_the_weights():
    query, key, _ = arrays(8)
    pairs = functools.partial(bb.budgeted_pairs, query, key, density=0.5)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / 2, axis=-1)
    by_weight, by_score = (np.asarray(weights)[pairs(rank=r)] for r in RANKS[::-1])
    assert by_weight.sum() > by_score.sum()


def test_linen_and_nnx_take_it(lenient):
    x = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, 16))
    mask = nn.make_causal_mask(jnp.ones((BATCH, TOKENS)))
    attend = functools.partial(bb.budgeted_attention, density=0.25)
    layer = nn.MultiHeadDotProductAttention(num_heads=4, attention_fn=attend)
    params = layer.init(jax.random.key(1), x, mask=mask)
    out, stored = jax.jit(
        lambda p: layer.apply(
            p, x, mask=mask, sow_weights=True, mutable=["intermediates"]
        )
    )(params)
    (weights,) = stored["intermediates"]["attention_weights"]
    assert out.shape == x.shape
    counts = jnp.sum(weights > 0, (-2, -1))
    assert (counts == round(0.25 * TOKENS * (TOKENS + 1) / 2)).all()

    module = nnx.MultiHeadAttention(
        num_heads=4,
        in_features=16,
        decode=False,
        attention_fn=attend,
        rngs=nnx.Rngs(0),
    )
    for name in ("query", "key", "value", "out"):
        own, given = getattr(module, name), params["params"][name]
        own.kernel[...], own.bias[...] = given["kernel"], given["bias"]
    np.testing.assert_allclose(module(x, mask=mask), out, rtol=1e-4, atol=1e-5)


def test_flax_drops_out_weights(lenient):
    x = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, 16))
    attend = functools.partial(bb.budgeted_attention, density=0.5)
    layer = nn.MultiHeadDotProductAttention(
        num_heads=4, attention_fn=attend, dropout_rate=0.5
    )
    params = layer.init(jax.random.key(1), x, deterministic=True)
    plain = layer.apply(params, x, deterministic=True)
    one, again, other = (
        layer.apply(params, x, deterministic=False, rngs={"dropout": jax.random.key(k)})
        for k in (2, 2, 3)
    )
    assert (one == again).all()
    assert not jnp.allclose(one, other) and not jnp.allclose(one, plain)


def test_decoding_token_by_token_is_refused(lenient):
    x = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, 16))
    attend = functools.partial(bb.budgeted_attention, density=0.5)
    layer = nn.MultiHeadDotProductAttention(
        num_heads=4, attention_fn=attend, decode=True
    )
    variables = layer.init(jax.random.key(1), x)
    with pytest.raises(ValueError, match="to decode token by token"):
        layer.apply(variables, x[:, :1], mutable=["cache"])


Q, K, V = arrays(0)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: bb.budgeted_pairs(Q, K, density=0.0), ValueError, "in \\(0, 1\\]"),
        (lambda: bb.budgeted_pairs(Q, K, density="a"), TypeError, "density"),
        (lambda: bb.budgeted_pairs(Q, K, density=1, law=1), TypeError, "bb.laws"),
        (lambda: bb.budgeted_pairs(Q, K, density=1, rank="x"), ValueError, "'weight'"),
        (
            lambda: bb.budgeted_pairs(Q, K[:, :, :2], density=1),
            ValueError,
            "or a multiple for the queries",
        ),
        (lambda: bb.budgeted_pairs(Q, K[:, :0], density=1), ValueError, "12 and 0"),
        (lambda: bb.budgeted_pairs(Q[0, 0], K, density=1), ValueError, "\\*batch"),
        (
            lambda: bb.budgeted_pairs(Q, K, mask=jnp.ones(5), density=1),
            ValueError,
            "mask: expected a shape that broadcasts",
        ),
        (
            lambda: bb.budgeted_attention(Q, K, V[:, :3], density=1),
            ValueError,
            "value: expected",
        ),
        (
            lambda: bb.budgeted_attention(Q, K, V, density=1, dropout_rate=0.1),
            ValueError,
            "dropout_rng",
        ),
    ],
)
def test_errors(call, error, text, unchecked):
    with pytest.raises(error, match=text):
        call()
