"""Laws at their word: the authors' runs repeated, unit by unit, in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax import laws
from bbjax.rules import unbudgeted
from tests.support.runs import activity, candidates, chosen, dense, select, updated

KERNEL = dense(40, 10)


def zones(weights, mask, rate, k_min, low=0.1, high=0.7, rare=0.9, busy=0.3):
    """The notebook's refresh: rows in a zone keep the best of what is left."""
    new = mask.copy()
    for unit, a in enumerate(rate):
        if low <= a <= high:
            continue
        alive = np.flatnonzero(mask[:, unit])
        k = max(k_min, round(len(mask) * (busy if a > high else rare)))
        best = alive[np.argsort(-np.abs(weights[alive, unit]))][:k]
        new[:, unit] = np.isin(np.arange(len(mask)), best)
    return new


def test_the_authors_speech_runs(getkey):
    """Prune-only, rows between the thresholds untouched, at least 8 edges a row."""
    options = {"every": 1, "start": 0, "regrow": False, "k_min": 8, "ema": 0.0}
    tx = bb.transform(select(KERNEL), unbudgeted(laws.three_zone()), **options)
    w = jax.random.normal(getkey(), KERNEL.shape)
    state, mask = tx.init({"w": w}), np.ones(KERNEL.shape, bool)
    for _ in range(4):
        rate = np.asarray(jax.random.uniform(getkey(), (10,)))
        want = zones(np.asarray(w), mask, rate, 8)
        seen = activity(KERNEL, outputs=rate)
        step = 0.1 * jax.random.normal(getkey(), w.shape)
        w, state = updated(tx, state, w, step, seen)
        mask = np.asarray(bb.masks(state)["w"])
        np.testing.assert_array_equal(mask, want)
    assert {12, 36} <= set(mask.sum(0).tolist())


@pytest.mark.long
def test_the_authors_language_model_code(getkey):
    """k = round(d0 / p) within [64, fan], the largest weights of the full row."""
    kernel = dense(256, 6)
    rate = jnp.array([0.0, 1e-7, 0.01, 0.02, 0.03, 1.0])
    w = jax.random.normal(getkey(), kernel.shape)
    rule = unbudgeted(laws.threshold(3.0, clip=1e-6))
    mask = chosen(rule, kernel, w, 0, {"in": rate}, k_min=64)
    assert mask.sum(0).tolist() == [256, 256, 256, 150, 100, 64]
    size = np.abs(w)
    assert (np.where(mask, size, 9).min(0) >= np.where(mask, 0, size).max(0)).all()


@functools.partial(jax.jit, static_argnames="actuator")
def by_quantile(weights, rate, actuator):
    seen = candidates(STACK, weights, 0, {actuator: rate}, (actuator,))
    return unbudgeted(laws.quantile()).select(seen)


STACK = bb.Kernel("w", (2, 16, 12), stack=(0,), fan_in=(1,), fan_out=(2,))


@pytest.mark.long
@pytest.mark.parametrize("actuator", ["in", "out"])
def test_quantiles_are_those_of_a_slice(actuator, getkey):
    units, fan, axis = {"in": (12, 16, 1), "out": (16, 12, 2)}[actuator]
    rate = jax.random.uniform(getkey(), (2, units)) * jnp.array([[0.1], [1.0]])
    w = jax.random.normal(getkey(), STACK.shape)
    k = np.asarray(by_quantile(w, rate, actuator)).sum(axis)
    for slice_rate, degrees in zip(np.asarray(rate, np.float64), k, strict=True):
        low, high = np.quantile(slice_rate, [0.3, 0.7])
        share = np.clip((slice_rate - low) / (high - low), 0, 1)
        real = fan * (0.9 - 0.4 * share)
        assert (np.abs(degrees - real) <= 0.5 + 1e-4).all()
        assert degrees.min() == fan // 2 and degrees.max() == round(0.9 * fan)


@pytest.mark.long
def test_edges_return_when_a_unit_falls_silent(getkey):
    rule = unbudgeted(laws.three_zone())
    w = jax.random.normal(getkey(), KERNEL.shape)
    busy = chosen(rule, KERNEL, w, 0, {"in": jnp.full(10, 0.9)})
    quiet = chosen(rule, KERNEL, w, 0, {"in": jnp.full(10, 0.5)}, mask=busy)
    assert busy.sum() == 120 and quiet.all()
    left = chosen(
        rule, KERNEL, w, 0, {"in": jnp.full(10, 0.5)}, mask=busy, regrow=False
    )
    np.testing.assert_array_equal(left, busy)


@pytest.mark.long
def test_with_both_sides_an_edge_needs_both_its_ends(getkey):
    kernel = dense(12, 10)
    w = jax.random.normal(getkey(), kernel.shape)
    rates = {"in": jnp.linspace(0, 1, 10), "out": jnp.linspace(0, 1, 12)}
    rule = unbudgeted(laws.three_zone(rare=0.5, busy=0.2, middle=0.3))
    mask = chosen(rule, kernel, w, 0, rates, ("in", "out"), k_min=1)
    alone = [chosen(rule, kernel, w, 0, rates, (a,)) for a in ("in", "out")]
    np.testing.assert_array_equal(mask | (alone[0] & alone[1]), mask)
    for axis in (0, 1):
        ranks = np.argsort(np.argsort(-np.abs(w), axis), axis)
        assert mask[ranks == 0].all()  # the floor: the best edge of every unit
    extra = mask & ~(alone[0] & alone[1])
    assert extra.sum() <= 22 and mask.sum() < min(a.sum() for a in alone)


@pytest.mark.long
def test_law_without_degrees_of_its_own():
    for law in (laws.log_odds(), laws.uniform()):
        with pytest.raises(ValueError, match=f"of its own, got '{law.name}', .*; use"):
            unbudgeted(law)
    with pytest.raises(TypeError, match="law: expected one of bb.laws, got .*; call"):
        unbudgeted(laws.three_zone)
    rule = unbudgeted(laws.quantile())
    assert rule.free and not rule.patterned and rule.name == "unbudgeted[quantile]"
