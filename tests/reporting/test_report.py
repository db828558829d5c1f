"""Reports: every figure against numpy, every kind of source, unknown figures."""

import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import bbjax as bb
from bbjax.activity.statistics import Activity
from bbjax.reporting import Report
from bbjax.reporting.figures import block_means, evenly, histogram
from tests.support import zoo
from tests.support.contract import CASES, RULES, chain, jitted, shared
from tests.support.reports import KERNEL, MASK, UNITS, by_hand, reported, trained
from tests.support.runs import activity, dense, select, statistics


def of(found, path, side):
    return next(s for s in found[path].sides if s.side == side)


def measured(facts):
    """Degrees by side, as a report has them."""
    return {side.side: side.degree for side in facts.sides}


def degrees(mask, kernel):
    """Degrees of outputs and inputs, `(layers, units)`, by numpy, for no groups."""
    lead = (*kernel.stack, *kernel.spatial)
    order = (*lead, *kernel.fan_in, *kernel.fan_out)
    sizes = [math.prod(mask.shape[a] for a in axes) for axes in (kernel.stack, ())]
    ins = math.prod(mask.shape[a] for a in kernel.fan_in)
    outs = math.prod(mask.shape[a] for a in kernel.fan_out)
    edges = np.transpose(mask, order).reshape(sizes[0], -1, ins, outs).any(1)
    return {"outputs": edges.sum(1), "inputs": edges.sum(2)}


