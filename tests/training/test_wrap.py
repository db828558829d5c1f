"""`bb.wrap`: the arguments of the inner optimizer, and moments that begin anew.

Rules whose edges come back at 0 reset the moments of these weights.
"""

import dataclasses
import inspect

import jax
import numpy as np
import optax
import pytest

import bbjax as bb
from bbjax.training.options import Options
from tests.support.contract import MLP

OPTIMIZERS = {
    "adam": lambda: optax.adam(0.05),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9),
    "inject": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.05),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05)),
}


def run(rule, optimizer, steps=7):
    """Masks and moments after every update, refreshes at 1, 3, 5."""
    tx = bb.wrap(optimizer, MLP.units, rule, density=0.4, start=1, every=2)
    update = jax.jit(tx.update)
    params = MLP.params()
    state, seen = tx.init(params), []
    for n in range(steps):
        grads, activity = MLP.gradient(params, MLP.batch(n))
        updates, state = update(grads, state, params, activity=activity)
        params = optax.apply_updates(params, updates)
        moments = [
            leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.inner)
            if "up" in jax.tree_util.keystr(path)
        ]
        mask = np.asarray(bb.masks(state)["up"])
        seen.append((mask, [np.asarray(m) for m in moments], params))
    assert update._cache_size() == 1
    return seen


@pytest.mark.long
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(bb.rules.rigl, id="rigl"),
        pytest.param(bb.rules.set_, id="set", marks=pytest.mark.slow),
    ],
)
def test_weights_that_grow_at_zero_have_no_history(make, optimizer, lenient):
    seen, came = run(make(), OPTIMIZERS[optimizer]()), 0
    for (before, _, _), (after, moments, params) in zip(seen, seen[1:], strict=False):
        back = after & ~before
        came += back.sum()
        np.testing.assert_array_equal(np.asarray(params["up"])[back], 0)
        for moment in moments:
            np.testing.assert_array_equal(moment[back], 0)
            assert moment[after & before].any()
    assert came > 10


# Arguments of the inner optimizer --------------------------------------------------
def sam(**options):
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    return optax.contrib.sam(optax.sgd(0.1), adversary, sync_period=2, **options)


# Optimizers that refuse arguments they do not know, with those that they need.
PARTICULAR = {
    "lbfgs": (
        optax.lbfgs,
        lambda loss, grads, fn: {"value": loss, "grad": grads, "value_fn": fn},
    ),
    "lbfgs, backtracking": (
        lambda: optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(20)),
        lambda loss, grads, fn: {"value": loss, "grad": grads, "value_fn": fn},
    ),
    "sam": (sam, lambda loss, grads, fn: {}),
    "sam, opaque": (
        lambda: sam(opaque_mode=True),
        lambda loss, grads, fn: {"grad_fn": lambda p, i: jax.grad(fn)(p)},
    ),
}


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if ", " in n else ()) for n in PARTICULAR],
)
def test_optimizers_with_arguments_of_their_own(name, lenient):
    make, needed = PARTICULAR[name]
    tx = bb.wrap(make(), MLP.units, density=0.4, start=2, every=3)

    @jax.jit
    def step(params, state):
        def fn(params):
            return MLP.loss(params, MLP.batch(0))

        loss, grads, seen = bb.value_and_grad(MLP.loss, MLP.units)(params, MLP.batch(0))
        extra = needed(loss, grads, fn)
        updates, state = tx.update(grads, state, params, activity=seen, **extra)
        return optax.apply_updates(params, updates), state, loss

    params = MLP.params()
    state, losses = tx.init(params), []
    for n in range(9):
        params, state, loss = step(params, state)
        losses.append(float(loss))
        for path, mask in bb.masks(state).items():
            mask = np.asarray(mask)
            assert not np.asarray(params[path])[~mask].any()
            assert mask.sum() == (round(0.4 * mask.size) if n >= 2 else mask.size)
    # Every second step of `sam` climbs, and returns with the next.
    assert losses[2] < losses[0] and losses[8] < losses[4]


def test_in_a_chain_every_link_gets_every_argument(lenient):
    """That is why the page on training says to use `wrap` there."""
    tx = optax.chain(sam(), bb.transform(MLP.units))
    params = MLP.params()
    with pytest.raises(TypeError, match="unexpected keyword argument 'activity'"):
        tx.update(params, tx.init(params), params, activity={})


@pytest.mark.long
def test_an_inner_transformation_that_prunes_gets_its_arguments():
    up, down = MLP.units.only(["up"]), MLP.units.only(["down"], "out")
    inner = bb.wrap(optax.sgd(0.1), up, density=0.5, start=0)
    tx = bb.wrap(inner, down, bb.rules.magnitude(), density=0.5, start=0)
    params = MLP.params()
    grads, activity = MLP.gradient(params, MLP.batch(0))
    update = jax.jit(tx.update)
    _, state = update(grads, tx.init(params), params, activity=activity)
    assert {p: float(m.mean()) for p, m in bb.masks(state).items()} == {
        "up": 0.5,
        "down": 0.5,
    }


@pytest.mark.long
def test_gradients_given_by_name_do_not_reach_the_inner_optimizer(lenient):
    """Schedule-free has a parameter of this name."""
    inner = optax.contrib.schedule_free_sgd(0.1)
    tx = bb.wrap(inner, MLP.units, bb.rules.rigl(), density=0.5, start=0)
    params = MLP.params()
    grads, activity = MLP.gradient(params, MLP.batch(0))
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, grads=g, activity=activity))
    updates, state = update(grads, tx.init(params), params)
    for path, mask in bb.masks(state).items():
        new = np.asarray(optax.apply_updates(params, updates)[path])
        assert not new[~np.asarray(mask)].any() and float(mask.mean()) == 0.5


def test_settings_that_transform_does_not_have():
    text = "expected settings of bb.transform .*, got 'densty'; correct the name"
    with pytest.raises(TypeError, match=text):
        bb.wrap(optax.sgd(0.1), MLP.units, densty=0.5)


def test_defaults_are_those_of_transform():
    """They are written in the signature, for readers, and in `Options`."""
    given = inspect.signature(bb.transform).parameters
    options = {f.name: f.default for f in dataclasses.fields(Options)}
    del options["rule"]
    assert options == {name: given[name].default for name in options}


# Moments ---------------------------------------------------------------------------
@pytest.mark.long
def test_dormant_weights_keep_what_is_left_of_theirs(lenient):
    """A rule that gives back old values leaves the inner optimizer alone."""
    seen = run(bb.rules.magnitude(), optax.adam(0.05))
    grown = [
        moments[0][after & ~before]
        for (before, _, _), (after, moments, _) in zip(seen, seen[1:], strict=False)
    ]
    assert np.concatenate(grown).any()
