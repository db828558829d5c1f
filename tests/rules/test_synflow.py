"""SynFlow: scores are sums over paths, conserved at every unit and layer."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.oneshot.saliency import synaptic_flow
from bbjax.rules import synflow
from tests.support.runs import dense

WIDTHS = (3, 4, 5, 2)
PATHS = ("a", "b", "c")
UNITS = bb.Units(
    tuple(dense(*WIDTHS[i : i + 2], path) for i, path in enumerate(PATHS))
).select("a|b|c")


def net(params, x):
    for path in PATHS[:-1]:
        x = jax.nn.relu(x @ params[path])
    return x @ params["c"]


def weights():
    sizes = itertools.pairwise(WIDTHS)
    return {p: jnp.asarray(np.random.normal(size=s), jnp.float32)
            for p, s in zip(PATHS, sizes, strict=True)}  # fmt: skip


def scores(params):
    flow = synaptic_flow(net, params, jnp.zeros((1, 3)))
    return {p: np.abs(np.asarray(params[p])) * np.asarray(flow[p]) for p in PATHS}


def flat(tree):
    return np.concatenate([np.asarray(tree[p]).ravel() for p in PATHS])


def best(score, k):
    return np.isin(np.arange(score.size), np.argsort(-score, kind="stable")[:k])


def test_a_score_is_the_sum_over_all_paths_through_the_edge():
    params = weights()
    size = [np.abs(np.asarray(params[p])) for p in PATHS]
    by_path = [np.zeros_like(s) for s in size]
    for route in itertools.product(*map(range, WIDTHS)):
        steps = list(itertools.pairwise(route))
        worth = np.prod([s[i, j] for s, (i, j) in zip(size, steps, strict=True)])
        for total, step in zip(by_path, steps, strict=True):
            total[step] += worth
    got = scores(params)
    for path, wanted in zip(PATHS, by_path, strict=True):
        np.testing.assert_allclose(got[path], wanted, rtol=1e-4)


def test_what_flows_into_a_unit_flows_out_of_it():
    a, b, c = scores(weights()).values()
    np.testing.assert_allclose(a.sum(0), b.sum(1), rtol=1e-5)
    np.testing.assert_allclose(b.sum(0), c.sum(1), rtol=1e-5)
    np.testing.assert_allclose(a.sum(), c.sum(), rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_keeps_the_largest_of_all_kernels(density):
    params = weights()
    flow = synaptic_flow(net, params, jnp.zeros((1, 3)))
    _, masks = bb.prune(params, UNITS, synflow(), density, grads=flow, k_min=0)
    wanted = best(flat(scores(params)), round(density * 42))
    np.testing.assert_array_equal(flat(masks), wanted)


@pytest.mark.long
def test_layer_scope():
    params = weights()
    flow = synaptic_flow(net, params, jnp.zeros((1, 3)))
    _, masks = bb.prune(params, UNITS, synflow(scope="layer"), 0.5, grads=flow)
    assert [int(masks[p].sum()) for p in PATHS] == [6, 10, 5]


@pytest.mark.long
def test_scores_of_a_convolution_are_summed_over_the_window():
    kernel = bb.Kernel("w", (3, 2, 5), spatial=(0,), fan_in=(1,), fan_out=(2,))
    w, flow = np.random.normal(size=(2, *kernel.shape)).astype(np.float32)
    params, grads = {"w": jnp.asarray(w)}, {"w": jnp.asarray(np.abs(flow))}
    units = bb.Units((kernel,)).select("w")
    _, masks = bb.prune(params, units, synflow(), 0.5, grads=grads, k_min=0)
    wanted = best(np.abs(w * flow).sum(0).ravel(), 5)
    np.testing.assert_array_equal(np.asarray(masks["w"])[1].ravel(), wanted)


@pytest.mark.long
def test_bfloat16_and_what_is_not_a_number():
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), weights())
    flow = {p: jnp.ones_like(w) for p, w in params.items()}
    flow["b"] = flow["b"].at[1, 1].set(jnp.nan)
    _, masks = bb.prune(params, UNITS, synflow(), 41 / 42, grads=flow, k_min=0)
    assert flat(masks).sum() == 41 and not masks["b"][1, 1]


@pytest.mark.long
def test_it_is_not_for_training():
    with pytest.raises(ValueError, match="got 'synflow', which prunes once"):
        bb.transform(UNITS, synflow(), density=0.5)
    with pytest.raises(ValueError, match='expected scope "layer" or "global", got'):
        synflow(scope="pool")
