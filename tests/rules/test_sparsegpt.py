"""SparseGPT: the published cases, exact counts, kernels of all forms, bad input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bbjax as bb
from bbjax.rules import magnitude, sparsegpt
from tests.support.correlated import data, error
from tests.support.runs import candidates, dense

X = np.array(
    [[1, 2, 0, 1], [0, 1, 1, 3], [2, 0, 1, 1], [1, 1, 2, 0], [3, 1, 0, 2]], np.float32
)
W = np.array([[1, -2, 0.5, 3], [0.1, 0.2, -4, 1]], np.float32).T  # (in, out)
GRAM = X.T @ X / 5
RULE = sparsegpt()
STATIC = ("rule", "kernel", "actuators", "k_min", "regrow", "pattern")


def look(kernel, w, gram, budget, rates=None, **rest):
    seen = candidates(kernel, jnp.asarray(w), budget, rates, **rest)
    gram = jnp.asarray(gram, jnp.float32)
    return dataclasses.replace(
        seen, statistics={**seen.statistics, "inputs.gram": gram}
    )


def eager(rule, kernel, w, gram, budget, rates=None, **rest):
    """`(mask, weights)` with the pruned ones at 0, as numpy."""
    choice = rule.select(look(kernel, w, gram, budget, rates, **rest))
    mask = np.asarray(choice.mask)
    kept = np.asarray(kernel.over_spatial(choice.mask))
    return mask, np.where(kept, np.asarray(choice.weights), 0.0)


@functools.partial(jax.jit, static_argnames=STATIC)
def _select(rule, kernel, w, gram, budget, rates, **rest):
    return rule.select(look(kernel, w, gram, budget, rates, **rest))[:2]


def compiled(rule, kernel, w, gram, budget, rates=None, **rest):
    mask, new = _select(rule, kernel, jnp.asarray(w), gram, budget, rates, **rest)
    kept = np.asarray(kernel.over_spatial(mask))
    return np.asarray(mask), np.where(kept, np.asarray(new), 0.0)


# The published code, on the cases where it and the rule coincide ------------------
def test_published_two_of_four():
    kernel = dense(4, 2)
    mask, new = eager(RULE, kernel, W, GRAM, 4, pattern=bb.n_m(2, 4))
    np.testing.assert_array_equal(mask.T, [[0, 1, 0, 1], [0, 0, 1, 1]])
    wanted = [[0, -1.594132, 0, 3.540058], [0, 0, -3.922544, 1.131734]]
    np.testing.assert_allclose(new.T, wanted, atol=2e-5)
    np.testing.assert_allclose(5 * error(GRAM, W - new), 11.4145, rtol=1e-4)
    np.testing.assert_allclose(5 * error(GRAM, W * ~mask), 21.17, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    "damp, wanted",
    [
        (0.01, [[0, 0, 0, 2.801423], [0, 0, -3.922544, 1.131734]]),
        (0.0, [[0, 0, 0, 2.8], [0, 0, -3.921622, 1.132432]]),
    ],
)
def test_published_one_block(damp, wanted):
    """Five of eight go, as their count of one too many has it, unlike per unit."""
    one_and_two = bb.laws.Law("1, 2", lambda a, mean: jnp.array([1.0, 2.0]), "scale")
    rule = sparsegpt(law=one_and_two, damp=damp)
    _, new = eager(rule, dense(4, 2), W, GRAM, 3)
    np.testing.assert_allclose(new.T, wanted, atol=2e-5)


# The contract ----------------------------------------------------------------------
STACKED = bb.Kernel("w", (10, 3, 7), fan_in=(0,), stack=(1,), fan_out=(2,))


def stacked(dtype=np.float32):
    grams, ws = zip(*(data(12, 7, 40) for _ in range(3)), strict=True)
    gram = np.stack([g[:10, :10] for g in grams])
    return gram, np.stack([w[:10] for w in ws], axis=1).astype(dtype)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("density", [0.01, 0.1, 0.33, 0.5, 0.77, 1.0])
def test_every_unit_keeps_its_number_exactly(density):
    gram, w = stacked()
    budget = max(round(density * 70), 7)
    mask, new = compiled(sparsegpt(block=4), STACKED, w, gram, budget)
    degree = mask.sum(0)  # (slices, units)
    np.testing.assert_array_equal(degree.sum(1), budget)
    assert np.ptp(degree) <= 1
    if density == 1.0:
        np.testing.assert_array_equal(new, w)


@pytest.mark.long
def test_jit_changes_nothing():
    gram, w = stacked()
    one, other = (run(RULE, STACKED, w, gram, 35) for run in (eager, compiled))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_allclose(one[1], other[1], rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_slices_do_not_meet():
    gram, w = stacked()
    mask, new = compiled(RULE, STACKED, w, gram, 35)
    for at in range(3):
        alone = compiled(RULE, dense(10, 7), w[:, at], gram[at], 35)
        np.testing.assert_array_equal(mask[:, at], alone[0])
        np.testing.assert_allclose(new[:, at], alone[1], rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_permuting_units_permutes_masks():
    gram, w = data(24, 8)
    order = np.random.permutation(8)
    mask, new = compiled(RULE, dense(24, 8), w, gram, 96)
    mixed, moved = compiled(RULE, dense(24, 8), w[:, order], gram, 96)
    np.testing.assert_array_equal(mixed, mask[:, order])
    np.testing.assert_allclose(moved, new[:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_bfloat16_weights_are_computed_in_float32():
    gram, w = data(24, 8)
    half = jnp.asarray(w, jnp.bfloat16)
    mask, new = compiled(RULE, dense(24, 8), half, gram, 96)
    wanted = compiled(RULE, dense(24, 8), half.astype(jnp.float32), gram, 96)
    np.testing.assert_array_equal(mask, wanted[0])
    np.testing.assert_array_equal(new, wanted[1])


@pytest.mark.long
@pytest.mark.parametrize("pattern", [None, bb.n_m(2, 4)], ids=str)
def test_a_law_says_how_many_edges_each_unit_keeps(pattern):
    """Budgeted Broadcast in one shot, with the update."""
    gram, w = data(24, 8)
    rate = np.linspace(0.05, 0.95, 8).astype(np.float32)
    law = bb.laws.log_odds(spread=0.4)
    rule = sparsegpt(law=law)
    assert rule.needs == ("inputs.gram", "on_rate")
    budget = 96
    mask, _ = compiled(
        rule, dense(24, 8), w, gram, budget, {"in": rate}, pattern=pattern
    )
    degree = mask.sum(0)
    assert degree.sum() == budget
    assert (np.diff(degree) <= 0).all() and degree[0] > degree[-1]
    if pattern is None:
        wanted = bb.degrees(rate, 24, 0.5, law=law)
        np.testing.assert_array_equal(degree, wanted)
    else:
        groups = mask.reshape(6, 4, 8).sum(1)
        np.testing.assert_array_equal(groups, np.broadcast_to(degree // 6, (6, 8)))


@pytest.mark.long
def test_edges_that_are_gone_stay_gone():
    gram, w = data(24, 8)
    mask = np.random.uniform(size=w.shape) < 0.6
    kept, _ = compiled(
        RULE, dense(24, 8), w, gram, 60, mask=jnp.asarray(mask), regrow=False
    )
    assert not (kept & ~mask).any() and kept.sum() == 60


@pytest.mark.long
def test_inputs_never_seen_go_first_and_keep_their_weights_if_they_must_stay():
    gram, w = data(12, 3)
    unseen = [2, 7, 8, 11]
    gram[unseen] = 0.0
    gram[:, unseen] = 0.0
    mask, new = compiled(RULE, dense(12, 3), w, gram, 8 * 3)
    np.testing.assert_array_equal(np.delete(mask, unseen, 0), True)
    np.testing.assert_allclose(new, w * mask, rtol=1e-5)
    mask, new = compiled(RULE, dense(12, 3), w, gram, 10 * 3)
    np.testing.assert_array_equal(mask[unseen].sum(0), 2)
    np.testing.assert_allclose(new, w * mask, rtol=1e-5)


@pytest.mark.long
def test_without_any_activity_magnitude_is_left():
    w = np.random.normal(size=(9, 4)).astype(np.float32)
    nothing = np.zeros((9, 9), np.float32)
    mask, new = compiled(RULE, dense(9, 4), w, nothing, 12)
    np.testing.assert_array_equal(mask.sum(0), 3)
    np.testing.assert_array_equal(new, w * mask)


@pytest.mark.long
def test_damping_may_be_traced():
    gram, w = data(24, 8)

    def run(damp):
        return sparsegpt(damp=damp).select(look(dense(24, 8), w, gram, 96)).weights

    many = jax.jit(jax.vmap(run))(jnp.array([0.01, 1e6]))
    mask, new = compiled(RULE, dense(24, 8), w, gram, 96)
    np.testing.assert_allclose(np.where(mask, many[0], 0), new, rtol=1e-4, atol=1e-5)
    lone = np.asarray(many[1])  # inputs are as good as unrelated
    np.testing.assert_allclose(lone, np.where(lone != 0, w, 0), rtol=1e-3, atol=1e-5)


@pytest.mark.long
def test_size_of_the_inputs_does_not_matter():
    gram, w = data(24, 8)
    mask, new = compiled(RULE, dense(24, 8), w, gram, 96)
    for scale in (2.0**-90, 2.0**90):
        other = compiled(RULE, dense(24, 8), w, scale * gram, 96)
        np.testing.assert_array_equal(mask, other[0])
        np.testing.assert_allclose(new, other[1], rtol=1e-5, atol=1e-6)


def test_a_weight_that_is_not_finite_harms_no_other():
    gram, w = data(24, 8)
    broken = w.copy()
    broken[3, 2], broken[5, 4] = np.nan, np.inf
    mask, new = compiled(RULE, dense(24, 8), broken, gram, 96)
    assert np.isfinite(new).all() and not mask[3, 2] and not mask[5, 4]
    whole = [0, 1, 3, 5, 6, 7]
    sane = compiled(RULE, dense(24, 8), w, gram, 96)[0]
    np.testing.assert_array_equal(mask[:, whole], sane[:, whole])


# Kernels of other forms -----------------------------------------------------------
@pytest.mark.long
def test_inputs_on_several_axes_and_windows_of_one():
    gram, w = data(24, 6)
    rule = sparsegpt(block=5)
    mask, new = compiled(rule, dense(24, 6), w, gram, 60)
    heads = bb.Kernel("w", (4, 6, 6), fan_in=(0, 1), fan_out=(2,))
    turned = bb.Kernel("w", (2, 3, 24), fan_out=(0, 1), fan_in=(2,))
    conv = bb.Kernel(
        "w", (1, 1, 24, 6), spatial=(0, 1), fan_in=(2,), fan_out=(3,),
        op="conv_general_dilated",
    )  # fmt: skip
    views = {
        heads: lambda a: a.reshape(4, 6, 6),
        turned: lambda a: a.T.reshape(2, 3, 24),
        conv: lambda a: a.reshape(1, 1, 24, 6),
    }
    for kernel, view in views.items():
        got, moved = compiled(rule, kernel, view(w), gram, 60)
        np.testing.assert_array_equal(got, view(mask).reshape(kernel.edge_shape))
        np.testing.assert_allclose(moved, view(new), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_sharded_weights_of_an_explicit_mesh():
    gram, w = data(24, 8)
    mask, new = compiled(RULE, dense(24, 8), w, gram, 96)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        for spec in (PartitionSpec(None, "x"), PartitionSpec("x", None)):
            there = jax.device_put(w, NamedSharding(mesh, spec))
            edges = jnp.ones_like(there, bool)
            choice = RULE.select(look(dense(24, 8), there, gram, 96, mask=edges))
            assert jax.typeof(choice.mask).sharding.spec == spec
            np.testing.assert_array_equal(choice.mask, mask)
            got = np.where(mask, np.asarray(choice.weights), 0.0)
            np.testing.assert_allclose(got, new, rtol=1e-4, atol=1e-5)


# From calibration to parameters ---------------------------------------------------
def net(params, x):
    return jax.nn.relu(x @ params["up"] + params["bias"][None]) @ params["down"]


@pytest.mark.long
def test_from_calibration_to_parameters():
    """All at once or layer by layer, outputs change less than with largest weights."""
    params = {
        "up": jnp.asarray(np.random.normal(size=(12, 12)), jnp.float32),
        "bias": jnp.asarray(np.random.normal(size=12), jnp.float32),
        "down": jnp.asarray(np.random.normal(size=(12, 12)), jnp.float32),
    }
    mix = np.random.normal(size=(12, 12)) * np.exp(np.random.normal(size=12))
    x = jnp.asarray(np.random.normal(size=(256, 12)) @ mix, jnp.float32)
    units = bb.trace(net, params, x).select("up|down")
    rule, lost = sparsegpt(), {}
    stats = bb.calibrate(net, units, params, [(x,)], needs=rule.needs)
    pruned, masks = bb.prune(params, units, rule, density=0.5, stats=stats)
    for path, mask in masks.items():
        assert mask.sum() == mask.size // 2
        assert (np.asarray(pruned[path])[~np.asarray(mask)] == 0).all()
    assert pruned["bias"] is params["bias"]
    in_order, _ = bb.prune_in_order(net, params, units, rule, [(x,)], density=0.5)
    by_size, _ = bb.prune(params, units, magnitude(), density=0.5)
    true = net(params, x)
    for name, other in [("one", pruned), ("order", in_order), ("size", by_size)]:
        lost[name] = float(jnp.mean(jnp.square(net(other, x) - true)))
    assert lost["one"] < lost["size"] and lost["order"] < lost["size"]


# Bad input ------------------------------------------------------------------------
@pytest.mark.usefixtures("unchecked")
def test_bad_settings():
    with pytest.raises(TypeError, match="law: expected one of bb.laws, got .*; call"):
        sparsegpt(law="log_odds")
    with pytest.raises(TypeError, match="expected damp to be a number, got array"):
        sparsegpt(damp=np.ones(2))
    for damp in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match=r"expected damp in \[0, inf\), got "):
            sparsegpt(damp=damp)
    with pytest.raises(ValueError, match="block: expected an int in"):
        sparsegpt(block=0)
    with pytest.raises(TypeError, match="block: expected an int in"):
        sparsegpt(block=0.5)


@pytest.mark.parametrize("actuators", [("out",), ("in", "out")])
def test_other_sides_are_refused(actuators):
    with pytest.raises(ValueError, match="expected actuator 'in' for 'w', got .*'out'"):
        eager(RULE, dense(4, 2), W, GRAM, 4, actuators=actuators)


def test_what_is_no_matrix_is_refused():
    conv = bb.Kernel("w", (3, 3, 4, 5), spatial=(0, 1), fan_in=(2,), fan_out=(3,))
    w = np.ones(conv.shape, np.float32)
    with pytest.raises(ValueError, match=r"got 'w' with window \(3, 3\); leave it out"):
        eager(RULE, conv, w, np.eye(4), 10)
    grouped = bb.Kernel(
        "w", (4, 6), groups=2, split=(4, 2, 3), roles=("in", "group", "out")
    )
    with pytest.raises(ValueError, match="got 'w' with 2 groups; leave it out"):
        eager(RULE, grouped, w[0, 0].ravel()[:1] * np.ones((4, 2, 3)), W, 10)


@pytest.mark.long
def test_a_gram_matrix_that_cannot_be_factored():
    w = np.random.normal(size=(6, 3)).astype(np.float32)
    bad = -np.ones((6, 6), np.float32) + 1.5 * np.eye(6, dtype=np.float32)
    with pytest.warns(UserWarning, match="matrix of the inputs of 'w' is not positive"):
        named = eager(sparsegpt(damp=0.0), dense(6, 3), w, bad, 9)
    mask, new = compiled(sparsegpt(damp=0.0), dense(6, 3), w, bad, 9)
    largest = np.argsort(np.argsort(-np.abs(w), 0), 0) < 3
    np.testing.assert_array_equal(mask, largest)
    np.testing.assert_array_equal(new, w * mask)
    for one, other in zip(named, (mask, new), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.long
def test_one_gram_matrix_that_cannot_be_factored_leaves_the_others_alone():
    """A stack of two kernels; the second has a matrix that is not positive."""
    gram, w = data(6, 3)
    gram = gram + np.eye(6, dtype=np.float32)
    bad = -np.ones((6, 6), np.float32) + 1.5 * np.eye(6, dtype=np.float32)
    kernel = bb.Kernel("w", (2, 6, 3), stack=(0,), fan_in=(1,), fan_out=(2,))
    both = np.stack([w, w]), np.stack([gram, bad]), np.array([9, 9])
    with pytest.warns(UserWarning, match=r"'w' in \[1\] of 2 stack slices is not"):
        mask, new = eager(sparsegpt(damp=0.0), kernel, *both)
    alone, moved = eager(sparsegpt(damp=0.0), dense(6, 3), w, gram, 9)
    np.testing.assert_array_equal(mask[0], alone)
    np.testing.assert_allclose(new[0], moved, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(new[1], w * mask[1])


def stem_and_mlp(p, x):
    """A convolution as stem, without a nonlinearity of its own."""
    dims = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x, p["stem"], (2, 2), "SAME", dimension_numbers=dims)
    return jax.nn.relu(x.mean((1, 2)) @ p["up"]) @ p["down"]


@pytest.mark.long
def test_a_stem_without_a_gram_matrix_is_in_nobodys_way():
    rng = np.random.default_rng(0)
    shapes = {"stem": (3, 3, 2, 8), "up": (8, 12), "down": (12, 2)}
    p = {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}
    x = jnp.asarray(rng.normal(size=(40, 4, 4, 2)), jnp.float32)
    units = bb.trace(stem_and_mlp, p, x)
    stats = bb.calibrate(stem_and_mlp, units, p, [(x,)], needs=RULE.needs)
    held = {path: a.inputs.gram is not None for path, a in stats.items()}
    assert held == {"stem": False, "up": True, "down": False}
    _, masks = bb.prune(p, units, RULE, density=0.5, stats=stats)
    assert masks["up"].sum(0).tolist() == [4] * 12
    text = (
        r"measure 'inputs.gram' of 'stem', got a convolution with window \(3, 3\); "
        r"leave it out .*: units.only\(\['up', 'down'\]\)"
    )
    with pytest.raises(ValueError, match=text):
        bb.calibrate(stem_and_mlp, units.select(".*"), p, [(x,)], needs=RULE.needs)
