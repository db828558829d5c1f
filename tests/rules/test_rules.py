"""What each rule promises: the theory, not how it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax import rules
from tests.support.runs import activity, candidates, chosen, dense, refreshed

RULES = {
    "default": rules.budgeted_broadcast(),
    "log_odds": rules.budgeted_broadcast(spread=0.4, competition=0),
    "threshold": rules.budgeted_broadcast(law=bb.laws.threshold()),
    "activity_only": rules.activity_only(),
    "magnitude": rules.magnitude(),
    "random": rules.random(),
}
BY_NAME = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
SOME = pytest.mark.parametrize(
    "rule", [RULES["default"], RULES["random"]], ids=lambda r: r.name
)
SIDES = pytest.mark.parametrize("actuator", ["in", "out"])
KERNEL = dense(12, 10)
STACKED = bb.Kernel("w", (2, 6, 9), stack=(0,), fan_in=(1,), fan_out=(2,))


def degrees(mask, actuator):
    return mask.sum(axis=-2 if actuator == "in" else -1)


@pytest.mark.sampled(3)
@SIDES
@pytest.mark.parametrize("name", ["log_odds", "threshold", "activity_only"])
def test_degree_falls_as_activity_rises(name, actuator, getkey):
    units = 10 if actuator == "in" else 12
    rate = np.random.permutation(np.linspace(0.03, 0.95, units, dtype=np.float32))
    side = "outputs" if actuator == "in" else "inputs"
    w = jax.random.normal(getkey(), KERNEL.shape)
    _, state = refreshed(
        KERNEL,
        RULES[name],
        w,
        activity(KERNEL, **{side: rate}),
        actuators=(actuator,),
        density=0.4,
    )
    k = np.asarray(bb.degrees_of(state)["w"])[np.argsort(rate)]
    assert (np.diff(k) <= 0).all() and k[0] >= k[-1] + 4


@pytest.mark.long
def test_balance_of_traffic_and_log_odds(getkey):
    """Where no bound is met, log((1 - a) / a) is a line in k of slope beta."""
    kernel, beta = dense(200, 20), 0.05
    rate = np.linspace(0.1, 0.9, 20)
    w = jax.random.normal(getkey(), kernel.shape)
    _, state = refreshed(
        kernel,
        rules.budgeted_broadcast(beta=beta),
        w,
        activity(kernel, outputs=rate),
        density=0.5,
    )
    k = np.asarray(bb.degrees_of(state)["w"])
    assert 1 < k.min() and k.max() < 200
    off = np.log((1 - rate) / rate) - beta * k
    assert np.ptp(off) <= 2 * beta  # degrees are whole numbers


@pytest.mark.sampled(2)
@pytest.mark.parametrize("actuators", [("in",), ("out",), ("in", "out")], ids="+".join)
@pytest.mark.parametrize("name", ["default", "log_odds", "activity_only", "random"])
def test_budget_is_exact_at_every_density(name, actuators, getkey):
    rule = RULES[name]
    w = jax.random.normal(getkey(), STACKED.shape)
    rates = {
        "in": jax.random.uniform(getkey(), (2, 9)),
        "out": jax.random.uniform(getkey(), (2, 6)),
    }

    def run(budget):
        return rule.select(candidates(STACKED, w, budget, rates, actuators))

    budgets = np.arange(15, 55)
    masks = jax.jit(jax.vmap(run))(budgets)
    kept = np.asarray(masks.sum((-2, -1)))
    np.testing.assert_array_equal(kept, np.stack([budgets, budgets], 1))
    for actuator in actuators:
        assert degrees(np.asarray(masks), actuator).min() >= 1


def test_magnitude_keeps_the_largest_of_every_unit(getkey):
    w = jax.random.normal(getkey(), KERNEL.shape)
    mask = chosen(rules.magnitude(), KERNEL, w, budget=40)
    for column, kept in zip(np.abs(w).T, mask.T, strict=True):
        assert set(np.flatnonzero(kept)) == set(np.argsort(-column)[:4])


@pytest.mark.long
def test_magnitude_does_not_read_activity(getkey):
    w = jax.random.normal(getkey(), KERNEL.shape)
    seen = {"in": jnp.linspace(0.01, 0.99, 10)}
    without, with_rates = (
        chosen(rules.magnitude(), KERNEL, w, 40, rates) for rates in ({}, seen)
    )
    assert (without == with_rates).all()
    assert rules.magnitude().needs == rules.random().needs == ()


@pytest.mark.long
def test_activity_only_is_in_proportion_to_the_time_off(getkey):
    kernel = dense(100, 4)
    rate = jnp.array([0.6, 0.2, 0.8, 0.4])
    w = jax.random.normal(getkey(), kernel.shape)
    mask = chosen(rules.activity_only(), kernel, w, 100, {"in": rate})
    assert degrees(mask, "in").tolist() == [20, 40, 10, 30]


@pytest.mark.long
def test_rare_but_useful_unit_keeps_what_magnitude_cuts():
    """A detector of six features at once needs them all, and is on 1 time in 64.

    The other units copy one feature each and are on half of the time. At two edges
    per unit on average there is room for all that matters, but not at two edges each.
    """
    detector = np.array([1.0] * 6 + [0.0] * 2)
    up = np.eye(8, dtype=np.float32)
    up[:, 7] = detector
    bias = jnp.array([0.0] * 7 + [-5.0])
    params = {"up": jnp.asarray(up), "down": jnp.ones((8, 1))}
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    x = jnp.asarray(bits, jnp.float32)

    def hidden(params, x):
        return jax.nn.relu(x @ params["up"] + bias[None])

    def loss(params, x):
        return jnp.sum(hidden(params, x) @ params["down"])

    units = bb.trace(loss, params, x)
    _, seen = bb.observe(loss, units)(params, x)
    assert seen["up"].outputs.on_rate.tolist() == [0.5] * 7 + [4 / 256]

    def pruned(rule):
        tx = bb.transform(units, rule, density=0.25, start=0)
        zeros = jax.tree.map(jnp.zeros_like, params)
        update = jax.jit(tx.update)
        landed, state = update(zeros, tx.init(params), params, activity=seen)
        assert bb.masks(state)["up"].sum() == 16
        return jax.tree.map(jnp.add, params, landed)

    kept = hidden(pruned(rules.budgeted_broadcast()), x)
    np.testing.assert_array_equal(kept, hidden(params, x))
    lost = hidden(pruned(rules.magnitude()), x)
    assert (lost[:, 7] == 0).all() and (hidden(params, x)[:, 7] > 0).any()


# Random --------------------------------------------------------------------------
def random_mask(seed=0, budget=60, **rest):
    w = jnp.ones(KERNEL.shape)
    return chosen(rules.random(seed=seed), KERNEL, w, budget, **rest)


@pytest.mark.long
def test_random_masks_are_nested_across_densities():
    small, large = random_mask(budget=30), random_mask(budget=75)
    assert (small <= large).all() and small.sum() == 30


@pytest.mark.long
def test_random_masks_stay_until_the_budget_changes():
    later = random_mask(step=jnp.int32(99), mask=jnp.zeros(KERNEL.edge_shape, bool))
    assert (random_mask() == later).all()


def many_random_masks(seeds, indices):
    def run(seed, index):
        w = jnp.ones(KERNEL.shape)
        return rules.random(seed=seed).select(candidates(KERNEL, w, 60, index=index))

    run = jax.jit(jax.vmap(run))
    return np.asarray(run(jnp.asarray(seeds), jnp.asarray(indices)))


@pytest.mark.long
def test_random_masks_of_kernels_and_seeds_are_independent():
    """Half of the edges each: two masks share 30 of 60, give or take."""
    seeds, indices = np.divmod(np.arange(16), 4)
    masks = many_random_masks(seeds, indices)
    overlaps = [(a & b).sum() for i, a in enumerate(masks) for b in masks[:i]]
    assert min(overlaps) >= 30 - 20 and max(overlaps) <= 30 + 20


@pytest.mark.long
def test_random_seed_may_be_traced_and_favours_no_edge():
    masks = many_random_masks(np.arange(200), np.zeros(200, int))
    assert (masks[7] == random_mask(7)).all()
    assert abs(masks.mean(0) - 0.5).max() < 5 * np.sqrt(0.25 / 200)


# Floors and both sides -----------------------------------------------------------
@pytest.mark.sampled(3)
@BY_NAME
@SIDES
def test_no_unit_dies_by_construction(rule, actuator, getkey):
    units = 10 if actuator == "in" else 12
    rate = np.float32([0.0, 1e-9, 1e-4] + [1.0] * (units - 3))
    w = jax.random.normal(getkey(), KERNEL.shape)
    rates = {actuator: jnp.asarray(rate)}
    mask = chosen(rule, KERNEL, w, 36, rates, (actuator,), k_min=2)
    assert degrees(mask, actuator).min() >= 2


def both_of(w, rates, budget, k_min=1):
    """The mask of both sides, and those of each side alone."""
    rule = rules.budgeted_broadcast()
    return [
        rule.select(candidates(KERNEL, w, budget, rates, sides, k_min=k_min))
        for sides in (("in", "out"), ("in",), ("out",))
    ]


@pytest.fixture(scope="module")
def many():
    """Masks of many random kernels, from both sides and from each."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(200, *KERNEL.shape)).astype(np.float32)
    rates = {
        "in": rng.uniform(size=(200, 10)).astype(np.float32),
        "out": rng.uniform(size=(200, 12)).astype(np.float32),
    }
    budget = rng.integers(60, 110, 200)
    masks = jax.jit(jax.vmap(both_of))(w, rates, budget)
    return np.abs(w), budget, *map(np.asarray, masks)