# Figures -------------------------------------------------------------------------
@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_degrees_and_edges_against_numpy(case):
    found = reported(case)
    for path, mask in bb.masks(trained(case)[1]).items():
        kernel, facts = CASES[case].units[path], found[path]
        want = degrees(np.asarray(mask), kernel)
        chex.assert_trees_all_equal(measured(facts), want)
        for side, degree in want.items():
            whole = of(found, path, side).whole
            assert whole.degree_min == degree.min()
            assert whole.degree_max == degree.max()
            assert whole.degree_mean == degree.mean()
            assert whole.no_edges == (degree == 0).sum()
            assert whole.units == degree.size
        assert facts.kept == want["outputs"].sum() == want["inputs"].sum()
        assert facts.kept_by_layer == tuple(want["inputs"].sum(1))
        windows = math.prod(kernel.shape[a] for a in kernel.spatial)
        assert facts.edges * windows == mask.size
        assert facts.kept_weights == np.asarray(mask).sum()
        assert facts.dense_bytes == 4 * mask.size
        assert facts.sparse_bytes == -(-facts.edges // 8) + 4 * facts.kept_weights


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", CASES)
def test_figures_are_those_of_metrics(case):
    found, state = reported(case), trained(case)[1]
    values = {name: float(v) for name, v in bb.metrics(state).items()}
    for facts in found:
        for side in facts.main:
            both = len(facts.actuators) > 1
            name = f"{facts.path}:{side.actuator}" if both else facts.path
            want = {k: values[f"{name}/{k}"] for k in METRICS}
            got = {k: getattr(side.whole, field) for k, field in METRICS.items()}
            for metric, value in want.items():
                if math.isnan(value):
                    assert got[metric] is None
                else:
                    assert got[metric] == pytest.approx(value, rel=1e-5), metric
            assert facts.got == pytest.approx(values[f"{name}/density_got"])
            assert facts.asked == pytest.approx(values[f"{name}/density_asked"])
            assert facts.churn == pytest.approx(values[f"{name}/churn"], rel=1e-5)
    assert found.dead == values["overall/dead_units"]


METRICS = {
    "degree_min": "degree_min",
    "degree_mean": "degree_mean",
    "degree_max": "degree_max",
    "dead_units": "dead",
    "traffic": "traffic",
    "coding_entropy": "entropy",
    "balance_slope": "slope",
    "balance_r2": "r2",
}


@pytest.mark.long
def test_a_planted_line_is_found_with_its_intercept():
    k = np.array([3, 4, 7, 9, 12, 15])
    side = by_hand(k, 1 / (1 + np.exp(0.25 * (k - 8.0))))["w"].sides[0]
    assert side.whole.slope == pytest.approx(0.25, rel=1e-4)
    assert side.whole.d0 == pytest.approx(8, rel=1e-4)
    assert side.whole.r2 == pytest.approx(1, rel=1e-4)
    assert side.free.all()


@pytest.mark.long
def test_every_layer_of_a_stack_has_a_line_of_its_own():
    k = np.array([[3, 6, 9, 12], [4, 5, 8, 10]])
    beta, d0 = np.array([[0.2], [0.4]]), np.array([[7.0], [9.0]])
    rate = 1 / (1 + np.exp(beta * (k - d0)))
    facts = by_hand(k.ravel(), rate.ravel(), layers=2)["w"]
    for i, layer in enumerate(facts.sides[0].layers):
        assert layer.slope == pytest.approx(beta[i, 0], rel=1e-3)
        assert layer.d0 == pytest.approx(d0[i, 0], rel=1e-3)
        assert layer.degree_mean == k[i].mean()
    assert facts.kept_by_layer == tuple(k.sum(1))
    assert [p.layer for p in facts.pictures] == [(0,), (1,)]


@pytest.mark.long
def test_dead_is_without_edges_or_without_activity():
    whole = by_hand([0, 4, 4, 4], [0.5, 0.0, 1e-4, 0.5])["w"].sides[0].whole
    assert (whole.no_edges, whole.inactive, whole.dead) == (1, 2, 3)


@pytest.mark.long
def test_hubs_are_the_largest_by_traffic_and_by_degree():
    k, a = [3, 9, 9, 2, 5, 1, 7], [0.9, 0.1, 0.5, 0.9, 0.8, 0.2, 0.3]
    side = by_hand(k, a)["w"].sides[0]
    traffic = np.array(k) * np.array(a)
    assert [u.place for u in side.busiest] == [(2,), (4,), (0,), (6,), (3,)]
    assert [u.place for u in side.widest] == [(1,), (2,), (6,), (4,), (0,)]
    for unit in (*side.busiest, *side.widest):
        assert unit.degree == k[unit.place[0]]
        assert unit.rate == pytest.approx(a[unit.place[0]])
        assert unit.traffic == pytest.approx(traffic[unit.place[0]])
        assert unit.layer == ()


@pytest.mark.long
def test_units_of_one_degree_are_no_hubs():
    side = by_hand([4, 4, 4], [0.2, 0.3, 0.4])["w"].sides[0]
    assert side.widest == () and len(side.busiest) == 3
    assert side.whole.slope is None and side.whole.d0 is None


def test_units_without_a_path_are_those_whose_edges_a_sweep_cuts():
    def net(params, x):
        hidden = jax.nn.relu(jax.nn.relu(x @ params["a"]) @ params["b"])
        return hidden @ params["c"]

    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2)), "c": jnp.ones((2, 1))}
    units = bb.trace(net, params, jnp.ones((5, 3)))
    masks = {
        "a": np.array([[1, 1, 1, 0]] * 3, bool),
        "b": np.array([[1, 0], [0, 1], [0, 0], [1, 0]], bool),
        "c": np.array([[1], [0]], bool),
    }
    found = bb.report(masks, units)
    # No edge leaves b's unit 1, the only reader of a's unit 1; none leaves a's unit 2.
    assert {k.path: k.no_path for k in found} == {"a": 2, "b": 1, "c": None}
    assert found["a"].sides[0].whole.no_edges == 1
    assert bb.report({"a": masks["a"]}, units)["a"].no_path is None


@pytest.mark.long
@pytest.mark.parametrize("name", ["conv2d", "linen_general", "linen_transformer_axis1"])
def test_models_of_the_zoo_by_their_layouts(name):
    _, units = zoo.built(name)
    rng = np.random.default_rng(3)
    masks = {k.path: rng.random(k.shape) < 0.4 for k in units.kernels}
    found = bb.report(masks, units)
    assert [facts.path for facts in found] == list(masks)
    for kernel in units.kernels:
        if kernel.groups > 1:
            continue
        want = degrees(masks[kernel.path], kernel)
        chex.assert_trees_all_equal(measured(found[kernel.path]), want)
    found.html()


def test_groups_keep_their_edges_to_themselves():
    _, units = zoo.built("conv2d")
    kernel = units["b"]  # two groups of two inputs and three outputs
    mask = np.zeros(kernel.shape, bool)
    mask[0, 0, 1, 4] = mask[1, 0, 1, 4] = True
    found = bb.report({"b": mask}, units)
    facts = found["b"]
    assert (facts.edges, facts.kept, facts.kept_weights) == (12, 1, 2)
    assert of(found, "b", "outputs").degree.tolist() == [[0, 0, 0, 0, 1, 0]]
    assert of(found, "b", "inputs").degree.tolist() == [[0, 0, 0, 1]]
    assert facts.pictures[0].edges == (4, 3)


