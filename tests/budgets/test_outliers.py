"""Layer densities by outliers (OWL): the formula, exact totals, bounds, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.activity.statistics import Activity, Statistics
from bbjax.budgets.allocation import budgets
from tests.support.runs import dense

A, B, C = dense(20, 30, "a/0"), dense(30, 20, "b/0"), dense(10, 16, "a/1")
STACK = bb.Kernel("stack", (8, 3, 16), fan_in=(0,), stack=(1,), fan_out=(2,))
CONV = bb.Kernel("conv", (3, 3, 6, 10), spatial=(0, 1), fan_in=(2,), fan_out=(3,))


def given(*kernels, spread=1.5):
    """Units, weights and statistics with outliers."""
    units = bb.Units(kernels).select(".*")
    params = {}
    for number, kernel in enumerate(kernels):
        tail = np.exp((1 + number) / 2 * spread * np.random.normal(size=kernel.shape))
        params[kernel.path] = jnp.asarray(tail, jnp.float32)
    stats = {}
    for kernel in kernels:
        square = np.random.uniform(0.1, 4, kernel.per_unit_shape("inputs"))
        seen = Statistics(mean_square=jnp.asarray(square, jnp.float32))
        stats[kernel.path] = Activity(seen, seen)
    return nested(params), units, stats


def nested(flat):
    tree = {}
    for path, value in flat.items():
        *folders, last = path.split("/")
        at = tree
        for name in folders:
            at = at.setdefault(name, {})
        at[last] = value
    return tree


def leaf(params, path):
    for name in path.split("/"):
        params = params[name]
    return np.asarray(params, np.float64)


def share_of_outliers(parts, times):
    """Of all scores in a layer, those above a multiple of their mean."""
    flat = np.concatenate([part.ravel() for part in parts])
    return np.mean(flat > times * flat.mean())


def oracle(density, shares, sizes, band):
    """Real-valued densities, as the authors' code has them, with a mean over edges."""
    shares, sizes = np.array(shares), np.array(sizes)
    raised = (shares - shares.min()) / (shares.max() - shares.min()) * 2 * band
    return density + raised - np.average(raised, weights=sizes)


def edges(density, units, k_min=0):
    kernels = [units[path] for path in units.budgeted]
    spent = budgets(density, kernels, jnp.int32(0), k_min)
    return [np.asarray(each) for each in spent.edges]


def scores(params, stats, kernel):
    square = np.asarray(stats[kernel.path].inputs.mean_square, np.float64)
    return np.abs(leaf(params, kernel.path)) * np.sqrt(square)[:, None]


@pytest.mark.parametrize("outlier", [2, 5.0])
@pytest.mark.parametrize("density", [0.2, 0.5])
def test_the_formula_and_the_budget(density, outlier):
    params, units, stats = given(A, B, C)
    got = edges(bb.owl(density, params, units, stats, outlier=outlier), units)
    shares = [share_of_outliers([scores(params, stats, k)], outlier) for k in (A, B, C)]
    assert len(set(shares)) == 3
    sizes = [600, 600, 160]
    wanted = oracle(density, shares, sizes, 0.08) * sizes
    assert sum(got) == round(density * 1360)
    np.testing.assert_allclose(got, wanted, atol=1.001)
    assert np.ptp(np.array(got) / sizes) == pytest.approx(0.16, abs=0.01)


@pytest.mark.long
def test_layers_with_more_outliers_keep_more():
    params, units, stats = given(A, B)
    params["b"]["0"] = jnp.ones((30, 20))  # none there
    dense_one, sparse_one = edges(bb.owl(0.5, params, units, stats, band=0.1), units)
    assert (dense_one, sparse_one) == (360, 240)


@pytest.mark.long
def test_slices_of_a_stack_and_windows():
    params, units, stats = given(STACK, CONV)
    got = edges(bb.owl(0.4, params, units, stats, outlier=3), units)
    w, square = leaf(params, "stack"), np.asarray(stats["stack"].inputs.mean_square)
    shares = [
        share_of_outliers([w[:, at] * np.sqrt(square[at])[:, None]], 3)
        for at in range(3)
    ]
    window = np.abs(leaf(params, "conv")).sum((0, 1))
    size = np.sqrt(np.asarray(stats["conv"].inputs.mean_square))[:, None]
    shares.append(share_of_outliers([window * size], 3))
    sizes = np.array([128, 128, 128, 60])
    wanted = oracle(0.4, shares, sizes, 0.08) * sizes
    assert got[0].shape == (3,) and got[0].sum() + got[1] == round(0.4 * sizes.sum())
    np.testing.assert_allclose([*got[0], got[1]], wanted, atol=1.001)


def test_kernels_of_one_block_share_a_density():
    params, units, stats = given(A, B, C)
    density = bb.owl(0.5, params, units, stats, layers="^[ab]", outlier=3)
    a, b, c = edges(density, units)
    shares = [
        share_of_outliers([scores(params, stats, k) for k in group], 3)
        for group in ((A, C), (B,))
    ]
    first, second = oracle(0.5, shares, [760, 600], 0.08)
    np.testing.assert_allclose(
        [a, b, c], [first * 600, second * 600, first * 160], atol=1.001
    )
    assert a + b + c == 680