@pytest.mark.long
def test_both_sides_meet_the_budget_with_what_they_agree_on(many):
    _, budget, both, into, out = many
    assert (both.sum((1, 2)) == budget).all()
    assert (both >= (into & out)).all()
    assert (both != into).any() and (both != out).any()


@pytest.mark.long
def test_both_sides_keep_the_best_edge_of_every_unit(many):
    w, _, both, _, _ = many
    for axis in (1, 2):
        assert np.take_along_axis(both, w.argmax(axis, keepdims=True), axis).all()


@pytest.mark.long
def test_an_edge_that_neither_side_wants_comes_last(many):
    _, _, both, into, out = many
    spare = both & ~into & ~out
    denied = (into | out) & ~both
    assert not (spare.any((1, 2)) & denied.any((1, 2))).any()
    assert denied.any()


@pytest.mark.long
def test_both_sides_equal_one_side_when_they_agree():
    """A permutation matrix with a second diagonal: rows and columns alike."""
    kernel = dense(8, 8)
    eye = np.eye(8)
    w = jnp.asarray(0.01 + 3 * eye + 2 * np.roll(eye, 3, axis=1), jnp.float32)
    rule = rules.budgeted_broadcast()
    masks = [
        chosen(rule, kernel, w, 16, actuators=sides)
        for sides in (("in", "out"), ("in",), ("out",))
    ]
    want = np.asarray(w) > 1
    for mask in masks:
        assert (mask == want).all()