# Parts ---------------------------------------------------------------------------
@pytest.mark.parametrize("high", [1, 31, 32, 33, 1000])
def test_histogram_counts_every_unit_once(high):
    degree = np.random.default_rng(high).integers(0, high + 1, 500)
    bins = histogram(degree)
    ends = bins.start + bins.width * np.arange(len(bins.counts) + 1)
    want, _ = np.histogram(degree, ends - 0.5)
    assert bins.counts == tuple(want) and sum(bins.counts) == 500
    assert len(bins.counts) <= 32


@pytest.mark.parametrize("shape, block", [((7, 5), (2, 3)), ((4, 4), (1, 1))])
def test_block_means_against_a_loop(shape, block):
    values = np.random.default_rng(0).random(shape) < 0.5
    got = block_means(values, block)
    for i, j in np.ndindex(got.shape):
        rows = slice(i * block[0], (i + 1) * block[0])
        columns = slice(j * block[1], (j + 1) * block[1])
        assert got[i, j] == pytest.approx(values[rows, columns].mean())


@pytest.mark.long
def test_a_large_mask_becomes_a_small_picture():
    kernel = dense(600, 1000)
    mask = np.zeros(kernel.shape, bool)
    mask[:, 4:8] = True
    (picture,) = bb.report({"w": mask}, bb.Units((kernel,)))["w"].pictures
    assert picture.block == (3, 4)
    chex.assert_shape(picture.share, (200, 250))
    assert (picture.share[:, 1] == 1).all() and picture.share.sum() == 200


@pytest.mark.parametrize("count, most", [(1, 6), (6, 6), (7, 6), (96, 3)])
def test_evenly_takes_the_first_and_the_last(count, most):
    shown = evenly(count, most)
    assert shown[0] == 0 and shown[-1] == count - 1
    assert len(set(shown)) == len(shown) == min(count, most)


# Sources -------------------------------------------------------------------------
@pytest.mark.long
def test_a_state_in_a_chain_has_its_budget():
    found = reported("mlp")
    assert found.updates == 5 and found.notes == ()
    assert found.origin == "an optimizer state after 5 updates"
    assert found["up"].asked == found["down"].asked == found.asked == 0.4
    assert found["up"].actuators == ("in",) and found["down"].actuators == ("out",)
    assert found["down"].main[0].side == "inputs"
    assert found.kept == sum(round(0.4 * k.edges) for k in found)


def test_a_state_of_another_model_is_refused():
    _, state = trained("mlp")
    with pytest.raises(ValueError, match="of the kernels in units .*, got one of .*up"):
        bb.report(state, UNITS)


def test_a_traced_state_is_refused():
    _, state = trained("mlp")
    with pytest.raises(TypeError, match="expected a state with values, got a traced o"):
        jax.jit(lambda state: bb.report(state).got)(state)


@pytest.mark.long
def test_a_checkpoint_gives_the_same_report(tmp_path):
    params, state = trained("mlp")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        arguments = ocp.checkpoint_utils.construct_restore_args(state)
        like = shared("log_odds", "mlp")[0].init(params)
        restored = checkpointer.restore(
            tmp_path / "state", item=like, restore_args=arguments
        )
    live = reported("mlp")
    assert bb.report(restored, CASES["mlp"].units, params=params).html() == live.html()
    with pytest.raises(ValueError, match="got the folder 'state'; restore the checkp"):
        bb.report(tmp_path / "state")


def test_other_holders_of_a_state():
    kernel = select(KERNEL)
    weights = {"w": jnp.ones((6, 4))}
    for tx in (
        bb.wrap(optax.sgd(0.1), kernel, bb.rules.magnitude(), density=0.5),
        optax.chain(optax.MultiSteps(bb.transform(kernel), 2)),
    ):
        assert bb.report(tx.init(weights))["w"].kept == 24


def test_masks_by_path_give_degrees_alone():
    found = bb.report({"w": MASK}, UNITS)
    side = found["w"].sides[0]
    assert side.side == "outputs" and not side.counted and found["w"].actuators == ()
    assert side.degree.tolist() == [[5, 2, 0, 2]]
    assert found["w"].sides[1].degree.tolist() == [[2, 1, 3, 0, 2, 1]]
    assert found.asked is found.churn is found.updates is side.rate is None
    assert side.whole.inactive is side.whole.traffic is side.whole.entropy is None
    assert found.dead == side.whole.dead == 1
    assert "masks alone carry no on-rates" in side.why_no_activity
    assert bb.report({"w": jnp.asarray(MASK)}, UNITS).html() == found.html()


