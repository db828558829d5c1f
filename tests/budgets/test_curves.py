"""Budgets from curves: hulls, and the best of all ways to spend the edges."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbjax.budgets.curves import Curve, hull, spend


def envelope(edges, losses, x):
    """The lower convex envelope at `x`, and no higher than at fewer edges: by pairs."""

    def at(x):
        best = np.inf
        for (x1, y1), (x2, y2) in itertools.product(
            zip(edges, losses, strict=True), repeat=2
        ):
            if x1 == x:
                best = min(best, y1)
            if x1 < x < x2:
                best = min(best, y1 + (y2 - y1) * (x - x1) / (x2 - x1))
        return best

    return min(at(n) for n in range(min(edges), x + 1))


@st.composite
def a_curve(draw, most=9):
    """Up to five points, the last of them all edges; losses may go up and down."""
    size = draw(st.integers(1, most))
    inner = draw(st.lists(st.integers(0, size), max_size=4))
    losses = draw(
        st.lists(st.integers(-20, 20), min_size=len(inner) + 1, max_size=len(inner) + 1)
    )
    return Curve(np.array([*inner, size]), np.array(losses, np.float64))


@given(a_curve(30))
def test_a_hull_is_convex_falls_and_lies_below(curve):
    found = hull(curve)
    assert found.edges[0] == curve.edges.min() and found.edges[-1] == curve.edges.max()
    slopes = np.diff(found.losses) / np.diff(found.edges)
    assert (np.diff(found.edges) > 0).all() and (slopes <= 0).all()
    assert (np.diff(slopes) > -1e-12).all()
    for x in range(int(found.edges[0]), int(found.edges[-1]) + 1):
        want = envelope(curve.edges.tolist(), curve.losses.tolist(), x)
        assert np.interp(x, found.edges, found.losses) == pytest.approx(want, abs=1e-9)


def bounds(curves, least):
    low = [max(int(c.edges.min()), n) for c, n in zip(curves, least, strict=True)]
    return low, [int(c.edges.max()) for c in curves]


@st.composite
def a_problem(draw):
    curves = draw(st.lists(a_curve(), min_size=1, max_size=3))
    sizes = [int(c.edges.max()) for c in curves]
    least = [draw(st.integers(0, size)) for size in sizes]
    low, high = bounds(curves, least)
    return curves, draw(st.integers(sum(low), sum(high))), least


@pytest.mark.long
@given(a_problem())
def test_no_other_way_to_spend_the_edges_is_better(problem):
    curves, total, least = problem
    got = spend(curves, total, least)
    low, high = bounds(curves, least)
    assert got.sum() == total
    assert (got >= low).all() and (got <= high).all()
    tables = [
        {n: envelope(c.edges.tolist(), c.losses.tolist(), n) for n in range(a, b + 1)}
        for c, a, b in zip(curves, low, high, strict=True)
    ]
    every = itertools.product(
        *(range(a, b + 1) for a, b in zip(low, high, strict=True))
    )
    best = min(
        sum(t[n] for t, n in zip(tables, way, strict=True))
        for way in every
        if sum(way) == total
    )
    mine = sum(t[int(n)] for t, n in zip(tables, got, strict=True))
    assert mine == pytest.approx(best, abs=1e-9)


@pytest.mark.long
@given(a_problem())
def test_with_more_edges_no_row_gets_fewer(problem):
    curves, total, least = problem
    _, high = bounds(curves, least)
    if total < sum(high):
        one, other = (spend(curves, n, least) for n in (total, total + 1))
        assert (other - one >= 0).all() and (other - one).sum() == 1


@pytest.mark.long
def test_rows_of_one_slope_share():
    line = Curve(np.array([0, 100]), np.array([1.0, 0.0]))
    half = Curve(np.array([0, 50]), np.array([0.5, 0.0]))
    assert spend([line, half, line], 50, [0, 0, 0]).tolist() == [20, 10, 20]
    flat = Curve(np.array([20, 100]), np.array([0.0, 3.0]))  # better when pruned
    assert spend([flat, line, flat], 160, [0, 0, 0]).tolist() == [30, 100, 30]


@pytest.mark.long
def test_large_curves_are_spent_to_the_edge():
    sizes = np.array([2**30 - 7, 2**29 + 3, 12345])
    curves = [
        Curve(np.array([size // 5, size // 2, size]), np.array([3.0, 1.0, 0.0]) * w)
        for size, w in zip(sizes, (1, 2, 3), strict=True)
    ]
    for total in (700_000_001, 1_000_000_007):
        got = spend(curves, total, [0, 0, 0])
        assert int(got.sum()) == total and got[2] == 12345
