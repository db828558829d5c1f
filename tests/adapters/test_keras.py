"""Keras 3 on its JAX backend, by the recipe of the notebook `04_any_model`.

No adapter: `stateless_call` is a function of values, and paths of variables are keys.
"""

import ast
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb

os.environ["KERAS_BACKEND"] = "jax"  # Keras reads it when it is imported
keras = pytest.importorskip("keras")
NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "04_any_model.py"
pytestmark = [
    pytest.mark.usefixtures("lenient"),
    pytest.mark.skipif(
        keras.backend.backend() != "jax",
        reason="Keras was imported for another library",
    ),
]
DENSITY = 0.25


@pytest.fixture
def resized():
    """The notebook's function that makes a model again with other widths."""
    if not NOTEBOOK.is_file():
        pytest.skip("the notebooks are not here")
    tree = ast.parse(NOTEBOOK.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", "") == "resized"]
    found = {"jax": jax, "keras": keras}
    exec(compile(tree, str(NOTEBOOK), "exec"), found)
    return found["resized"]


@pytest.fixture
def batch(getkey):
    x = jax.random.normal(getkey(), (64, 16))
    return {"x": x, "y": (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)}


def dense_net():
    layers = keras.layers
    stack = [
        keras.Input((16,)),
        layers.Dense(32, name="up"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(),
        layers.Dropout(0.2, name="drop"),
        layers.Dense(2, name="head"),
    ]
    return keras.Sequential(stack, name="net")


def residual_net():
    """Functional: convolutions, a residual sum, pooling and a dense layer."""
    layers = keras.layers
    x = keras.Input((8, 8, 3))
    h = layers.Conv2D(16, 3, padding="same", use_bias=False, name="first")(x)
    h = layers.ReLU()(layers.BatchNormalization(name="norm")(h))
    more = layers.Conv2D(16, 3, padding="same", activation="relu", name="second")(h)
    h = layers.GlobalAveragePooling2D()(layers.Add()([h, more]))
    h = layers.Dense(32, activation="gelu", name="dense")(h)
    return keras.Model(x, layers.Dense(3, name="head")(h), name="residual")


def values_of(net):
    params = {v.path: v.value for v in net.trainable_variables}
    return params, [v.value for v in net.non_trainable_variables]


def loss_of(net):
    def loss_fn(params, rest, batch):
        given = [params[v.path] for v in net.trainable_variables]
        logits, rest = net.stateless_call(given, rest, batch["x"], training=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return losses.mean(), rest

    return loss_fn


def train(net, batch, steps):
    """What the notebook does, with the state before it and after the first step."""
    loss_fn, (params, rest) = loss_of(net), values_of(net)
    units = bb.trace(loss_fn, params, rest, batch)
    prune = bb.transform(units, density=DENSITY, start=3, every=5)
    tx = optax.chain(optax.adam(1e-2), prune)
    opt_state = tx.init(params)

    @jax.jit
    def step(params, rest, opt_state, batch):
        measured = bb.value_and_grad(loss_fn, units, has_aux=True)
        (loss, rest), grads, activity = measured(params, rest, batch)
        updates, opt_state = tx.update(grads, opt_state, params, activity=activity)
        return optax.apply_updates(params, updates), rest, opt_state, loss

    rests, losses = [rest], []
    for _ in range(steps):
        params, rest, opt_state, loss = step(params, rest, opt_state, batch)
        rests.append(rest)
        losses.append(float(loss))
    return params, rests, opt_state, losses


def test_paths_are_those_of_the_variables(batch):
    net = dense_net()
    units = bb.trace(loss_of(net), *values_of(net), batch)
    assert units.paths == ("net/up/kernel", "net/head/kernel")
    assert tuple(units.budgeted) == ("net/up/kernel",)
    assert units["net/up/kernel"].nonlinearity == "relu"  # measured after the norm


@pytest.mark.long
def test_training_keeps_the_budget_to_the_edge(batch):
    net = dense_net()
    params, rests, opt_state, losses = train(net, batch, steps=40)
    (mask,) = bb.masks(opt_state).values()
    assert int(mask.sum()) == round(DENSITY * mask.size)
    np.testing.assert_array_equal(params["net/up/kernel"] != 0, mask)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])

    for variable in net.trainable_variables:
        variable.assign(params[variable.path])
    for variable, value in zip(net.non_trainable_variables, rests[-1], strict=True):
        variable.assign(value)
    np.testing.assert_array_equal(net.get_layer("up").kernel.value != 0, mask)
    given = [params[v.path] for v in net.trainable_variables]
    logits, _ = net.stateless_call(given, rests[-1], batch["x"])
    np.testing.assert_allclose(net(batch["x"]), logits, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_running_means_and_seeds_move_as_without_pruning(batch):
    net = dense_net()
    _, plain = loss_of(net)(*values_of(net), batch)
    _, (before, after, later), _, _ = train(net, batch, steps=2)
    names = [v.path for v in net.non_trainable_variables]
    assert sum("moving" in name for name in names) == 2
    assert sum("seed" in name for name in names) == 1
    for a, b, c, d in zip(before, after, later, plain, strict=True):
        np.testing.assert_allclose(b, d, rtol=1e-5, atol=1e-6)
        assert a.dtype == b.dtype and np.any(a != b) and np.any(b != c)


@pytest.mark.long
def test_on_rates_are_those_of_the_layer(batch):
    net = dense_net()
    net.get_layer("drop").rate = 0.0  # a unit that is dropped is off
    params, rest = values_of(net)
    loss_fn = loss_of(net)
    units = bb.trace(loss_fn, params, rest, batch)
    _, _, activity = bb.value_and_grad(loss_fn, units, has_aux=True)(
        params, rest, batch
    )
    hidden = np.asarray(net.get_layer("up")(batch["x"]))  # on above the batch's mean
    on_rate = activity["net/up/kernel"].outputs.on_rate
    np.testing.assert_allclose(on_rate, (hidden > hidden.mean(0)).mean(0), atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "shape", "widths"),
    [
        (dense_net, (8, 16), {"net/up/kernel": 16}),
        (
            residual_net,
            (4, 8, 8, 3),
            {"first/kernel": 8, "second/kernel": 8, "dense/kernel": 16},
        ),
    ],
    ids=["sequential", "functional"],
)
def test_a_smaller_keras_model_computes_the_same(make, shape, widths, resized, getkey):
    big, x = make(), jax.random.normal(getkey(), shape)
    for variable in big.non_trainable_variables:
        if "moving" in variable.path:
            noise = jax.random.uniform(getkey(), variable.shape)
            variable.assign(variable.value + noise)

    def outputs(values, x):
        net = resized(big, values)
        given = [values[v.path] for v in net.trainable_variables]
        rest = [values.get(v.path, v.value) for v in net.non_trainable_variables]
        return net.stateless_call(given, rest, x)[0]

    values = {v.path: v.value for v in big.weights}
    units = bb.trace(outputs, values, x)
    scores = bb.unitwise.group_magnitude(units, values)
    masks = bb.unitwise.cut(units, scores, density=0.5)
    small = bb.shrink(outputs, values, masks, x)

    little = resized(big, small.params)
    for variable in little.weights:
        variable.assign(small.params[variable.path])
    assert {v.path: v.shape[-1] for v in little.weights if v.path in widths} == widths
    assert little.count_params() < big.count_params()
    want = outputs(bb.apply_masks(values, masks), x)
    np.testing.assert_allclose(little(x), want, rtol=1e-5, atol=1e-6)