def test_the_selection_gives_the_side_that_is_counted():
    facts = bb.report({"w": MASK}, select(KERNEL, "out"))["w"]
    assert facts.actuators == ("out",) and facts.main[0].side == "inputs"
    assert facts.dead == 1  # the input without edges, not the output
    both = bb.report({"w": MASK}, select(KERNEL, "in", "out"))["w"]
    assert [s.side for s in both.main] == ["outputs", "inputs"] and both.dead == 2


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_mask_file_with_its_units(kind, tmp_path):
    units, masks = CASES["conv"].units, bb.masks(trained("conv")[1])
    bb.save_masks(tmp_path / "masks.npz", masks, units)
    found = bb.report(kind(tmp_path / "masks.npz"))
    assert found.origin == "the mask file masks.npz"
    facts = found["conv"]
    assert facts.kind == "3 x 3 convolution, 4 to 10 units"
    want = degrees(np.asarray(masks["conv"]), units["conv"])
    chex.assert_trees_all_equal(measured(facts), want)


def test_a_file_of_parameters_gives_what_a_mask_file_does(tmp_path):
    units, masks = CASES["conv"].units, bb.masks(trained("conv")[1])
    params = {k.path: np.zeros(k.shape, np.float32) for k in units.kernels}
    bb.save(tmp_path / "model.safetensors", params, masks, units.only(masks))
    found = bb.report(tmp_path / "model.safetensors")
    assert found.origin == "the file model.safetensors"
    alone = bb.report(masks, units)
    for one, two in zip(found.kernels, alone.kernels, strict=True):
        assert (one.path, one.kept, one.edges) == (two.path, two.kept, two.edges)


def test_a_file_of_parameters_without_masks_is_refused(tmp_path):
    bb.save(tmp_path / "model.safetensors", {"w": np.ones((2, 3))})
    with pytest.raises(ValueError, match="expected a file with masks"):
        bb.report(tmp_path / "model.safetensors")


def test_a_mask_file_without_units_needs_them(tmp_path):
    file = tmp_path / "masks.npz"
    bb.save_masks(file, {"w": MASK})
    with pytest.raises(
        ValueError, match="kernels that are known, got \\['w'\\]; pass u"
    ):
        bb.report(file)
    assert bb.report(file, UNITS).kept == MASK.sum()


def test_masks_of_a_stack_and_groups_survive_a_file(tmp_path):
    for name in ("conv2d", "linen_transformer_axis1"):
        _, units = zoo.built(name)
        rng = np.random.default_rng(1)
        masks = {k.path: rng.random(k.shape) < 0.5 for k in units.kernels}
        bb.save_masks(tmp_path / "m.npz", masks, units)
        read, direct = bb.report(tmp_path / "m.npz"), bb.report(masks, units)
        for facts in read:
            other = direct[facts.path]
            assert facts.kind == other.kind and facts.edges == other.edges
            chex.assert_trees_all_equal(measured(facts), measured(other))


def test_masks_of_other_parameters_are_listed():
    found = bb.report({"w": MASK, "b": np.array([True, False, True, True])}, UNITS)
    assert found.others == (("b", 4, 3),) and len(found.kernels) == 1
    tx = bb.hold({"w": MASK, "b": np.ones(4, bool)}, select(KERNEL))
    held = bb.report(tx.init({"w": jnp.ones((6, 4)), "b": jnp.ones(4)}))
    assert held.others == (("b", 4, 4),) and held["w"].kept == MASK.sum()
    assert held["w"].asked is None  # held masks have no density to reach


# What is added -------------------------------------------------------------------
@pytest.mark.long
def test_activity_gives_masks_their_on_rates():
    rate = np.array([0.2, 0.4, 0.5, 0.8], np.float32)
    found = bb.report({"w": MASK}, UNITS, activity=activity(KERNEL, outputs=rate))
    side = found["w"].sides[0]
    np.testing.assert_array_equal(side.rate, [rate])
    assert side.whole.traffic == pytest.approx((rate * MASK.sum(0)).sum())
    assert side.why_no_activity == "" and side.unobserved == 0


@pytest.mark.long
def test_activity_of_calibration_agrees_with_that_of_the_state():
    case = CASES["mlp"]
    params, state = trained("mlp")
    stats = bb.calibrate(case.loss, case.units, params, [(case.batch(0),)])
    found = bb.report(bb.masks(state), case.units, activity=stats)
    want = stats["up"].outputs.on_rate
    np.testing.assert_array_equal(of(found, "up", "outputs").rate[0], want)


