"""Masks that stay: training on after pruning, from loaded masks, from a ticket."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from tests.support.contract import MLP, same_kinds


def pruned(density=0.3):
    return bb.prune(MLP.params(), MLP.units, bb.rules.magnitude(), density)


def run(tx, params, steps=4, **extra):
    state = tx.init(params)
    update = jax.jit(tx.update)
    for n in range(steps):
        grads, activity = MLP.gradient(params, MLP.batch(n))
        given = {"activity": activity} if extra.get("observe") else {}
        updates, state = update(grads, state, params, **given)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.long
def test_pruned_weights_stay_pruned_and_the_others_train(lenient):
    params, masks = pruned()
    after, state = run(
        optax.chain(optax.adamw(0.1, weight_decay=0.1), bb.hold(masks)), params
    )
    for path, mask in masks.items():
        mask = np.asarray(mask)
        np.testing.assert_array_equal(np.asarray(after[path])[~mask], 0)
        assert (np.asarray(after[path])[mask] != np.asarray(params[path])[mask]).all()
        np.testing.assert_array_equal(bb.masks(state)[path], mask)
    assert (after["bias"] != params["bias"]).all()


@pytest.mark.long
def test_it_is_the_plain_optimizer_under_a_mask():
    """Momentum and step of kept weights are those of an unpruned step."""
    params, masks = pruned()
    grads, _ = MLP.gradient(params, MLP.batch(0))
    inner = optax.sgd(0.1, momentum=0.9)
    tx = optax.chain(inner, bb.hold(masks))
    got, _ = tx.update(grads, tx.init(params), params)
    plain, _ = inner.update(grads, inner.init(params), params)
    for path in params:
        keep = masks.get(path, True)
        np.testing.assert_array_equal(got[path], jnp.where(keep, plain[path], 0))


def test_any_parameter_may_have_a_mask():
    masks = {"bias": jnp.arange(24) % 3 > 0}
    after, state = run(optax.chain(optax.sgd(0.1), bb.hold(masks)), MLP.params())
    np.testing.assert_array_equal(after["bias"] == 0, np.arange(24) % 3 == 0)
    assert bb.metrics(state) == {} and bb.degrees_of(state) == {}


@pytest.mark.long
def test_it_takes_no_notice_of_the_activity_of_others():
    def loss(params, x):
        return jnp.mean((jax.nn.relu(x @ params["up"]) @ params["down"]) ** 2)

    params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
    x = jnp.ones((5, 4))
    units = bb.trace(loss, params, x).select("up", actuator="in")
    held = bb.hold({"down": jnp.ones((8, 2), bool).at[0].set(False)})
    tx = optax.chain(optax.sgd(0.1), held, bb.transform(units, density=0.5, start=0))
    _, activity = bb.observe(loss, units)(params, x)
    updates, state = tx.update(params, tx.init(params), params, activity=activity)
    params = optax.apply_updates(params, updates)
    assert (params["down"][0] == 0).all() and (params["up"] != 0).sum() == 16
    assert set(bb.masks(state)) == {"down", "up"}


@pytest.mark.long
def test_with_units_it_reports():
    params, masks = pruned()
    tx = optax.chain(optax.sgd(0.1), bb.hold(masks, MLP.units))
    _, state = run(tx, params, observe=True)
    seen = bb.metrics(state)
    assert float(seen["overall/density_got"]) == pytest.approx(0.3, abs=0.01)
    assert np.isnan(seen["overall/density_asked"])
    degree = np.asarray(masks["up"]).sum(0)
    np.testing.assert_array_equal(bb.degrees_of(state)["up"], degree)
    assert (bb.on_rates(state)["up"] != 0.5).any()


@pytest.mark.long
def test_state_is_one_bit_per_entry_and_stable():
    _, masks = pruned()
    tx = bb.hold(masks)
    params = MLP.params()
    state = tx.init(params)
    _, new = jax.eval_shape(tx.update, params, state, params)
    same_kinds(new, state)
    assert state.bb_masks["up"].size == 12 * 24 // 8 and not state.bb_dormant


def test_a_ticket_is_the_first_weights_under_the_mask():
    first = MLP.params()
    _, masks = bb.prune(MLP.params(3), MLP.units, bb.rules.magnitude(), 0.2)
    ticket = bb.apply_masks(first, masks)
    for path, mask in masks.items():
        want = np.where(mask, first[path], 0)
        np.testing.assert_array_equal(ticket[path], want)
    assert ticket["bias"] is first["bias"]


@pytest.mark.parametrize(
    "kind, text, masks",
    [
        (TypeError, "expected masks by path, got list; pass what", []),
        (ValueError, "at least one mask, each with axes, got none", {}),
        (ValueError, r"with axes, got \['s'\]", {"s": jnp.array(True)}),
    ],
)
def test_masks_that_cannot_be_held(kind, text, masks):
    with pytest.raises(kind, match=text):
        bb.hold(masks)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_masks_that_are_no_bools_are_refused(dtype):
    """Weights passed by mistake would be read as masks by some and not by others."""
    params = MLP.params()
    masks = {
        path: np.full(np.shape(params[path]), 0.9).astype(dtype) for path in params
    }
    rule = bb.rules.magnitude()
    for call in (
        lambda: bb.hold(masks),
        lambda: bb.apply_masks(params, masks),
        lambda: bb.prune(params, MLP.units, rule, 0.5, masks=masks),
        lambda: bb.transform(MLP.units, rule, density=0.5, masks=masks),
        lambda: jax.jit(bb.apply_masks)(params, masks),
    ):
        with pytest.raises(TypeError, match="expected a bool mask at '(up|bias)', got"):
            call()


def test_masks_that_do_not_fit_are_listed():
    masks = {"up": np.ones((3, 3), bool), "other": np.ones(2, bool)}
    text = r"'up': mask of \(3, 3\), one of \(12, 24\); 'other': .*no parameter"
    with pytest.raises(ValueError, match=text):
        bb.apply_masks(MLP.params(), masks)
    with pytest.raises(ValueError, match=r"expected 'up' of shape \(3, 3\)"):
        bb.hold({"up": masks["up"]}).init(MLP.params())


# First masks of a transform ------------------------------------------------------
@pytest.mark.long
def test_a_transform_may_begin_with_masks():
    """Sparse from the first update on, also before the first refresh."""
    _, masks = bb.prune(MLP.params(), MLP.units, bb.rules.random(), 0.25)
    tx = bb.transform(
        MLP.units, bb.rules.magnitude(), density=0.25, start=3, every=2, masks=masks
    )
    params, state = run(optax.chain(optax.sgd(0.1), tx), MLP.params(), steps=3)
    for path, mask in masks.items():
        np.testing.assert_array_equal(bb.masks(state)[path], mask)
        np.testing.assert_array_equal(np.asarray(params[path])[~np.asarray(mask)], 0)
    _, later = run(optax.chain(optax.sgd(0.1), tx), MLP.params(), steps=4)
    assert any((bb.masks(later)[p] != masks[p]).any() for p in masks)


@pytest.mark.long
def test_first_masks_must_fit():
    masks = {"up": np.ones((12, 24), bool)}
    text = r"every budgeted kernel; differences: 'down': expected \(24, 8\), got None"
    with pytest.raises(ValueError, match=text):
        bb.transform(MLP.units, bb.rules.magnitude(), masks=masks)
    with pytest.raises(TypeError, match="expected masks by path, got int"):
        bb.transform(MLP.units, bb.rules.magnitude(), masks=3)
