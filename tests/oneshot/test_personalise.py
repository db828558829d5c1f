"""The personalisation driver: what goes with a unit, when to stop, what is reported."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.activity.calibrate import calibrate
from bbjax.oneshot.fine_pruning.personalise import personalise
from bbjax.oneshot.prune import apply_masks, prune
from bbjax.rules import fine_pruning


def mlp(params, x):
    for n in range(len(params) - 1):
        x = jax.nn.relu(x @ params[f"w{n}"]["w"] + params[f"w{n}"]["b"][None])
    last = params[f"w{len(params) - 1}"]
    return x @ last["w"] + last["b"][None]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def net(seed, *widths):
    return {
        f"w{n}": {
            "w": normal((seed, n), *shape) / np.float32(np.sqrt(shape[0])),
            "b": normal((seed, n, 1), shape[1]) * 0.1,
        }
        for n, shape in enumerate(itertools.pairwise(widths))
    }


@pytest.fixture(scope="module")
def case():
    """Two hidden layers of 20 units, ten classes."""
    params, x = net(0, 6, 20, 20, 10), normal(1, 40, 6) + 0.5
    return params, x, bb.trace(mlp, params, x)


def by_hand(params, x, kept):
    """The net in numpy, with the values of hidden units that are gone at 0."""
    x = np.asarray(x)
    for n in range(len(params) - 1):
        layer = params[f"w{n}"]
        x = np.maximum(x @ np.asarray(layer["w"]) + np.asarray(layer["b"]), 0)
        yield x
        x = x * kept(n, x)
    last = params[f"w{len(params) - 1}"]
    yield x @ np.asarray(last["w"]) + np.asarray(last["b"])


@pytest.mark.long
def test_the_quietest_units_go_with_all_that_is_theirs(case):
    params, x, units = case
    mine = personalise(mlp, params, units, [(x[:15],), (x[15:],)], remove=0.65)
    dense = list(by_hand(params, x, lambda n, h: 1.0))
    loudest = [np.argsort(-h.mean(0))[:7] for h in dense[:2]]

    def kept(n, h):
        return np.isin(np.arange(20), loudest[n]).astype(np.float32)

    for n in range(2):
        assert set(np.flatnonzero(mine.params[f"w{n}"]["b"])) == set(loudest[n])
        assert set(np.flatnonzero(mine.masks[f"w{n}/w"].any(0))) == set(loudest[n])
        assert set(np.flatnonzero(mine.masks[f"w{n + 1}/w"].any(1))) == set(loudest[n])
    *_, want = by_hand(params, x, kept)
    np.testing.assert_allclose(mlp(mine.params, x), want, atol=1e-5)
    np.testing.assert_array_equal(mine.params["w2"]["b"], params["w2"]["b"])
    again = apply_masks(params, mine.masks)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), again, mine.params))


def test_both_shares_are_reported(case):
    """Without q of the units, interior weights lose 1 - (1 - q)**2."""
    params, x, units = case
    mine = personalise(mlp, params, units, [(x,)], remove=0.65)
    first, inner, last = (mine.removed[f"w{n}/w"] for n in range(3))
    assert inner.unit_share == first.unit_share == 0.65 and last.units == 0
    assert inner.edge_share == pytest.approx(1 - 0.35**2)
    assert first.edge_share == last.edge_share == pytest.approx(0.65)
    assert mine.total == (26, 50, 78 + 351 + 130, 120 + 400 + 200)
    assert mine.fraction == 0.65 and mine.scores == () and mine.alone == ()


@pytest.mark.long
def test_a_person_who_uses_half_of_the_model_loses_nothing_of_it():
    """Half of the units serve inputs that this person never has."""
    rng = np.random.default_rng(2)

    def block(n, m):
        both = np.zeros((2 * n, 2 * m), np.float32)
        both[:n, :m], both[n:, m:] = (
            rng.normal(size=(n, m)),
            9 * rng.normal(size=(n, m)),
        )
        return jnp.asarray(both)

    params = {
        f"w{n}": {"w": block(*shape), "b": jnp.zeros(2 * shape[1])}
        for n, shape in enumerate([(3, 10), (10, 10), (10, 5)])
    }
    x = normal(2, 40, 6) * jnp.array([[1.0, 1, 1, 0, 0, 0]])
    units = bb.trace(mlp, params, x)
    mine = personalise(mlp, params, units, [(x,)], remove=0.5)
    np.testing.assert_array_equal(mlp(mine.params, x), mlp(params, x))
    assert mine.total.edge_share > 0.5
    blind, _ = prune(params, units, bb.rules.magnitude(scope="layer"), density=0.25)
    assert np.abs(mlp(blind, x) - mlp(params, x)).max() > 0.1


# When to stop ------------------------------------------------------------------------
def scripted(*scores):
    stream = iter(scores)
    seen = []

    def scorer(params):
        seen.append(params)
        return next(stream)

    return scorer, seen


FRACTIONS = (0.2, 0.4, 0.6, 0.8)


def test_it_stops_when_the_score_falls(case):
    params, x, units = case
    scorer, seen = scripted(0.8, 0.9, 0.9, 0.85, 1.0)
    mine = personalise(mlp, params, units, [(x,)], remove=FRACTIONS, scorer=scorer)
    assert mine.scores == ((0.0, 0.8), (0.2, 0.9), (0.4, 0.9), (0.6, 0.85))
    assert mine.fraction == 0.4 and seen[0] is params
    assert seen[2] is mine.params
    alone = personalise(mlp, params, units, [(x,)], remove=0.4)
    np.testing.assert_array_equal(alone.params["w1"]["w"], mine.params["w1"]["w"])


@pytest.mark.long
def test_tolerance_is_counted_from_the_best_score_so_far(case):
    params, x, units = case
    scorer, _ = scripted(0.8, 0.9, 0.86, 0.84, 1.0)
    mine = personalise(
        mlp, params, units, [(x,)], remove=FRACTIONS, scorer=scorer, tolerance=0.05
    )
    assert mine.fraction == 0.4 and len(mine.scores) == 4
    scorer, _ = scripted(0.8, 0.9, 0.86, 0.85, 0.85)
    mine = personalise(
        mlp, params, units, [(x,)], remove=FRACTIONS, scorer=scorer, tolerance=0.05
    )
    assert mine.fraction == 0.8


def test_nothing_goes_if_the_first_fraction_is_too_much(case):
    params, x, units = case
    scorer, _ = scripted(0.8, 0.7)
    mine = personalise(mlp, params, units, [(x,)], remove=0.3, scorer=scorer)
    assert mine.params is params and mine.masks == {} and mine.fraction == 0
    assert mine.total == (0, 40, 0, 520) and mine.scores[-1] == (0.3, 0.7)


@pytest.mark.long
@pytest.mark.parametrize("by", ["units", "weights"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_masks_are_nested(by, scope, case):
    params, x, units = case
    kept = []
    for q in (0.3, 0.7):
        mine = personalise(
            mlp, params, units, iter([(x,)]), remove=q, by=by, scope=scope
        )
        kept.append(mine.masks)
    for path in kept[1]:
        assert not (kept[1][path] & ~kept[0][path]).any(), path


# What is chosen ----------------------------------------------------------------------
def test_weights_are_those_of_the_rule(case):
    params, x, units = case
    rule = fine_pruning(by="weights")
    mine = personalise(mlp, params, units, [(x,)], remove=0.65, by="weights")
    stats = calibrate(mlp, units, params, [(x,)], needs=rule.needs)
    want, masks = prune(params, units, rule, density=0.35, stats=stats, k_min=0)
    assert mine.masks.keys() == masks.keys() == {"w0/w", "w1/w"}
    np.testing.assert_array_equal(mine.params["w1"]["w"], want["w1"]["w"])
    assert mine.removed["w1/w"].edges == 260 and mine.params["w2"] == params["w2"]


@pytest.mark.long
def test_output_units_stay_unless_asked_for(case):
    params, x, units = case
    mine = personalise(mlp, params, units, [(x,)], remove=0.65)
    assert mine.masks["w2/w"].any(0).all() and "w2/b" not in mine.masks
    both = personalise(mlp, params, units, [(x,)], remove=0.65, include_output=True)
    assert both.removed["w2/w"].units == 6  # 3.5 of ten are kept, rounded
    assert both.removed["w1/w"] == mine.removed["w1/w"]


@pytest.mark.long
def test_control_with_output_units_only():
    """The classes that never win go; raw outputs would say that they are loud."""
    params, x = net(3, 6, 20, 20, 10), normal(4, 40, 6)
    params["w2"]["b"] = jnp.array([0.0, -40] * 5)
    units = bb.trace(mlp, params, x)
    mine = personalise(mlp, params, units, [(x,)], remove=0.5, include_output="only")
    left = [True, False] * 5
    assert mine.masks["w2/w"].all(0).tolist() == left
    assert mine.masks["w2/w"].any(0).tolist() == left
    assert mine.masks["w2/b"].tolist() == left
    assert mine.masks.keys() == {"w2/w", "w2/b"} and mine.total.units == 5
    np.testing.assert_array_equal(mine.params["w0"]["w"], params["w0"]["w"])


@pytest.mark.long
def test_output_activity_leaves_padding_out():
    """Two classes: one wins where data are real, the other in the padding."""
    params = {"up": jnp.eye(2), "down": jnp.eye(2)}

    def fn(params, x, real):
        return jax.nn.relu(x @ params["up"]) @ params["down"]

    x = jnp.array([[[1.0, 0.0], [0.0, 9.0]], [[1.0, 0.0], [0.0, 9.0]]])
    real = jnp.array([[True, False], [True, False]])
    units = bb.trace(fn, params, x, real)
    for where, left in ((None, [0, 1]), (lambda x, real: real, [1, 0])):
        batches = ((x[i : i + 1], real[i : i + 1]) for i in range(2))
        mine = personalise(
            fn,
            params,
            units,
            batches,
            remove=0.5,
            include_output="only",
            outputs=lambda out: out,
            where=where,
        )
        assert mine.masks["down"].all(0).astype(int).tolist() == left


@pytest.mark.long
def test_convolution_norm_and_flatten(lenient):
    """Channels go with their norm, and with all their positions in the dense layer."""
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            x = nn.relu(nn.Conv(6, (3, 3))(x)).reshape(x.shape[0], -1)
            x = nn.relu(nn.Dense(10)(x))
            return nn.Dense(3)(x)

    x = normal(5, 16, 4, 4, 2)
    shapes = jax.eval_shape(Net().init, jax.random.key(0), x)
    variables = jax.tree.map(lambda s: normal(6, *s.shape), shapes)
    variables["batch_stats"] = jax.tree.map(jnp.square, variables["batch_stats"])
    fresh = variables["params"]

    def fn(params, x):
        return Net().apply(variables | {"params": params}, x)

    units = bb.trace(fn, fresh, x)
    mine = personalise(fn, fresh, units, [(x,)], remove=0.5)
    channels = np.asarray(mine.masks["Conv_0/kernel"]).all((0, 1, 2))
    assert channels.sum() == 4
    for name in ("Conv_0/bias", "BatchNorm_0/scale", "BatchNorm_0/bias"):
        np.testing.assert_array_equal(mine.masks[name], channels)
    rows = np.asarray(mine.masks["Conv_1/kernel"]).any((0, 1, 3))
    np.testing.assert_array_equal(rows, channels)
    second = np.asarray(mine.masks["Conv_1/kernel"]).any((0, 1, 2))
    flat = np.asarray(mine.masks["Dense_0/kernel"]).any(1).reshape(16, 6)
    np.testing.assert_array_equal(flat, np.broadcast_to(second, (16, 6)))
    assert mine.removed["Conv_1/kernel"].edge_share == 0.75 and mine.alone == ()


@pytest.mark.long
def test_units_of_a_stream_go_alone():
    """What a residual stream adds up is read beyond the kernel's own readers."""

    def fn(params, x):
        return (x + jax.nn.relu(x @ params["side"])) @ params["out"]

    params = {
        "side": normal(7, 6, 6),
        "out": normal(8, 6, 3),
    }
    x = normal(9, 20, 6)
    mine = personalise(fn, params, bb.trace(fn, params, x), [(x,)], remove=0.5)
    assert mine.alone == ("side",) and mine.masks.keys() == {"side"}
    left = np.asarray(mine.masks["side"]).all(0)
    branch = np.maximum(np.asarray(x @ params["side"]), 0) * left
    want = (np.asarray(x) + branch) @ np.asarray(params["out"])
    np.testing.assert_allclose(fn(mine.params, x), want, atol=1e-5)