@pytest.mark.long
def test_units_that_were_never_measured_count_as_half_on():
    rate = np.array([0.2, np.nan, 0.9, 0.8])
    seen = Activity(statistics(np.full(6, 0.5)), statistics(rate, [3.0, 3.0, 0.0, 3.0]))
    side = bb.report({"w": MASK}, UNITS, activity={"w": seen})["w"].sides[0]
    np.testing.assert_allclose(side.rate, [[0.2, 0.5, 0.5, 0.8]])
    assert side.unobserved == 2
    never = activity(KERNEL, count=0.0)
    side = bb.report({"w": MASK}, UNITS, activity=never)["w"].sides[0]
    assert side.rate is None and "activity= has no on-rates" in side.why_no_activity


def test_churn_since_previous_masks():
    before = MASK.copy()
    before[0, 0], before[3, 3], before[3, 2] = False, True, True
    for previous in ({"w": before}, {"w": jnp.asarray(before)}):
        found = bb.report({"w": MASK}, UNITS, previous=previous)
        assert found["w"].flipped == 3 and found.churn == 3 / 24
        assert found.since == "the previous masks"


@pytest.mark.long
def test_churn_between_a_state_and_a_file(tmp_path):
    _, state = trained("mlp")
    _, early = trained("mlp", steps=2)
    bb.save_masks(tmp_path / "early.npz", bb.masks(early))
    found = bb.report(state, previous=tmp_path / "early.npz")
    rows = bb.diff_masks(bb.masks(early), bb.masks(state))
    assert {k.path: k.flipped for k in found} == {
        row.path: row.flipped for row in rows.rows
    }
    assert bb.report(state).churn == pytest.approx(
        float(bb.metrics(state)["overall/churn"]), rel=1e-5
    )