def test_without_differences_or_band_every_layer_is_as_dense():
    params, units, stats = given(A, B)
    flat = jax.tree.map(jnp.ones_like, params)
    for density in (
        bb.owl(0.3, flat, units, stats, outlier=50),
        bb.owl(0.3, params, units, stats, band=0),
    ):
        assert [int(n) for n in edges(density, units)] == [180, 180]


def test_densities_stay_between_the_floors_and_1():
    params, units, stats = given(A, B, C)
    for density in (0.03, 0.97, 1.0):
        whole = bb.owl(density, params, units, stats, outlier=2, band=0.5)
        got = edges(whole, units, [30, 20, 16])
        assert sum(got) == max(round(density * 1360), 66)
        for n, kernel, floor in zip(got, (A, B, C), (30, 20, 16), strict=True):
            assert floor <= n <= kernel.edge_count


@pytest.mark.long
def test_schedules_and_traced_densities():
    params, units, stats = given(A, B)
    kernels = [units[path] for path in units.budgeted]
    ramp = bb.owl(bb.ramp(0.2, 0, 10), params, units, stats)
    assert sum(int(n) for n in budgets(ramp, kernels, jnp.int32(5)).edges) == 720

    measured = bb.owl(0.5, params, units, stats)

    def run(density):
        whole = dataclasses.replace(measured, density=density)
        return budgets(whole, kernels, jnp.int32(0)).edges

    many = jax.jit(jax.vmap(run))(jnp.array([0.1, 0.5]))
    assert [int(n) for n in sum(many)] == [120, 600]


def net(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"]


@pytest.mark.long
def test_as_a_density_of_prune_and_of_transform():
    params = {
        "up": jnp.asarray(np.random.normal(size=(12, 40)), jnp.float32),
        "down": jnp.asarray(np.exp(2 * np.random.normal(size=(40, 6))), jnp.float32),
    }
    x = jnp.asarray(np.random.normal(size=(32, 12)), jnp.float32)
    units, rule = bb.trace(net, params, x).select("up|down"), bb.rules.wanda()
    stats = bb.calibrate(net, units, params, [(x,)], needs=rule.needs)
    density = bb.owl(0.4, params, units, stats)
    _, masks = bb.prune(params, units, rule, density, stats=stats)
    up, down = (int(masks[path].sum()) for path in ("up", "down"))
    assert up + down == round(0.4 * 720) and down / 240 > up / 480
    tx = bb.transform(units, bb.rules.magnitude(), density=density, start=0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = jax.jit(tx.update)(zeros, tx.init(params), params)
    kept = {path: int(mask.sum()) for path, mask in bb.masks(state).items()}
    assert kept == {"up": up, "down": down}


# Bad input ------------------------------------------------------------------------
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments():
    params, units, stats = given(A, B)
    with pytest.raises(TypeError, match="expected units from bb.trace, got str"):
        bb.owl(0.5, params, "units", stats)
    with pytest.raises(ValueError, match=r"expected outlier in \(0, inf\), got 0"):
        bb.owl(0.5, params, units, stats, outlier=0)
    with pytest.raises(ValueError, match=r"expected band in \[0, 0.5\], got 0.6"):
        bb.owl(0.5, params, units, stats, band=0.6)
    with pytest.raises(ValueError, match=r"expected layers to be a regular expression"):
        bb.owl(0.5, params, units, stats, layers="(")
    with pytest.raises(ValueError, match="layers='a' to match every kernel, got no"):
        bb.owl(0.5, params, units, stats, layers="a")
    stacked = given(A, STACK)
    with pytest.raises(ValueError, match="layer '' with the same stack axes, got"):
        bb.owl(0.5, *stacked, layers="")
    with pytest.raises(
        TypeError, match="with values, got traced ones; call bb.owl out"
    ):
        jax.jit(lambda p: len(bb.owl(0.5, p, units, stats).raised))(params)
    broken = params | {"a": {"0": params["a"]["0"].at[1, 2].set(jnp.nan)}}
    with pytest.raises(ValueError, match=r"finite weights in \['a/0'\], got NaN"):
        bb.owl(0.5, broken, units, stats)


def test_statistics_that_are_missing_or_of_other_units():
    params, units, stats = given(A, B)
    nothing = Statistics(on_rate=jnp.ones(20))
    for wrong in (None, {}, stats | {"a/0": Activity(nothing, nothing)}):
        with pytest.raises(ValueError, match="mean square of the inputs of 'a/0', got"):
            bb.owl(0.5, params, units, wrong)
    with pytest.raises(ValueError, match=r"of shape \(20,\), got \(30,\); measure"):
        bb.owl(0.5, params, units, stats | {"a/0": stats["b/0"]})


def test_other_kernels_than_were_measured():
    params, units, stats = given(A, B, STACK)
    density = bb.owl(0.5, params, units.only(["a/0"]), {"a/0": stats["a/0"]})
    with pytest.raises(
        ValueError, match="expected densities of 1 slices of 'b/0', got"
    ):
        edges(density, units)


@pytest.mark.long
def test_densities_that_are_none_are_refused_where_they_are_used():
    params, units, stats = given(A, B)
    for density in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"expected a number in \(0, 1\], got"):
            bb.transform(
                units,
                bb.rules.magnitude(),
                density=bb.owl(density, params, units, stats),
            )
