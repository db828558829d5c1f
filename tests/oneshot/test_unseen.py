"""Experts that no calibration sample reached: named, ranked by |w|, harmless."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bbjax as bb
from tests.support.zoo_case import normal, relu, weights

pytestmark = pytest.mark.usefixtures("lenient")

EXPERTS, QUIET = 3, 1
P = weights(up=(EXPERTS, 4, 8), down=(EXPERTS, 8, 2))
X = normal(1, 12, 4)
SIZES = jnp.array([7, 0, 5])


def ragged(p, x, sizes):
    return lax.ragged_dot(relu(lax.ragged_dot(x, p["up"], sizes)), p["down"], sizes)


def batched(p, x):
    hidden = relu(jnp.einsum("erd,edh->erh", x, p["up"]))
    return jnp.einsum("erh,eho->ero", hidden, p["down"])


def dispatched(sizes):
    """Rows of each expert, with rows of 0 behind them."""
    ends = np.cumsum(sizes)
    rows = np.zeros((EXPERTS, 12, 4), np.float32)
    for e, (end, n) in enumerate(zip(ends, sizes, strict=True)):
        rows[e, :n] = X[end - n : end]
    return jnp.asarray(rows)


WAYS = {
    "ragged": (ragged, (X, SIZES)),
    "batched": (batched, (dispatched(np.asarray(SIZES)),)),
}
FULL = {
    "ragged": (ragged, (X, jnp.array([7, 2, 3]))),
    "batched": (batched, (dispatched(np.array([7, 2, 3])),)),
}
RULES = {
    "wanda": bb.rules.wanda(),
    "sparsegpt": bb.rules.sparsegpt(),
    "bb": bb.rules.budgeted_broadcast(score="wanda"),
    "calibrated": bb.rules.budgeted_broadcast(spread="calibrated", competition=0),
    "fine_pruning": bb.rules.fine_pruning(by="weights"),
    "layer": bb.rules.magnitude(scope="layer", score="wanda"),
}
NAMED = r"no activity of 'up' was measured in \[1\] of 3 stack slices"


def pruned(way, rule, actuator="in", density=0.5):
    fn, args = way
    units = bb.trace(fn, P, *args).select("up", actuator)
    stats = bb.calibrate(fn, units, P, [args], needs=rule.needs)
    return bb.prune(P, units, rule, density, stats=stats)


def by_size(w, k):
    """Mask of the `k` largest entries of every column."""
    order = np.argsort(-np.abs(w), axis=0, kind="stable")
    mask = np.zeros(w.shape, bool)
    np.put_along_axis(mask, order[:k], True, axis=0)
    return mask


@pytest.mark.sampled(1)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "fine_pruning"])
def test_an_expert_without_tokens_is_ranked_by_its_weights(way, name):
    rule = RULES[name]
    with pytest.warns(UserWarning, match=NAMED):
        params, masks = pruned(WAYS[way], rule)
    w, mask = np.asarray(P["up"][QUIET]), np.asarray(masks["up"][QUIET])
    np.testing.assert_array_equal(params["up"][QUIET], w * mask)
    if name == "fine_pruning":  # the edges of the whole slice compete
        least = np.abs(w[mask]).min()
        assert mask.sum() == 16 and (np.abs(w[~mask]) < least).all()
    else:
        np.testing.assert_array_equal(mask, by_size(w, 2))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", RULES)
def test_it_moves_no_other_expert(name):
    """The first expert has the same tokens, whether the second has some or none."""
    rule = RULES[name]
    with pytest.warns(UserWarning, match=NAMED):
        params, masks = pruned(WAYS["ragged"], rule)
    other, whole = pruned(FULL["ragged"], rule)
    np.testing.assert_array_equal(masks["up"][0], whole["up"][0])
    np.testing.assert_allclose(params["up"][0], other["up"][0], rtol=1e-4, atol=1e-6)
    assert masks["up"].sum((1, 2)).tolist() == [16] * EXPERTS


@pytest.mark.long
@pytest.mark.parametrize("actuator", ["in", "out"])
def test_whole_units_are_ranked_by_the_norm_of_their_weights(actuator):
    rule = bb.rules.activation_topk()
    with pytest.warns(UserWarning, match=NAMED):
        _, masks = pruned(WAYS["ragged"], rule, actuator)
    axis = 0 if actuator == "in" else 1
    norm = np.linalg.norm(P["up"][QUIET], axis=axis)
    kept = np.asarray(masks["up"][QUIET]).any(axis)
    assert kept.sum() == len(norm) // 2 and norm[kept].min() > norm[~kept].max()


@pytest.mark.long
def test_edges_share_out_what_a_unit_gets_by_their_weights():
    rule = bb.rules.nnrelief(alpha=0.6)
    with pytest.warns(UserWarning, match=NAMED):
        _, masks = pruned(WAYS["ragged"], rule, density=None)
    w = np.abs(np.asarray(P["up"][QUIET]))
    order = np.argsort(-w, axis=0)
    shares = np.cumsum(np.take_along_axis(w, order, 0), 0) / w.sum(0)
    keep = 1 + (shares < 0.6).sum(0)
    np.testing.assert_array_equal(masks["up"][QUIET].sum(0), keep)


@pytest.mark.long
def test_a_layer_whose_inputs_are_all_0_is_ranked_by_its_weights():
    def net(p, x):
        return relu(x @ p["w"]) @ p["o"]

    p, x = {"w": P["up"][0], "o": P["down"][0]}, jnp.zeros((5, 4))
    units = bb.trace(net, p, x)
    stats = bb.calibrate(net, units, p, [(x,)], needs=RULES["wanda"].needs)
    with pytest.warns(UserWarning, match="no activity of 'w' was measured: no sample"):
        _, masks = bb.prune(p, units, RULES["wanda"], 0.5, stats=stats)
    np.testing.assert_array_equal(masks["w"], by_size(np.asarray(p["w"]), 2))


@pytest.mark.long
def test_under_jit_the_same_without_a_warning():
    fn, args = WAYS["ragged"]
    units = bb.trace(fn, P, *args).select("up")
    stats = bb.calibrate(fn, units, P, [args], needs=RULES["wanda"].needs)
    prune = jax.jit(lambda s: bb.prune(P, units, RULES["wanda"], 0.5, stats=s)[1])
    mask = np.asarray(prune(stats)["up"][QUIET])
    np.testing.assert_array_equal(mask, by_size(np.asarray(P["up"][QUIET]), 2))


@pytest.mark.long
def test_the_warning_points_at_the_call():
    with pytest.warns(UserWarning) as seen:
        pruned(WAYS["ragged"], RULES["wanda"])
    assert seen[0].filename == __file__


@pytest.mark.long
def test_in_the_order_of_layers_it_is_named_once():
    fn, args = WAYS["ragged"]
    units = bb.trace(fn, P, *args).select("up")
    with pytest.warns(UserWarning) as seen:
        _, masks = bb.prune_in_order(fn, P, units, RULES["wanda"], [args], 0.5)
    assert len({str(w.message) for w in seen}) == 1
    np.testing.assert_array_equal(
        masks["up"][QUIET], by_size(np.asarray(P["up"][QUIET]), 2)
    )
