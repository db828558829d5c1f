"""Training goes on after shrinking as the masked model would have gone on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_shrink_zoo import close, masked

import bbjax as bb

pytestmark = pytest.mark.usefixtures("lenient")  # Optax promotes types

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((16, 3)), jnp.float32)
Y = jnp.asarray(RNG.standard_normal((16, 2)), jnp.float32)


def loss(p, x, y):
    h = jax.nn.relu(x @ p["a"]["w"] + p["a"]["b"][None])
    h = jnp.tanh(h @ p["b"]["w"] + p["b"]["b"][None])
    return jnp.mean((h @ p["c"]["w"] + p["c"]["b"][None] - y) ** 2)


def params():
    shapes = {"a": (3, 12), "b": (12, 8), "c": (8, 2)}
    return {
        n: {
            "w": jnp.asarray(RNG.standard_normal(s), jnp.float32) / 2,
            "b": jnp.zeros(s[1]) + 0.1,
        }
        for n, s in shapes.items()
    }


def unit_masks(p):
    units = bb.trace(loss, p, X, Y)
    return bb.unitwise.cut(units, bb.unitwise.group_magnitude(units, p), 0.5)


OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "rmsprop": optax.rmsprop(0.01),
    "lion": optax.lion(0.01),
    "adagrad": optax.adagrad(0.1),
    "inject": optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
    "multi": optax.MultiSteps(optax.adam(0.01), 2),
}


def steps(tx, p, state, count):
    @jax.jit
    def step(p, state):
        updates, state = tx.update(jax.grad(loss)(p, X, Y), state, p)
        return optax.apply_updates(p, updates), state

    for _ in range(count):
        p, state = step(p, state)
    return p, state


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_training_goes_on_with_any_optimizer(name):
    p = params()
    masks = unit_masks(p)
    tx = optax.chain(OPTIMIZERS[name], bb.hold(masks))
    p, state = steps(tx, masked(p, masks), tx.init(masked(p, masks)), 4)
    small = bb.shrink(loss, p, masks, X, Y)
    assert small.widths == {"a/w": (12, 6), "b/w": (8, 4), "c/w": (2, 2)}
    cut = small.cut_state(state)[0]
    inner = OPTIMIZERS[name]
    expected = jax.tree.map(jnp.shape, inner.init(small.params))
    assert jax.tree.map(jnp.shape, cut) == expected
    old, _ = steps(tx, p, state, 4)
    new, _ = steps(inner, small.params, cut, 4)
    close(small.cut(old), new)


def test_a_pruning_state_goes_on_with_its_masks_means_and_dormant_weights():
    p = params()
    units = bb.trace(loss, p, X, Y).select("b/w")
    observed = jax.value_and_grad(bb.observe(loss, units), has_aux=True)

    def trained(tx, p, state, count):
        for _ in range(count):
            (_, activity), grads = observed_of[id(tx)](p, X, Y)
            updates, state = tx.update(grads, state, p, activity=activity)
            p = optax.apply_updates(p, updates)
        return p, state

    tx = optax.chain(optax.adam(0.01), bb.transform(units, density=0.5, start=1))
    observed_of = {id(tx): observed}
    p, state = trained(tx, p, tx.init(p), 3)
    masks = bb.masks(state)
    gone = np.ones(p["a"]["w"].shape, bool)
    gone[:, 3:7] = False
    bias = np.ones(12, bool)
    bias[3:7] = False
    small = bb.shrink(loss, p, {**masks, "a/w": gone, "a/b": bias}, X, Y)
    assert small.widths["a/w"][1] <= 8
    cut = small.cut_state(state)
    kept = {axis: np.asarray(indices) for axis, _, indices in small.cuts["b/w"]}
    rows, columns = kept[0], kept.get(1, np.arange(8))
    expected = np.asarray(masks["b/w"])[np.ix_(rows, columns)]
    np.testing.assert_array_equal(bb.masks(cut)["b/w"], expected)
    rates = bb.on_rates(state)["b/w"]
    np.testing.assert_array_equal(bb.on_rates(cut)["b/w"], rates[columns])
    dormant = optax.tree.get(state, "bb_dormant")["b/w"]
    np.testing.assert_array_equal(
        optax.tree.get(cut, "bb_dormant")["b/w"],
        np.asarray(dormant)[np.ix_(rows, columns)],
    )
    again = optax.chain(
        optax.adam(0.01),
        bb.transform(small.units.select("b/w"), density=0.5, start=1),
    )
    same = jax.tree.structure(again.init(small.params)) == jax.tree.structure(cut)
    assert same
    shapes = jax.tree.map(jnp.shape, again.init(small.params))
    assert jax.tree.map(jnp.shape, cut) == shapes
    observed_of[id(again)] = jax.value_and_grad(
        bb.observe(loss, small.units.select("b/w")), has_aux=True
    )
    new, state = trained(again, small.params, cut, 2)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(new))
    zeros = jnp.where(bb.masks(state)["b/w"], 0.0, new["b"]["w"])
    assert not zeros.any()


def test_means_of_both_sides_are_cut_unit_by_unit():
    p = params()
    units = bb.trace(loss, p, X, Y)
    units = units.select("b/w", "in") + units.select("b/w", "out")
    tx = bb.transform(units, density=0.9, start=100)
    state = tx.init(p)
    _, activity = bb.observe(loss, units)(p, X, Y)
    _, state = tx.update(jax.tree.map(jnp.zeros_like, p), state, p, activity=activity)
    small = bb.shrink(loss, p, unit_masks(p), X, Y)
    cut = small.cut_state(state)
    rows, columns = (np.asarray(indices) for _, _, indices in small.cuts["b/w"])
    before, after = bb.on_rates(state), bb.on_rates(cut)
    np.testing.assert_array_equal(after["b/w:out"], before["b/w:out"][rows])
    np.testing.assert_array_equal(after["b/w:in"], before["b/w:in"][columns])


# Rounds --------------------------------------------------------------------------
def choose(p, units):
    return bb.unitwise.cut(units, bb.unitwise.group_magnitude(units, p), 0.75)


def tune(small):
    tx = optax.adam(0.02)
    return steps(tx, small.params, tx.init(small.params), 20)[0]


def test_rounds_shrink_and_train_in_turn():
    rounds = list(
        bb.shrink_rounds(loss, params(), choose, tune, X, Y, iterations=3, score=score)
    )
    widths = [r.small.widths["a/w"] for r in rounds]
    assert widths == [(12, 9), (9, 7), (7, 5)]
    assert [r.number for r in rounds] == [1, 2, 3]
    assert all(r.score == score(r.params) for r in rounds)


def score(p):
    return -float(loss(p, X, Y))


def test_rounds_end_before_the_score_is_too_low():
    def width(p):
        return p["a"]["w"].shape[1]

    rounds = bb.shrink_rounds(
        loss, params(), choose, tune, X, Y, iterations=9, score=width, least=7
    )
    assert [r.score for r in rounds] == [9, 7]


def test_rounds_end_where_nothing_leaves():
    rounds = bb.shrink_rounds(
        loss, params(), lambda p, units: {}, tune, X, Y, iterations=9
    )
    assert list(rounds) == []


def test_wrong_rounds_are_refused():
    with pytest.raises(ValueError, match="expected a score for least=0.9, got none"):
        bb.shrink_rounds(loss, params(), choose, tune, X, Y, iterations=2, least=0.9)
    with pytest.raises(ValueError, match="iterations"):
        bb.shrink_rounds(loss, params(), choose, tune, X, Y, iterations=0)
