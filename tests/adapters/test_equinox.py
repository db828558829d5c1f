"""Equinox: the ways to hold parameters, and layers with state."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb

pytestmark = pytest.mark.usefixtures("lenient")
DENSITY = 0.6


@pytest.fixture
def batch(getkey):
    x = jax.random.normal(getkey(), (48, 8))
    return x, (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)


@pytest.fixture
def model(getkey):
    return eqx.nn.MLP(8, 3, 24, 2, key=getkey())


def chain(units):
    prune = bb.transform(units, density=DENSITY, start=3, every=5)
    return optax.chain(optax.adamw(1e-2), prune)


def mean_loss(logits, labels):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def loss_fn(model, batch):
    return mean_loss(jax.vmap(model)(batch[0]), batch[1])


def train_whole_module(model, batch, steps):
    """The module is the parameter tree; the optimizer gets its float arrays."""
    units = bb.trace(loss_fn, model, batch)
    tx = chain(units)
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def train_step(model, opt_state, batch):
        observed = bb.observe(loss_fn, units)
        (_, activity), grads = eqx.filter_value_and_grad(observed, has_aux=True)(
            model, batch
        )
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
        return eqx.apply_updates(model, updates), opt_state

    for _ in range(steps):
        model, opt_state = train_step(model, opt_state, batch)
    return units, model, opt_state


@pytest.mark.long
def test_the_whole_module_is_traced_and_its_float_arrays_are_trained(model, batch):
    units, trained, opt_state = train_whole_module(model, batch, steps=30)
    assert units.paths == tuple(f"layers/{i}/weight" for i in range(3))
    assert trained.activation is model.activation
    for path, mask in bb.masks(opt_state).items():
        weight = trained.layers[int(path.split("/")[1])].weight  # (out, in)
        np.testing.assert_array_equal(weight != 0, mask)
        assert np.count_nonzero(weight) == round(DENSITY * weight.size)
    assert loss_fn(trained, batch) < 0.8 * loss_fn(model, batch)


@pytest.mark.long
def test_a_partitioned_module_is_plain_jax_and_trains_the_same(model, batch):
    whole_units, whole, _ = train_whole_module(model, batch, steps=6)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def split_loss(params, batch):
        return loss_fn(eqx.combine(params, static), batch)

    units = bb.trace(split_loss, params, batch)
    assert units == whole_units
    tx = chain(units)
    opt_state = tx.init(params)
    params = jax.tree.map(jnp.copy, params)  # the fixture's arrays are not ours to give

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, batch):
        (_, activity), grads = jax.value_and_grad(
            bb.observe(split_loss, units), has_aux=True
        )(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(6):
        params, opt_state = train_step(params, opt_state, batch)
    for mine, theirs in zip(params.layers, whole.layers, strict=True):
        np.testing.assert_array_equal(mine.weight != 0, theirs.weight != 0)
        np.testing.assert_allclose(mine.weight, theirs.weight, rtol=1e-4, atol=1e-6)


class Stateful(eqx.Module):
    """BatchNorm, whose running means are a second tree, and Dropout, with a key."""

    up: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    down: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.up = eqx.nn.Linear(8, 24, key=keys[0])
        self.norm = eqx.nn.BatchNorm(24, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.2)
        self.down = eqx.nn.Linear(24, 3, key=keys[1])

    def __call__(self, x, state, key):
        x, state = self.norm(self.up(x), state)
        return self.down(self.dropout(jax.nn.relu(x), key=key)), state


def stateful_loss(model, state, batch, key):
    call = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
    logits, state = call(batch[0], state, jax.random.split(key, len(batch[0])))
    return mean_loss(logits, batch[1]), state


@pytest.mark.long
def test_batch_norm_and_dropout(batch, getkey):
    model, state = eqx.nn.make_with_state(Stateful)(getkey())
    key = getkey()
    units = bb.trace(stateful_loss, model, state, batch, key)
    assert units["up/weight"].nonlinearity == "relu"  # measured after the norm
    tx = chain(units)
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def train_step(model, state, opt_state, batch, key):
        observed = bb.observe(stateful_loss, units, has_aux=True)
        (loss, (state, activity)), grads = eqx.filter_value_and_grad(
            observed, has_aux=True
        )(model, state, batch, key)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
        return eqx.apply_updates(model, updates), state, opt_state, loss

    always = eqx.tree_at(lambda m: m.dropout.p, model, 0.0)
    _, (_, activity) = bb.observe(stateful_loss, units, has_aux=True)(
        always, state, batch, key
    )
    hidden = np.asarray(jax.vmap(model.up)(batch[0]))  # normed: on above the mean
    np.testing.assert_allclose(
        activity["up/weight"].outputs.on_rate, (hidden > hidden.mean(0)).mean(0)
    )

    _, plain = stateful_loss(model, state, batch, key)
    losses = []
    for step in range(30):
        model, state, opt_state, loss = train_step(
            model, state, opt_state, batch, jax.random.fold_in(key, step)
        )
        losses.append(float(loss))
        if step == 0:  # running means, which do not depend on the key
            for a, b in zip(*map(jax.tree.leaves, (state, plain)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        model.up.weight != 0, bb.masks(opt_state)["up/weight"]
    )
    assert np.count_nonzero(model.up.weight) == round(DENSITY * 8 * 24)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
