"""Whole units: scores against arithmetic by hand, and cuts that shrink exactly so."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from tests.support import zoo_shrink
from tests.support.smaller import close, masked

HARD = {model.name: model for model in zoo_shrink.HARD}


def net(p, x):
    return jax.nn.relu(x @ p["up"] + p["b"][None]) @ p["down"]


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    shapes = {"up": (3, 6), "b": (6,), "down": (6, 4)}
    return {
        n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in shapes.items()
    }


X = jnp.asarray(np.random.default_rng(1).standard_normal((50, 3)), jnp.float32)


@pytest.fixture
def units(params):
    return bb.trace(net, params, X)


@pytest.fixture
def stats(params, units):
    needs = ("on_rate", "mean_abs")
    return bb.calibrate(net, units, params, [(X,)], needs=needs)


def hidden(params):
    return np.maximum(np.asarray(X @ params["up"] + params["b"][None]), 0)


def test_group_magnitude_is_the_mean_of_shares_of_squared_norms(params, units):
    p = {n: np.asarray(a, np.float64) for n, a in params.items()}
    norms = [(p["up"] ** 2).sum(0), p["b"] ** 2, (p["down"] ** 2).sum(1)]
    expected = np.mean([n / n.mean() for n in norms], axis=0)
    found = bb.unitwise.group_magnitude(units, params)
    assert list(found) == ["up[1]"]
    np.testing.assert_allclose(found["up[1]"], expected, rtol=1e-12)


def test_groups_that_no_kernel_makes_have_no_activity(params):
    """The columns of an embedding: nothing measures them, and they stay whole."""

    def embedded(p, ids):
        return net(p, p["table"][ids])

    params["table"] = jnp.ones((9, 3))
    ids = jnp.arange(5)
    units = bb.trace(embedded, params, ids)
    needs = ("on_rate", "mean_abs")
    stats = bb.calibrate(embedded, units, params, [(ids,)], needs=needs)
    for scores in (
        bb.unitwise.activity(units, stats),
        bb.unitwise.traffic(units, stats),
    ):
        assert set(scores) == {"up[1]"}
        masks = bb.unitwise.cut(units, scores, density=0.5)
        small = bb.shrink(embedded, params, masks, ids).params
        assert small["table"].shape == (9, 3) and small["up"].shape == (3, 3)


def test_group_magnitude_of_a_group_that_is_all_zero_is_average(units, params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    assert bb.unitwise.group_magnitude(units, zeros)["up[1]"].tolist() == [1.0] * 6


def test_what_is_not_finite_shows_in_the_scores(units, params):
    broken = params | {"b": params["b"].at[2].set(jnp.nan)}
    assert np.isnan(bb.unitwise.group_magnitude(units, broken)["up[1]"]).any()


def test_activity_is_what_was_measured(params, units, stats):
    found = bb.unitwise.activity(units, stats)["up[1]"]
    np.testing.assert_allclose(found, np.abs(hidden(params)).mean(0), rtol=1e-5)


def test_traffic_is_minus_on_rate_times_edges(params, units, stats):
    rate = (hidden(params) > 0).mean(0)
    mask = np.arange(24).reshape(6, 4) % 3 > 0
    found = bb.unitwise.traffic(units, stats, {"down": mask})["up[1]"]
    expected = np.where(rate > 0, -rate * mask.sum(1), -np.inf)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_units_over_their_traffic_budget_are_cut(units, stats):
    score = bb.unitwise.traffic(units, stats)
    budget = float(np.median(-score["up[1]"]))
    masks = bb.unitwise.cut(units, score, least=-budget)
    kept = masks["up"].all(axis=0)
    np.testing.assert_array_equal(kept, -score["up[1]"] <= budget)
    assert 0 < kept.sum() < 6


def test_a_unit_that_is_never_on_is_cut_first(units, stats):
    changed = jax.tree.map(lambda a: a, stats)
    rate = np.asarray(stats["up"].outputs.on_rate).copy()
    rate[2] = 0.0
    object.__setattr__(changed["up"].outputs, "on_rate", jnp.asarray(rate))
    masks = bb.unitwise.cut(units, bb.unitwise.traffic(units, changed), 5 / 6)
    assert masks["up"].all(axis=0).tolist() == [True, True, False, True, True, True]


def test_all_that_belongs_to_a_unit_is_cut(params, units):
    scores = {"up[1]": np.array([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])}
    masks = bb.unitwise.cut(units, scores, 0.5)
    kept = np.array([False, False, False, True, True, True])
    columns, rows = np.tile(kept, (3, 1)), np.tile(kept[:, None], 4)
    chex.assert_trees_all_equal(masks, {"up": columns, "b": kept, "down": rows})


def test_equal_scores_stay_in_order_of_index(units):
    masks = bb.unitwise.cut(units, {"up[1]": np.zeros(6)}, 0.5)
    assert masks["b"].tolist() == [True] * 3 + [False] * 3


def test_one_unit_stays_whatever_the_density(units):
    masks = bb.unitwise.cut(units, {"up[1]": np.arange(6.0)}, 0.0)
    assert masks["b"].sum() == 1


@pytest.mark.sampled(4)
@pytest.mark.parametrize("density", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("name", sorted(HARD))
def test_shrinking_removes_what_was_cut_and_nothing_else(name, density):
    model = HARD[name]
    params = model.made()
    units = bb.trace(model.fn, params, *model.args)
    scores = bb.unitwise.group_magnitude(units, params)
    masks = bb.unitwise.cut(units, scores, density)
    small = bb.shrink(model.fn, params, masks, *model.args)
    refused = {c.group for c in small.report.changes if c.idle}
    for group in small.units.graph:
        assert group.name in refused or not group.fixed or group.name not in model.free
    after = {c.group: (c.before, c.after) for c in small.report.changes if not c.idle}
    for name, score in scores.items():
        if name in refused or "#" in name or score.shape[-1] == 2:
            continue
        size = score.shape[-1]
        assert after.get(name, (size, size)) == (size, max(round(density * size), 1))
    close(
        jax.jit(model.fn)(masked(params, masks), *model.args),
        jax.jit(small.fn)(small.params, *model.args),
    )


@pytest.mark.parametrize(
    ("density", "multiple_of", "stay"),
    [
        (0.5, 1, 3),
        (0.5, 2, 4),  # the next one, not the nearest
        (0.6, 2, 4),
        (0.0, 4, 4),
        (0.8, 4, 6),  # all there are
        (0.1, 128, 6),
        (0.5, {"up[1]": 5}, 5),
        (0.5, {}, 3),
    ],
)
def test_sizes_that_hardware_likes(units, density, multiple_of, stay):
    scores = {"up[1]": np.array([3.0, 6.0, 1.0, 5.0, 2.0, 4.0])}
    masks = bb.unitwise.cut(units, scores, density, multiple_of=multiple_of)
    np.testing.assert_array_equal(masks["b"], scores["up[1]"] > 6 - stay)
    least = 6 - round(density * 6) + 1
    again = bb.unitwise.cut(units, scores, least=least, multiple_of=multiple_of)
    np.testing.assert_array_equal(masks["b"], again["b"])


@pytest.mark.parametrize(
    ("multiple_of", "error", "text"),
    [
        (0, ValueError, r"multiple_of: expected an int >= 1, got 0; got it for"),
        (8.0, TypeError, r"multiple_of: expected an int .* got 8.0; .* of 'up\[1\]'"),
        (
            {"down[1]": 8},
            ValueError,
            r"multiples of groups that can shrink, got some of \['d",
        ),
    ],
)
def test_other_multiples_are_refused(units, multiple_of, error, text):
    with pytest.raises(error, match=text):
        bb.unitwise.cut(units, {"up[1]": np.ones(6)}, 0.5, multiple_of=multiple_of)


def test_groups_compete_for_a_global_density(params):
    model = HARD["densenet"]
    params = model.made()
    units = bb.trace(model.fn, params, *model.args)
    scores = bb.unitwise.group_magnitude(units, params)
    masks = bb.unitwise.cut(units, scores, 0.5, scope="global")
    kept = {n: masks[n + "/b"].sum() for n in "abc"}
    kept["mix"] = masks["mix/w"].any(axis=(0, 1, 2)).sum()
    total = sum(s.size for s in scores.values())
    assert sum(kept.values()) == round(0.5 * total) and min(kept.values()) >= 1
    values = np.concatenate(list(scores.values()))
    lowest = np.sort(values)[-sum(kept.values())]
    for name in "abc":
        score = scores[f"{name}/w[3]"]
        np.testing.assert_array_equal(masks[f"{name}/b"], score >= lowest)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"density": None},
            "expected a density, a least score or a budget, got density=None",
        ),
        (
            {"least": 1.0},
            "expected a density, a least score or a budget, got density=0.5",
        ),
        ({"density": 1.5}, r"expected a density in \[0, 1\] for 'up\[1\]', got 1.5"),
        ({"density": {}}, r"expected a density in \[0, 1\] for 'up\[1\]', got None"),
        ({"scope": "all"}, 'expected scope "group" or "global", got \'all\''),
        (
            {"scope": "global", "density": {"up[1]": 0.5}},
            "expected one density for all groups",
        ),
        ({"scores": {"down[1]": np.ones(4)}}, "expected scores of groups that can shr"),
        ({"scores": {"up[1]": np.ones(4)}}, r"expected scores of shape \(6,\)"),
        ({"scores": {"up[1]": np.full(6, np.nan)}}, "scores that are numbers for 'up"),
        ({"density": "0.5"}, r"in \[0, 1\] for 'up\[1\]', got '0.5'.*: \['up\[1\]'\]"),
        ({"density": {"up[1]": 0.5, "x": 0.5}}, r"that have scores, .*of \['x'\]"),
        ({"density": None, "least": np.nan}, "a number as the least score, got nan"),
        ({"density": None, "least": "a"}, "a number as the least score, got 'a'"),
        ({"density": None, "least": np.ones(3)}, "a number as the least score, got a"),
    ],
)
def test_bad_input_is_refused(units, change, text):
    given = {"scores": {"up[1]": np.arange(6.0)}, "density": 0.5} | change
    scores = given.pop("scores")
    with pytest.raises(ValueError, match=text):
        bb.unitwise.cut(units, scores, **given)


def test_the_order_of_arguments_is_named(units, params):
    scores = bb.unitwise.group_magnitude(units, params)
    with pytest.raises(TypeError, match="expected units .* got dict; they come first"):
        bb.unitwise.group_magnitude(params, units)
    with pytest.raises(TypeError, match="expected scores by name of group, got Units"):
        bb.unitwise.cut(units, units, 0.5)
    with pytest.raises(TypeError, match="expected units .* got dict; they come first"):
        bb.unitwise.cut(scores, units, 0.5)


def test_what_has_no_values_is_refused(units, params):
    scores = bb.unitwise.group_magnitude(units, params)
    traced = "got a traced one at .*; call this outside jax.jit"
    with pytest.raises(TypeError, match=f"expected parameters with values, {traced}"):
        jax.jit(lambda p: bb.unitwise.group_magnitude(units, p))(params)
    with pytest.raises(TypeError, match=f"expected scores with values, {traced}"):
        jax.jit(lambda s: bb.unitwise.cut(units, s, 0.5))(scores)
    with pytest.raises(TypeError, match=f"expected densities with values, {traced}"):
        jax.jit(lambda d: bb.unitwise.cut(units, scores, d))(0.5)


@pytest.mark.parametrize("kind", ["uint8", "int8", "float16", "bfloat16", "bool"])
@pytest.mark.parametrize("given", [{"density": 0.5}, {"least": 1}])
def test_scores_of_any_kind_of_number_rank_alike(units, kind, given):
    scores = np.arange(6) % 2 if kind == "bool" else np.arange(6) // 3
    scores = jnp.asarray(scores, kind)
    masks = bb.unitwise.cut(units, {"up[1]": scores}, **given)
    kept = np.flatnonzero(masks["b"]).tolist()
    assert kept == np.flatnonzero(np.asarray(scores)).tolist()


def test_scores_may_be_lists_but_not_words(units):
    masks = bb.unitwise.cut(units, {"up[1]": [0, 1, 0, 1, 0, 1]}, 0.5)
    assert masks["b"].tolist() == [False, True] * 3
    with pytest.raises(TypeError, match="scores that are numbers for .* got <U1"):
        bb.unitwise.cut(units, {"up[1]": ["a"] * 6}, 0.5)


def test_no_scores_cut_nothing(units):
    for scope in ("group", "global"):
        assert bb.unitwise.cut(units, {}, 0.5, scope=scope) == {}


def test_what_belongs_to_another_model_is_refused(units, params):
    other = params | {"up": jnp.ones((3, 5))}
    with pytest.raises(ValueError, match=r"'up' of shape \(3, 6\), got \(3, 5"):
        bb.unitwise.group_magnitude(units, other)
    stats = bb.calibrate(net, units, params, [(X,)], needs=("on_rate",))
    with pytest.raises(ValueError, match=r"a mask of shape \(6, 4\) for 'down', got"):
        bb.unitwise.traffic(units, stats, {"down": np.ones((3, 3), bool)})
    with pytest.raises(TypeError, match="expected activity by path, got NoneType"):
        bb.unitwise.activity(units, None)


def test_a_density_may_be_an_array_without_axes(units, params):
    scores = bb.unitwise.group_magnitude(units, params)
    for density in (np.float32(0.5), np.array(0.5), jnp.array(0.5)):
        masks = bb.unitwise.cut(units, scores, density)
        assert masks["up"].any(axis=0).sum() == 3
    with pytest.raises(ValueError, match=r"expected a density in \[0, 1\]"):
        bb.unitwise.cut(units, scores, jnp.array([0.5]))


def test_missing_statistics_are_named(units, params):
    stats = bb.calibrate(net, units, params, [(X,)], needs=("on_rate",))
    with pytest.raises(ValueError, match="expected mean_abs of the outputs of 'up'"):
        bb.unitwise.activity(units, stats)
    with pytest.raises(ValueError, match="expected parameters with 'down'"):
        bb.unitwise.group_magnitude(units, {"up": params["up"]})


@pytest.mark.long
def test_where_no_group_can_shrink_the_reasons_are_repeated():
    params = {"w": jnp.ones((3, 4))}
    units = bb.trace(lambda p, x: x @ p["w"], params, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"w\[1\]: the function returns them"):
        bb.unitwise.cut(units, {}, 0.5)
