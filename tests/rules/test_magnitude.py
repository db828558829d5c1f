"""Magnitude in every scope: what competes with what, for a budget that is exact."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.budgets.allocation import budgets
from bbjax.rules import magnitude
from tests.support.runs import candidates, chosen, dense

KERNEL = dense(12, 10)
STACKED = bb.Kernel("stack", (2, 6, 9), stack=(0,), fan_in=(1,), fan_out=(2,))
CONV = bb.Kernel("conv", (3, 3, 4, 5), spatial=(0, 1), fan_in=(2,), fan_out=(3,))
THREE = (dense(6, 8, "block/up"), dense(8, 6, "block/down"), STACKED)


def best(scores, k):
    """The k largest, ties to the lowest index."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:k]] = True
    return mask.reshape(scores.shape)


def weights(kernels, scales=(1.0, 1.0, 1.0)):
    return {
        k.path: jnp.asarray(np.random.normal(size=k.shape) * scale, jnp.float32)
        for k, scale in zip(kernels, scales, strict=False)
    }


def runs(kernels, params, scope, refreshes, **options):
    """Masks after each of some refreshes, with no other updates."""
    units = bb.Units(tuple(kernels)).select(".")
    rule = magnitude(scope=scope)
    tx = bb.transform(units, rule, start=0, every=1, **options)
    step = jax.jit(tx.update)
    state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(refreshes):
        landed, state = step(zeros, state, params)
        params = jax.tree.map(jnp.add, params, landed)
        yield {path: np.asarray(m) for path, m in bb.masks(state).items()}


def pruned(kernels, params, scope, **options):
    """Masks after one refresh."""
    return next(runs(kernels, params, scope, 1, **options))


# Layer ---------------------------------------------------------------------------
def test_layer_keeps_the_largest_of_every_slice(getkey):
    w = jax.random.normal(getkey(), STACKED.shape)
    mask = chosen(magnitude(scope="layer"), STACKED, w, 20, k_min=0)
    for scores, kept in zip(np.abs(w), mask, strict=True):
        np.testing.assert_array_equal(kept, best(scores, 20))


@pytest.mark.long
@pytest.mark.parametrize("actuators", [("in",), ("out",), ("in", "out")], ids="+".join)
def test_layer_gives_every_unit_its_floor_first(actuators, getkey):
    """Rows and columns of tiny weights would lose everything."""
    small = jnp.ones(KERNEL.shape).at[:, :3].set(1e-3).at[:4].set(1e-3)
    w = jax.random.uniform(getkey(), KERNEL.shape, minval=0.5) * small
    rule = magnitude(scope="layer")
    mask = chosen(rule, KERNEL, w, 50, None, actuators, k_min=2)
    assert mask.sum() == 50
    for actuator in actuators:
        axis = 0 if actuator == "in" else 1
        assert mask.sum(axis).min() == 2
        order = np.argsort(-np.asarray(w), axis, kind="stable")
        top = np.take_along_axis(mask, order, axis).take([0, 1], axis)
        assert top.all() or len(actuators) > 1
    without = chosen(rule, KERNEL, w, 50, None, actuators, k_min=0)
    np.testing.assert_array_equal(without, best(np.asarray(w), 50))


def test_an_edge_of_a_convolution_is_scored_by_its_window(getkey):
    w = jax.random.normal(getkey(), CONV.shape)
    mask = chosen(magnitude(scope="layer"), CONV, w, 7, k_min=0)
    np.testing.assert_array_equal(mask, best(np.abs(w).sum((0, 1)), 7))


@pytest.mark.long
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_pattern_keeps_as_many_of_each_group(scope):
    kernels = (dense(8, 6, "a"), dense(12, 4, "b"))
    params = weights(kernels, (1.0, 0.01))
    masks = pruned(kernels, params, scope, pattern=bb.n_m(1, 4))
    for path, w in params.items():
        groups = np.abs(w).reshape(-1, 4, w.shape[1])
        kept = masks[path].reshape(groups.shape)
        assert (kept.sum(1) == 1).all()
        assert (groups.argmax(1) == kept.argmax(1)).all()


# Global and pools ----------------------------------------------------------------
@pytest.mark.long
def test_global_compares_all_edges_of_all_kernels():
    params = weights(THREE, (1.0, 0.5, 0.2))
    masks = pruned(THREE, params, "global", density=0.3, k_min=0)
    everything = np.concatenate([np.abs(w).ravel() for w in params.values()])
    kept = best(everything, round(0.3 * everything.size))
    got = np.concatenate([masks[path].ravel() for path in params])
    np.testing.assert_array_equal(got, kept)
    densities = [masks[k.path].mean() for k in THREE]
    assert densities[0] > 0.5 and densities[2] < 0.1


@pytest.mark.long
def test_global_ties_go_to_the_first_kernels():
    params = {k.path: jnp.ones(k.shape) for k in THREE}
    masks = pruned(THREE, params, "global", density=0.3, k_min=0)
    assert [masks[k.path].sum() for k in THREE] == [48, 13, 0]
    assert masks["block/down"].ravel()[:13].all()


@pytest.mark.long
def test_global_gives_every_unit_its_floor_first():
    params = weights(THREE, (1.0, 1.0, 1e-3))
    masks = pruned(THREE, params, "global", density=0.4, k_min=2)
    assert sum(m.sum() for m in masks.values()) == round(0.4 * 204)
    assert all(mask.sum(-2).min() >= 2 for mask in masks.values())
    np.testing.assert_array_equal(masks["stack"].sum(-2), 2)


