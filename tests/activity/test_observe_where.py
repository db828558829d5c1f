"""Padding is excluded exactly: statistics are those of the real entries alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from tests.support.zoo_case import normal, relu, weights

NEEDS = ("mean", "mean_abs", "mean_square", "zero_share", "max_abs")
TOKENS = normal(1, 3, 5, 4)
REAL = jnp.arange(5)[None] < jnp.array([5, 2, 3])[:, None]  # (batch, time)


def ffn(p, x, real):
    del real
    return jnp.sum(relu(x @ p["up"]) @ p["down"])


P = weights(up=(4, 6), down=(6, 2))


def by_hand(values, real):
    """Statistics of the rows of `values` that are real: numpy, no mask."""
    rows = np.asarray(values, np.float64)[np.asarray(real)]
    rows = rows.reshape(-1, rows.shape[-1])
    return {
        "on_rate": (rows > 0).mean(0),
        "mean": rows.mean(0),
        "mean_abs": np.abs(rows).mean(0),
        "mean_square": (rows**2).mean(0),
        "zero_share": (rows == 0).mean(0),
        "max_abs": np.abs(rows).max(0),
        "count": np.full(rows.shape[1], len(rows)),
    }


def matches(statistics, want):
    for name, value in want.items():
        np.testing.assert_allclose(getattr(statistics, name), value, rtol=1e-5)


@pytest.mark.parametrize("given", ["array", "function"])
def test_padding_is_left_out_exactly(given):
    units = bb.trace(ffn, P, TOKENS, REAL)
    where = REAL if given == "array" else lambda x, real: real
    observed = jax.jit(bb.observe(ffn, units, where=where, needs=NEEDS))
    activity = observed(P, TOKENS, REAL)[1]
    hidden = relu(TOKENS @ P["up"])
    matches(activity["up"].inputs, by_hand(TOKENS, REAL))
    matches(activity["up"].outputs, by_hand(hidden, REAL))
    matches(activity["down"].inputs, by_hand(hidden, REAL))


@pytest.mark.long
def test_what_stands_in_the_padding_does_not_matter():
    units = bb.trace(ffn, P, TOKENS, REAL)
    observed = bb.observe(ffn, units, where=REAL, needs=NEEDS)
    clean = observed(P, TOKENS, REAL)[1]
    for junk in (1e3, jnp.nan, jnp.inf):
        dirty = jnp.where(REAL[..., None], TOKENS, junk)
        chex.assert_trees_all_equal(clean, observed(P, dirty, REAL)[1])


@pytest.mark.long
def test_fewer_axes_than_positions_cover_the_leading_ones():
    units = bb.trace(ffn, P, TOKENS, REAL)
    batch = jnp.array([True, False, True])
    activity = bb.observe(ffn, units, where=batch)(P, TOKENS, REAL)[1]
    matches(activity["up"].inputs, {"on_rate": (TOKENS[batch] > 0).mean((0, 1))})
    assert activity["up"].inputs.count.tolist() == [10.0] * 4


@pytest.mark.long
def test_unit_axes_may_stand_between_positions():
    """A (batch, time) mask against (batch, time, heads, features) per head."""
    params = weights(w=(4, 2, 3))

    def fn(p, x):
        return jnp.sum(relu(jnp.einsum("btd,dhk->bthk", x, p["w"])))

    def per_head(p, x):  # the reading kernel sees heads as positions
        return jnp.sum(relu(jnp.einsum("bthd,dk->bthk", x, p["w"])))

    activity = bb.observe(fn, bb.trace(fn, params, TOKENS), where=REAL)(params, TOKENS)[
        1
    ]
    h = jnp.einsum("btd,dhk->bthk", TOKENS, params["w"])
    want = np.asarray(h > 0)[np.asarray(REAL)].mean(0)
    np.testing.assert_allclose(activity["w"].outputs.on_rate, want, rtol=1e-6)

    params, x = weights(w=(4, 3)), normal(2, 3, 5, 2, 4)
    units = bb.trace(per_head, params, x)
    activity = bb.observe(per_head, units, where=REAL)(params, x)[1]
    want = np.asarray(x > 0)[np.asarray(REAL)].mean((0, 1))
    np.testing.assert_allclose(activity["w"].inputs.on_rate, want, rtol=1e-6)


@pytest.mark.parametrize("spatial", [False, True])
def test_convolutions_take_a_batch_or_a_spatial_mask(spatial):
    params, x = weights(w=(3, 2, 4)), normal(3, 3, 5, 2)
    mask = REAL if spatial else jnp.array([True, False, True])

    def fn(p, x):
        dims = ("NHC", "HIO", "NHC")
        h = jax.lax.conv_general_dilated(
            x, p["w"], (1,), "SAME", dimension_numbers=dims
        )
        return jnp.sum(relu(h)), relu(h)

    units = bb.trace(fn, params, x)
    observed = bb.observe(fn, units, has_aux=True, where=mask)
    _, (h, activity) = observed(params, x)
    matches(activity["w"].inputs, {"on_rate": by_hand(x, mask)["on_rate"]})
    matches(activity["w"].outputs, {"on_rate": by_hand(h, mask)["on_rate"]})


@pytest.mark.long
def test_nothing_real_counts_nothing():
    units = bb.trace(ffn, P, TOKENS, REAL)
    nothing = jnp.zeros_like(REAL)
    seen = bb.observe(ffn, units, where=nothing, needs=NEEDS)(P, TOKENS, REAL)[1]
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(seen))


@pytest.mark.parametrize("shape", [(3, 4), (5,), (3, 5, 2), (2, 5)])
def test_a_mask_that_does_not_fit_names_both_shapes(shape):
    units = bb.trace(ffn, P, TOKENS, REAL)
    observed = bb.observe(ffn, units, where=jnp.ones(shape, bool))
    text = (
        r"axes \(3, 5\) of the activity at 'up' \(array of shape \(3, 5, 4\)\), got sha"
    )
    with pytest.raises(ValueError, match=text) as error:
        observed(P, TOKENS, REAL)
    assert str(shape) in str(error.value)


@pytest.mark.long
def test_a_batch_that_is_not_finite_does_not_pass_for_a_silent_one():
    def loss(w, x):
        return jnp.sum(jax.nn.relu(x @ w["up"]) @ w["down"])

    params = {"up": jnp.eye(2), "down": jnp.ones((2, 1))}
    x = jnp.array([[1.0, jnp.nan], [1.0, 1.0]])
    units = bb.trace(loss, params, x)
    rate = bb.observe(loss, units)(params, x)[1]["up"].inputs.on_rate
    np.testing.assert_array_equal(rate, [1.0, jnp.nan])


@pytest.mark.long
def test_rms_ignores_what_is_not_finite_at_padding():
    x, valid = jnp.array([[3.0, 4.0], [jnp.nan, jnp.inf]]), jnp.array([True, False])
    hit = bb.on.above(1.0, "rms")(x, jnp.broadcast_to(valid[:, None], x.shape))
    assert hit[0].tolist() == [False, True]
