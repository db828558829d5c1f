"""States with leading axes: several seeds in one state, made and updated by `vmap`.

What reads a state gives what it gives of each seed, with the leading axes first.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from bbjax.training.state import find

SEEDS, STEPS = 3, 4
READERS = {
    "masks": bb.masks,
    "degrees": bb.degrees_of,
    "on_rates": bb.on_rates,
    "metrics": bb.metrics,
}


def loss(p, x):
    h = jax.nn.relu(jax.nn.relu(x @ p["up"]) @ p["mid"])
    return jnp.mean((h @ p["down"] - 1.0) ** 2)


def first_params(key):
    keys = jax.random.split(key, 3)
    sizes = {"up": (9, 17), "mid": (17, 12), "down": (12, 4)}
    return {
        name: jax.random.normal(k, size) / 3
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }


X = jnp.asarray(np.random.default_rng(0).normal(size=(64, 9)), jnp.float32)
KEYS = jax.random.split(jax.random.key(0), SEEDS)
TRACED = bb.trace(loss, first_params(KEYS[0]), X)
UNITS = TRACED.select("up", "in") + TRACED.select("mid", "out")
TX = optax.chain(
    optax.sgd(0.1, momentum=0.9),
    bb.transform(
        UNITS, bb.rules.magnitude(), density=0.4, start=1, every=2, rescale=True
    ),
)


def step(params, state, x):
    _, grads, activity = bb.value_and_grad(loss, UNITS)(params, x)
    updates, state = TX.update(grads, state, params, activity=activity)
    return optax.apply_updates(params, updates), state


@functools.cache
def trained():
    """Parameters and states of all seeds at once, and of each by itself."""
    params = jax.vmap(first_params)(KEYS)
    state = jax.vmap(TX.init)(params)
    alone = [(p := first_params(key), TX.init(p)) for key in KEYS]
    together, one = jax.jit(jax.vmap(step, (0, 0, None))), jax.jit(step)
    for n in range(STEPS):
        x = X * (1 + n)
        params, state = together(params, state, x)
        alone = [one(*each, x) for each in alone]
    return (params, state), alone


@pytest.mark.long
def test_a_mapped_update_is_a_loop_over_seeds():
    together, alone = trained()
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    assert jax.tree.structure(together) == jax.tree.structure(stacked)
    chex.assert_trees_all_equal(bb.masks(together[1]), bb.masks(stacked[1]))
    chex.assert_trees_all_close(together, stacked, rtol=1e-4, atol=1e-6)
    for path, mask in bb.masks(together[1]).items():
        assert not np.asarray(together[0][path])[~np.asarray(mask)].any()
        assert mask.sum((1, 2)).tolist() == [round(0.4 * mask[0].size)] * SEEDS


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("axes", [(SEEDS,), (1, SEEDS)], ids=["seeds", "two axes"])
def test_leading_axes_come_first(name, axes):
    (_, state), _ = trained()
    read = READERS[name]
    each = [read(jax.tree.map(lambda x, i=i: x[i], state)) for i in range(SEEDS)]
    found = read(jax.tree.map(lambda x: x.reshape(axes + x.shape[1:]), state))
    assert found.keys() == each[0].keys()
    for key, values in found.items():
        want = jnp.stack([one[key] for one in each])
        assert values.shape == axes + want.shape[1:], key
        np.testing.assert_allclose(
            values.reshape(want.shape).astype(jnp.float32),
            want.astype(jnp.float32),
            rtol=1e-5,
            err_msg=key,
        )


def test_readers_work_on_shapes():
    (_, state), _ = trained()
    shapes = jax.eval_shape(bb.masks, state)
    assert shapes["up"].shape == (SEEDS, 9, 17)


@pytest.mark.long
def test_a_report_counts_each_seed_as_a_layer():
    (params, state), alone = trained()
    report = bb.report(state, UNITS, params=params)
    each = [bb.report(s, UNITS, params=p) for p, s in alone]
    assert report.updates == STEPS and report.kept == sum(one.kept for one in each)
    for path in ("up", "mid"):
        kernel, parts = report[path], [one[path] for one in each]
        assert kernel.stack_shape == (SEEDS,) and kernel.stray == 0
        assert kernel.asked == parts[0].asked
        assert kernel.flipped == sum(part.flipped for part in parts)
        if parts[0].no_path is not None:
            assert kernel.no_path == sum(part.no_path for part in parts)
        for side, *others in zip(kernel.sides, *(p.sides for p in parts), strict=True):
            want = np.concatenate([other.degree for other in others])
            np.testing.assert_array_equal(side.degree, want)
    assert "<html" in report.html() and report.to_dict()["kernels"]


def test_a_report_of_masks_and_of_earlier_ones():
    (_, state), _ = trained()
    masks = bb.masks(state)
    report = bb.report(masks, UNITS, previous=state)
    assert report["up"].flipped == 0
    assert report.kept == sum(int(mask.sum()) for mask in masks.values())
    with pytest.raises(
        ValueError, match=r"expected 'up' of shape \(3, 9, 17\), got \("
    ):
        bb.report(masks, UNITS, previous={p: mask[:2] for p, mask in masks.items()})


def test_an_update_that_is_not_mapped_is_refused():
    (params, state), _ = trained()
    (prune,) = find(state)
    tx = bb.transform(UNITS, density=0.4, rescale=True)
    with pytest.raises(ValueError, match=r"leading axes \(3,\); map the update over"):
        tx.update(params, prune, params, activity={})


@pytest.mark.long
def test_states_of_unlike_leading_axes_have_no_metrics_in_common():
    params = first_params(KEYS[0])
    txs = [bb.transform(TRACED.select(name)) for name in ("up", "mid")]
    states = txs[0].init(params), jax.vmap(txs[1].init)(jax.vmap(first_params)(KEYS))
    assert bb.masks(states)["mid"].shape == (SEEDS, 17, 12)
    with pytest.raises(ValueError, match=r"same leading axes, got \[\(\), \(3,\)\]"):
        bb.metrics(states)


@pytest.mark.long
def test_mapped_states_are_adopted():
    (params, state), _ = trained()
    tx = optax.chain(
        optax.sgd(0.1, momentum=0.9), bb.transform(TRACED.select("up"), density=0.2)
    )
    adopted = jax.vmap(lambda s, p: bb.adopt(s, tx, p))(state, params)
    np.testing.assert_array_equal(bb.masks(adopted)["up"], bb.masks(state)["up"])
