"""Hysteresis: what is kept stays until something is better by a share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bbjax as bb
from bbjax.rules.base import Candidates
from bbjax.rules.parts import hysteresis

FAN, UNITS = 40, 24
KERNEL = bb.Kernel("w", (FAN, UNITS), fan_in=(0,), fan_out=(1,))
SELECTED = bb.Units((KERNEL,)).select("w", actuator="in")


def activity(rate):
    held = bb.activity.Statistics(
        on_rate=jnp.asarray(rate, jnp.float32),
        mean_abs=jnp.asarray(rate, jnp.float32),
        count=jnp.ones(len(rate)),
    )
    half = jnp.full(FAN, 0.5)
    inputs = bb.activity.Statistics(on_rate=half, mean_square=half, count=jnp.ones(FAN))
    return {"w": bb.activity.Activity(inputs, held)}


def refreshed(rule, rates, weights, units=SELECTED, **options):
    """Masks after each of a row of refreshes, with rates and weights as they come."""
    options = {"every": 1, "start": 0, "density": 0.3, "ema": 0.0} | options
    tx = bb.transform(units, rule, **options)
    params = {"w": jnp.asarray(weights[0], jnp.float32)}
    state = tx.init(params)
    update = jax.jit(tx.update)
    masks = []
    for rate, w in zip(rates, weights, strict=True):
        # Dormant values are what the weights were: those that are kept change.
        held = bb.masks(state)["w"]
        params = {"w": jnp.where(held, jnp.asarray(w, jnp.float32), 0)}
        zeros = {"w": jnp.zeros((FAN, UNITS), jnp.float32)}
        _, state = update(zeros, state, params, activity=activity(rate))
        masks.append(np.asarray(bb.masks(state)["w"]))
    return np.array(masks)


def noisy(seed, steps, noise):
    rng = np.random.default_rng(seed)
    rate = rng.uniform(0.1, 0.9, UNITS)
    w = rng.normal(size=(FAN, UNITS))
    rates = [np.clip(rate + noise * rng.normal(size=UNITS), 0, 1) for _ in range(steps)]
    return rates, [w] * steps


def flips(masks):
    return np.abs(np.diff(masks.astype(int), axis=0)).sum((1, 2))


def played_by_hand(law, old, share):
    """The formula, in numpy: how far a degree goes towards the law's."""
    gap = law - old
    return old + np.sign(gap) * np.maximum(np.abs(gap) - share * old, 0)


@pytest.mark.long
@given(
    st.integers(0, 2**31),
    st.floats(0.05, 2.0),
    st.integers(2, 30),
)
@settings(max_examples=20, deadline=None)
def test_played_degrees_spend_the_budget_and_stay_near_the_formula(seed, share, units):
    rng = np.random.default_rng(seed)
    law, old = (rng.integers(1, FAN + 1, units) for _ in range(2))
    budget = law.sum()
    # Degrees so far with the same sum, within the same limits.
    while old.sum() != budget:
        i = rng.integers(units)
        old[i] = np.clip(old[i] + np.sign(budget - old.sum()), 1, FAN)
    rate = rng.uniform(size=units).astype(np.float32)
    seen = view(hysteresis=float(share))
    found = np.asarray(
        hysteresis.played(
            seen,
            jnp.asarray(law, jnp.int32),
            jnp.asarray(old, jnp.int32),
            jnp.int32(budget),
            (FAN, 1),
            jnp.asarray(rate),
        )
    )
    assert found.sum() == budget
    assert found.min() >= 1 and found.max() <= FAN
    # One shift brings the formula's degrees to the budget: clipped and rounded.
    target = played_by_hand(law, old, np.float32(share))
    shifts = np.linspace(-2 * FAN, 2 * FAN, 16001)
    near = [np.abs(np.clip(target + s, 1, FAN) - found).max() for s in shifts]
    assert min(near) <= 1.01


def view(**change):
    return Candidates(
        kernel=KERNEL,
        actuators=("in",),
        weights=jnp.ones((FAN, UNITS)),
        mask=jnp.ones((FAN, UNITS), bool),
        statistics={},
        budget=jnp.int32(10),
        k_min=1,
        regrow=True,
        step=jnp.int32(0),
        **change,
    )


def test_degrees_stay_while_the_law_is_off_by_less_than_the_share():
    old = jnp.array([10, 20, 5, 5])
    law = jnp.array([12, 17, 5, 6])  # off by 0.2, 0.15, 0 and 0.2 of what is held
    limits, rate = (FAN, 1), jnp.full(4, 0.5)
    args = law, old, jnp.int32(40), limits, rate
    assert hysteresis.played(view(hysteresis=0.2), *args).tolist() == old.tolist()
    assert hysteresis.played(view(hysteresis=0.0001), *args).tolist() == law.tolist()


