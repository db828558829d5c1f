"""One pass of NNrelief: the order of its stages, dead units, the sweep, residuals."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.activity.calibrate import calibrate
from bbjax.activity.statistics import Activity, Statistics
from bbjax.oneshot.nnrelief.relieve import relieve
from bbjax.oneshot.nnrelief.residual import Residual
from bbjax.oneshot.prune import apply_masks, prune
from tests.support.zoo_case import normal, weights
from tests.support.zoo_conv import convolution

relu = jax.nn.relu


# An MLP against a numpy oracle ---------------------------------------------------
def mlp(params, x):
    """LeNet-300-100, smaller."""
    for layer in ("a", "b"):
        x = relu(x @ params[layer]["w"] + params[layer]["bias"][None])
    return x @ params["c"]["w"] + params["c"]["bias"][None]


def mlp_params():
    sizes, rng = {"a": (12, 10), "b": (10, 8), "c": (8, 4)}, np.random.default_rng(7)
    params = {
        name: {
            "w": np.float32(rng.normal(size=shape) / np.sqrt(shape[0])),
            "bias": np.float32(rng.normal(size=shape[1]) / 4),
        }
        for name, shape in sizes.items()
    }
    params["a"]["bias"][3] = -50.0  # never on
    params["b"]["w"][:, 5], params["b"]["bias"][5] = 0.01, 0.2  # hardly read below
    params["c"]["w"][5] = 1e-4
    return jax.tree.map(jnp.asarray, params)


def mlp_oracle(params, x, alpha):
    """Masks of the pass, layer by layer, straight from the definition."""
    masks, dead = {}, {}
    x = np.asarray(x, np.float64)
    for name in "abc":
        w, b = (np.asarray(params[name][k], np.float64) for k in ("w", "bias"))
        entries = np.vstack([np.abs(w) * np.abs(x).mean(0)[:, None], np.abs(b)])
        order = np.argsort(-entries, axis=0, kind="stable")
        share = np.cumsum(np.take_along_axis(entries, order, 0), 0) / entries.sum(0)
        count = (share < alpha).sum(0) + 1
        keep = np.argsort(order, axis=0) < count
        x = x @ w + b if name == "c" else np.maximum(x @ w + b, 0)
        dead[name] = np.abs(x).max(0) == 0
        keep &= (entries > 0) & ~dead[name]
        masks[name] = keep
    for name, reader in (("b", "c"), ("a", "b")):
        masks[name] &= masks[reader][:-1].any(1)
    return masks, dead


@pytest.mark.long
def test_pass_over_an_mlp():
    params, x = mlp_params(), normal(1, 40, 12)
    units = bb.trace(mlp, params, x)
    left, masks, report = relieve(
        mlp, params, units, [(x[:25],), (x[25:],)], alpha_dense=0.8
    )
    want, dead = mlp_oracle(params, x, 0.8)
    for name in "abc":
        np.testing.assert_array_equal(masks[f"{name}/w"], want[name][:-1], name)
        np.testing.assert_array_equal(masks[f"{name}/bias"], want[name][-1], name)
        np.testing.assert_array_equal(report.dead[f"{name}/w"], dead[name])
        kept = np.asarray(params[name]["w"]) * want[name][:-1]
        np.testing.assert_array_equal(left[name]["w"], kept)
    assert np.flatnonzero(report.dead["a/w"]).tolist() == [3]
    assert 5 in np.flatnonzero(report.swept["b/w"])
    assert not want["b"][:, 5].any()
    kept, whole = sum(want[n][:-1].sum() for n in "abc"), 12 * 10 + 10 * 8 + 8 * 4
    assert report.density == kept / whole


@pytest.mark.long
def test_nothing_changes_on_the_calibration_set_at_one():
    """At alpha = 1 only what contributes nothing goes: outputs stay as they are."""
    params, x = mlp_params(), normal(1, 40, 12)
    x = x.at[:, 2].set(0.0)
    units = bb.trace(mlp, params, x)
    left, masks, _ = relieve(mlp, params, units, [(x,)], alpha_dense=1)
    np.testing.assert_array_equal(mlp(left, x), mlp(params, x))
    assert not masks["a/w"][2].any() and not masks["a/w"][:, 3].any()
    assert masks["a/w"].sum() == 11 * 9


@pytest.mark.long
def test_masks_only_shrink_and_a_second_pass_starts_from_the_first():
    params, x = mlp_params(), normal(1, 40, 12)
    units = bb.trace(mlp, params, x)
    once, first, _ = relieve(mlp, params, units, [(x,)], alpha_dense=0.9)
    _, second, report = relieve(mlp, once, units, [(x,)], alpha_dense=0.9, masks=first)
    assert all((second[p] <= first[p]).all() for p in first)
    assert second.keys() == first.keys()
    assert (second["b/w"] < first["b/w"]).any()
    # Weights that are gone do not count, even if training has let them move.
    _, loose, _ = relieve(mlp, params, units, [(x,)], alpha_dense=0.9, masks=first)
    assert all((second[p] == loose[p]).all() for p in first)
    assert report.kept["a/w"] == (second["a/w"].sum(), 120)


def test_selected_kernels_alone_are_scored():
    params, x = mlp_params(), normal(1, 40, 12)
    units = bb.trace(mlp, params, x)
    left, masks, report = relieve(
        mlp, params, units.select("^b"), [(x,)], alpha_dense=0.8
    )
    want, _ = mlp_oracle(params, x, 0.8)
    assert list(report.kept) == ["b/w"]
    assert left["c"]["w"] is params["c"]["w"]
    assert (masks["b/w"] >= want["b"][:-1]).all() and not masks["b/w"].all()


# Stages --------------------------------------------------------------------------
def features(params, x):
    h = relu(convolution(x, params["one"]) + params["bias"][None, None, None])
    h = relu(convolution(h, params["two"], window_strides=(2, 2)))
    return h.reshape(h.shape[0], -1)


def conv_net(params, x):
    return features(params, x) @ params["out"]


def share_kept(params, x, alpha):
    """What the keep rule makes of the last layer, by hand."""
    mean = np.abs(features(params, x)).mean(0)
    size = np.abs(params["out"]) * mean[:, None]
    order = np.argsort(-size, axis=0, kind="stable")
    reached = np.cumsum(np.take_along_axis(size, order, 0), 0) / size.sum(0)
    return (np.argsort(order, axis=0) < (reached < alpha).sum(0) + 1) & (size > 0)


@pytest.mark.long
@pytest.mark.parametrize("conv", ["fro_of_mean", "l1"])
def test_products_are_scored_after_the_convolutions_are_cut(conv):
    params = weights(one=(3, 3, 4, 5), two=(3, 3, 5, 4), out=(36, 6))
    params |= {"bias": jnp.full(5, 0.3)}
    x = normal(5, 9, 6, 6, 4)
    units = bb.trace(conv_net, params, x)
    alphas = {"alpha_conv": 0.6, "alpha_dense": 0.7}
    _, masks, report = relieve(conv_net, params, units, [(x,)], conv=conv, **alphas)
    # Both convolutions saw the un-pruned net.
    rule, part = bb.rules.nnrelief(alpha=0.6, conv=conv), units.select("one|two")
    stats = calibrate(conv_net, part, params, [(x,)], needs=rule.needs)
    cut, at_once = prune(params, part, rule, stats=stats)
    for path in at_once:
        swept = report.swept.get(path, report.swept["one"])
        np.testing.assert_array_equal(masks[path], np.asarray(at_once[path]) & ~swept)
    # The product saw what is left of them.
    want, too_early = (share_kept(p, x, 0.7) for p in (cut, params))
    np.testing.assert_array_equal(masks["out"], want)
    assert (want != too_early).any()


class ConvNet(nn.Module):
    """LeNet-5, smaller."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv1")(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(6, (3, 3), name="conv2")(x))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(7, name="dense")(x)


