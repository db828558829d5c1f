"""`bb.refine`: better masks of models of all forms, then new weights, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

import bbjax as bb

NEEDS = ("on_rate", "inputs.mean_square", "inputs.gram")


def gated(params, x):
    """A block with a norm, a gate and a residual, and a head."""
    h = x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)
    h = h * params["scale"][None]
    h = jax.nn.silu(h @ params["gate"]) * (h @ params["up"] + params["bias"][None])
    return (x + h @ params["down"]) @ params["head"]


def problem(dtype=jnp.float32, n=12, hidden=20):
    """Parameters and correlated inputs."""
    mix = np.random.normal(size=(n, n)) * np.exp(np.random.normal(size=n))
    params = {
        "scale": np.exp(np.random.normal(size=n)),
        "gate": np.random.normal(size=(n, hidden)) / np.sqrt(n),
        "up": np.random.normal(size=(n, hidden)) / np.sqrt(n),
        "bias": np.random.normal(size=hidden),
        "down": np.random.normal(size=(hidden, n)) / np.sqrt(hidden),
        "head": np.random.normal(size=(n, 5)) / np.sqrt(n),
    }
    x = np.random.normal(size=(256, n)) @ mix
    return {k: jnp.asarray(v, dtype) for k, v in params.items()}, jnp.asarray(x, dtype)


def measured(fn, params, *args, select="gate|up|down", actuator="in"):
    units = bb.trace(fn, params, *args).select(select, actuator=actuator)
    return units, bb.calibrate(fn, units, params, [args], needs=NEEDS)


def lost(stats, path, change):
    """Mean square change of each unit's output."""
    gram = np.asarray(stats[path].inputs.gram, np.float64)
    change = np.asarray(change, np.float64)
    return np.einsum("...io,...ij,...jo->...o", change, gram, change)


def degrees(masks):
    return {path: np.asarray(mask).sum(-2).tolist() for path, mask in masks.items()}


@pytest.fixture
def given():
    params, x = problem()
    units, stats = measured(gated, params, x)
    _, masks = bb.prune(params, units, bb.rules.wanda(), density=0.5, stats=stats)
    return {"params": params, "units": units, "masks": masks, "stats": stats}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("rule", ["wanda", "magnitude", "budgeted_broadcast", "random"])
@pytest.mark.parametrize("shortlist", [None, 3])
def test_after_any_rule_outputs_are_closer_and_degrees_as_before(rule, shortlist):
    params, x = problem()
    units, stats = measured(gated, params, x)
    rule = getattr(bb.rules, rule)()
    pruned, masks = bb.prune(params, units, rule, density=0.5, stats=stats)
    new, better, errors = bb.refine(params, units, masks, stats, shortlist=shortlist)
    assert degrees(better) == degrees(masks) and set(better) == set(masks)
    for path in units.budgeted:
        mask, dense = np.asarray(better[path]), np.asarray(params[path])
        assert better[path].dtype == bool and (mask != masks[path]).any()
        np.testing.assert_array_equal(new[path], np.where(mask, dense, 0))
        before = lost(stats, path, pruned[path] - params[path])
        after = lost(stats, path, new[path] - params[path])
        assert (after <= before * (1 + 1e-5)).all()
        found = errors[path]
        assert found.after < found.before < found.total
        np.testing.assert_allclose(found.before, before.sum(), rtol=1e-4)
        np.testing.assert_allclose(found.after, after.sum(), rtol=1e-3)
        total = lost(stats, path, params[path]).sum()
        np.testing.assert_allclose(found.total, total, rtol=1e-4)
    assert all(new[path] is params[path] for path in ("scale", "bias", "head"))
    true = gated(params, x)
    change = [float(jnp.mean(jnp.square(gated(p, x) - true))) for p in (new, pruned)]
    assert change[0] < change[1]


@pytest.mark.long
def test_new_weights_can_follow(given):
    params, units, stats = (given[name] for name in ("params", "units", "stats"))
    new, better, swapped = bb.refine(**given)
    done, errors = bb.reconstruct(params, units, better, stats, start=new)
    _, alone = bb.reconstruct(params, units, given["masks"], stats)
    for path, mask in better.items():
        assert (np.asarray(done[path])[~np.asarray(mask)] == 0).all()
        np.testing.assert_allclose(errors[path].before, swapped[path].after, rtol=1e-3)
        assert errors[path].after < swapped[path].after
    total = [sum(float(e.after) for e in found.values()) for found in (errors, alone)]
    assert total[0] < total[1]