@pytest.mark.long
def test_degrees_follow_at_once_while_the_budget_changes():
    law, old = jnp.array([3, 5, 4]), jnp.array([FAN, FAN, FAN])
    found = hysteresis.played(
        view(hysteresis=5.0), law, old, jnp.int32(12), (FAN, 1), jnp.full(3, 0.5)
    )
    assert found.tolist() == [3, 5, 4]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("score", [1.0, -3.0, 0.0, jnp.inf, -jnp.inf, jnp.nan])
def test_a_kept_edge_is_better_by_the_share_of_its_size(score):
    scores = jnp.full((FAN, UNITS), score)
    held = jnp.zeros((FAN, UNITS), bool).at[0].set(True)
    found = hysteresis.favoured(view(hysteresis=0.5), scores, held)
    expected = score * 1.5 if score > 0 else score / 1.5
    np.testing.assert_array_equal(found[0], np.full(UNITS, expected, np.float32))
    np.testing.assert_array_equal(found[1:], scores[1:])


@pytest.mark.long
def test_noise_moves_fewer_edges_and_budgets_stay_exact():
    rule = bb.rules.budgeted_broadcast(law=bb.laws.log_odds(spread=0.8))
    moved = {}
    for share in (0.0, 0.1, 0.5):
        masks = refreshed(rule, *noisy(0, 12, 0.03), hysteresis=share)
        assert (masks.sum((1, 2)) == round(0.3 * FAN * UNITS)).all()
        moved[share] = flips(masks).sum()
    assert moved[0.0] > 2 * moved[0.1] > 0
    assert moved[0.1] > moved[0.5]


@pytest.mark.long
def test_a_lasting_change_is_followed():
    rates, weights = noisy(1, 8, 0.0)
    turned = [1 - r for r in rates]
    rule = bb.rules.budgeted_broadcast(law=bb.laws.log_odds(spread=0.8))
    masks = refreshed(rule, rates + turned, weights * 2, hysteresis=0.2)
    degrees = masks.sum(1)
    assert (flips(masks)[:7] == 0).all()
    assert np.corrcoef(degrees[7], rates[0])[0, 1] < -0.9
    assert np.corrcoef(degrees[-1], rates[0])[0, 1] > 0.7


@pytest.mark.long
def test_a_pruned_edge_returns_once_it_is_stronger_by_the_share():
    w = np.ones((FAN, UNITS))
    w[:20] = 2.0  # 20 of 40 are kept; the others rest with 1
    for kept, returns in ((0.9, False), (0.8, True)):
        later = w.copy()
        later[0] = kept  # 1 / 0.9 is less than 1.2 times it, 1 / 0.8 is more
        masks = refreshed(
            bb.rules.magnitude(),
            [np.full(UNITS, 0.5)] * 2,
            [w, later],
            density=0.5,
            hysteresis=0.2,
        )
        assert masks[0][:20].all() and not masks[0][20:].any()
        assert (masks[1][0] == (not returns)).all()
        assert (masks[1].sum(0) == 20).all()


@pytest.mark.long
@pytest.mark.parametrize(
    "rule",
    [
        bb.rules.magnitude(scope="layer"),
        bb.rules.magnitude(scope="global"),
        bb.rules.magnitude(scope=("w",)),
        bb.rules.priced(),
        bb.rules.activation_topk(),
    ],
    ids=lambda rule: rule.name,
)
def test_every_rule_that_chooses_by_a_score_favours_what_is_kept(rule):
    rng = np.random.default_rng(0)
    first = rng.uniform(1, 2, (FAN, UNITS))
    # All change places by a little: with a large share nothing may move.
    later = [first * rng.uniform(0.9, 1.1, first.shape) for _ in range(4)]
    rates = [np.clip(rng.normal(0.5, 0.02, UNITS), 0, 1) for _ in range(5)]
    options = {"density": 0.25}

    def run(share):
        return refreshed(rule, rates, [first, *later], hysteresis=share, **options)

    assert flips(run(3.0)).sum() == 0
    assert flips(run(0.0)).sum() > 0


@pytest.mark.long
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_masks_rest_where_nothing_moves_and_both_sides_are_budgeted(share):
    rates, weights = noisy(5, 8, 0.0)
    both = SELECTED + bb.Units((KERNEL,)).select("w", actuator="out")
    rule = bb.rules.budgeted_broadcast()
    masks = refreshed(rule, rates, weights, hysteresis=share, units=both)
    assert (masks.sum((1, 2)) == round(0.3 * FAN * UNITS)).all()
    assert flips(masks).sum() == 0


