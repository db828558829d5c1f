"""`bb.reconstruct`: from calibration to new weights, models of all forms, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bbjax as bb
from bbjax.activity.statistics import Activity, Statistics

NEEDS = ("on_rate", "inputs.mean_square", "inputs.gram")
METHODS = ("admm", "least_squares")


def mlp(params, x):
    hidden = jax.nn.relu(x @ params["up"] + params["bias"][None])
    return hidden @ params["down"]


def problem(dtype=jnp.float32, n=12, hidden=20):
    """Parameters and correlated inputs."""
    mix = np.random.normal(size=(n, n)) * np.exp(np.random.normal(size=n))
    params = {
        "up": np.random.normal(size=(n, hidden)) / np.sqrt(n),
        "bias": np.random.normal(size=hidden),
        "down": np.random.normal(size=(hidden, n)) / np.sqrt(hidden),
    }
    x = np.random.normal(size=(256, n)) @ mix
    return {k: jnp.asarray(v, dtype) for k, v in params.items()}, jnp.asarray(x, dtype)


def measured(fn, params, *args, select="up|down"):
    units = bb.trace(fn, params, *args).select(select)
    return units, bb.calibrate(fn, units, params, [args], needs=NEEDS)


def lost(x, change):
    """Mean square of x times a change of weights, summed over units."""
    x, change = np.asarray(x, np.float64), np.asarray(change, np.float64)
    return np.sum((x @ change) ** 2) / len(x)


@pytest.mark.long
@pytest.mark.parametrize(
    "rule, method",
    [
        ("magnitude", "least_squares"),
        ("magnitude", "admm"),
        ("ria", "admm"),
        ("budgeted_broadcast", "admm"),
    ],
)
def test_after_any_rule_outputs_are_closer_and_masks_as_before(rule, method):
    params, x = problem()
    units, stats = measured(mlp, params, x)
    rule = getattr(bb.rules, rule)()
    pruned, masks = bb.prune(params, units, rule, density=0.5, stats=stats)
    new, errors = bb.reconstruct(params, units, masks, stats, method=method)
    hidden = jax.nn.relu(x @ params["up"] + params["bias"][None])
    for path, inputs in (("up", x), ("down", hidden)):
        mask, kept = np.asarray(masks[path]), np.asarray(new[path])
        assert (kept[~mask] == 0).all() and (kept[mask] != 0).all()
        found, dense = errors[path], params[path]
        assert found.after < found.before < found.total
        np.testing.assert_allclose(
            found.before, lost(inputs, pruned[path] - dense), rtol=1e-3
        )
        np.testing.assert_allclose(
            found.after, lost(inputs, kept - dense), rtol=1e-2, atol=1e-4
        )
        np.testing.assert_allclose(found.total, lost(inputs, dense), rtol=1e-3)
    assert new["bias"] is params["bias"]
    true = mlp(params, x)
    change = [float(jnp.mean(jnp.square(mlp(p, x) - true))) for p in (new, pruned)]
    assert change[0] < change[1]


@pytest.mark.long
def test_bfloat16_stays_and_is_computed_in_float32():
    params, x = problem(jnp.bfloat16)
    units, stats = measured(mlp, params, x)
    _, masks = bb.prune(params, units, bb.rules.magnitude(), density=0.5)
    new, errors = bb.reconstruct(params, units, masks, stats)
    assert {leaf.dtype for leaf in new.values()} == {jnp.dtype(jnp.bfloat16)}
    same = {k: v.astype(jnp.float32) for k, v in params.items()}
    other, _ = bb.reconstruct(same, units, masks, stats)
    for path in ("up", "down"):
        close = np.abs(np.asarray(new[path].astype(jnp.float32) - other[path]))
        assert np.median(close) <= 2**-8 and errors[path].after < errors[path].before


def stack(params, x):
    def layer(h, w):
        return h + jax.nn.relu(h @ w["up"]) @ w["down"], None

    return lax.scan(layer, x, params)[0]


def test_after_whole_units_are_cut_one_system_serves_all():
    """Every reader keeps the same inputs: the exact solution, without a limit."""
    params, x = problem()
    units, stats = measured(mlp, params, x)
    scores = bb.unitwise.group_magnitude(units, params)
    cut = bb.unitwise.cut(units, scores, density=0.5)
    masks = {"down": cut["down"]}
    pruned = bb.apply_masks(params, cut)
    how = {"method": "least_squares", "damp": 0.0, "start": pruned}
    new, errors = bb.reconstruct(params, units, masks, stats, **how, limit=4e4)
    kept = cut["down"][:, 0]
    hidden = np.asarray(jax.nn.relu(x @ params["up"] + params["bias"][None]))
    right = hidden @ np.asarray(params["down"])
    best = np.linalg.lstsq(hidden[:, kept], right, rcond=None)[0]
    np.testing.assert_allclose(new["down"][kept], best, rtol=1e-2, atol=1e-3)
    assert (new["down"][~kept] == 0).all() and new["up"] is pruned["up"]
    # Masks that differ by one entry need a system for each unit.
    other = cut["down"].copy()
    first, second = np.flatnonzero(kept)[0], np.flatnonzero(~kept)[0]
    other[first, 0], other[second, 0] = False, True
    with pytest.raises(ValueError, match="12 systems of up to"):
        bb.reconstruct(params, units, {"down": other}, stats, **how, limit=4e4)
    assert errors["down"].after < errors["down"].before


@pytest.mark.long
def test_layers_of_a_scan_are_updated_one_by_one():
    params = {
        "up": jnp.asarray(np.random.normal(size=(3, 6, 10)), jnp.float32),
        "down": jnp.asarray(np.random.normal(size=(3, 10, 6)) / 4, jnp.float32),
    }
    x = jnp.asarray(np.random.normal(size=(64, 6)), jnp.float32)
    units, stats = measured(stack, params, x)
    _, masks = bb.prune(params, units, bb.rules.magnitude(), density=0.5)
    new, errors = bb.reconstruct(params, units, masks, stats)
    assert errors["up"].after.shape == (3,)
    assert (errors["up"].after < errors["up"].before).all()
    kernel = bb.Kernel("w", (6, 10), fan_in=(0,), fan_out=(1,))
    for at in range(3):
        seen = Statistics(gram=stats["up"].inputs.gram[at])
        alone, _ = bb.reconstruct(
            {"w": params["up"][at]},
            bb.Units((kernel,)),
            {"w": masks["up"][at]},
            {"w": Activity(seen, seen)},
        )
        np.testing.assert_allclose(new["up"][at], alone["w"], rtol=1e-3, atol=1e-4)


def conv(params, x):
    dims = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(
        x, params["stem"], (1, 1), "SAME", dimension_numbers=dims
    )
    x = jax.nn.relu(x)
    x = lax.conv_general_dilated(
        x, params["point"], (1, 1), "SAME", dimension_numbers=dims
    )
    return jax.nn.relu(x)


def convolutions():
    params = {
        "stem": jnp.asarray(np.random.normal(size=(3, 3, 2, 6)), jnp.float32),
        "point": jnp.asarray(np.random.normal(size=(1, 1, 6, 5)), jnp.float32),
    }
    return params, jnp.asarray(np.random.normal(size=(8, 5, 5, 2)), jnp.float32)


@pytest.mark.long
def test_convolutions_of_one_position_are_matrices_and_others_are_refused():
    params, x = convolutions()
    units, stats = measured(conv, params, x, select="point")
    both = bb.trace(conv, params, x).select("stem|point")
    pruned, masks = bb.prune(params, both, bb.rules.magnitude(), density=0.5)
    mine = {"point": masks["point"]}
    new, errors = bb.reconstruct(params, units, mine, stats, start=pruned)
    assert new["stem"] is pruned["stem"] and new["point"].shape == (1, 1, 6, 5)
    assert errors["point"].after < errors["point"].before
    assert (np.asarray(new["point"])[~np.asarray(masks["point"])] == 0).all()
    with pytest.raises(ValueError, match=r"got 'stem' with window \(3, 3\); leave it"):
        bb.reconstruct(params, both, masks, stats)


@pytest.mark.long
def test_after_sparsegpt_its_own_weights_are_the_ones_to_beat():
    params, x = problem()
    units, stats = measured(mlp, params, x)
    rule = bb.rules.sparsegpt()
    pruned, masks = bb.prune(params, units, rule, density=0.4, stats=stats)
    for method in METHODS:
        new, errors = bb.reconstruct(
            params, units, masks, stats, start=pruned, method=method, damp=0.01
        )
        given = lost(x, pruned["up"] - params["up"])
        np.testing.assert_allclose(errors["up"].before, given, rtol=1e-3)
        assert lost(x, new["up"] - params["up"]) <= given * (1 + 1e-4)
    assert errors["up"].after < errors["up"].before  # least squares


@pytest.mark.long
def test_layer_by_layer_on_the_pruned_layers_before():
    """Each kernel is dense when it is measured, and the target follows its inputs."""
    params, x = problem()
    units, rule = bb.trace(mlp, params, x).select("up|down"), bb.rules.wanda()
    new = params
    for path in units.budgeted:
        here = units.only([path])
        stats = bb.calibrate(mlp, here, new, [(x,)], needs=NEEDS)
        _, masks = bb.prune(new, here, rule, density=0.5, stats=stats)
        new, _ = bb.reconstruct(new, here, masks, stats)
        assert (np.asarray(new[path])[~np.asarray(masks[path])] == 0).all()
    plain, _ = bb.prune_in_order(mlp, params, units, rule, [(x,)], density=0.5)
    true = mlp(params, x)
    change = [float(jnp.mean(jnp.square(mlp(p, x) - true))) for p in (new, plain)]
    assert change[0] < change[1]


@pytest.mark.long
def test_masks_of_biases_are_applied():
    params, x = problem()
    units, stats = measured(mlp, params, x, select="up")
    masks = {"up": jnp.ones((12, 20), bool).at[3].set(False)}
    masks["bias"] = jnp.ones(20, bool).at[5].set(False)
    new, _ = bb.reconstruct(params, units, masks, stats)
    np.testing.assert_array_equal(new["bias"], params["bias"].at[5].set(0))


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_under_jit_as_without(method):
    params, x = problem()
    units, stats = measured(mlp, params, x)
    _, masks = bb.prune(params, units, bb.rules.magnitude(), density=0.5)
    new, errors = bb.reconstruct(params, units, masks, stats, method=method)

    @jax.jit
    def run(params, masks, stats, damp):
        return bb.reconstruct(params, units, masks, stats, method=method, damp=damp)

    other, found = run(params, masks, stats, 0.1)
    for path in ("up", "down"):
        np.testing.assert_allclose(other[path], new[path], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[path].after, errors[path].after, rtol=1e-3)


# Bad input ------------------------------------------------------------------------
@pytest.fixture
def given():
    params, x = problem()
    units, stats = measured(mlp, params, x)
    pruned, masks = bb.prune(params, units, bb.rules.magnitude(), density=0.5)
    return {"params": params, "units": units, "masks": masks, "stats": stats}


@pytest.mark.long
def test_bad_settings(given):
    with pytest.raises(TypeError, match="expected units from bb.trace, got dict"):
        bb.reconstruct(**given | {"units": {}})
    with pytest.raises(ValueError, match='expected method "admm" or "least_squares"'):
        bb.reconstruct(**given, method="obs")
    with pytest.raises(ValueError, match=r"expected damp in \[0, inf\), got -1"):
        bb.reconstruct(**given, damp=-1)
    with pytest.raises(ValueError, match="rounds: expected an int >= 1, got 0"):
        bb.reconstruct(**given, rounds=0)
    with pytest.raises(ValueError, match=r"expected limit in \(0, inf\), got 0"):
        bb.reconstruct(**given, limit=0)


@pytest.mark.long
def test_masks_that_do_not_fit(given):
    with pytest.raises(TypeError, match="expected masks by path, got list"):
        bb.reconstruct(**given | {"masks": []})
    for masks, got in (({}, "none"), ({"upp": jnp.ones(3, bool)}, r"\['upp'\]")):
        with pytest.raises(ValueError, match=f"expected masks of kernels .* got {got}"):
            bb.reconstruct(**given | {"masks": masks})
    short = {"up": given["masks"]["up"][:3]}
    with pytest.raises(ValueError, match=r"'up': \(3, 20\), not \(12, 20\); pass"):
        bb.reconstruct(**given | {"masks": short})


@pytest.mark.long
def test_statistics_that_are_missing(given):
    params, units = given["params"], given["units"]
    rates = bb.calibrate(mlp, units, params, [(jnp.ones((4, 12)),)])
    for stats in (None, {}, rates):
        with pytest.raises(ValueError, match="Gram matrix of the inputs of 'up', got"):
            bb.reconstruct(**given | {"stats": stats})


@pytest.mark.long
def test_parameters_that_are_pruned_already_or_not_finite(given):
    pruned = bb.apply_masks(given["params"], given["masks"])
    with pytest.raises(ValueError, match="expected the parameters before pruning"):
        bb.reconstruct(**given | {"params": pruned})
    broken = given["params"] | {"up": given["params"]["up"].at[2, 3].set(jnp.nan)}
    with pytest.raises(ValueError, match="expected finite weights in 'up', got NaN"):
        bb.reconstruct(**given | {"params": broken})


@pytest.mark.long
def test_least_squares_above_its_limit_is_refused(given):
    text = r"at most 1e\+04 operations .* for 'up': 20 systems of up to 12 edges; use"
    with pytest.raises(ValueError, match=text):
        bb.reconstruct(**given, method="least_squares", limit=1e4)
    bb.reconstruct(**given, limit=1e4)  # no limit for the other method


@pytest.mark.long
def test_complex_weights_are_refused():
    params = {"w": jnp.ones((3, 4), jnp.complex64)}
    kernel = bb.Kernel("w", (3, 4), "complex64", fan_in=(0,), fan_out=(1,))
    masks = {"w": jnp.eye(3, 4, dtype=bool)}
    with pytest.raises(ValueError, match="expected real weights for 'w', got complex"):
        bb.reconstruct(params, bb.Units((kernel,)), masks, {})


@pytest.mark.long
def test_systems_that_cannot_be_solved_are_named():
    params, x = problem()
    units, stats = measured(mlp, params, x[:3])
    mask = {"up": jnp.ones((12, 20), bool).at[0].set(False)}
    with pytest.warns(UserWarning, match="not all units of 'up' could be updated with"):
        new, errors = bb.reconstruct(
            params, units, mask, stats, method="least_squares", damp=0.0
        )
    assert np.isfinite(new["up"]).all()
    assert errors["up"].after <= errors["up"].before