@pytest.mark.long
def test_numbers_of_outgoing_edges_are_kept_only_by_masks_that_count_incoming_ones():
    params, x = problem()
    units, stats = measured(gated, params, x, select="down", actuator="out")
    _, masks = bb.prune(params, units, bb.rules.wanda(), density=0.5, stats=stats)
    _, better, _ = bb.refine(params, units, masks, stats)
    mask, new = np.asarray(masks["down"]), np.asarray(better["down"])
    assert np.ptp(mask.sum(1)) == 0 < np.ptp(new.sum(1))
    np.testing.assert_array_equal(new.sum(0), mask.sum(0))


@pytest.mark.long
def test_patterns_are_kept():
    params, x = problem()
    units, stats = measured(gated, params, x)
    rule, pattern = bb.rules.wanda(), bb.n_m(2, 4)
    _, masks = bb.prune(params, units, rule, stats=stats, pattern=pattern)
    _, better, errors = bb.refine(params, units, masks, stats, pattern=pattern)
    for path, mask in better.items():
        held = np.asarray(mask).reshape(-1, 4, mask.shape[1]).sum(1)
        assert (held == 2).all() and (mask != masks[path]).any()
        assert errors[path].after < errors[path].before
    _, free, _ = bb.refine(params, units, masks, stats)
    assert (np.asarray(free["up"]).reshape(-1, 4, 20).sum(1) != 2).any()


@pytest.mark.long
def test_bfloat16_stays():
    params, x = problem(jnp.bfloat16)
    units, stats = measured(gated, params, x)
    _, masks = bb.prune(params, units, bb.rules.wanda(), density=0.5, stats=stats)
    new, better, _ = bb.refine(params, units, masks, stats)
    same = {k: v.astype(jnp.float32) for k, v in params.items()}
    _, other, _ = bb.refine(same, units, masks, stats)
    for path, mask in better.items():
        assert new[path].dtype == jnp.bfloat16
        np.testing.assert_array_equal(new[path], jnp.where(mask, params[path], 0))
        np.testing.assert_array_equal(mask, other[path])


def stack(params, x):
    def layer(h, w):
        return h + jax.nn.relu(h @ w["up"]) @ w["down"], None

    return lax.scan(layer, x, params)[0]


@pytest.mark.long
def test_layers_of_a_scan_are_refined_one_by_one():
    params = {
        "up": jnp.asarray(np.random.normal(size=(3, 6, 10)), jnp.float32),
        "down": jnp.asarray(np.random.normal(size=(3, 10, 6)) / 4, jnp.float32),
    }
    x = jnp.asarray(np.random.normal(size=(64, 6)), jnp.float32)
    units, stats = measured(stack, params, x, select="up|down")
    _, masks = bb.prune(params, units, bb.rules.magnitude(), density=0.5)
    new, better, errors = bb.refine(params, units, masks, stats)
    assert degrees(better) == degrees(masks)
    kernel = bb.Kernel("up", (6, 10), fan_in=(0,), fan_out=(1,))
    for at in range(3):
        alone, mask, error = bb.refine(
            {"up": params["up"][at]},
            bb.Units((kernel,)),
            {"up": masks["up"][at]},
            jax.tree.map(lambda a, at=at: a[at], {"up": stats["up"]}),
        )
        np.testing.assert_array_equal(better["up"][at], mask["up"])
        np.testing.assert_array_equal(new["up"][at], alone["up"])
        np.testing.assert_allclose(errors["up"].after[at], error["up"].after, rtol=1e-5)
    assert errors["down"].after.shape == (3,)
    assert (errors["down"].after < errors["down"].before).all()


def conv(params, x):
    dims = ("NHWC", "HWIO", "NHWC")
    for path in ("stem", "point"):
        x = lax.conv_general_dilated(
            x, params[path], (1, 1), "SAME", dimension_numbers=dims
        )
        x = jax.nn.relu(x)
    return x