@pytest.mark.long
@pytest.mark.parametrize("options", [{"hysteresis": 0.3}, {"regrow": False}])
def test_units_on_several_sharded_axes(options):
    kernel = bb.Kernel("w", (8, 4, 8), fan_in=(0,), fan_out=(1, 2))
    units = bb.Units((kernel,)).select("w", actuator="in")
    side = bb.activity.Statistics(
        on_rate=jnp.linspace(0.1, 0.9, 32).reshape(4, 8), count=jnp.ones((4, 8))
    )
    inputs = bb.activity.Statistics(on_rate=jnp.ones(8), count=jnp.ones(8))
    seen = {"w": bb.activity.Activity(inputs, side)}
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(8, 4, 8)), jnp.float32)}
    tx = bb.transform(units, density=0.5, start=0, every=1, **options)

    @jax.jit
    def twice(params):
        state = tx.init(params)
        for _ in range(2):
            _, state = tx.update(params, state, params, activity=seen)
        return bb.masks(state)["w"]

    alone = np.asarray(twice(params))
    explicit = (jax.sharding.AxisType.Explicit,)
    with jax.set_mesh(jax.make_mesh((2,), ("x",), explicit)):
        spread = jax.device_put(params, jax.P(None, None, "x"))
        np.testing.assert_array_equal(alone, np.asarray(twice(spread)))


@pytest.mark.long
def test_none_is_what_there_was(getkey):
    rule = bb.rules.budgeted_broadcast()
    rates, weights = noisy(3, 5, 0.05)
    plain = refreshed(rule, rates, weights)
    np.testing.assert_array_equal(plain, refreshed(rule, rates, weights, hysteresis=0))
    tx = [bb.transform(SELECTED, rule, start=0, **o) for o in ({}, {"hysteresis": 0.0})]
    params = {"w": jax.random.normal(getkey(), (FAN, UNITS))}
    texts = [
        str(
            jax.make_jaxpr(t.update)(
                params, t.init(params), params, activity=activity(rates[0])
            )
        )
        for t in tx
    ]
    assert texts[0] == texts[1]


@pytest.mark.long
def test_the_share_may_be_traced():
    rates, weights = noisy(2, 2, 0.1)
    params = {"w": jnp.asarray(weights[0], jnp.float32)}

    def degrees(share):
        tx = bb.transform(
            SELECTED, density=0.3, start=0, every=1, ema=0.0, hysteresis=share
        )
        state, held = tx.init(params), params
        for rate in rates:
            zeros = jax.tree.map(jnp.zeros_like, held)
            updates, state = tx.update(zeros, state, held, activity=activity(rate))
            held = optax.apply_updates(held, updates)
        return bb.degrees_of(state)["w"]

    shares = jnp.array([0.0, 0.1, 10.0])
    found = jax.vmap(degrees)(shares)
    for share, row in zip(shares.tolist(), found, strict=True):
        np.testing.assert_array_equal(row, degrees(share))
    assert (found[0] != found[2]).any()


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"hysteresis in \[0, inf\), got -0\.1"):
        bb.transform(SELECTED, hysteresis=-0.1)
    with pytest.raises(ValueError, match=r"hysteresis in \[0, inf\), got inf"):
        bb.transform(SELECTED, hysteresis=float("inf"))
    with pytest.raises(TypeError, match="expected hysteresis to be a number, got 'a'"):
        bb.transform(SELECTED, hysteresis="a")
    free = bb.rules.threshold(1.0), bb.rules.unbudgeted(bb.laws.three_zone())
    exchanging = bb.rules.rigl(), bb.rules.set_(), bb.rules.srigl()
    for rule in (*exchanging, *free, bb.rules.apoz()):
        bb.transform(SELECTED, rule)
        with pytest.raises(ValueError, match="favour what is kept, got"):
            bb.transform(SELECTED, rule, hysteresis=0.1)


@pytest.mark.long
def test_it_works_inside_wrap_and_chain(lenient):
    rates, weights = noisy(4, 1, 0.0)
    params = {"w": jnp.asarray(weights[0], jnp.float32)}
    for tx in (
        optax.chain(optax.adam(1e-3), bb.transform(SELECTED, start=0, hysteresis=0.3)),
        bb.wrap(optax.adam(1e-3), SELECTED, start=0, hysteresis=0.3),
    ):
        _, state = tx.update(
            params, tx.init(params), params, activity=activity(rates[0])
        )
        assert int(bb.masks(state)["w"].sum()) == round(0.7 * FAN * UNITS)
