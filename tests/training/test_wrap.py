"""`bb.wrap` with rules whose edges come back at 0: their moments begin anew."""

import jax
import numpy as np
import optax
import pytest

import bbjax as bb
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


def test_dormant_weights_keep_what_is_left_of_theirs(lenient):
    """A rule that gives back old values leaves the inner optimizer alone."""
    seen = run(bb.rules.magnitude(), optax.adam(0.05))
    grown = [
        moments[0][after & ~before]
        for (before, _, _), (after, moments, _) in zip(seen, seen[1:], strict=False)
    ]
    assert np.concatenate(grown).any()
