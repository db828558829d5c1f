"""What rules are made of: competition in a slice, over kernels, between whole units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bbjax as bb
from bbjax.arrays.topk import share_out
from bbjax.rules import Group
from bbjax.rules.parts.selection import pooled, pooled_over
from bbjax.rules.parts.whole_units import whole_units
from tests.support.runs import candidates, dense

STACKED = bb.Kernel("s", (2, 6, 9), stack=(0,), fan_in=(1,), fan_out=(2,))


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# One slice -----------------------------------------------------------------------
def slice_oracle(scores, budget, k_min, actuator="in"):
    """Each unit's `k_min` best, then the best of the rest; ties to the lowest index."""
    rows = scores if actuator == "out" else scores.T
    order = [(-s, i) for i, s in enumerate(scores.ravel())]
    index = np.arange(scores.size).reshape(scores.shape)
    index = index if actuator == "out" else index.T
    floor = set()
    for row, places in zip(rows, index, strict=True):
        best = sorted(range(len(row)), key=lambda j, r=row: (-r[j], j))[:k_min]
        floor |= {int(places[j]) for j in best}
    order = sorted(range(scores.size), key=lambda i: (i not in floor, *order[i]))
    mask = np.zeros(scores.size, bool)
    mask[order[:budget]] = True
    return mask.reshape(scores.shape)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("actuator", ["in", "out"])
@pytest.mark.parametrize("k_min", [0, 1, 3])
def test_edges_of_a_slice_compete_above_a_floor(actuator, k_min):
    w = np.round(normal(0, STACKED.shape) * 4) / 4  # ties
    w *= np.linspace(0.05, 2, 9, dtype=np.float32)  # quiet and loud units
    budget = 28

    @jax.jit
    def run(w):
        seen = candidates(STACKED, w, budget, actuators=(actuator,), k_min=k_min)
        return pooled(seen, jnp.abs(seen.weights), seen.budget)

    mask = np.asarray(run(w))
    for s in range(2):
        want = slice_oracle(np.abs(w[s]), budget, k_min, actuator)
        np.testing.assert_array_equal(mask[s], want)


@pytest.mark.long
def test_what_is_gone_stays_gone():
    kernel, w = dense(6, 5), normal(1, (6, 5))
    left = normal(2, (6, 5)) > 0
    seen = candidates(kernel, jnp.asarray(w), 10, mask=jnp.asarray(left), regrow=False)
    mask = np.asarray(pooled(seen, seen.magnitude, seen.budget))
    assert (mask <= left).all() and mask.sum() == 10
    more = np.asarray(pooled(seen, seen.magnitude, jnp.int32(29)))
    np.testing.assert_array_equal(more, left)


# Over kernels --------------------------------------------------------------------
def members(shapes, regrow=True, k_min=0, masks=None):
    return tuple(
        candidates(
            dense(*shape, f"k{i}"),
            jnp.asarray(normal(i, shape)) * (i + 1),
            0,
            regrow=regrow,
            k_min=k_min,
            index=i,
            **({} if masks is None else {"mask": jnp.asarray(masks[i])}),
        )
        for i, shape in enumerate(shapes)
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("k_min", [0, 1])
@pytest.mark.parametrize("budget", [15, 21, 50])
def test_edges_of_all_kernels_compete_for_one_budget(k_min, budget):
    seen = members([(4, 3), (3, 5), (5, 7)], k_min=k_min)
    group = Group(seen, lambda which: jnp.int32(budget))
    masks = pooled_over(group, [0, 1, 2], [s.magnitude for s in seen])
    kept = [np.asarray(m) for m in masks]
    assert sum(m.sum() for m in kept) == budget
    if k_min:
        assert all(m.sum(0).min() >= 1 for m in kept)
    else:
        sizes = np.concatenate([np.asarray(s.magnitude).ravel() for s in seen])
        bar = np.sort(sizes)[-budget]
        for m, s in zip(kept, seen, strict=True):
            np.testing.assert_array_equal(m, np.asarray(s.magnitude) >= bar)


@pytest.mark.long
def test_a_group_may_be_a_part_of_the_kernels():
    seen = members([(4, 3), (3, 5), (5, 7)])
    group = Group(seen, lambda which: jnp.int32(3 * len(which)))
    first, last = pooled_over(group, [0, 2], [seen[0].magnitude, seen[2].magnitude])
    assert int(first.sum() + last.sum()) == 6
    assert first.shape == (4, 3) and last.shape == (5, 7)


@pytest.mark.long
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_shares_are_those_of_one_sort(data):
    """Any floats, ties included: equal scores go to the first arrays first."""
    number = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, np.inf, -np.inf, np.nan])
    arrays = [
        np.array(data.draw(st.lists(number, min_size=n, max_size=n)), np.float32)
        for n in (3, 5)
    ]
    k = data.draw(st.integers(0, 9))
    flat = np.concatenate(arrays)
    rank = np.where(np.isnan(flat), -np.inf, flat)
    order = np.lexsort((np.arange(8), np.isnan(flat), -rank))
    chosen = order[:k]
    got = [int(n) for n in share_out([jnp.asarray(a) for a in arrays], k)]
    assert got == [int((chosen < 3).sum()), int((chosen >= 3).sum())]


@pytest.mark.long
def test_shares_are_the_same_on_eight_devices():
    mesh = jax.make_mesh((8,), ("x",))
    arrays = [normal(3, (16, 8)), normal(4, (8, 24))]
    alone = [int(n) for n in share_out(arrays, 77)]
    with jax.set_mesh(mesh):
        spec = jax.sharding.PartitionSpec("x", None)
        placed = [jax.device_put(a, jax.NamedSharding(mesh, spec)) for a in arrays]
        assert [int(n) for n in share_out(placed, 77)] == alone
    assert sum(alone) == 77


# Whole units ---------------------------------------------------------------------
@pytest.mark.long
@pytest.mark.parametrize("actuator, fan, units", [("in", 6, 9), ("out", 9, 6)])
def test_whole_units_are_kept_or_cut(actuator, fan, units):
    score = jnp.asarray(normal(5, (2, units)))

    @jax.jit
    def run(budget):
        seen = candidates(
            STACKED, jnp.ones(STACKED.shape), budget, actuators=(actuator,)
        )
        return whole_units(seen, score, actuator)

    for budget in (1, 20, 27, 54):
        degree = np.asarray(run(budget)).sum(1 if actuator == "in" else 2)
        assert set(np.unique(degree)) <= {0, fan}
        count = max((budget + fan // 2) // fan, 1)
        for s in range(2):
            best = set(np.argsort(-np.asarray(score)[s])[:count])
            assert set(np.flatnonzero(degree[s])) == best


@pytest.mark.long
def test_whole_units_that_went_do_not_return():
    kernel = dense(4, 3)
    mask = jnp.ones((4, 3), bool).at[:, 0].set(False)
    seen = candidates(kernel, jnp.ones((4, 3)), 8, mask=mask, regrow=False)
    run = jax.jit(lambda s: whole_units(seen, s, "in"))
    assert np.asarray(run(jnp.array([9.0, 2.0, 1.0]))).sum(0).tolist() == [0, 4, 0]