@pytest.mark.long
def test_budgets_of_both_sides_follow_both_activities(getkey):
    """A busy input unit and a busy output unit both end up with few edges."""
    w = jax.random.normal(getkey(), KERNEL.shape)
    rates = {
        "in": jnp.full(10, 0.1).at[4].set(0.9),
        "out": jnp.full(12, 0.1).at[7].set(0.9),
    }
    mask = chosen(RULES["log_odds"], KERNEL, w, 60, rates, ("in", "out"))
    assert degrees(mask, "in").argmin() == 4 and degrees(mask, "out").argmin() == 7


# Without regrowth ----------------------------------------------------------------
@pytest.mark.long
@SOME
def test_masks_only_shrink_without_regrowth(rule, getkey):
    w = jax.random.normal(getkey(), KERNEL.shape)
    before = np.zeros(KERNEL.shape, bool)
    before[:5], before[5:, 0] = True, True
    mask = chosen(rule, KERNEL, w, 40, mask=jnp.asarray(before), regrow=False)
    assert (mask <= before).all() and mask.sum() == 40


@pytest.mark.long
@SOME
def test_without_regrowth_the_budget_ends_at_what_is_left(rule, getkey):
    w = jax.random.normal(getkey(), KERNEL.shape)
    before = jax.random.uniform(getkey(), KERNEL.shape) < 0.3
    for sides in (("in",), ("in", "out")):
        mask = chosen(rule, KERNEL, w, 100, {}, sides, mask=before, regrow=False)
        assert (mask == np.asarray(before)).all()