@pytest.mark.long
def test_convolutions_of_one_position_are_refined_and_others_refused():
    params = {
        "stem": jnp.asarray(np.random.normal(size=(3, 3, 2, 6)), jnp.float32),
        "point": jnp.asarray(np.random.normal(size=(1, 1, 6, 5)), jnp.float32),
    }
    x = jnp.asarray(np.random.normal(size=(8, 5, 5, 2)), jnp.float32)
    units, stats = measured(conv, params, x, select="point")
    both = bb.trace(conv, params, x).select("stem|point")
    pruned, masks = bb.prune(params, both, bb.rules.random(), density=0.5)
    mine = {"point": masks["point"]}
    new, better, errors = bb.refine(params, both, mine, stats, start=pruned)
    assert new["stem"] is pruned["stem"] and better["point"].shape == (1, 1, 6, 5)
    assert errors["point"].after < errors["point"].before
    np.testing.assert_array_equal(better["point"].sum(2), masks["point"].sum(2))
    with pytest.raises(ValueError, match=r"got 'stem' with window \(3, 3\); leave it"):
        bb.refine(params, both, masks, stats)


@pytest.mark.long
def test_kernels_over_several_axes():
    """Heads: `(model, head, size)`, and back."""

    def fn(params, x):
        h = jax.nn.relu(jnp.einsum("bi,ihd->bhd", x, params["query"]))
        return jnp.einsum("bhd,hdo->bo", h, params["out"])

    params = {
        "query": jnp.asarray(np.random.normal(size=(12, 3, 4)), jnp.float32),
        "out": jnp.asarray(np.random.normal(size=(3, 4, 6)), jnp.float32),
    }
    x = problem()[1]
    units, stats = measured(fn, params, x, select="query|out")
    _, masks = bb.prune(params, units, bb.rules.magnitude(), density=0.5)
    new, better, errors = bb.refine(params, units, masks, stats)
    flat = {"query": (12, 12), "out": (12, 6)}
    for path, shape in flat.items():
        mine, old = (np.asarray(m[path]).reshape(shape) for m in (better, masks))
        np.testing.assert_array_equal(mine.sum(0), old.sum(0))
        change = np.asarray(new[path] - params[path]).reshape(shape)
        after = lost(stats, path, change).sum()
        np.testing.assert_allclose(errors[path].after, after, rtol=1e-3)
        assert errors[path].after < errors[path].before


