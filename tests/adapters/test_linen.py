"""`bb.linen.TrainState`: extra arguments reach the optimizer, fields are replaced."""

import subprocess
import sys
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

import bbjax as bb

pytestmark = pytest.mark.usefixtures("lenient")
DENSITY = 0.6


class Model(nn.Module):
    """Dense, BatchNorm and Dropout: everything linen keeps outside `params`."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(24, name="up")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, name="down")(x)


class TrainState(bb.linen.TrainState):
    """The usual subclass, for running means."""

    batch_stats: Any


@pytest.fixture
def batch(getkey):
    x = jax.random.normal(getkey(), (48, 8))
    return x, (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)


def loss_fn(params, batch_stats, batch, rng):
    logits, new = Model().apply(
        {"params": params, "batch_stats": batch_stats},
        batch[0],
        train=True,
        rngs={"dropout": rng},
        mutable=["batch_stats"],
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return losses.mean(), new["batch_stats"]


def make_state(batch, key, make_optimizer):
    variables = Model().init(jax.random.key(3), batch[0], train=False)
    params, stats = variables["params"], variables["batch_stats"]
    units = bb.trace(loss_fn, params, stats, batch, key)
    state = TrainState.create(
        apply_fn=Model().apply,
        params=params,
        tx=make_optimizer(units),
        batch_stats=stats,
    )
    return units, state


def chain(units, **settings):
    settings = {"density": DENSITY, "start": 3, "every": 5} | settings
    return optax.chain(optax.adamw(1e-2), bb.transform(units, **settings))


def train_step_of(units):
    observed = bb.observe(loss_fn, units, has_aux=True)

    def train_step(state, batch, rng):
        rng = jax.random.fold_in(rng, state.step)
        (loss, (stats, activity)), grads = jax.value_and_grad(observed, has_aux=True)(
            state.params, state.batch_stats, batch, rng
        )
        state = state.apply_gradients(grads=grads, activity=activity, batch_stats=stats)
        return state, loss

    return train_step


@pytest.mark.long
def test_batch_norm_and_dropout_train_sparse(batch, getkey):
    key = getkey()
    units, state = make_state(batch, key, chain)
    assert units["up/kernel"].nonlinearity == "relu"  # measured after the norm
    train_step, losses = jax.jit(train_step_of(units), donate_argnums=0), []
    for step in range(40):
        state, loss = train_step(state, batch, key)
        losses.append(float(loss))
        kernel, mask = np.array(state.params["up"]["kernel"]), bb.masks(state)
        kept = kernel.size if step < 3 else round(DENSITY * kernel.size)
        assert np.count_nonzero(kernel) == kept
        np.testing.assert_array_equal(kernel != 0, mask["up/kernel"])
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert state.step == 40


@pytest.mark.long
def test_observing_changes_neither_dropout_nor_running_means(batch, getkey):
    key = getkey()
    units, state = make_state(batch, key, chain)
    arguments = (state.params, state.batch_stats, batch, key)
    loss, stats = loss_fn(*arguments)
    seen_loss, (seen_stats, activity) = bb.observe(loss_fn, units, has_aux=True)(
        *arguments
    )
    np.testing.assert_allclose(seen_loss, loss, rtol=1e-6)
    for new, old in zip(*map(jax.tree.leaves, (seen_stats, stats)), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-7)
    assert set(activity) == {"up/kernel", "down/kernel"}


def test_without_extra_arguments_it_is_the_train_state_of_flax(batch, getkey):
    _, state = make_state(batch, getkey(), lambda units: optax.adamw(1e-2))
    flax_state = train_state.TrainState.create(
        apply_fn=state.apply_fn, params=state.params, tx=state.tx
    )
    grads = jax.tree.map(jnp.ones_like, state.params)
    for _ in range(2):
        state = state.apply_gradients(grads=grads)
        flax_state = flax_state.apply_gradients(grads=grads)
    assert state.step == flax_state.step == 2
    for field in ("params", "opt_state"):
        mine, theirs = getattr(state, field), getattr(flax_state, field)
        chex.assert_trees_all_equal(mine, theirs)


def test_the_train_state_of_flax_is_named_where_it_drops_activity(batch, getkey):
    """It takes the keyword for a field; the one here passes it on."""
    _, state = make_state(batch, getkey(), chain)
    theirs = train_state.TrainState.create(
        apply_fn=state.apply_fn, params=state.params, tx=state.tx
    )
    grads = jax.tree.map(jnp.ones_like, state.params)
    text = "needs, got None; .*Flax's own TrainState does not .*bb.linen.TrainState"
    with pytest.raises(ValueError, match=text):
        theirs.apply_gradients(grads=grads, activity={})


def test_a_field_is_replaced_and_everything_else_reaches_the_optimizer():
    given = {}

    def update(updates, state, params=None, **extra):
        given.update(extra)
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    params = {"w": jnp.ones(2)}
    state = TrainState.create(apply_fn=None, params=params, tx=tx, batch_stats=0)
    state = state.apply_gradients(grads=params, activity="seen", value=3, batch_stats=7)
    assert given == {"activity": "seen", "value": 3}
    assert state.batch_stats == 7


def test_an_optimizer_that_takes_no_extra_argument_is_not_given_any():
    tx = optax.GradientTransformation(lambda params: (), lambda u, s, p=None: (u, s))
    params = {"w": jnp.ones(2)}
    state = bb.linen.TrainState.create(apply_fn=None, params=params, tx=tx)
    state = state.apply_gradients(grads=params, activity=None)
    np.testing.assert_array_equal(state.params["w"], [2.0, 2.0])


def test_what_the_step_replaces_cannot_be_given():
    params = {"w": jnp.ones(2)}
    state = bb.linen.TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.1))
    with pytest.raises(TypeError, match="multiple values for keyword argument 'step'"):
        state.apply_gradients(grads=params, step=5)


def test_missing_activity_is_named(batch, getkey):
    _, state = make_state(batch, getkey(), chain)
    with pytest.raises(ValueError, match="expected activity, which rule"):
        state.apply_gradients(grads=state.params)


@pytest.mark.long
def test_accessors_take_the_state(batch, getkey):
    key = getkey()
    units, state = make_state(batch, key, lambda units: chain(units, start=0))
    state, _ = jax.jit(train_step_of(units))(state, batch, key)
    for accessor in (bb.masks, bb.degrees_of, bb.on_rates, bb.metrics):
        mine, plain = accessor(state), accessor(state.opt_state)
        assert mine.keys() == plain.keys()
        for path in mine:
            np.testing.assert_array_equal(mine[path], plain[path])
    edges = round(DENSITY * 8 * 24)
    assert bb.degrees_of(state)["up/kernel"].sum() == edges


@pytest.mark.long
def test_gradients_overwrite_what_flax_says_they_overwrite(getkey):
    """As for the scales of float8, whose new values come as gradients."""
    name, x = OVERWRITE_WITH_GRADIENT, jax.random.normal(getkey(), (16, 8))
    up, down = (jax.random.normal(getkey(), s) for s in ((8, 12), (12, 8)))
    params = {"params": {"up": up, "down": down}, name: {"scale": jnp.ones(())}}

    def loss_fn(params, x):
        hidden = jax.nn.relu(x @ params["params"]["up"])
        out = hidden @ params["params"]["down"]
        return jnp.mean((out * params[name]["scale"] - x) ** 2)

    units = bb.trace(loss_fn, params, x)
    state = bb.linen.TrainState.create(apply_fn=None, params=params, tx=chain(units))

    @jax.jit
    def train_step(state):
        (_, activity), grads = jax.value_and_grad(
            bb.observe(loss_fn, units), has_aux=True
        )(state.params, x)
        return state.apply_gradients(grads=grads, activity=activity), grads

    for _ in range(6):
        state, grads = train_step(state)
        np.testing.assert_array_equal(state.params[name]["scale"], grads[name]["scale"])
    chex.assert_trees_all_equal_structs(state.params, params)
    kernel = state.params["params"]["up"]
    np.testing.assert_array_equal(kernel != 0, bb.masks(state)["params/up"])
    assert np.count_nonzero(kernel) == round(DENSITY * kernel.size)


@pytest.mark.long
def test_flax_is_imported_only_when_an_adapter_is_used():
    code = (
        "import sys, bbjax as bb\n"
        "assert 'flax' not in sys.modules, 'flax was imported'\n"
        "assert bb.linen.TrainState and bb.nnx.functional\n"
        "assert 'flax' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'bbjax' has no attribute 'torch'"):
        _ = bb.torch


@pytest.mark.long
def test_names_of_mesh_axes_are_not_part_of_a_path(batch):
    def net(partitioned):
        init = nn.initializers.lecun_normal()
        if partitioned:
            init = nn.with_partitioning(init, (None, "model"))
        hidden = nn.Dense(24, kernel_init=init)
        return nn.Sequential([hidden, nn.relu, nn.Dense(3)])

    x = batch[0]
    found = {}
    for partitioned in (False, True):
        model = net(partitioned)
        params = model.init(jax.random.key(0), x)

        def fn(params, x, model=model):
            return model.apply(params, x)

        units = bb.trace(fn, params, x)
        rule = bb.rules.magnitude()
        pruned, masks = bb.prune(params, units.select("layers_0"), rule, density=0.5)
        scores = bb.unitwise.group_magnitude(units, pruned)
        small = bb.shrink(fn, pruned, bb.unitwise.cut(units, scores, 0.5), x)
        boxed = small.params["params"]["layers_0"]["kernel"]
        assert isinstance(boxed, nn.Partitioned) is partitioned
        plain = nn.meta.unbox(small.params)
        found[partitioned] = plain, masks, units.paths, bb.linen.features(small)
    assert found[True][3] == {"params/layers_0": 12, "params/layers_2": 3}
    assert found[True][2:] == found[False][2:]
    chex.assert_trees_all_equal(found[True][:2], found[False][:2])
