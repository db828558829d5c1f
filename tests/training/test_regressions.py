"""The mistakes of published code, one test each: it fails if we repeat them.

Ties, an unsorted top-k, densities that compound, lost state, accumulated gradients, a
mask that changes under a gradient, start-up bias, padding, rescaled biases, gradients
hidden from the rule: each was found in code that accompanies a paper.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from bbjax.activity.statistics import Activity
from tests.support.runs import (
    activity,
    chosen,
    dense,
    refreshed,
    select,
    statistics,
    updated,
)

KERNEL = dense(12, 8)
MAGNITUDE = bb.rules.magnitude()
ZEROS = jnp.zeros(KERNEL.shape)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_1_ties_do_not_exceed_the_budget(dtype, getkey):
    """All values at or above the k-th would keep everything here."""
    kernel = bb.Kernel("w", KERNEL.shape, str(jnp.dtype(dtype)), (0,), (1,))
    few = jax.random.randint(getkey(), kernel.shape, 1, 3).astype(dtype)
    for w in (jnp.ones(kernel.shape, dtype), few):
        kept, state = refreshed(kernel, MAGNITUDE, w, None, density=0.25)
        assert bb.masks(state)["w"].sum() == (kept != 0).sum() == 24


def test_2_a_count_per_unit_takes_the_largest_weights():
    """Cutting an unsorted list of the largest at k keeps arbitrary ones."""
    kernel = dense(40, 6)
    w = np.random.normal(size=kernel.shape).astype(np.float32)
    rate = jnp.array([0.02, 0.1, 0.3, 0.5, 0.7, 0.95])
    mask = chosen(bb.rules.budgeted_broadcast(), kernel, w, 60, {"in": rate})
    counts = mask.sum(0)
    assert len(set(counts.tolist())) > 3
    for column, kept, k in zip(np.abs(w).T, mask.T, counts, strict=True):
        assert set(np.flatnonzero(kept)) == set(np.argsort(-column)[:k])


@pytest.mark.long
@pytest.mark.parametrize("regrow", [True, False])
def test_3_density_does_not_compound(regrow, getkey):
    """Pruning the survivors at each refresh would leave .5 ** 4 of the edges."""
    tx = bb.transform(
        select(KERNEL), MAGNITUDE, density=0.5, regrow=regrow, start=0, every=1
    )
    w = jax.random.normal(getkey(), KERNEL.shape)
    state = tx.init({"w": w})
    for _ in range(4):
        w, state = updated(tx, state, w, ZEROS)
        assert (w != 0).sum() == 48


@pytest.mark.long
def test_4_what_is_remembered_is_in_the_state(getkey):
    """A run that goes on from saved arrays ends where one without a break ends."""

    def fresh():
        return bb.transform(select(KERNEL), density=0.5, start=1, every=2, ema=0.7)

    def run(tx, w, state, steps):
        step = jax.jit(tx.update)
        for n in steps:
            rng = np.random.default_rng(n)
            u = jnp.asarray(rng.normal(size=KERNEL.shape), jnp.float32)
            seen = activity(KERNEL, outputs=rng.uniform(size=8))
            landed, state = step({"w": u}, state, {"w": w}, activity=seen)
            w = w + landed["w"]
        return w, state

    first = jax.random.normal(getkey(), KERNEL.shape)
    tx = fresh()
    whole = run(tx, first, tx.init({"w": first}), range(6))
    w, state = run(tx, first, tx.init({"w": first}), range(3))
    assert (w == 0).sum() == 48  # saved weights are sparse: no masking call is needed
    saved = [np.asarray(leaf) for leaf in jax.tree.leaves((w, state))]

    tx = fresh()  # another process
    tree = jax.tree.structure((first, tx.init({"w": first})))
    w, state = jax.tree.unflatten(tree, map(jnp.asarray, saved))
    again = run(tx, w, state, range(3, 6))
    chex.assert_trees_all_equal(whole, again)


@pytest.mark.long
def test_5_accumulated_gradients_do_not_multiply_refreshes(getkey, lenient):
    """Two micro-batches a step, a refresh at every second step: 4 updates apart."""
    pruner = bb.transform(select(KERNEL), MAGNITUDE, density=0.5, start=1, every=2)
    tx = optax.MultiSteps(optax.chain(optax.sgd(1.0), pruner), 2)
    params = {"w": jax.random.normal(getkey(), KERNEL.shape)}
    state = tx.init(params)
    step = jax.jit(tx.update)
    changed, before = [], np.ones(KERNEL.shape, bool)
    for n in range(10):
        grads = {"w": jax.random.normal(getkey(), KERNEL.shape)}
        landed, state = step(grads, state, params)
        params = optax.apply_updates(params, landed)
        mask = np.asarray(bb.masks(state)["w"])
        changed += [n] if (mask != before).any() else []
        before = mask
    assert changed == [3, 7]


@pytest.mark.long
def test_6_a_mask_does_not_change_between_a_forward_pass_and_its_gradient(getkey):
    """A refresh uses the weights and the activity of the pass that was differentiated.

    Whatever gradient arrives, the weights that land are masked by what `masks` says.
    """
    tx = bb.transform(select(KERNEL), density=0.5, start=0, every=1, ema=0.0)
    w = jax.random.normal(getkey(), KERNEL.shape)
    rate = jax.random.uniform(getkey(), (8,))
    state = tx.init({"w": w})
    huge = 100 * jax.random.normal(getkey(), KERNEL.shape)
    calm, after_calm = updated(tx, state, w, ZEROS, activity(KERNEL, outputs=rate))
    wild, after_wild = updated(tx, state, w, huge, activity(KERNEL, outputs=rate))
    masks = [np.asarray(bb.masks(s)["w"]) for s in (after_calm, after_wild)]
    np.testing.assert_array_equal(*masks)
    np.testing.assert_array_equal(masks[0], np.asarray(wild) != 0)
    np.testing.assert_array_equal(masks[0], np.asarray(calm) != 0)
    np.testing.assert_array_equal(after_wild.bb_dormant["w"][~masks[0]], w[~masks[0]])


@pytest.mark.long
def test_7_running_means_have_no_start_up_bias():
    """From 0 without correction, 40 steps at .99 reach a third of the truth."""
    params = {"up": jnp.eye(4), "down": jnp.ones((4, 1))}
    x = jnp.array([[1.0, 1, 1, -1], [1, 1, -1, -1], [1, -1, -1, -1], [1, -1, -1, -1]])

    def loss(params, x):
        return jnp.sum(jax.nn.relu(x @ params["up"]) @ params["down"])

    units = bb.trace(loss, params, x)
    tx = bb.transform(units, density=0.5, ema=0.99, start=100)
    _, seen = bb.observe(loss, units)(params, x)
    step = jax.jit(tx.update)
    state = tx.init(params)
    assert bb.on_rates(state)["up"].tolist() == [0.5] * 4
    for _ in range(40):
        _, state = step(
            jax.tree.map(jnp.zeros_like, params), state, params, activity=seen
        )
        np.testing.assert_allclose(
            bb.on_rates(state)["up"], [1.0, 0.5, 0.25, 0.0], atol=1e-6
        )


@pytest.mark.long
def test_8_padding_does_not_count():
    """Padded positions are on here: counted, they would hide that a unit is rare."""
    params = {"up": jnp.eye(3), "down": jnp.ones((3, 1))}
    real = np.array([[1.0, 1, -1], [1, -1, -1]])
    x = jnp.asarray(np.concatenate([real, np.ones((6, 3))]), jnp.float32)[None]

    def loss(params, x, where):
        hidden = jax.nn.relu(x @ params["up"]) * where[..., None]
        return jnp.sum(hidden @ params["down"])

    where = (jnp.arange(8) < 2)[None].astype(jnp.float32)
    units = bb.trace(loss, params, x, where)
    for mask in (where, lambda x, where: where):
        observe = bb.observe(loss, units, where=mask)
        _, seen = observe(params, x, where)
        assert seen["up"].outputs.on_rate.tolist() == [1.0, 0.5, 0.0]
        assert seen["up"].outputs.count.tolist() == [2.0] * 3
        assert seen["up"].inputs.on_rate.tolist() == [1.0, 0.5, 0.0]


@pytest.mark.long
def test_8_a_batch_of_padding_leaves_the_running_mean_alone():
    tx = bb.transform(select(KERNEL), density=0.5, start=9, ema=0.5)
    state = tx.init({"w": ZEROS})
    rate = np.linspace(0, 1, 8)
    for outputs, count in ((rate, 4.0), (np.zeros(8), 0.0)):
        seen = activity(KERNEL, outputs=outputs, count=count)
        _, state = updated(tx, state, ZEROS, ZEROS, seen)
        np.testing.assert_allclose(bb.on_rates(state)["w"], rate, atol=1e-6)


@pytest.mark.long
def test_9_the_bias_is_not_rescaled(getkey):
    """Scaling pre-activations scales the bias with them; we scale the weights."""
    params = {"w": jax.random.normal(getkey(), KERNEL.shape), "b": jnp.ones(8)}
    tx = bb.transform(select(KERNEL), density=0.5, start=0, rescale=True)
    updates = jax.tree.map(jnp.zeros_like, params)
    seen = activity(KERNEL, outputs=jnp.linspace(0.1, 0.9, 8))
    step = jax.jit(tx.update)
    landed, state = step(updates, tx.init(params), params, activity=seen)
    got = jax.tree.map(jnp.add, params, landed)
    np.testing.assert_array_equal(got["b"], params["b"])
    mask, degrees = bb.masks(state)["w"], bb.degrees_of(state)["w"]
    want = np.where(mask, params["w"], 0) * np.sqrt(12 / np.asarray(degrees))
    assert len(set(degrees.tolist())) > 1
    np.testing.assert_allclose(got["w"], want, rtol=1e-6)


def grow_by_gradient():
    """A toy rule: keeps the edges of the largest dense gradient."""

    def select(seen):
        return bb.top_k_mask(jnp.abs(seen.grads), seen.budget, axis=(0, 1))

    return bb.rules.Rule("toy", select, needs=("grads",), revive="zero")


def spy():
    """An optimizer that remembers the last gradient it was shown."""

    def update(updates, state, params=None, **extra):
        return jax.tree.map(jnp.negative, updates), updates

    return optax.GradientTransformationExtraArgs(
        lambda params: jax.tree.map(jnp.zeros_like, params), update
    )


@pytest.mark.long
def test_10_a_rule_sees_the_dense_gradient_and_the_optimizer_the_masked_one(getkey):
    tx = bb.wrap(
        spy(), select(KERNEL), grow_by_gradient(), density=0.25, start=0, every=1
    )
    w = jax.random.normal(getkey(), KERNEL.shape)
    params, state = {"w": w}, tx.init({"w": w})
    step = jax.jit(tx.update)
    before = np.ones(KERNEL.shape, bool)
    for _ in range(4):
        g = np.asarray(jax.random.normal(getkey(), KERNEL.shape))
        landed, state = step({"w": g}, state, params)
        params = optax.apply_updates(params, landed)
        mask = np.asarray(bb.masks(state)["w"])
        largest = np.zeros(96, bool)
        largest[np.argsort(-np.abs(g).ravel())[:24]] = True
        np.testing.assert_array_equal(mask, largest.reshape(mask.shape))
        np.testing.assert_array_equal(state.inner["w"], np.where(before, g, 0))
        assert (np.asarray(params["w"])[mask & ~before] == 0).all()  # grown at 0
        before = mask


@pytest.mark.long
def test_statistics_of_one_side_do_not_move_the_other():
    """SP-in and SP-out read different units, also where the shapes agree."""
    kernel = dense(8, 8)
    low, high = statistics(jnp.full(8, 0.1)), statistics(jnp.full(8, 0.9))
    seen = {"w": Activity(inputs=low, outputs=high)}
    for actuator, rate in (("in", 0.9), ("out", 0.1)):
        _, state = refreshed(
            kernel, None, jnp.ones(kernel.shape), seen, actuators=(actuator,)
        )
        np.testing.assert_allclose(bb.on_rates(state)["w"], np.full(8, rate), rtol=1e-6)
