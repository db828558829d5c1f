"""Fine-Pruning as a rule: both readings by hand, one layer or all of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.rules import Group, fine_pruning
from tests.support.runs import candidates, select

FIRST = bb.Kernel("first", (4, 6), fan_in=(0,), fan_out=(1,), hidden=True)
SECOND = bb.Kernel(
    "second", (2, 5, 8), stack=(0,), fan_in=(1,), fan_out=(2,), hidden=True
)
CONV = bb.Kernel(
    "conv", (3, 3, 4, 6), fan_in=(2,), fan_out=(3,), spatial=(0, 1), hidden=True
)
HEAD = bb.Kernel("head", (6, 3), fan_in=(0,), fan_out=(1,))


def look(kernel, weights, active, budget, actuators=("in",), by="units", **rest):
    seen = candidates(kernel, weights, budget, actuators=actuators, **rest)
    side = "outputs" if by == "units" and actuators[0] == "in" else "inputs"
    return dataclasses.replace(seen, statistics={f"{side}.mean_abs": active})


@functools.partial(jax.jit, static_argnames=("kernel", "by", "k_min"))
def in_layer(kernel, weights, active, budget, by="units", k_min=0):
    seen = look(kernel, weights, active, budget, by=by, k_min=k_min)
    return fine_pruning(by=by).select(seen)


@functools.partial(jax.jit, static_argnames=("kernels", "by", "k_min"))
def everywhere(kernels, weights, active, budgets, by="units", k_min=0):
    seen = [
        look(*each, by=by, k_min=k_min)
        for each in zip(kernels, weights, active, budgets, strict=True)
    ]

    def pool(which):
        return jnp.sum(jnp.stack([jnp.sum(jnp.asarray(budgets[i])) for i in which]))

    rule = fine_pruning(by=by, scope="global")
    return [choice.mask for choice in rule.choose(Group(tuple(seen), pool))]


def test_units_by_hand():
    """The quietest units go whole, however large their weights are."""
    active = jnp.array([0.3, 0.0, 2.0, 0.1, 0.3, 0.9])
    weights = jnp.ones(FIRST.shape).at[:, 1].set(100.0)
    mask = in_layer(FIRST, weights, active, 12)  # three of six; the first of equals
    assert mask.astype(int).tolist() == [[1, 0, 1, 0, 0, 1]] * 4


def test_weights_by_hand():
    """|w| times mean |x|, the lowest of the layer go."""
    weights = jnp.array([[1.0, -3], [2, 0.5], [-4, 1]]) * 1.0
    kernel = bb.Kernel("w", (3, 2), fan_in=(0,), fan_out=(1,))
    active = jnp.array([2.0, 1.0, 0.25])  # scores 2 6, 2 .5, 1 .25
    mask = in_layer(kernel, weights, active, 3, by="weights")
    assert mask.astype(int).tolist() == [[1, 1], [1, 0], [0, 0]]
    floor = in_layer(kernel, weights, active, 2, by="weights", k_min=1)
    assert floor.astype(int).tolist() == [[1, 1], [0, 0], [0, 0]]


@pytest.mark.long
def test_an_edge_of_a_convolution_is_its_window(getkey):
    weights = jax.random.normal(getkey(), CONV.split)
    active = jax.random.uniform(getkey(), (4,))
    mask = in_layer(CONV, weights, active, 10, by="weights")
    score = np.abs(weights).sum((0, 1)) * np.asarray(active)[:, None]
    assert set(np.flatnonzero(mask)) == set(np.argsort(-score.ravel())[:10])


@pytest.mark.long
def test_units_of_all_layers_together(getkey):
    """As many units in all as layer by layer; the best of every slice always stay."""
    kernels = (FIRST, SECOND)
    weights = [jnp.ones(k.shape) for k in kernels]
    active = [
        jax.random.uniform(getkey(), (6,)),
        jax.random.uniform(getkey(), (2, 8)) * jnp.array([[0.01], [3.0]]),
    ]
    budgets = [jnp.int32(3 * 4), jnp.full((2,), 4 * 5, jnp.int32)]
    masks = everywhere(kernels, weights, active, budgets)
    whole = [np.asarray(m).all(-2) for m in masks]
    for mask, units in zip(masks, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(mask).any(-2), units)
    flat = np.concatenate([np.ravel(a) for a in active])
    kept = np.concatenate([np.ravel(u) for u in whole])
    best = np.concatenate(
        [[np.argmax(active[0])], np.array([6, 14]) + np.argmax(active[1], 1)]
    )
    want = set(np.argsort(np.where(np.isin(np.arange(22), best), -9, -flat))[:11])
    assert set(np.flatnonzero(kept)) == want and whole[1][0].sum() == 1


@pytest.mark.long
def test_edges_of_all_layers_together(getkey):
    kernels = (FIRST, SECOND)
    weights = [jax.random.normal(getkey(), k.shape) for k in kernels]
    active = [
        jax.random.uniform(getkey(), (4,)),
        jax.random.uniform(getkey(), (2, 5)) * 9,
    ]
    budgets = [jnp.int32(10), jnp.array([20, 11], jnp.int32)]
    masks = everywhere(kernels, weights, active, budgets, by="weights")
    scores = np.concatenate(
        [
            np.ravel(np.abs(w) * np.asarray(a)[..., None])
            for w, a in zip(weights, active, strict=True)
        ]
    )
    kept = np.concatenate([np.ravel(m) for m in masks])
    assert set(np.flatnonzero(kept)) == set(np.argsort(-scores)[:41])


def test_gone_units_stay_gone():
    mask = jnp.ones(FIRST.shape, bool).at[:, 2].set(False)
    active = jnp.array([0.3, 0.0, 2.0, 0.1, 0.3, 0.9])
    seen = look(FIRST, jnp.ones(FIRST.shape), active, 12, mask=mask, regrow=False)
    new = fine_pruning().select(seen)
    assert new.any(0).astype(int).tolist() == [1, 0, 0, 0, 1, 1]


def test_output_units_are_not_pruned_unasked():
    active, weights = jnp.arange(3.0), jnp.ones(HEAD.shape)
    seen = look(HEAD, weights, active, 12)
    with pytest.raises(ValueError, match="of hidden units for rule 'fine_.*got 'head'"):
        fine_pruning().select(seen)
    with pytest.raises(ValueError, match="of hidden units for rule .*got 'head'"):
        fine_pruning(scope="global").select(Group((seen,), lambda which: 6))
    mask = fine_pruning(include_output=True).select(seen)
    assert mask.any(0).tolist() == [False, True, True]
    by_input = look(HEAD, weights, jnp.arange(6.0), 9, actuators=("out",))
    assert fine_pruning().select(by_input).any(1).tolist() == [False] * 3 + [True] * 3


def test_bad_arguments():
    with pytest.raises(ValueError, match='by "units" or "weights", got .edges'):
        fine_pruning(by="edges")
    with pytest.raises(ValueError, match='expected scope "layer" or "global", got '):
        fine_pruning(scope="unit")
    with pytest.raises(ValueError, match="one actuator for 'first' with rule 'fine_pr"):
        bb.transform(select(FIRST, "in", "out"), fine_pruning())


def test_what_it_is():
    assert not fine_pruning().patterned and fine_pruning(by="weights").patterned
    assert fine_pruning(scope="global").joint and not fine_pruning().free
