"""Pruning in one shot: the rules of training on a calibration set, all at once or in
the order of the layers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bbjax as bb
from tests.support.contract import (
    CASES,
    MLP,
    ONE_SHOT,
    PER_UNIT,
    RULES,
    check_exact,
    compilations,
    same,
)

INWARD = dataclasses.replace(MLP, selection=(("up", "in"), ("down", "in")))
MODELS = CASES | {"inward": INWARD}
LARGE = ("inputs.gram", "inputs.fro_of_mean", "outputs.positions")
MAGNITUDE, BB, WANDA = (
    bb.rules.magnitude(),
    bb.rules.budgeted_broadcast(),
    bb.rules.wanda(),
)
LAW = bb.rules.budgeted_broadcast(spread=0.4, competition=0)


@functools.cache
def stats(name):
    """Activity of a model on one batch."""
    model = MODELS[name]
    needs = PER_UNIT + (LARGE if name == "inward" else ())
    batches = [(model.batch(0),)]
    return bb.calibrate(model.loss, model.units, model.params(), batches, needs=needs)


def pruned(rule, case="mlp", density=0.4, **given):
    model = MODELS[case]
    return bb.prune(
        model.params(),
        model.units,
        rule,
        density,
        stats=stats(case),
        grads=jax.tree.map(lambda x: x * 2, model.params(7)),
        **given,
    )


def degrees(mask, axis=0):
    return np.asarray(mask).sum(axis)


# The contract of one shot --------------------------------------------------------
ROWS = RULES | ONE_SHOT
# Hysteresis favours what was kept before, and one shot has no before.
TRAINED = {r: row for r, row in RULES.items() if "hysteresis" not in row.options}
EACH = [
    pytest.param(r, c, marks=() if c == "mlp" or row.core else pytest.mark.slow)
    for r, row in TRAINED.items()
    for c in row.cases
] + [(r, "inward") for r in ONE_SHOT]


def once(rule, case):
    """What a row prunes, and the density that it comes to."""
    row = ROWS[rule]
    said = row.budget not in ("free", "groups")
    density = 0.5 if row.budget == "groups" else 0.4
    return pruned(row.make(), case, density if said else None, **row.options), density


@pytest.mark.sampled(1)
@pytest.mark.parametrize("rule, case", EACH)
def test_every_rule_prunes_once(rule, case, monkeypatch):
    """The same budget as in training, zeros where the mask says, the rest untouched."""
    model = MODELS[case]
    (params, masks), density = once(rule, case)
    kernels = {path: m for path, m in masks.items() if path in model.units}
    monkeypatch.setattr(bb, "masks", lambda state: state)
    check_exact(model, kernels, rule, density)
    for path, value in model.params().items():
        assert params[path].dtype == value.dtype
        if path in masks:
            mask = np.asarray(masks[path])
            assert mask.any() and not (np.asarray(params[path])[~mask]).any()
            if not rule.startswith("sparsegpt"):  # it writes new weights
                np.testing.assert_array_equal(params[path], np.where(mask, value, 0))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "rule, case",
    [
        pytest.param(r, "mlp", marks=() if row.core else pytest.mark.slow)
        for r, row in TRAINED.items()
    ]
    + [(r, "inward") for r in ONE_SHOT],
)
def test_compiled_and_eager_agree(rule, case):
    stats(case)
    same(jax.jit(lambda: once(rule, case)[0][1])(), once(rule, case)[0][1])


@pytest.mark.parametrize("rule", ONE_SHOT)
def test_rules_of_one_shot_cannot_train(rule):
    text = "refresh masks while training, got .*use bb.prune, then bb.hold"
    with pytest.raises(ValueError, match=text):
        bb.transform(INWARD.units, ROWS[rule].make())


def test_other_leaves_are_the_same_objects():
    params = MLP.params()
    after, masks = bb.prune(params, MLP.units, MAGNITUDE, 0.5)
    assert after["bias"] is params["bias"] and set(masks) == {"up", "down"}


@pytest.mark.long
def test_density_may_be_traced_and_batched():
    front = jax.vmap(lambda d: bb.prune(MLP.params(), MLP.units, MAGNITUDE, d)[1]["up"])
    kept = np.asarray(front(jnp.array([0.25, 0.5])).sum((1, 2)))
    assert kept.tolist() == [72, 144]


@pytest.mark.long
def test_half_precision_is_kept():
    params = MLP.params(dtype=jnp.bfloat16)
    after, _ = bb.prune(params, MLP.units, BB, 0.5, stats=stats("mlp"))
    assert after["up"].dtype == jnp.bfloat16


@pytest.mark.long
def test_eight_devices_are_one():
    mesh = jax.make_mesh((8,), ("x",))
    alone = bb.prune(MLP.params(), MLP.units, BB, 0.5, stats=stats("mlp"))
    with jax.set_mesh(mesh):
        sharding = jax.NamedSharding(mesh, jax.P(None, "x"))
        params = MLP.params()
        params |= {p: jax.device_put(params[p], sharding) for p in ("up", "down")}
        after = bb.prune(params, MLP.units, BB, 0.5, stats=stats("mlp"))
    same(jax.device_get(alone), jax.device_get(after))


def test_activity_of_training_will_do_as_statistics():
    _, activity = MLP.gradient(MLP.params(), MLP.batch(0))
    _, masks = bb.prune(MLP.params(), MLP.units, BB, 0.4, stats=activity)
    same(masks, pruned(BB)[1])


def test_busy_units_keep_few_edges():
    _, masks = pruned(LAW)
    rate = np.asarray(stats("mlp")["up"].outputs.on_rate)
    falling = degrees(masks["up"])[np.argsort(rate)]
    assert (np.diff(falling[np.sort(rate) > 0.004]) <= 0).all()  # of living units


@pytest.mark.long
def test_nnx_modules_are_parameters_as_well():
    class Net(nnx.Module):
        def __init__(self):
            self.up = nnx.Linear(6, 8, rngs=nnx.Rngs(0))
            self.down = nnx.Linear(8, 2, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.down(nnx.relu(self.up(x)))

    net, x = Net(), jnp.ones((3, 6))
    units = bb.trace(lambda m, x: m(x), net, x)
    after, masks = bb.prune(net, units, MAGNITUDE, 0.5)
    assert isinstance(after, Net) and set(masks) == {"up/kernel"}
    np.testing.assert_array_equal(after.up.kernel[...] != 0, masks["up/kernel"])
    assert (net.up.kernel[...] != 0).all()  # the given one is as it was


# Again and again -----------------------------------------------------------------
def test_earlier_masks_only_shrink():
    _, first = pruned(BB, density=0.6)
    _, second = pruned(MAGNITUDE, density=0.3, masks=first)
    for path in first:
        assert (np.asarray(second[path]) <= np.asarray(first[path])).all()
        assert degrees(second[path], (0, 1)) == round(0.3 * first[path].size)


# In the order of the layers ------------------------------------------------------
def deep(params, x):
    for name in ("a", "b", "c"):
        x = jax.nn.relu(x @ params[name])
    return x


def deep_params():
    keys = jax.random.split(jax.random.key(0), 3)
    return {n: jax.random.normal(k, (16, 16)) for n, k in zip("abc", keys, strict=True)}


X = [(jax.random.normal(jax.random.key(n), (32, 16)),) for n in (8, 9)]
DEEP = bb.trace(deep, deep_params(), *X[0]).select("[abc]")


def by_hand(rule, density):
    params, masks = deep_params(), {}
    for name in "abc":
        units = DEEP.select(name)
        seen = bb.calibrate(deep, units, params, X, needs=rule.needs)
        params, one = bb.prune(params, units, rule, density, stats=seen)
        masks |= one
    return params, masks


@pytest.mark.long
@pytest.mark.parametrize("rule", [WANDA, BB], ids=["wanda", "bb"])
def test_layers_see_the_pruned_ones_before_them(rule):
    ordered = bb.prune_in_order(deep, deep_params(), DEEP, rule, iter(X), 0.25)
    same(ordered, by_hand(rule, 0.25))
    seen = bb.calibrate(deep, DEEP, deep_params(), X, needs=rule.needs)
    _, together = bb.prune(deep_params(), DEEP, rule, 0.25, stats=seen)
    first, last = ordered[1], together
    np.testing.assert_array_equal(first["a"], last["a"])
    assert (np.asarray(first["c"]) != np.asarray(last["c"])).any()


def scanned(params, x):
    def layer(h, w):
        return jax.nn.relu(h @ w), None

    return jax.lax.scan(layer, x, params["w"])[0]


def scanned_in_order():
    stack = {"w": jnp.stack(list(deep_params().values()))}
    units = bb.trace(scanned, stack, *X[0]).select("w")
    return bb.prune_in_order(scanned, stack, units, WANDA, X, 0.25)


@pytest.mark.long
def test_slices_of_a_scan_are_layers():
    """A scanned stack is pruned as the same layers written out one by one."""
    after, masks = scanned_in_order()
    want, want_masks = by_hand(WANDA, 0.25)
    for i, name in enumerate("abc"):
        np.testing.assert_array_equal(masks["w"][i], want_masks[name])
        np.testing.assert_array_equal(after["w"][i], want[name])


def test_slices_of_a_scan_are_measured_by_one_program():
    scanned_in_order()  # what is not of this call is compiled
    with compilations() as seen:
        scanned_in_order()
    assert seen.count == 1


def test_in_order_keeps_budgets_of_their_own():
    by_path = {"a": 0.5, ".*": 0.25}
    _, masks = bb.prune_in_order(deep, deep_params(), DEEP, WANDA, X, by_path)
    assert [int(m.sum()) for m in masks.values()] == [128, 64, 64]


# Gated layers --------------------------------------------------------------------
def gated(params, x):
    hidden = jax.nn.silu(x @ params["gate"]) * (x @ params["up"])
    return hidden @ params["down"]


@pytest.mark.long
def test_gate_and_up_share_the_activity_of_their_product():
    """A gated unit is one unit: by the law both kernels get the same degrees."""
    keys = jax.random.split(jax.random.key(3), 3)
    shapes = {"gate": (8, 24), "up": (8, 24), "down": (24, 8)}
    params = {
        n: jax.random.normal(k, s)
        for (n, s), k in zip(shapes.items(), keys, strict=True)
    }
    x = jax.random.normal(jax.random.key(4), (64, 8))
    units = bb.trace(gated, params, x).select("gate|up")
    seen = bb.calibrate(gated, units, params, [(x,)], on=bb.on.above(0.3, "rms"))
    np.testing.assert_array_equal(
        seen["gate"].outputs.on_rate, seen["up"].outputs.on_rate
    )
    _, masks = bb.prune(params, units, LAW, 0.5, stats=seen)
    np.testing.assert_array_equal(degrees(masks["gate"]), degrees(masks["up"]))
    _, grouped = bb.prune(params, units, LAW, stats=seen, pattern=bb.n_m(2, 4))
    per_group = np.asarray(grouped["up"]).reshape(2, 4, 24).sum(1)
    assert (per_group[0] == per_group[1]).all() and np.ptp(per_group[0]) > 0
    assert grouped["up"].sum() == grouped["gate"].sum() == 8 * 24 // 2


# Refusals ------------------------------------------------------------------------
@pytest.mark.parametrize(
    "kind, text, change",
    [
        (TypeError, "expected units from bb.trace, got dict", {"units": {}}),
        (TypeError, "expected a rule from bb.rules, got 'x'", {"rule": "x"}),
        (
            ValueError,
            "a density for rule 'magnitude', got None; pass",
            {"density": None},
        ),
        (ValueError, r"in \(0, 1\], got 1.5", {"density": 1.5}),
        (ValueError, "density of at least 0.08", {"density": 0.01}),
        (
            ValueError,
            "expected stats, which rule 'budgeted_broadcast' needs.*bb.calibrate",
            {"rule": BB},
        ),
        (
            ValueError,
            "expected gradients, which rule 'snip' needs.*bb.saliency",
            {"rule": bb.rules.snip()},
        ),
        (
            ValueError,
            r"expected activity of 'up', got \['down'\]",
            {"rule": BB, "stats": {"down": None}},
        ),
        (TypeError, "expected masks by path, got list", {"masks": []}),
        (
            ValueError,
            r"differences: 'up': expected \(12, 24\), got \(2, 2\); 'down'",
            {"masks": {"up": np.ones((2, 2), bool)}},
        ),
        (TypeError, "expected a pattern from bb.n_m, got 2", {"pattern": 2}),
    ],
)
def test_refusals(kind, text, change):
    params = MLP.params()
    given = {"units": MLP.units, "rule": MAGNITUDE, "density": 0.5} | change
    with pytest.raises(kind, match=text):
        bb.prune(params, **given)
    same(params, MLP.params())


def test_statistics_that_were_not_measured():
    bare = bb.calibrate(MLP.loss, MLP.units, MLP.params(), [(MLP.batch(0),)])
    text = (
        "expected statistic 'mean_square' of the inputs of 'up', got none; pass needs"
    )
    with pytest.raises(ValueError, match=text):
        bb.prune(MLP.params(), MLP.units, WANDA, 0.5, stats=bare)


def test_units_that_never_ran():
    """An expert that saw no token has no statistics: it is not a dead one."""
    quiet = stats("mlp")["up"].outputs
    quiet = dataclasses.replace(quiet, count=quiet.count.at[3].set(0))
    unseen = stats("mlp") | {"up": stats("mlp")["up"]._replace(outputs=quiet)}
    text = "activity of all outputs of 'up', got none for 1 of 24: they did not run"
    with pytest.raises(ValueError, match=text):
        bb.prune(MLP.params(), MLP.units, BB, 0.5, stats=unseen)


def test_rules_that_compete_across_kernels_cannot_go_in_order():
    rule = bb.rules.magnitude(scope="global")
    with pytest.raises(
        ValueError, match="chooses kernel by kernel, got .*use bb.prune"
    ):
        bb.prune_in_order(deep, deep_params(), DEEP, rule, X, 0.5)


@pytest.mark.long
def test_no_batches():
    with pytest.raises(ValueError, match="batch"):
        bb.prune_in_order(deep, deep_params(), DEEP, WANDA, [], 0.5)