@pytest.mark.long
def test_linen_and_nnx_models():
    x = problem()[1]

    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(4)(jax.nn.relu(linen.Dense(16)(x)))

    class Nnx(nnx.Module):
        def __init__(self):
            self.up = nnx.Linear(12, 16, rngs=nnx.Rngs(0))
            self.down = nnx.Linear(16, 4, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.down(nnx.relu(self.up(x)))

    plain, module = Linen(), Nnx()
    for fn, params in (
        (plain.apply, plain.init(jax.random.key(0), x)),
        (lambda m, x: m(x), module),
    ):
        units, stats = measured(fn, params, x, select="kernel")
        _, masks = bb.prune(params, units, bb.rules.magnitude(), density=0.5)
        new, better, errors = bb.refine(params, units, masks, stats)
        assert jax.tree.structure(new) == jax.tree.structure(params)
        applied = bb.apply_masks(params, better)
        for one, other in zip(*map(jax.tree.leaves, (new, applied)), strict=True):
            np.testing.assert_array_equal(one, other)
        assert all(e.after < e.before for e in errors.values())
    assert isinstance(new, Nnx)


@pytest.mark.long
def test_masks_of_biases_are_applied_and_passed_on(given):
    bias = jnp.ones(20, bool).at[5].set(False)
    masks = {"up": given["masks"]["up"], "bias": bias}
    new, better, errors = bb.refine(**given | {"masks": masks})
    np.testing.assert_array_equal(new["bias"], given["params"]["bias"].at[5].set(0))
    np.testing.assert_array_equal(better["bias"], bias)
    assert set(errors) == {"up"} and set(better) == {"up", "bias"}
    assert new["gate"] is given["params"]["gate"]


@pytest.mark.long
def test_weights_that_a_rule_has_set_go_back_to_the_dense_ones(given):
    params, units, stats = (given[name] for name in ("params", "units", "stats"))
    rule = bb.rules.sparsegpt()
    pruned, masks = bb.prune(params, units, rule, density=0.5, stats=stats)
    mine = {"up": masks["up"]}
    new, better, _ = bb.refine(params, units, mine, stats, start=pruned)
    np.testing.assert_array_equal(new["up"], jnp.where(better["up"], params["up"], 0))
    assert new["down"] is pruned["down"]


@pytest.mark.long
def test_under_jit_as_without(given):
    params, units, masks, stats = given.values()
    wanted, better, errors = bb.refine(**given)

    @jax.jit
    def run(params, masks, stats):
        return bb.refine(params, units, masks, stats)

    new, found, others = run(params, masks, stats)
    for path in better:
        np.testing.assert_array_equal(found[path], better[path])
        np.testing.assert_array_equal(new[path], wanted[path])
        np.testing.assert_allclose(others[path].after, errors[path].after, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_eight_devices_are_one(given, kind):
    _, wanted, _ = bb.refine(**given)
    kinds = (getattr(jax.sharding.AxisType, kind),)
    mesh = jax.make_mesh((4,), ("x",), axis_types=kinds, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        sharding = jax.NamedSharding(mesh, jax.P(None, "x"))
        place = {p: jax.device_put(given["params"][p], sharding) for p in wanted}
        masks = {p: jax.device_put(given["masks"][p], sharding) for p in wanted}
        params = given["params"] | place
        new, found, _ = bb.refine(params, given["units"], masks, given["stats"])
    for path in wanted:
        np.testing.assert_array_equal(found[path], wanted[path])
        assert found[path].sharding == new[path].sharding == sharding


# Bad input ------------------------------------------------------------------------
def test_bad_settings(given):
    with pytest.raises(TypeError, match="expected units from bb.trace, got dict"):
        bb.refine(**given | {"units": {}})
    with pytest.raises(ValueError, match="rounds: expected an int >= 1, got 0"):
        bb.refine(**given, rounds=0)
    with pytest.raises(ValueError, match="shortlist: expected an int >= 1, got 0"):
        bb.refine(**given, shortlist=0)
    with pytest.raises(TypeError, match="shortlist: expected an int >= 1, got 'all'"):
        bb.refine(**given, shortlist="all")
    with pytest.raises(TypeError, match=r"expected a pattern from bb.n_m, got \(2, 4"):
        bb.refine(**given, pattern=(2, 4))


def test_masks_and_statistics_that_do_not_fit(given):
    with pytest.raises(TypeError, match="expected masks by path, got list"):
        bb.refine(**given | {"masks": []})
    with pytest.raises(ValueError, match="expected masks of kernels .* got none"):
        bb.refine(**given | {"masks": {}})
    short = {"up": given["masks"]["up"][:3]}
    with pytest.raises(ValueError, match=r"'up': \(3, 20\), not \(12, 20\); pass"):
        bb.refine(**given | {"masks": short})
    with pytest.raises(ValueError, match="Gram matrix of the inputs of 'gate', got"):
        bb.refine(**given | {"stats": {}})


def test_parameters_that_are_pruned_already_or_not_finite(given):
    pruned = bb.apply_masks(given["params"], given["masks"])
    with pytest.raises(ValueError, match="expected the parameters before pruning"):
        bb.refine(**given | {"params": pruned})
    broken = given["params"] | {"up": given["params"]["up"].at[2, 3].set(jnp.nan)}
    with pytest.raises(ValueError, match="expected finite weights in 'up', got NaN"):
        bb.refine(**given | {"params": broken})


@pytest.mark.long
def test_masks_without_the_pattern_are_refused(given):
    text = r"mask of 'gate' .* in all groups of 4 inputs .* pattern=bb.n_m\(2, 4\)"
    with pytest.raises(ValueError, match=text):
        bb.refine(**given, pattern=bb.n_m(2, 4))
    with pytest.raises(ValueError, match="a multiple of 5 for the pattern 1:5, got"):
        bb.refine(**given, pattern=bb.n_m(1, 5))
