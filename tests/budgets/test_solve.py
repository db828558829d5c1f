"""The solver of degrees against exact arithmetic.

Two oracles in fractions: Hamilton's method as the paper's controller suggests it
(solve d0, floor, remainder to the largest fractional parts), and the solver's own
definition (raise c, hand out edges one by one). For laws that shift they agree.
"""

import heapq
from fractions import Fraction
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbjax import laws
from bbjax.budgets.degrees import degrees, solve

UNITS = 6


def hamilton(profile, budget, low, cap, rate):
    """Floors of clip(d0 + profile), then the largest fractional parts."""
    limits = list(zip(profile, low, cap, strict=True))
    bends = sorted({end - p for p, *ends in limits for end in ends})

    def spend(d0):
        return [min(max(d0 + p, lo), hi) for p, lo, hi in limits]

    right = next(i for i, d0 in enumerate(bends) if sum(spend(d0)) >= budget)
    d0, above = bends[max(right - 1, 0)], sum(spend(bends[right]))
    if (gap := above - sum(spend(d0))) > 0:
        d0 += (bends[right] - d0) * Fraction(budget - sum(spend(d0)), gap)
    real = spend(d0)
    k = [int(x) for x in real]
    order = sorted(range(len(k)), key=lambda i: (k[i] - real[i], rate[i], i))
    for i in order[: budget - sum(k)]:
        k[i] += 1
    return k


def one_by_one(profile, combine, budget, low, cap, rate):
    """Hands the next edge to the unit that reaches it at the smallest c."""

    def entry(i):
        more = k[i] + 1
        c = more - profile[i] if combine == "shift" else Fraction(more) / profile[i]
        return (c, rate[i], i)

    k = list(low)
    waiting = [entry(i) for i in range(len(k)) if k[i] < cap[i]]
    heapq.heapify(waiting)
    for _ in range(budget - sum(k)):
        i = heapq.heappop(waiting)[-1]
        k[i] += 1
        if k[i] < cap[i]:
            heapq.heappush(waiting, entry(i))
    return k


def assert_no_swap_is_due(k, profile, combine, low, cap, rtol=1e-5):
    """No unit took its last edge at a larger c than another would take its next."""
    k, profile = np.asarray(k, np.float64), np.asarray(profile, np.float64)
    low, cap = np.broadcast_to(low, k.shape), np.broadcast_to(cap, k.shape)
    at = (lambda n: n - profile) if combine == "shift" else (lambda n: n / profile)
    took, takes = at(k)[k > low], at(k + 1)[k < cap]
    if took.size and takes.size:
        slack = rtol * max(np.abs(profile).max(), k.max(), abs(took.max()))
        assert took.max() <= takes.min() + slack