@pytest.mark.long
def test_layers_of_a_scan_are_layers():
    def fn(params, x):
        def layer(h, w):
            return h + jax.nn.relu(h @ w["up"]) @ w["down"], None

        return jax.lax.scan(layer, x, params)[0]

    params = {"up": normal(10, 3, 4, 10), "down": normal(11, 3, 10, 4)}
    x = normal(12, 20, 4)
    mine = personalise(fn, params, bb.trace(fn, params, x), [(x,)], remove=0.3)
    left = np.asarray(mine.masks["up"]).all(1)
    assert left.sum(1).tolist() == [7, 7, 7]
    np.testing.assert_array_equal(np.asarray(mine.masks["down"]).all(2), left)


# Arguments ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "remove", [0, 1.0, -0.1, (), (0.5, 0.4), (0.5, 0.5), float("nan")], ids=str
)
def test_bad_fractions(remove, case):
    params, x, units = case
    with pytest.raises(ValueError, match=r"expected remove in \(0, 1\), .* rising"):
        personalise(mlp, params, units, [(x,)], remove=remove, scorer=lambda p: 1.0)


def test_bad_arguments(case):
    params, x, units = case
    wrong = [
        ({"remove": (0.2, 0.4)}, "expected a scorer with several fractions, got remo"),
        ({"tolerance": -0.1}, "expected tolerance in .0, inf., got -0.1; it is"),
        ({"include_output": "yes"}, 'include_output to be False, True or "only", got'),
        ({"by": "edges"}, 'expected by "units" or "weights"'),
        ({"scorer": lambda p: float("nan")}, "expected a score to compare, got NaN; "),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            personalise(mlp, params, units, [(x,)], **options)
    with pytest.raises(ValueError, match="expected at least one batch, got none"):
        personalise(mlp, params, units, [])
    with pytest.raises(TypeError, match="expected units from bb.trace, got dict"):
        personalise(mlp, params, {}, [(x,)])


def test_bad_selections(case):
    params, x, units = case
    with pytest.raises(ValueError, match='a selection with actuator "in", got "out"'):
        personalise(mlp, params, units.select("w1", "out"), [(x,)])
    with pytest.raises(ValueError, match="of hidden kernels, got 'w2/w', who"):
        personalise(mlp, params, units.select("w1/w") + units.select("w2"), [(x,)])
    linear = {"w0": params["w0"]}
    only = bb.trace(mlp, linear, x)
    with pytest.raises(ValueError, match="at least one kernel to prune, got none: no"):
        personalise(mlp, linear, only, [(x,)])


@pytest.mark.long
def test_a_result_that_says_nothing_of_output_units(case):
    params, x, units = case

    def loss(params, x):
        return jnp.mean(mlp(params, x) ** 2)

    def wide(params, x):
        return mlp(params, x)[:, :, None]

    for fn in (loss, wide):
        with pytest.raises(ValueError, match="of the 10 output units of 'w2/w"):
            personalise(
                fn, params, units, [(x,)], include_output=True, outputs=lambda o: o
            )

    def two(params, x):
        hidden = jax.nn.relu(x @ params["up"])
        return hidden @ params["left"], hidden @ params["right"]

    heads = {"up": jnp.eye(6), "left": jnp.ones((6, 2)), "right": jnp.ones((6, 3))}
    with pytest.raises(ValueError, match="one kernel that makes outputs, of one"):
        personalise(two, heads, bb.trace(two, heads, x), [(x,)], include_output=True)


@pytest.mark.long
def test_padding_that_fits_the_units_but_not_the_outputs(case):
    params, x, units = case

    def pooled(params, x):
        return jnp.mean(mlp(params, x), 0)

    with pytest.raises(ValueError, match="`where` to match the leading axes .* of t"):
        personalise(
            pooled, params, units, [(x,)], include_output=True, where=jnp.ones(40, bool)
        )
