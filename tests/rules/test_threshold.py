"""The local threshold: who loses what at a refresh, where it ends, at what total."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bbjax as bb
from bbjax.rules import Group, threshold
from tests.support.runs import activity, candidates, chosen, dense, select, updated

KERNEL = dense(12, 8)
STACK = bb.Kernel("s", (3, 10, 6), stack=(0,), fan_in=(1,), fan_out=(2,))
SIDES = pytest.mark.parametrize("actuator", ["in", "out"])
ROOM = 1 + 2.0**-16


def columns(actuator):
    """The axis along which the edges of a unit lie in a plain kernel."""
    return 0 if actuator == "in" else 1


def by_hand(weights, mask, rate, tau, fraction, k_min, actuator):
    """One refresh in numpy, unit by unit."""
    axis = columns(actuator)
    size, left = np.moveaxis(np.abs(weights), axis, 0), np.moveaxis(mask, axis, 0)
    left = left.copy()
    for unit, a in enumerate(np.asarray(rate, np.float64)):
        k = int(left[:, unit].sum())
        if a * k <= tau * ROOM:
            continue
        least = max(int(tau * ROOM / a), k_min)
        lost = min(int(np.ceil(np.float32(fraction) * np.float32(k))), k - least)
        alive = np.flatnonzero(left[:, unit])
        weakest = alive[np.argsort(size[alive, unit], kind="stable")][: max(lost, 0)]
        left[weakest, unit] = False
    return np.moveaxis(left, 0, axis)


@functools.partial(jax.jit, static_argnames=("actuator", "k_min"))
def refresh(tau, fraction, weights, rate, mask, actuator="in", k_min=1):
    rule = threshold(tau, fraction=fraction)
    seen = candidates(
        KERNEL, weights, 0, {actuator: rate}, (actuator,), mask=mask, k_min=k_min
    )
    return rule.select(seen)


@SIDES
@given(
    seed=st.integers(0, 2**16),
    tau=st.floats(0.1, 8.0),
    fraction=st.sampled_from([0.01, 0.1, 0.3, 1.0]),
)
def test_a_refresh_by_hand(actuator, seed, tau, fraction):
    rng = np.random.default_rng(seed)
    weights = rng.permutation(96).reshape(KERNEL.shape).astype(np.float32) - 48.25
    mask = rng.random(KERNEL.shape) < 0.8
    units = 8 if actuator == "in" else 12
    rate = rng.random(units).astype(np.float32)
    rate[0] = 0
    got = refresh(tau, fraction, weights, rate, mask, actuator=actuator, k_min=2)
    want = by_hand(weights, mask, rate, tau, fraction, 2, actuator)
    np.testing.assert_array_equal(got, want)


@SIDES
def test_repeated_refreshes_end_where_traffic_is_tau(actuator, getkey):
    w = jax.random.normal(getkey(), KERNEL.shape)
    rate = np.array([0, 0.05, 0.3, 0.3, 0.45, 0.6, 0.8, 1, 0.2, 0.1, 0.9, 0.5])
    rate = jnp.asarray(rate[: 8 if actuator == "in" else 12], jnp.float32)
    mask, before, refreshes = np.ones(KERNEL.shape, bool), None, 0
    while before is None or (mask != before).any():
        before, refreshes = mask, refreshes + 1
        mask = np.asarray(refresh(0.9, 0.1, w, rate, mask, actuator=actuator))
        assert not (mask & ~before).any()
    k = mask.sum(columns(actuator))
    fan = KERNEL.fan(actuator)
    ideal = np.minimum(fan, 0.9 / np.maximum(np.asarray(rate), 1e-9))
    np.testing.assert_array_equal(k, np.maximum(np.floor(ideal + 1e-3), 1))
    assert k[0] == fan and refreshes > 5  # a unit that is never on loses nothing
    once = refresh(0.9, 1.0, w, rate, np.ones(KERNEL.shape, bool), actuator=actuator)
    np.testing.assert_array_equal(mask, once)


@pytest.mark.long
def test_nothing_comes_back_while_training(getkey):
    """Not when weights grow, nor when units fall silent, though regrowth is on."""
    tx = bb.transform(select(KERNEL), threshold(1.0, fraction=0.5), every=1, start=0)
    w = jax.random.normal(getkey(), KERNEL.shape)
    state, masks = tx.init({"w": w}), [np.ones(KERNEL.shape, bool)]
    for rate in (0.9, 0.5, 0.01, 0.9):
        seen = activity(KERNEL, outputs=np.full(8, rate))
        w, state = updated(tx, state, w, jax.random.normal(getkey(), w.shape), seen)
        masks.append(np.asarray(bb.masks(state)["w"]))
        assert not (masks[-1] & ~masks[-2]).any()
        assert (np.asarray(w)[~masks[-1]] == 0).all()
    assert masks[-1].sum() < masks[1].sum() < 96


@pytest.mark.long
def test_with_both_sides_no_unit_is_over_tau_but_for_its_floor(getkey):
    w = jax.random.normal(getkey(), KERNEL.shape)
    rates = {
        "in": jax.random.uniform(getkey(), (8,)),
        "out": jax.random.uniform(getkey(), (12,)),
    }
    rule = threshold(1.5, fraction=1.0)
    mask = chosen(rule, KERNEL, w, 0, rates, ("in", "out"), k_min=2)
    floor = np.zeros_like(mask)  # edges that one of their ends keeps in any case
    for actuator in rates:
        axis = columns(actuator)
        assert (mask.sum(axis) >= 2).all()
        floor |= np.argsort(np.argsort(-np.abs(w), axis), axis) < 2
    for actuator, rate in rates.items():
        most = np.maximum(np.floor(1.5 / np.asarray(rate)), 2)
        assert ((mask & ~floor).sum(columns(actuator)) <= most).all()
    assert mask.sum() < 50


# A named total ---------------------------------------------------------------------
@functools.partial(jax.jit, static_argnames=("fraction", "k_min"))
def refresh_all(traffic, rates, weights, masks, fraction=1.0, k_min=1):
    """One refresh of a plain and a stacked kernel, on different sides."""
    sides = ("in", "out")
    members = tuple(
        candidates(kernel, w, 0, {a: r}, (a,), mask=m, k_min=k_min)
        for kernel, w, a, r, m in zip(
            (KERNEL, STACK), weights, sides, rates, masks, strict=True
        )
    )
    rule = threshold(traffic=traffic, fraction=fraction)
    return rule.choose(Group(members, lambda which: jnp.int32(0)))


def all_of(traffic, rates, rng, **rest):
    """The masks of both kernels from dense ones, and the degrees of all units."""
    weights = [rng.normal(size=k.shape).astype(np.float32) for k in (KERNEL, STACK)]
    masks = [np.ones(k.shape, bool) for k in (KERNEL, STACK)]
    chosen = refresh_all(traffic, rates, weights, masks, **rest)
    return degrees_of([np.asarray(c.mask) for c in chosen])


def degrees_of(masks):
    return np.concatenate([masks[0].sum(0), masks[1].sum(2).ravel()])


def flat(rates):
    return np.concatenate([np.ravel(r) for r in rates]).astype(np.float64)


FAN = np.array([12] * 8 + [6] * 30)


@pytest.mark.long
@given(seed=st.integers(0, 2**16), traffic=st.floats(0.02, 1.0))
def test_one_tau_reaches_the_total(seed, traffic):
    """All units are at the fixed point of one tau; another edge would be too much."""
    rng = np.random.default_rng(seed)
    rates = [rng.random(s).astype(np.float32) for s in ((8,), (3, 10))]
    k, a = all_of(traffic, rates, rng), flat(rates)
    carried, target = (a * k).sum(), traffic * (a * FAN).sum()
    highest = np.where(k > 1, a * k, 0).max()
    following = np.where(k < FAN, a * (k + 1), np.inf)
    assert highest <= following.min() * (1 + 1e-4)
    if (k > 1).any():
        assert carried <= target * (1 + 1e-4)
    if k.sum() < FAN.sum():
        assert carried + a[following.argmin()] > target * (1 - 1e-4)


def test_equal_units_do_not_move_in_step():
    """Together they would stop at 3 edges each, 114 of the 138 that were asked for."""
    rates = [np.full((8,), 0.3, np.float32), np.full((3, 10), 0.3, np.float32)]
    k = all_of(0.5, rates, np.random.default_rng(0))
    np.testing.assert_array_equal(k, [4] * 24 + [3] * 14)


def test_all_of_the_traffic_is_all_edges_and_silence_costs_nothing():
    rng = np.random.default_rng(1)
    rates = [rng.random(s).astype(np.float32) for s in ((8,), (3, 10))]
    np.testing.assert_array_equal(all_of(1.0, rates, rng), FAN)
    rates[0][:3] = 0
    k = all_of(0.1, rates, rng)
    assert (k[:3] == 12).all() and (k[3:8] < 12).all()
    assert (all_of(0.3, [r * 0 for r in rates], rng) == FAN).all()


@pytest.mark.long
def test_a_floor_comes_before_the_total():
    rng = np.random.default_rng(2)
    rates = [rng.random(s).astype(np.float32) for s in ((8,), (3, 10))]
    assert (all_of(1e-3, rates, rng, k_min=3) == 3).all()


@pytest.mark.long
def test_refreshes_converge_to_the_total(getkey):
    rng = np.random.default_rng(5)
    rates = [rng.random(s).astype(np.float32) for s in ((8,), (3, 10))]
    weights = [rng.normal(size=k.shape).astype(np.float32) for k in (KERNEL, STACK)]
    masks = [np.ones(k.shape, bool) for k in (KERNEL, STACK)]
    carried = []
    for _ in range(30):
        masks = [c.mask for c in refresh_all(0.4, rates, weights, masks, fraction=0.1)]
        k = degrees_of([np.asarray(m) for m in masks])
        carried.append((flat(rates) * k).sum() / (flat(rates) * FAN).sum())
    assert (np.diff(carried) <= 0).all() and carried[0] > 0.8
    assert carried[-1] == carried[-5] and 0.38 < carried[-1] <= 0.4001


# Arguments ---------------------------------------------------------------------------
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments():
    for both in ({}, {"tau": 1.0, "traffic": 0.5}):
        with pytest.raises(ValueError, match="expected tau or traffic, got .*; name"):
            threshold(**both)
    with pytest.raises(TypeError, match="expected tau to be a number, got array"):
        threshold(np.ones(2))
    for bad in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"expected tau in \(0, inf\), got .*; it"):
            threshold(bad)
    for bad in (0.0, 1.1, float("nan")):
        with pytest.raises(
            ValueError, match=r"expected traffic in \(0, 1\], got .*; it"
        ):
            threshold(traffic=bad)
        with pytest.raises(ValueError, match=r"expected fraction in \(0, 1\], got "):
            threshold(1.0, fraction=bad)


def test_what_it_is():
    for rule in (threshold(1.0), threshold(traffic=0.5)):
        assert rule.free and not rule.patterned and rule.needs == ("on_rate",)
