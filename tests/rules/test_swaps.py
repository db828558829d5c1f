"""Swaps of edges: the greedy search in numpy, lists, groups, never worse."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbjax.rules.parts.swaps import LEAST, swap
from tests.support.correlated import data

ALL = None


def case(n=16, units=6, density=0.5):
    """A Gram matrix, weights `(in, out)`, and a mask with unlike degrees."""
    gram, w = data(n, units)
    return gram, w, np.random.uniform(size=w.shape) < density


def swapped(gram, w, mask, shortlist=ALL, rounds=50, m=None):
    """One kernel: the new mask as numpy, and the record."""
    done = swap(
        jnp.asarray(w)[None], jnp.asarray(gram)[None], jnp.asarray(mask)[None], rounds,
        shortlist=shortlist, m=m,
    )  # fmt: skip
    return np.asarray(done.mask[0]), done


# In numpy, from the definition of the error -----------------------------------------
def error(gram, lost):
    """Mean square change of the output of one unit."""
    return lost @ gram.astype(np.float64) @ lost


def exchanged(keep, *edges):
    keep = keep.copy()
    keep[list(edges)] ^= True
    return keep


def cost(gram, w, keep, *edges):
    """By how much the error rises if these edges change sides."""
    after = exchanged(keep, *edges)
    return error(gram, w * ~after) - error(gram, w * ~keep)


def best_swap(gram, w, keep, among, m=None):
    """`(change, q, p)` of the best pair, or None."""
    pairs = [
        (cost(gram, w, keep, q, p), q, p)
        for q in among[keep[among]]
        for p in among[~keep[among]]
        if m is None or q // m == p // m
    ]
    return min(pairs, default=None)


def greedy(gram, w, keep, shortlist=ALL, rounds=50, m=None):
    """One unit: what is kept after all swaps."""
    least = LEAST * error(gram, w * ~keep)
    for _ in range(rounds):
        among = np.arange(len(w))
        if shortlist is not ALL:
            alone = np.array([cost(gram, w, keep, i) for i in among])
            order = np.argsort(alone, kind="stable")
            kept, pruned = order[keep[order]], order[~keep[order]]
            among = np.sort([*kept[:shortlist], *pruned[:shortlist]])
        first = keep
        for _ in range(len(w) if shortlist is ALL else 2 * shortlist):
            found = best_swap(gram, w, keep, among, m)
            if found is None or not found[0] < -least:
                break
            keep = exchanged(keep, *found[1:])
        if (keep == first).all():
            break
    return keep


def by_unit(gram, w, mask, **options):
    columns = [greedy(gram, *pair, **options) for pair in zip(w.T, mask.T, strict=True)]
    return np.stack(columns, 1)


def errors(gram, lost):
    return np.array([error(gram, column) for column in lost.T])


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("shortlist", [ALL, 1, 3, 5])
def test_swaps_are_those_of_numpy(shortlist, density):
    gram, w, mask = case(density=density)
    new, done = swapped(gram, w, mask, shortlist)
    wanted = by_unit(gram, w, mask, shortlist=shortlist)
    np.testing.assert_array_equal(new, wanted)
    assert (new != mask).any()
    before, after = (errors(gram, w * ~m).sum() for m in (mask, wanted))
    np.testing.assert_allclose(done.before[0], before, rtol=1e-4)
    np.testing.assert_allclose(done.after[0], after, rtol=1e-3)
    np.testing.assert_allclose(done.total[0], errors(gram, w).sum(), rtol=1e-4)
    assert after < 0.9 * before


@pytest.mark.parametrize("m", [2, 4, 8])
def test_swaps_inside_groups_are_those_of_numpy(m):
    gram, w, mask = case()
    new, _ = swapped(gram, w, mask, 1, m=m)
    np.testing.assert_array_equal(new, by_unit(gram, w, mask, m=m))
    held, kept = (x.reshape(16 // m, m, 6).sum(1) for x in (mask, new))
    np.testing.assert_array_equal(held, kept)
    assert (new != mask).any()


@pytest.mark.long
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_rounds_bound_the_lists(rounds):
    gram, w, mask = case(n=24)
    new, _ = swapped(gram, w, mask, 2, rounds)
    wanted = by_unit(gram, w, mask, shortlist=2, rounds=rounds)
    np.testing.assert_array_equal(new, wanted)
    assert rounds > 1 or (new != by_unit(gram, w, mask, shortlist=2)).any()


@pytest.mark.long
def test_a_long_list_is_that_of_all_pairs():
    gram, w, mask = case()
    wanted, _ = swapped(gram, w, mask)
    for shortlist in (8, 9, 1000):
        np.testing.assert_array_equal(swapped(gram, w, mask, shortlist)[0], wanted)


@pytest.mark.long
@pytest.mark.parametrize(
    "w, kept, wanted", [([1, 1, 2], [0, 1], [1, 2]), ([1, 2, 2, 2], [0], [1])]
)
@pytest.mark.parametrize("shortlist", [ALL, 1])
def test_equal_changes_go_to_the_lowest_index(w, kept, wanted, shortlist):
    mask = np.isin(np.arange(len(w)), kept)[:, None]
    gram = np.eye(len(w), dtype=np.float32)
    new, _ = swapped(gram, np.array(w, np.float32)[:, None], mask, shortlist)
    assert np.flatnonzero(new).tolist() == wanted


@pytest.mark.long
@pytest.mark.parametrize("shortlist", [ALL, 2])
def test_of_equal_changes_the_edge_that_costs_more_alone_may_come_first(shortlist):
    gram = np.eye(6, dtype=np.float32)
    gram[2, :2] = gram[:2, 2] = 0.25, -0.25
    w = np.array([1, 1, 2, 3, 3, 3], np.float32)[:, None]
    mask = (np.arange(6) != 2)[:, None]
    alone = [cost(gram, w[:, 0], mask[:, 0], i) for i in (0, 1)]
    pairs = [cost(gram, w[:, 0], mask[:, 0], i, 2) for i in (0, 1)]
    assert alone == [2, 0] and pairs == [-3, -3]
    new, _ = swapped(gram, w, mask, shortlist)
    assert np.flatnonzero(~new).tolist() == [0]


@pytest.mark.long
def test_inputs_that_are_added_up_show_what_single_edges_do_not():
    """The two large weights cancel: pruning both costs less than one of them."""
    gram = np.array([[1, 0, 0], [0, 1, 0.9], [0, 0.9, 1]], np.float32)
    w = np.array([[2], [3], [-3]], np.float32)
    new, done = swapped(gram, w, np.array([[False], [True], [False]]))
    assert new[:, 0].tolist() == [True, False, False]
    np.testing.assert_allclose(done.after[0], 9 * 0.2, rtol=1e-5)


# Invariants ---------------------------------------------------------------------------
@pytest.mark.long
@given(
    seed=st.integers(0, 2**31),
    density=st.floats(0, 1),
    shortlist=st.sampled_from([ALL, 1, 4]),
    m=st.sampled_from([None, 4]),
)
def test_no_unit_is_worse_and_every_degree_stays(seed, density, shortlist, m):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 5)) @ rng.normal(size=(5, 12))
    x *= np.exp(2 * rng.normal(size=12))
    gram = (x.T @ x / 30).astype(np.float32)
    w = (rng.normal(size=(12, 4)) * np.exp(rng.normal(size=4))).astype(np.float32)
    mask = rng.uniform(size=w.shape) < density
    new, done = swapped(gram, w, mask, shortlist, m=m)
    np.testing.assert_array_equal(new.sum(0), mask.sum(0))
    before, after = (errors(gram, w * ~k) for k in (mask, new))
    size = 1e-6 * np.sum(np.abs(w) * (np.abs(gram) @ np.abs(w)), 0)  # of its terms
    assert (after <= before + size).all()
    assert done.after <= done.before
    np.testing.assert_allclose(done.before[0], before.sum(), rtol=1e-4, atol=size.sum())
    if m is None and shortlist is ALL:  # no pair is left
        for unit, kept in zip(range(4), new.T, strict=True):
            found = best_swap(gram, w[:, unit], kept, np.arange(12))
            assert found is None or found[0] >= -2 * LEAST * before[unit] - size[unit]


@pytest.mark.long
@pytest.mark.parametrize("shortlist", [ALL, 2])
def test_units_that_keep_all_or_nothing_stay(shortlist):
    gram, w, mask = case()
    mask[:, 0], mask[:, 1] = True, False
    new, done = swapped(gram, w, mask, shortlist)
    assert new[:, 0].all() and not new[:, 1].any()
    assert np.isfinite([done.before[0], done.after[0], done.total[0]]).all()


@pytest.mark.parametrize("shortlist", [ALL, 3])
def test_inputs_that_are_always_0_give_their_places(shortlist):
    gram, w, mask = case()
    gram = np.diag(np.diag(gram))  # so that every other edge has a gain of its own
    gram[:4] = 0
    mask[:4], mask[4:8] = True, False
    new, _ = swapped(gram, w, mask, shortlist)
    live = (~mask[4:]).sum(0)
    np.testing.assert_array_equal(new[:4].sum(0), np.maximum(4 - live, 0))


@pytest.mark.long
def test_slices_do_not_meet():
    cases = [case(density=d) for d in (0.3, 0.5, 0.7)]
    gram, w, mask = (jnp.asarray(np.stack(x)) for x in zip(*cases, strict=True))
    done = swap(w, gram, mask, 50, shortlist=3)
    for at, one in enumerate(cases):
        alone, record = swapped(*one, 3)
        np.testing.assert_array_equal(done.mask[at], alone)
        np.testing.assert_allclose(done.after[at], record.after[0], rtol=1e-5)


@pytest.mark.long
def test_many_units_are_swapped_in_parts(monkeypatch):
    monkeypatch.setattr("bbjax.rules.parts.swaps._BATCH", 4 * 3**2 * 5)
    gram, w, mask = case(units=21)  # a shape of its own, which is traced here
    new, _ = swapped(gram, w, mask, 3)
    np.testing.assert_array_equal(new, by_unit(gram, w, mask, shortlist=3))


@pytest.mark.long
def test_bfloat16_is_computed_in_float32():
    gram, w, mask = case()
    half = jnp.asarray(w, jnp.bfloat16)
    new, _ = swapped(gram, half, mask, 3)
    wanted = by_unit(gram, np.asarray(half.astype(jnp.float32)), mask, shortlist=3)
    np.testing.assert_array_equal(new, wanted)


@pytest.mark.long
def test_a_unit_that_would_get_worse_keeps_its_mask():
    """A matrix that is not symmetric misleads the search, as rounding may."""
    gram, w, mask = case(units=30)
    gram = gram + np.triu(8 * np.random.normal(size=gram.shape), 1).astype(np.float32)
    new, done = swapped(gram, w, mask)
    before, after = (errors(gram, w * ~m) for m in (mask, new))
    same = (new == mask).all(0)
    assert (after[~same] < before[~same]).all() and 3 < same.sum() < 30
    assert done.after < done.before


@pytest.mark.long
def test_without_a_finite_gram_matrix_masks_stay():
    gram, w, mask = case()
    gram[0, 0] = np.nan
    new, _ = swapped(gram, w, mask, 3)
    np.testing.assert_array_equal(new, mask)