@st.composite
def problems(draw):
    """Profiles in 1/64, where float32 is exact; a lower rate never has less."""
    size = st.integers(0, 40 * 64)
    whole = draw(st.sampled_from([1, 16, 64]))  # often a tie in the fractional parts
    parts = draw(st.lists(size, min_size=UNITS, max_size=UNITS))
    profile = [Fraction(p // whole * whole, 64) for p in sorted(parts, reverse=True)]
    steps = draw(st.lists(st.integers(0, 2), min_size=UNITS, max_size=UNITS))
    rate = [float(x) / 16 for x in np.cumsum(steps)]
    cap = draw(st.lists(st.integers(0, 30), min_size=UNITS, max_size=UNITS))
    k_min = draw(st.integers(0, 6))
    low = [min(k_min, c) for c in cap]
    return profile, rate, cap, k_min, low, draw(st.integers(sum(low), sum(cap)))


def run_solve(profile, combine, budget, cap, k_min, rate):
    profile = jnp.array([float(p) for p in profile])
    arrays = [jnp.array(x) for x in (budget, cap, k_min, rate)]
    return solve(profile, combine, *arrays).tolist()


@given(problems())
def test_shift_is_hamilton(problem):
    profile, rate, cap, k_min, low, budget = problem
    want = hamilton(profile, budget, low, cap, rate)
    assert want == one_by_one(profile, "shift", budget, low, cap, rate)
    assert run_solve(profile, "shift", budget, cap, k_min, rate) == want


@given(problems())
def test_scale_hands_out_one_by_one(problem):
    profile, rate, cap, k_min, low, budget = problem
    profile = [p + Fraction(1, 64) for p in profile]
    got = run_solve(profile, "scale", budget, cap, k_min, rate)
    assert sum(got) == budget
    assert_no_swap_is_due(got, profile, "scale", low, cap)


def test_scale_on_exact_factors():
    profile = [Fraction(n) for n in (8, 4, 4, 2, 1, 1)]
    rate = [0, 0.1, 0.2, 0.3, 1, 1]
    for budget in range(6, 120):
        args = (profile, "scale", budget)
        want = one_by_one(*args, [1] * 6, [20] * 6, rate)
        assert run_solve(*args, [20] * 6, 1, rate) == want


def test_scale_is_not_hamilton():
    # Three edges shared 7 : 2 : 2 are 1.91, .55 and .55, which Hamilton would round to
    # 2, 1, 0. But the first unit takes its third edge at c = 3/7, before 1/2.
    assert run_solve([7, 2, 2], "scale", 3, [9] * 3, 0, [0, 0.5, 0.5]) == [3, 0, 0]


@given(st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6), st.floats(0.01, 1))
def test_default_law_in_float64(rate, density):
    fan = 64
    k = np.asarray(degrees(jnp.array(rate), fan, density))
    rate = np.array(rate)
    a = np.clip(rate, 1e-2, 1 - 1e-2)
    odds, alive = np.log((1 - a) / a), np.clip((rate - 1e-3) / 3e-3, 0, 1)
    mean = round(density * fan * UNITS) / UNITS
    level = (odds * alive).sum() / max(alive.sum(), 1e-9)
    profile = 0.1 * mean * np.clip(odds - level, -2, 2) * alive
    least = max(1, int(np.float32(0.1) * np.float32(mean)))
    assert_no_swap_is_due(k, profile, "shift", least, fan, rtol=5e-3)


@pytest.mark.parametrize(
    "combine, profile",
    [
        ("shift", [1e10, 0, -1e10]),
        ("shift", [3e38, 0, -3e38]),
        ("scale", [1e10, 1, 1e-10]),
        ("scale", [3e38, 1, 1e-37]),
    ],
)
def test_far_apart_profiles_fill_up_in_order(combine, profile):
    want = {0: [0, 0, 0], 5: [5, 0, 0], 105: [100, 5, 0], 299: [100, 100, 99]}
    for budget, k in want.items():
        assert run_solve(profile, combine, budget, [100] * 3, 0, [0, 0.5, 1]) == k


def test_profiles_that_are_not_finite():
    wild = [float("nan"), float("inf"), -float("inf")]
    assert run_solve(wild, "shift", 6, [4] * 3, 1, [0.5] * 3) == [1, 4, 1]
    assert sum(run_solve(wild, "scale", 6, [4] * 3, 1, [0.5] * 3)) == 6


def test_caps_of_single_units():
    cap, rate = jnp.array([0, 2, 9]), jnp.array([0.1, 0.2, 0.3])
    profile = jnp.array([2.0, 1.0, 0.0])
    for budget, want in [(0, [0, 1, 1]), (7, [0, 2, 5]), (99, [0, 2, 9])]:
        assert solve(profile, "shift", budget, cap, 1, rate).tolist() == want


def test_degrees_rise_one_edge_at_a_time():
    rate = jnp.array([0.2, 0.21, 0.5, 0.5])
    profile = laws.log_odds(0.3).profile(rate, jnp.float32(5))
    k = [solve(profile, "shift", n, 9, 1, rate) for n in range(4, 37)]
    assert all((b - a).sum() == 1 and (b >= a).all() for a, b in pairwise(k))


@pytest.mark.long
def test_floors_of_slices_and_of_single_units():
    rate = jnp.full((2, 3), 0.5)
    profile = jnp.zeros((2, 3)).at[:, 0].set(-9.0)
    k = solve(profile, "shift", 12, 9, jnp.array([1, 3]), rate)
    assert k.tolist() == [[1, 6, 5], [3, 5, 4]]
    k = solve(profile[0], "shift", 12, 9, jnp.array([2, 7, 0]), rate[0])
    assert k.tolist() == [2, 7, 3]
