"""Values that are not finite must not destroy masks, dormant weights or training."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from tests.support.runs import activity, dense, select, updated

KERNEL = dense(6, 4)
MAGNITUDE = bb.rules.magnitude()
W = jnp.arange(24.0).reshape(6, 4) - 11.5


def transform(rule=None, units=None, **settings):
    defaults = {"density": 0.5, "start": 0, "every": 1}
    return bb.transform(units or select(KERNEL), rule, **defaults | settings)


def test_under_jit_activity_that_is_not_finite_is_left_out_of_the_mean():
    tx = transform(start=9, ema=0.5)
    state = tx.init({"w": W})
    for rates in ([0.25, 0.5, 0.5, 1.0], [0.75, np.nan, np.inf, 0.0]):
        seen = activity(KERNEL, outputs=rates)
        _, state = updated(tx, state, W, jnp.zeros_like(W), seen)
    want = [(0.25 / 4 + 0.75 / 2) / 0.75, 0.5, 0.5, (1 / 4 + 0) / 0.75]
    np.testing.assert_allclose(bb.on_rates(state)["w"], want, rtol=1e-6)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("regrow", [True, False])
def test_a_weight_that_is_not_finite_keeps_masks_and_dormant_weights(bad, regrow):
    """And training goes on: the next refresh chooses by the weights it then finds."""
    tx = transform(rule=MAGNITUDE, regrow=regrow, density=0.5)
    w, state = updated(tx, tx.init({"w": W}), W, jnp.zeros_like(W))
    mask, dormant = bb.masks(state), state.bb_dormant
    sick, state = updated(tx, state, w.at[0, 0].set(bad), jnp.zeros_like(W))
    chex.assert_trees_all_equal(bb.masks(state), mask)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[~mask["w"]], b[~mask["w"]]),
        state.bb_dormant,
        dormant,
    )
    np.testing.assert_array_equal(np.asarray(sick)[~mask["w"]], 0)

    fewer = transform(rule=MAGNITUDE, regrow=regrow, density=0.25)
    healed, state = updated(
        fewer, state, jnp.nan_to_num(sick, posinf=9, neginf=9), -w / 2
    )
    assert np.isfinite(healed).all() and bb.masks(state)["w"].sum() == 6
    if regrow:
        assert np.isfinite(state.bb_dormant["w"]).all()


@pytest.mark.long
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_keeps_masks_and_dormant_weights(bad):
    """The weights before it chose the mask; pruned weights land on 0 all the same."""
    tx = transform(rule=MAGNITUDE)
    updates = jnp.zeros_like(W).at[0].set(bad).at[3].set(bad)
    w, state = updated(tx, tx.init({"w": W}), W, updates)
    mask = np.asarray(bb.masks(state)["w"])
    clean, other = updated(tx, tx.init({"w": W}), W, jnp.zeros_like(W))
    np.testing.assert_array_equal(mask, bb.masks(other)["w"])
    np.testing.assert_array_equal(state.bb_dormant["w"], other.bb_dormant["w"])
    np.testing.assert_array_equal(np.asarray(w)[~mask], 0)
    assert mask[0].any() and not mask[3].any()
    # The kept weights are sick now: nothing moves until they are well again.
    for _ in range(2):
        w, state = updated(tx, state, w, jnp.zeros_like(W))
        np.testing.assert_array_equal(mask, bb.masks(state)["w"])
    well = jnp.where(jnp.isfinite(w), w, clean).at[0].multiply(0.01)
    w, state = updated(tx, state, well, jnp.zeros_like(W))
    assert np.isfinite(w).all() and (np.asarray(bb.masks(state)["w"]) != mask).any()


@pytest.mark.long
def test_one_sick_kernel_does_not_hold_up_the_others():
    kernels = dense(6, 4, "a"), dense(6, 4, "b")
    units = bb.Units(kernels).select("a|b")
    tx = transform(MAGNITUDE, units)
    params = {"a": W.at[0, 0].set(jnp.nan), "b": W}
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(tx.update)
    _, state = update(zeros, tx.init(params), params)
    kept = {path: int(mask.sum()) for path, mask in bb.masks(state).items()}
    assert kept == {"a": 24, "b": 12}


@pytest.mark.long
def test_gradients_that_are_not_finite_do_not_reach_a_rule_that_reads_them():
    def by_gradient(seen):
        return bb.top_k_mask(jnp.abs(seen.grads), seen.budget, axis=(0, 1))

    tx = transform(rule=bb.rules.Rule("toy", by_gradient, needs=("grads",)))
    state, zeros = tx.init({"w": W}), jnp.zeros_like(W)
    for grads, kept in ((W.at[0, 0].set(jnp.nan), 24), (W, 12)):
        _, state = updated(tx, state, W, zeros, grads={"w": grads})
        assert bb.masks(state)["w"].sum() == kept