@pytest.mark.long
def test_parameters_give_the_size_of_the_model():
    params, state = trained("conv")
    found, mask = reported("conv"), np.asarray(bb.masks(state)["conv"])
    weights = sum(p.size for p in params.values())
    model = found.model
    assert model.params == weights and model.dense_bytes == 4 * weights
    assert model.kept == weights - (~mask).sum()
    assert model.sparse_bytes == 4 * model.kept + -(-found.edges // 8)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    assert bb.report(state, params=half)["conv"].dense_bytes == 2 * mask.size


def test_masks_that_were_not_applied_are_refused():
    params, state = trained("mlp")
    assert bb.report(state, params=params).notes == ()
    stale = params | {"up": params["up"].at[:].add(1.0)}
    pruned = int((~np.asarray(bb.masks(state)["up"])).sum())
    text = f"to be 0, got others: {pruned} of {pruned} in 'up'; put bb.transform last"
    with pytest.raises(ValueError, match=text):
        bb.report(state, params=stale)


def test_before_the_first_refresh():
    tx = chain(RULES["log_odds"], CASES["mlp"])
    found = bb.report(tx.init(CASES["mlp"].params()))
    assert found.notes[0].startswith("Nothing is pruned yet: no refresh has cut")
    assert found.got == found.asked == 1 and found.churn == 0 and found.dead == 0
    side = found["up"].main[0]
    assert side.why_no_activity == "no update was given activity="
    assert side.rate is None and side.whole.slope is None and side.widest == ()


@pytest.mark.long
def test_a_rule_without_activity():
    case = CASES["mlp"]
    tx = chain(RULES["magnitude"], case)
    update, params = jitted(tx), case.params()
    state = tx.init(params)
    for n in range(3):
        grads, _ = case.gradient(params, case.batch(n))
        updates, state = update(grads, state, params, None)
        params = optax.apply_updates(params, updates)
    side = bb.report(state)["up"].main[0]
    assert side.rate is None and side.busiest == () and side.whole.degree_max < 12
    assert side.why_no_activity == "no update was given activity="


@pytest.mark.long
def test_a_density_that_is_an_outcome_is_not_asked_for():
    found = reported("mlp", "local_threshold")
    assert found["up"].asked is None and found.asked is None and found.got < 1


def test_selected_kernels_without_a_mask_are_named():
    units = bb.Units((KERNEL, dense(4, 2, "v")))
    both = units.select("w") + units.select("v")
    assert bb.report({"w": MASK}, both).notes == (
        "Selected in units, but without a mask: v.",
    )


# Numbers -------------------------------------------------------------------------
@pytest.mark.long
def test_numbers_are_json_and_equal_the_figures():
    found = reported("stack", latency={"dense": 2}, shrunk={"bytes": (10, 5)})
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert numbers == found.to_dict()
    assert numbers["kept"] == found.kept and numbers["density_got"] == found.got
    assert numbers["latency_ms"] == {"dense": 2.0}
    assert numbers["shrunk"] == {"bytes": [10.0, 5.0]}
    assert numbers["model"]["params"] == found.model.params
    for facts, given in zip(found, numbers["kernels"], strict=True):
        assert given["path"] == facts.path and given["kept"] == facts.kept
        assert len(given["sides"]["outputs"]["layers"]) == 3
        for side in facts.sides:
            mine = given["sides"][side.side]
            assert mine["degree_mean"] == side.whole.degree_mean
            assert sum(mine["histogram"]["counts"]) == side.degree.size


def test_looking_up_a_kernel():
    found = bb.report({"w": MASK}, UNITS, title="One")
    assert isinstance(found, Report) and list(found) == [found["w"]]
    assert repr(found) == "<Report 'One': 1 kernel, density 0.375>"
    with pytest.raises(KeyError, match="got 'v'; the report is on \\['w'\\]"):
        found["v"]


# Errors --------------------------------------------------------------------------
@pytest.mark.parametrize(
    "error, match, call",
    [
        (ValueError, "at least one mask, got none", lambda: bb.report({}, UNITS)),
        (ValueError, "optimizer state with bb.tran", lambda: bb.report(({}, None))),
        (ValueError, "got dict without one", lambda: bb.report({"w": MASK * 1.0})),
        (
            TypeError,
            "expected a bool mask at 'v', got float64",
            lambda: bb.report({"w": MASK, "v": MASK * 1.0}, UNITS),
        ),
        (
            ValueError,
            "masks of kernels that are known, got \\['v'\\].*it has \\['w'\\]",
            lambda: bb.report({"v": MASK}, UNITS),
        ),
        (
            ValueError,
            "expected 'w' of shape \\(6, 4\\), got \\(4, 6\\); use masks and the trace",
            lambda: bb.report({"w": MASK.T}, UNITS),
        ),
        (
            TypeError,
            "expected units as bb.trace makes them, got dict; masks of another",
            lambda: bb.report({"w": MASK}, {"w": MASK}),
        ),
        (
            ValueError,
            "previous masks of the same kernels, got none of \\['w'\\]",
            lambda: bb.report(
                {"w": MASK},
                bb.Units((KERNEL, dense(4, 2, "v"))),
                previous={"v": np.ones((4, 2), bool)},
            ),
        ),
        (
            TypeError,
            "expected activity by path, got dict; pass what bb.calibrate",
            lambda: bb.report({"w": MASK}, UNITS, activity={"w": 0.5}),
        ),
        (
            ValueError,
            "expected activity of \\['w'\\], got that of \\['v'\\]",
            lambda: bb.report({"w": MASK}, UNITS, activity=activity(dense(6, 4, "v"))),
        ),
        (
            ValueError,
            "on-rates of shape \\(4,\\) for the outputs of 'w', got \\(6,\\)",
            lambda: bb.report({"w": MASK}, UNITS, activity=activity(dense(4, 6))),
        ),
        (
            ValueError,
            "expected the parameter at 'w', got a tree without one",
            lambda: bb.report({"w": MASK}, UNITS, params={"v": MASK * 1.0}),
        ),
        (
            TypeError,
            "latency: expected one number for 'dense', got \\(1, 2\\)",
            lambda: bb.report({"w": MASK}, UNITS, latency={"dense": (1, 2)}),
        ),
        (
            ValueError,
            "latency: expected finite numbers >= 0 for 'dense', got nan",
            lambda: bb.report({"w": MASK}, UNITS, latency={"dense": math.nan}),
        ),
        (
            TypeError,
            "shrunk: expected a pair \\(before, after\\) for 'bytes', got 5",
            lambda: bb.report({"w": MASK}, UNITS, shrunk={"bytes": 5}),
        ),
        (
            ValueError,
            "state that budgets kernels, got one that holds masks of \\['w'\\]",
            lambda: bb.report(bb.hold({"w": MASK}).init({"w": jnp.ones((6, 4))})),
        ),
    ],
)
def test_errors_say_what_to_do(error, match, call):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.long
def test_a_file_that_is_none(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="expected a file as bb.save writes it"):
        bb.report(tmp_path / "notes.txt")