@pytest.mark.long
@pytest.mark.usefixtures("lenient")
def test_sweep_goes_through_flatten_and_takes_only_channels_that_nobody_reads():
    def fn(params, x):
        return ConvNet().apply({"params": params}, x)

    x = normal(5, 16, 6, 6, 2)
    shapes = jax.eval_shape(ConvNet().init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: normal(p.size, *p.shape), shapes)
    by_channel = params["dense"]["kernel"].reshape(3, 3, 6, 7)
    by_channel = by_channel.at[:, :, 4].set(0.0)  # all positions of channel 4
    by_channel = by_channel.at[:2, :, 1].set(0.0)  # most positions of channel 1
    params["dense"]["kernel"] = by_channel.reshape(54, 7)
    units = bb.trace(fn, params, x)
    alphas = {"alpha_conv": 1.0, "alpha_dense": 1.0, "conv": "l1"}
    left, masks, report = relieve(fn, params, units, [(x,)], **alphas)
    swept = np.flatnonzero(report.swept["conv2/kernel"])
    assert swept.tolist() == [4]
    assert not masks["conv2/kernel"][..., 4].any() and not masks["conv2/bias"][4]
    assert masks["conv2/kernel"][..., 1].all() and masks["conv1/kernel"].all()
    run = jax.jit(fn)
    np.testing.assert_array_equal(run(left, x), run(params, x))


