"""Training goes on after shrinking as the masked model would have gone on."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bbjax as bb
from tests.support.smaller import close, masked

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


@pytest.mark.sampled(1)
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
    chex.assert_trees_all_equal_shapes(cut, inner.init(small.params))
    old, _ = steps(tx, p, state, 4)
    new, _ = steps(inner, small.params, cut, 4)
    close(small.cut(old), new)


@pytest.mark.long
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
    chex.assert_trees_all_equal_shapes(cut, again.init(small.params))
    observed_of[id(again)] = jax.value_and_grad(
        bb.observe(loss, small.units.select("b/w")), has_aux=True
    )
    new, state = trained(again, small.params, cut, 2)
    chex.assert_tree_all_finite(new)
    zeros = jnp.where(bb.masks(state)["b/w"], 0.0, new["b"]["w"])
    assert not zeros.any()


@pytest.mark.long
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


def field_like_a_parameter(p, x):
    h = jax.nn.relu(x @ p["u"]) * p["v"][None]
    return jnp.mean((h @ p["d"]) ** 2)


@pytest.mark.long
def test_a_field_that_is_called_like_a_parameter_is_no_copy_of_it():
    """Mechanic keeps six numbers of its own under `v`."""
    p = {
        "u": jnp.asarray(RNG.standard_normal((3, 6)), jnp.float32),
        "v": jnp.ones(6),
        "d": jnp.asarray(RNG.standard_normal((6, 2)), jnp.float32),
    }
    tx = optax.contrib.mechanize(optax.adam(0.01))
    masks = {"d": np.broadcast_to(np.arange(6)[:, None] < 3, (6, 2))}
    small = bb.shrink(field_like_a_parameter, p, masks, X)
    state = small.cut_state(tx.init(p))
    chex.assert_trees_all_equal_shapes(state, tx.init(small.params))
    grads = jax.grad(field_like_a_parameter)(small.params, X)
    tx.update(grads, state, small.params)


def test_an_optimizer_is_no_state():
    p = params()
    small = bb.shrink(loss, p, unit_masks(p), X, Y)
    with pytest.raises(TypeError, match="expected the state of an optimizer, got Gra"):
        small.cut_state(optax.adam(0.01))


# Rounds --------------------------------------------------------------------------
def choose(p, units):
    return bb.unitwise.cut(units, bb.unitwise.group_magnitude(units, p), 0.75)


def tune(small):
    tx = optax.adam(0.02)
    return steps(tx, small.params, tx.init(small.params), 20)[0]


@pytest.mark.long
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


@pytest.mark.long
def test_rounds_end_before_the_score_is_too_low():
    def width(p):
        return p["a"]["w"].shape[1]

    rounds = bb.shrink_rounds(
        loss, params(), choose, tune, X, Y, iterations=9, score=width, least=7
    )
    assert [r.score for r in rounds] == [9, 7]


def test_rounds_end_where_nothing_is_removed():
    rounds = bb.shrink_rounds(
        loss, params(), lambda p, units: {}, tune, X, Y, iterations=9
    )
    assert list(rounds) == []


def test_wrong_rounds_are_refused():
    with pytest.raises(ValueError, match="expected a score for least=0.9, got none"):
        bb.shrink_rounds(loss, params(), choose, tune, X, Y, iterations=2, least=0.9)
    with pytest.raises(ValueError, match="iterations"):
        bb.shrink_rounds(loss, params(), choose, tune, X, Y, iterations=0)


@pytest.mark.parametrize(
    ("trained", "got"),
    [
        (lambda small: None, "got none there"),
        (lambda small: (small.params, 0.5), "got none there"),
        (lambda small: params(), r"of shape \(9,\), got \(12,\); start from small.par"),
    ],
    ids=["nothing", "with a loss", "the old ones"],
)
def test_rounds_want_parameters_of_the_smaller_model(trained, got):
    rounds = bb.shrink_rounds(loss, params(), choose, trained, X, Y, iterations=2)
    with pytest.raises(ValueError, match=f"expected train to return .*{got}"):
        next(rounds)


@pytest.mark.parametrize("reached", [None, "good", np.ones(2)], ids=str)
def test_rounds_want_a_number_as_score(reached):
    rounds = bb.shrink_rounds(
        loss, params(), choose, tune, X, Y, iterations=2, score=lambda p: reached
    )
    with pytest.raises(TypeError, match="expected a number as the score"):
        next(rounds)


def test_a_score_that_is_no_number_is_not_good_enough():
    given = {"iterations": 2, "score": lambda p: float("nan"), "least": -9.0}
    assert not list(bb.shrink_rounds(loss, params(), choose, tune, X, Y, **given))


# Parts of trees, and names that fields of states have, too -------------------------
def in_variables(variables, x, y):
    p, mean = variables["params"], variables["stats"]["a"]["b"]
    h = x @ p["a"]["w"] + p["a"]["b"][None] + mean[None]
    h = jnp.tanh(jax.nn.relu(h) @ p["b"]["w"] + p["b"]["b"][None])
    return jnp.mean((h @ p["c"]["w"] + p["c"]["b"][None] - y) ** 2)


def shrunk_variables():
    p = params()
    variables = {"params": p, "stats": {"a": {"b": jnp.full(12, 0.1)}}}
    units = bb.trace(in_variables, variables, X, Y)
    masks = bb.unitwise.cut(units, bb.unitwise.group_magnitude(units, variables), 0.5)
    small = bb.shrink(in_variables, variables, masks, X, Y)
    assert small.widths["params/a/w"] == (12, 6)
    return p, small


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_optimizer_may_have_a_part_of_the_tree(name):
    p, small = shrunk_variables()
    tx = OPTIMIZERS[name]
    _, state = steps(tx, p, tx.init(p), 3)
    cut = small.cut_state(state)
    chex.assert_trees_all_equal_shapes(cut, tx.init(small.params["params"]))
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(cut), strict=True):
        if one.shape == (12,):  # the bias of `a`: which units stay is known from it
            kept = np.asarray(small.cuts["params/a/b"][0][2])
            np.testing.assert_array_equal(np.asarray(one)[kept], two)
    new, _ = steps(tx, small.params["params"], cut, 2)
    chex.assert_trees_all_equal_shapes(new, small.params["params"])


@pytest.mark.long
def test_a_pruning_state_may_have_a_part_of_the_tree():
    p, small = shrunk_variables()
    units = bb.trace(loss, p, X, Y).select("b/w")
    tx = optax.chain(optax.adam(0.01), bb.transform(units, density=0.5, start=0))
    (_, activity), grads = jax.value_and_grad(bb.observe(loss, units), has_aux=True)(
        p, X, Y
    )
    _, state = tx.update(grads, tx.init(p), p, activity=activity)
    cut = small.cut_state(state)
    mine = {axis: np.asarray(kept) for axis, _, kept in small.cuts["params/b/w"]}
    expected = np.asarray(bb.masks(state)["b/w"])[np.ix_(mine[0], mine[1])]
    np.testing.assert_array_equal(bb.masks(cut)["b/w"], expected)
    smaller = bb.trace(loss, small.params["params"], X, Y).select("b/w")
    again = optax.chain(optax.adam(0.01), bb.transform(smaller, density=0.5, start=0))
    fresh = jax.tree.leaves(again.init(small.params["params"]))
    chex.assert_trees_all_equal_shapes(jax.tree.leaves(cut), fresh)


@pytest.mark.long
def test_a_parameter_may_be_called_like_a_field_of_the_state():
    def net(p, x):
        h = jax.nn.relu(x @ p["w"])
        return jax.nn.relu(x @ p["mu"]["w"]) @ p["o2"] + h @ p["o"]

    draw = [jnp.asarray(RNG.standard_normal((6, n)), jnp.float32) for n in (6, 6, 2, 2)]
    p = {"w": draw[0], "mu": {"w": draw[1]}, "o": draw[2], "o2": draw[3]}
    x = jnp.asarray(RNG.standard_normal((8, 6)), jnp.float32)
    units = bb.trace(net, p, x)
    scores = bb.unitwise.group_magnitude(units, p)
    small = bb.shrink(net, p, bb.unitwise.cut(units, scores, 0.5), x)
    tx = optax.adam(0.01)
    grads = jax.grad(lambda p: (net(p, x) ** 2).sum())(p)
    _, state = tx.update(grads, tx.init(p), p)
    mu = small.cut_state(state)[0].mu
    chex.assert_trees_all_equal(mu, small.cut(state[0].mu))


def test_states_of_other_parameters_are_refused():
    p = params()
    small = bb.shrink(loss, p, unit_masks(p), X, Y)
    with pytest.raises(ValueError, match="copies of the parameters .* got one "):
        small.cut_state(optax.flatten(optax.adam(0.01)).init(p))
    with pytest.raises(ValueError, match="copies of the parameters .* got one "):
        small.cut_state({"other": jnp.ones(3)})
    kernel = bb.Kernel("w", (2, 3), fan_in=(0,), fan_out=(1,))
    state = bb.transform(bb.Units((kernel,)).select("w")).init({"w": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="pruning state of the parameters that were"):
        bb.shrink(lambda p, x: x @ p, jnp.ones((3, 2)), {}, X).cut_state(state)
    assert not jax.tree.leaves(small.cut_state(optax.sgd(0.1).init(p)))


def test_a_state_that_fits_two_parts_of_the_tree_is_refused():
    def net(p, x):
        return sum(jax.nn.relu(x @ p[n]["u"]) @ p[n]["d"] for n in ("a", "b"))

    def part():
        shapes = {"u": (3, 6), "d": (6, 2)}
        return {
            n: jnp.asarray(RNG.standard_normal(s), jnp.float32)
            for n, s in shapes.items()
        }

    p = {"a": part(), "b": part()}
    units = bb.trace(net, p, X)
    scores = bb.unitwise.group_magnitude(units, p)
    small = bb.shrink(net, p, bb.unitwise.cut(units, scores, 0.5), X)
    with pytest.raises(ValueError, match="'0/trace/d', which may belong to any of"):
        small.cut_state(optax.sgd(0.1, momentum=0.9).init(p["a"]))


def test_trees_of_other_shapes_are_refused():
    p = params()
    small = bb.shrink(loss, p, unit_masks(p), X, Y)
    with pytest.raises(ValueError, match=r"shape \(12,\) at 'a/b', as it was before"):
        small.cut(small.params)


def test_a_shrunk_model_prints_no_arrays():
    p = params()
    assert "Array" not in repr(bb.shrink(loss, p, unit_masks(p), X, Y))


@pytest.mark.long
@pytest.mark.parametrize("whole", [True, False])
def test_the_state_of_an_nnx_optimizer_goes_on(whole):
    from flax import nnx

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(3, 12, rngs=rngs), nnx.relu, nnx.Linear(12, 2, rngs=rngs)
    )

    def of(model, x, y):
        return jnp.mean((model(x) - y) ** 2)

    units = bb.trace(of, model, X, Y)
    tx = optax.chain(optax.adam(0.01), bb.transform(units, density=0.5, start=0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    observed = nnx.value_and_grad(bb.observe(of, units), has_aux=True)
    (_, activity), grads = observed(model, X, Y)
    optimizer.update(model, grads, activity=activity)
    masks = bb.unitwise.cut(units, bb.unitwise.group_magnitude(units, model), 0.5)
    small = bb.shrink(of, model, bb.masks(optimizer) | masks, X, Y)
    state = optimizer.opt_state
    cut = small.cut_state(state if whole else nnx.as_pure(state))
    (before,), (after,) = bb.masks(state).values(), bb.masks(cut).values()
    (_, _, kept), *_ = small.cuts["layers/0/kernel"]
    np.testing.assert_array_equal(np.asarray(before)[:, np.asarray(kept)], after)
    again = bb.transform(small.units.select("layers/0"), density=0.5, start=0)
    fresh = optax.chain(optax.adam(0.01), again)
    new = nnx.Optimizer(small.params, fresh, wrt=nnx.Param)
    if whole:
        new.opt_state = cut
        observed = nnx.value_and_grad(
            bb.observe(of, small.units.select("layers/0")), has_aux=True
        )
        (_, activity), grads = observed(small.params, X, Y)
        new.update(small.params, grads, activity=activity)
        zeros = np.asarray(small.params.layers[0].kernel[...]) == 0
        assert (zeros == ~np.asarray(bb.masks(new)["layers/0/kernel"])).all()