@pytest.mark.long
def test_kernels_of_one_pattern_share_a_pool_and_others_are_layers():
    params = weights(THREE, (1.0, 0.1, 1.0))
    masks = pruned(THREE, params, ("^block/",), density=0.25, k_min=0)
    both = np.concatenate([np.abs(params[k.path]).ravel() for k in THREE[:2]])
    got = np.concatenate([masks[k.path].ravel() for k in THREE[:2]])
    np.testing.assert_array_equal(got, best(both, 24))
    for scores, kept in zip(np.abs(params["stack"]), masks["stack"], strict=True):
        np.testing.assert_array_equal(kept, best(scores, round(0.25 * 54)))


@pytest.mark.long
def test_the_first_pattern_that_matches_counts():
    params = weights(THREE, (1.0, 0.01, 1.0))
    masks = pruned(THREE, params, ("up", "block|stack"), density=0.25, k_min=0)
    assert masks["block/up"].sum() == 12
    assert masks["block/down"].sum() + masks["stack"].sum() == 39
    assert masks["block/down"].sum() < 6


@pytest.mark.long
def test_a_pool_spends_the_densities_of_its_kernels():
    """By path: a quarter of 48, a half of 48 and of twice 54 edges."""
    params = weights(THREE, (1.0, 0.5, 0.2))
    densities = {"up": 0.25, ".": 0.5}
    masks = pruned(THREE, params, "global", density=densities, k_min=0)
    assert sum(m.sum() for m in masks.values()) == 12 + 24 + 54
    masks = pruned(THREE, params, ("block",), density=densities, k_min=0)
    assert masks["block/up"].sum() + masks["block/down"].sum() == 36
    assert masks["stack"].sum((1, 2)).tolist() == [27, 27]


@pytest.mark.long
@pytest.mark.parametrize("scope", ["unit", "layer"])
def test_densities_by_shape_are_met_by_every_slice(scope):
    params = weights(THREE)
    kept = budgets(bb.erk(0.3), THREE, jnp.int32(0)).edges
    masks = pruned(THREE, params, scope, density=bb.erk(0.3))
    for kernel, edges in zip(THREE, kept, strict=True):
        np.testing.assert_array_equal(masks[kernel.path].sum((-2, -1)), edges)
    assert sum(m.sum() for m in masks.values()) == round(0.3 * 204)


@pytest.mark.long
@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_density_does_not_compound(scope, regrow):
    """A share of what is left, at each of four refreshes, would be .5 ** 4."""
    first, *_, last = runs(THREE, weights(THREE), scope, 4, density=0.5, regrow=regrow)
    for path, mask in first.items():
        np.testing.assert_array_equal(last[path], mask)
    assert sum(m.sum() for m in last.values()) == 102


# Bad input -----------------------------------------------------------------------
@pytest.mark.parametrize("scope", ["row", (), []])
def test_unknown_scope(scope):
    with pytest.raises(ValueError, match='expected scope "unit", "layer", "global" or'):
        magnitude(scope=scope)


@pytest.mark.parametrize("scope", [None, 3, ("up", 3), {"up"}])
def test_scope_of_the_wrong_kind(scope):
    with pytest.raises(TypeError, match="expected scope .* or a tuple of path pattern"):
        magnitude(scope=scope)


def test_scope_with_a_broken_pattern():
    with pytest.raises(ValueError, match=r"expected a regular expression, got '\(up'"):
        magnitude(scope=("(up",))


@pytest.mark.parametrize("scope", [("up", "head"), ("block", "down")])
def test_a_pattern_without_kernels_is_named(scope):
    params = weights(THREE)
    with pytest.raises(ValueError, match=f"got '{scope[1]}', which matches none of"):
        pruned(THREE, params, scope, density=0.5)


# Other scores --------------------------------------------------------------------
def with_sizes(kernel, w, budget, **rest):
    seen = candidates(kernel, w, budget, **rest)
    rng = np.random.default_rng(7)
    square = jnp.asarray(rng.uniform(0.1, 4.0, kernel.in_units), jnp.float32)
    seen.statistics["inputs.mean_square"] = square
    return seen, np.asarray(square)


@pytest.mark.parametrize("reads", [(), ("before",)], ids=["raw", "hidden"])
@pytest.mark.parametrize("scope", ["unit", "layer"])
def test_raw_inputs_count_by_their_size(scope, reads):
    """Hidden units have sizes that training made; raw inputs have those of the data."""
    kernel = dataclasses.replace(dense(12, 10), reads=reads)
    w = jax.random.normal(jax.random.key(0), kernel.shape)
    seen, square = with_sizes(kernel, w, 40, k_min=0)
    rule = bb.rules.magnitude(scope=scope, score="scaled")
    mask = np.asarray(rule.select(seen))
    score = np.abs(w) if reads else np.abs(w) * square[:, None] ** 0.25
    if scope == "layer":
        np.testing.assert_array_equal(mask, score >= np.sort(score.ravel())[-40])
    else:
        np.testing.assert_array_equal(mask, score >= np.sort(score, 0)[-4])


def test_by_wandas_score_in_units_it_is_wanda():
    w = jax.random.normal(jax.random.key(1), (12, 10))
    seen, _ = with_sizes(dense(12, 10), w, 43)
    masks = [
        rule.select(seen)
        for rule in (bb.rules.magnitude(score="wanda"), bb.rules.wanda())
    ]
    np.testing.assert_array_equal(*masks)


def test_scores_have_names_and_needs():
    rule = bb.rules.magnitude(scope="global", score="scaled")
    assert rule.name == "magnitude[global, scaled]" and rule.joint
    assert rule.needs == ("inputs.mean_square",)
    assert bb.rules.magnitude(score="wanda").name == "magnitude[wanda]"
    with pytest.raises(ValueError, match="expected score .* or .ria., got 'size'"):
        bb.rules.magnitude(score="size")