# Dead units ----------------------------------------------------------------------
def normed(params, x):
    """A product with a norm: scale and shift of its own, then a ReLU."""
    h = x @ params["w"]
    h = (h - h.mean(0, keepdims=True)) / (h.std(0, keepdims=True) + 1e-3)
    h = relu(h * params["scale"][None] + params["shift"][None])
    return h @ params["out"]


@pytest.mark.long
def test_dead_unit_loses_what_norms_hold_for_it():
    params = weights(w=(6, 5), out=(5, 3))
    params |= {"scale": jnp.full(5, 2.0), "shift": jnp.full(5, 0.1).at[2].set(-99.0)}
    x = normal(3, 30, 6)
    units = bb.trace(normed, params, x)
    left, masks, report = relieve(normed, params, units, [(x,)], alpha_dense=1)
    assert report.dead["w"].tolist() == [False, False, True, False, False]
    for path in ("w", "scale", "shift"):
        assert (np.asarray(masks[path]) == ~report.dead["w"]).all()
    assert left["shift"][2] == 0 and not masks["out"][2].any()
    np.testing.assert_allclose(normed(left, x), normed(params, x), rtol=1e-6)


@pytest.mark.long
def test_masks_of_other_parameters_stay():
    """A scale that was cut before: the unit still says its shift."""
    params = weights(w=(6, 5), out=(5, 3))
    params |= {"scale": jnp.full(5, 2.0), "shift": jnp.full(5, 0.1)}
    before, x = jnp.arange(5) > 0, normal(3, 30, 6)
    units = bb.trace(normed, params, x)
    left, masks, report = relieve(
        normed, params, units, [(x,)], alpha_dense=1, masks={"scale": before}
    )
    assert masks["scale"].tolist() == before.tolist() and left["scale"][0] == 0
    assert not report.dead["w"].any()


def test_a_unit_that_was_not_measured_is_not_dead():
    from bbjax.oneshot.nnrelief.relieve import _dead

    outputs = Statistics(count=jnp.array([4.0, 0, 4]), max_abs=jnp.array([0.0, 0, 2]))
    assert _dead(Activity(outputs, outputs)).tolist() == [True, False, False]


# Residuals -----------------------------------------------------------------------
def block(params, x):
    """Two products with a scale and a shift, and a projection beside them."""
    x = relu(x @ params["stem"])
    u = relu(x @ params["one"]) @ params["two"]
    u = u * params["scale"][None] + params["shift"][None]
    r = x @ params["proj"] if "proj" in params else x
    return relu(u + r) @ params["last"]


def block_params():
    params = weights(stem=(5, 4), one=(4, 5), two=(5, 4), last=(4, 3))
    return params | {"scale": jnp.ones(4).at[1].set(1e-3), "shift": jnp.full(4, 1e-3)}


