"""Priced competition: value over cost, where a unit of traffic costs edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.rules import Group, priced
from tests.support.runs import candidates, dense

KERNEL = dense(12, 10)


def arrays(shape, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=shape).astype(np.float32)
    rates = rng.uniform(0.02, 0.98, shape[1]).astype(np.float32)
    square = rng.uniform(0.1, 2.0, shape[0]).astype(np.float32)
    return w, rates, square


def look(kernel, w, rates, square, budget, actuators=("in",), **rest):
    seen = candidates(kernel, jnp.asarray(w), budget, rates, actuators, **rest)
    seen.statistics["inputs.mean_square"] = jnp.asarray(square)
    return seen


def keep(rule, w, rates, square, budget, **rest):
    run = jax.jit(
        lambda w, a, q: rule.select(look(KERNEL, w, {"in": a}, q, budget, **rest))
    )
    return np.asarray(run(w, jnp.asarray(rates), square))


@pytest.mark.long
@pytest.mark.parametrize("price, inputs", [(1.0, 0.5), (0.0, 0.5), (3.0, 0.0), (0, 1)])
def test_the_edges_worth_most_for_their_cost_stay(price, inputs):
    w, a, q = arrays((12, 10))
    score = np.abs(w) * q[:, None] ** (inputs / 2) / (1 + price * a)
    bar = np.sort(score.ravel())[-40]
    mask = keep(priced(price=price, inputs=inputs), w, a, q, 40, k_min=0)
    np.testing.assert_array_equal(mask, score >= bar)


def test_it_solves_the_knapsack_of_value_under_traffic():
    """No other choice of as many edges has more value and no more traffic.

    Of the relaxed problem: each swap of a kept edge for another that does not raise the
    traffic lowers the value, and each that raises the value raises the traffic.
    """
    w, a, q = arrays((12, 10), seed=3)
    mask = keep(priced(price=2.0, inputs=0), w, a, q, 30, k_min=0)
    value = np.abs(w)
    cost = np.broadcast_to(a, w.shape)
    inside = [(v, c) for v, c in zip(value[mask], cost[mask], strict=True)]
    outside = [(v, c) for v, c in zip(value[~mask], cost[~mask], strict=True)]
    for v, c in inside:
        assert not any(u >= v and d <= c and (u, d) != (v, c) for u, d in outside)


@pytest.mark.long
def test_without_price_and_inputs_it_is_layer_magnitude():
    w, a, q = arrays((12, 10))
    free = keep(priced(price=0, inputs=0), w, a, q, 40)
    np.testing.assert_array_equal(
        free, keep(bb.rules.magnitude(scope="layer"), w, a, q, 40)
    )


@pytest.mark.long
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_equal_on_rates_change_nothing(rate):
    w, _, q = arrays((12, 10))
    same = np.full(10, rate, np.float32)
    rules = priced(price=5.0), priced(price=0)
    first, second = (keep(rule, w, same, q, 40) for rule in rules)
    np.testing.assert_array_equal(first, second)


@pytest.mark.long
def test_busy_units_keep_fewer_edges():
    w = np.abs(np.random.default_rng(1).normal(size=(200, 8))).astype(np.float32)
    a = np.linspace(0, 1, 8, dtype=np.float32)
    kernel = dense(200, 8)
    seen = look(kernel, w, {"in": jnp.asarray(a)}, np.ones(200), 400)
    degree = np.asarray(priced(price=4.0).select(seen)).sum(0)
    assert degree[0] > 2 * degree[-1]
    assert np.corrcoef(a, degree)[0, 1] < -0.9


@pytest.mark.long
def test_dead_units_do_not_hog_the_budget():
    """The cost lies in [1, 1 + price]: a dead unit gains at most that much."""
    rng = np.random.default_rng(2)
    w = rng.normal(size=(100, 10)).astype(np.float32)
    a = np.where(np.arange(10) < 3, 0.0, 0.4).astype(np.float32)
    seen = look(dense(100, 10), w, {"in": jnp.asarray(a)}, np.ones(100), 50)
    degree = np.asarray(priced().select(seen)).sum(0)
    assert degree[:3].sum() < 0.75 * 50  # the odds to any power would take all
    assert degree[3:].sum() > 0


@pytest.mark.long
def test_both_ends_pay():
    w, a, q = arrays((12, 10))
    b = np.linspace(0.1, 0.9, 12, dtype=np.float32)
    rates = {"in": jnp.asarray(a), "out": jnp.asarray(b)}
    seen = look(KERNEL, w, rates, q, 40, ("in", "out"), k_min=0)
    mask = np.asarray(priced(price=1.0, inputs=0).select(seen))
    score = np.abs(w) / ((1 + a) * (1 + b)[:, None])
    np.testing.assert_array_equal(mask, score >= np.sort(score.ravel())[-40])


@pytest.mark.long
def test_units_never_seen_count_as_half_on():
    w, a, q = arrays((12, 10))
    a[::2] = np.nan
    known = np.where(np.isnan(a), 0.5, a)
    first, second = (keep(priced(), w, rates, q, 40) for rates in (a, known))
    np.testing.assert_array_equal(first, second)


@pytest.mark.long
def test_kernels_share_one_budget():
    seen = [
        look(dense(*shape, name), w, {"in": jnp.asarray(a)}, q, 0, k_min=0)
        for name, shape, seed in (("a", (12, 10), 0), ("b", (10, 6), 1))
        for w, a, q in [arrays(shape, seed)]
    ]
    rule = priced(scope="global")
    masks = rule.select(Group(tuple(seen), lambda which: jnp.int32(50)))
    assert rule.joint and sum(int(m.sum()) for m in masks) == 50


@pytest.mark.long
def test_in_a_run_traffic_is_below_that_of_magnitude():
    """At the same number of edges, and the more so the higher the price."""
    w, a, q = arrays((12, 10), seed=5)
    traffic = [
        float((keep(priced(price=p, inputs=0), w, a, q, 40) * a).sum())
        for p in (0, 1, 10)
    ]
    assert traffic[0] > traffic[1] > traffic[2]


@pytest.mark.parametrize(
    "text, given",
    [
        (r"expected price in \[0, inf\), got -1; it is the cost", {"price": -1}),
        (r"expected price in \[0, inf\), got inf", {"price": float("inf")}),
        (r"expected inputs in \[0, 1\], got 1.5; it is", {"inputs": 1.5}),
        ('scope "layer" or "global", got .unit.; it is how', {"scope": "unit"}),
    ],
)
def test_bad_arguments(text, given):
    with pytest.raises(ValueError, match=text):
        priced(**given)
