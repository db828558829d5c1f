"""Haiku: functions with state and random keys, transformed to pure ones."""

import functools

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb

pytestmark = pytest.mark.usefixtures("lenient")
DENSITY = 0.6


@hk.transform_with_state
def net(x, train):
    x = hk.Linear(24, name="up")(x)
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training=train))
    x = hk.dropout(hk.next_rng_key(), 0.2, x) if train else x
    return hk.Linear(3, name="down")(x)


def loss_fn(params, state, rng, batch):
    logits, state = net.apply(params, state, rng, batch[0], True)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return losses.mean(), state


@pytest.mark.long
def test_batch_norm_and_dropout(getkey):
    x = jax.random.normal(getkey(), (48, 8))
    batch, key = (x, (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)), getkey()
    params, state = net.init(getkey(), x, True)
    units = bb.trace(loss_fn, params, state, key, batch)
    assert units.paths == ("up/w", "down/w")
    assert units["up/w"].nonlinearity == "relu"  # measured after the norm
    prune = bb.transform(units, density=DENSITY, start=3, every=5)
    tx = optax.chain(optax.adamw(1e-2), prune)
    opt_state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    @chex.assert_max_traces(n=1)
    def train_step(params, opt_state, state, rng, batch):
        observed = bb.observe(loss_fn, units, has_aux=True)
        (loss, (state, activity)), grads = jax.value_and_grad(observed, has_aux=True)(
            params, state, rng, batch
        )
        updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
        return optax.apply_updates(params, updates), opt_state, state, loss

    _, plain = loss_fn(params, state, key, batch)
    losses = []
    for step in range(30):
        params, opt_state, state, loss = train_step(
            params, opt_state, state, jax.random.fold_in(key, step), batch
        )
        losses.append(float(loss))
        if step == 0:  # running means, which do not depend on the key
            chex.assert_trees_all_close(state, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(params["up"]["w"] != 0, bb.masks(opt_state)["up/w"])
    assert np.count_nonzero(params["up"]["w"]) == round(DENSITY * 8 * 24)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