@pytest.mark.long
def test_negligible_side_of_a_residual_is_cut():
    proj = normal(7, 4, 4).at[:, 2].multiply(1e-3)
    params, x = block_params() | {"proj": proj}, normal(9, 20, 5)
    units, pair = bb.trace(block, params, x), Residual("two", projection="proj")
    left, masks, report = relieve(
        block, params, units, [(x,)], alpha_dense=0.98, residuals=[pair]
    )
    (cut,) = report.residuals
    assert cut.branch.tolist() == [True, False, True, True]
    assert cut.shortcut.tolist() == [True, True, False, True]
    assert masks["two"].any(0).tolist() == cut.branch.tolist()
    assert masks["proj"].any(0).tolist() == cut.shortcut.tolist()
    # What a norm holds for the channel goes with it.
    for path in ("scale", "shift"):
        assert masks[path].tolist() == cut.branch.tolist() and left[path][1] == 0
    assert masks["last"][1].any()  # its readers still hear the shortcut
    assert "1 of 4 channels of the branch cut, 1 of the shortcut cut" in str(report)


@pytest.mark.long
def test_dead_unit_of_a_branch_goes_where_the_residual_rule_is_undecided():
    """Both sides of channel 0 are 0: neither is negligible beside the other."""
    params, x = block_params() | {"proj": normal(7, 4, 4)}, normal(9, 20, 5)
    for path in ("scale", "shift"):
        params[path] = params[path].at[0].set(0.0)
    params["proj"] = params["proj"].at[:, 0].set(0.0)
    units, pair = bb.trace(block, params, x), Residual("two", projection="proj")
    _, masks, report = relieve(
        block, params, units, [(x,)], alpha_dense=0.98, residuals=[pair]
    )
    assert report.residuals[0].branch.tolist() == [True, False, True, True]
    assert report.dead["two"].tolist() == [True, False, False, False]
    assert masks["two"].any(0).tolist() == [False, False, True, True]
    assert not report.swept["two"].any()


@pytest.mark.long
def test_negligible_identity_is_only_reported():
    params, x = block_params(), normal(9, 20, 5)
    params["stem"] = params["stem"].at[:, 3].multiply(1e-4)
    units, pair = bb.trace(block, params, x), Residual("two", identity="one")
    _, masks, report = relieve(
        block, params, units, [(x,)], alpha_dense=0.995, residuals=[pair]
    )
    assert report.residuals[0].shortcut.tolist() == [True, True, True, False]
    assert masks["stem"][:, 3].any()
    assert "1 of the shortcut negligible, left as they are" in str(report)


# Report and refusals -------------------------------------------------------------
@pytest.mark.long
def test_report_as_a_table():
    params, x = mlp_params(), normal(1, 40, 12)
    _, masks, report = relieve(mlp, params, bb.trace(mlp, params, x), [(x,)])
    text = str(report)
    kept = int(masks["a/w"].sum())
    assert f"a/w           {kept}" in text and f"{kept / 120:.4f}" in text
    assert "all together" in text and "dead units" in text


@pytest.mark.long
def test_masks_hold_biases_for_a_rewind():
    params, x = mlp_params(), normal(1, 40, 12)
    units = bb.trace(mlp, params, x)
    left, masks, _ = relieve(mlp, params, units, [(x,)], alpha_dense=0.8)
    again = apply_masks(params, masks)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), left, again)))


@pytest.mark.long
def test_refusals():
    params, x = mlp_params(), normal(1, 40, 12)
    units = bb.trace(mlp, params, x)
    run = functools.partial(relieve, mlp, params)
    with pytest.raises(ValueError, match=r"selection with actuator 'in', got 'out' f"):
        run(units.select("a", actuator="out"), [(x,)])
    with pytest.raises(ValueError, match=r"expected alpha in \(0, 1\], got 1.5"):
        run(units, [(x,)], alpha_dense=1.5)
    with pytest.raises(ValueError, match="expected at least one batch"):
        run(units, [])
    with pytest.raises(ValueError, match="trace that found none: no product"):
        run(bb.trace(lambda p, x: x, params, x), [(x,)])
    with pytest.raises(TypeError, match="expected units from bb.trace"):
        run(None, [(x,)])
    with pytest.raises(ValueError, match="for every mask; differences: 'd'"):
        run(units, [(x,)], masks={"d": jnp.ones((3, 3), bool)})
    with pytest.raises(TypeError, match="expected masks by path"):
        run(units, [(x,)], masks=[jnp.ones((12, 10), bool)])
    with pytest.raises(ValueError, match=r"projection are pruned, got \['nowhere'\]"):
        run(units, [(x,)], residuals=[Residual("nowhere", identity="a/w")])
