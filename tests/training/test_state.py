"""The pruning state: bits, running means, and reading it wherever it is."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bbjax as bb
from bbjax.activity.statistics import Activity, Statistics
from bbjax.training.state import (
    PruneState,
    find,
    full_mask,
    packed_axis,
    read_mean,
    unpack,
    update_means,
)
from tests.support.runs import activity, dense, packed, select, updated

KERNEL = dense(6, 4)
CONV = bb.Kernel("w", (3, 3, 4, 16), spatial=(0, 1), fan_in=(2,), fan_out=(3,))
GROUPED = bb.Kernel(
    "w",
    (2, 8, 6),
    groups=2,
    split=(2, 8, 2, 3),
    roles=("spatial", "in", "group", "out"),
)
STACKED = bb.Kernel("w", (3, 5, 7), stack=(0,), fan_in=(1,), fan_out=(2,))
BY_KIND = pytest.mark.parametrize(
    "kernel",
    [KERNEL, CONV, GROUPED, STACKED],
    ids=["dense", "conv", "grouped", "stack"],
)


# Bits ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "shape, axis",
    [
        ((16, 24), 0),  # both fit: not the last one
        ((24, 16), 0),
        ((24, 13), 0),  # only the first fits
        ((13, 24), 1),  # only the last fits
        ((13, 23), 1),  # neither fits: 24 / 23 wastes less than 16 / 13
        ((3, 8), 1),
        ((1, 1), 0),
    ],
)
def test_packed_axis_wastes_no_bits_and_is_not_the_last_if_it_need_not_be(shape, axis):
    assert packed_axis(dense(*shape)) == axis


def test_packed_axis_is_the_longest_of_those_that_fit():
    kernel = bb.Kernel("w", (8, 32, 16), stack=(0,), fan_in=(1,), fan_out=(2,))
    assert packed_axis(kernel) == 1


@given(st.integers(1, 40), st.integers(1, 40))
def test_no_axis_would_take_fewer_bytes(n_in, n_out):
    kernel = dense(n_in, n_out)
    sizes = [-(-n_in // 8) * n_out, n_in * -(-n_out // 8)]
    assert sizes[packed_axis(kernel)] == min(sizes)


@BY_KIND
def test_unpack(kernel):
    mask = np.random.random(kernel.edge_shape) < 0.4
    np.testing.assert_array_equal(unpack(kernel, packed(kernel, mask)), mask)


@pytest.mark.long
@BY_KIND
def test_masks_are_stored_as_bits(kernel, getkey):
    tx = bb.transform(select(kernel), bb.rules.magnitude(), density=0.5, start=0)
    w = jax.random.normal(getkey(), kernel.shape)
    _, state = updated(tx, tx.init({"w": w}), w, jnp.zeros_like(w))
    mask = unpack(kernel, state.bb_masks["w"])
    slices = mask.size // kernel.edge_count
    assert mask.sum() == slices * round(0.5 * kernel.edge_count)
    np.testing.assert_array_equal(state.bb_masks["w"], packed(kernel, np.asarray(mask)))


@BY_KIND
def test_full_mask_has_the_shape_of_the_kernel_and_whole_windows(kernel):
    mask = np.random.random(kernel.edge_shape) < 0.4
    full = np.asarray(full_mask(kernel, packed(kernel, mask)))
    assert full.shape == kernel.shape and full.dtype == bool
    window = np.prod(kernel.split) // mask.size
    kept = kernel.sum_spatial(jnp.asarray(full.reshape(kernel.split), jnp.int32))
    np.testing.assert_array_equal(kept, window * mask)


@BY_KIND
def test_everything_is_kept_at_first(kernel):
    state = bb.transform(select(kernel)).init({"w": jnp.zeros(kernel.shape)})
    assert bb.masks(state)["w"].all() and bb.masks(state)["w"].shape == kernel.shape
    np.testing.assert_array_equal(
        bb.degrees_of(state)["w"],
        np.full(kernel.stack_shape + kernel.out_units, kernel.fan("in")),
    )
    everything = packed(kernel, np.ones(kernel.edge_shape, bool))
    np.testing.assert_array_equal(state.bb_masks["w"], everything)  # and no stray bits


# Running means -------------------------------------------------------------------
def observe(means, rate, count, decay):
    rate = jnp.asarray(rate, jnp.float32)
    count = None if count is None else jnp.asarray(count, jnp.float32)
    side = Statistics(on_rate=rate, count=count)
    return update_means(means, Activity(side, side), decay)


def no_means(units=3):
    zeros = jnp.zeros(units)
    return {"outputs.on_rate": zeros, "outputs.weight": zeros}


@given(
    st.lists(
        st.lists(
            st.one_of(st.floats(0, 1, width=32), st.none(), st.just(np.nan)),
            min_size=3,
            max_size=3,
        ),
        max_size=6,
    ),
    st.sampled_from([0.0, 0.5, 0.9, 0.99]),
)
def test_the_mean_is_the_weighted_one_of_what_was_observed(rows, decay):
    """None is a unit without samples, NaN one whose statistic is not finite."""
    means = no_means()
    for row in rows:
        rate = [0.25 if x is None else x for x in row]
        means = observe(means, rate, [0 if x is None else 9 for x in row], decay)
    want = []
    for unit in range(3):
        seen = [r[unit] for r in rows if r[unit] is not None and np.isfinite(r[unit])]
        weights = [decay ** (len(seen) - 1 - i) for i in range(len(seen))]
        want.append(np.average(seen, weights=weights) if seen else 0.5)
    got = read_mean(means, "outputs.on_rate")
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


def test_missing_counts_mean_that_all_were_observed():
    means = observe(no_means(), [0.1, 0.2, 0.3], None, 0.9)
    np.testing.assert_allclose(
        read_mean(means, "outputs.on_rate"), [0.1, 0.2, 0.3], rtol=1e-6
    )


def test_sizes_are_those_of_the_other_units_until_they_are_observed():
    means = {"inputs.mean_square": jnp.zeros(2), "inputs.weight": jnp.zeros(2)}
    assert read_mean(means, "inputs.mean_square").tolist() == [1, 1]
    side = Statistics(jnp.ones(2), jnp.array([1.0, 0.0]), mean_square=jnp.full(2, 7.0))
    means = update_means(means, Activity(side, side), 0.9)
    np.testing.assert_allclose(
        read_mean(means, "inputs.mean_square"), [7, 7], rtol=1e-6
    )


def test_a_mean_forgets_at_the_rate_of_its_decay():
    means = no_means(1)
    for rate in [1.0] * 30 + [0.0] * 10:
        means = observe(means, [rate], [1.0], 0.9)
    want = 0.9**10 * (1 - 0.9**30) / (1 - 0.9**40)
    np.testing.assert_allclose(read_mean(means, "outputs.on_rate"), [want], rtol=1e-5)


def test_a_long_run_does_not_stop_moving():
    """Ten thousand observations: a mean in half precision would stand still."""

    def step(means, rate):
        return observe(means, rate[None], None, 0.999), None

    rates = jnp.concatenate([jnp.full(5000, 0.5), jnp.full(5000, 0.501)])
    means, _ = jax.jit(lambda m: jax.lax.scan(step, m, rates))(no_means(1))
    assert means["outputs.on_rate"].dtype == jnp.float32
    np.testing.assert_allclose(read_mean(means, "outputs.on_rate"), [0.501], atol=1e-4)


def test_activity_is_taken_in_also_between_refreshes():
    tx = bb.transform(select(KERNEL), start=0, every=100, ema=0.0, density=0.5)
    w = jnp.ones(KERNEL.shape)
    state = tx.init({"w": w})
    for rate in (0.2, 0.9):
        seen = activity(KERNEL, outputs=np.full(4, rate))
        _, state = updated(tx, state, w, jnp.zeros_like(w), seen)
        np.testing.assert_allclose(bb.on_rates(state)["w"], np.full(4, rate), rtol=1e-6)


# Reading -------------------------------------------------------------------------
PARAMS = {"w": jnp.ones(KERNEL.shape), "b": jnp.ones(4)}
PRUNE = bb.transform(select(KERNEL))
PLACES = {
    "alone": PRUNE,
    "chain": optax.chain(optax.adam(1.0), PRUNE),
    "chain of chains": optax.chain(optax.chain(optax.sgd(1.0), PRUNE)),
    "wrap": bb.wrap(optax.adam(1.0), select(KERNEL)),
    "MultiSteps": optax.MultiSteps(optax.chain(optax.adam(1.0), PRUNE), 4),
    "partition": optax.partition(
        {"pruned": optax.chain(optax.adam(1.0), PRUNE), "dense": optax.sgd(1.0)},
        {"w": "pruned", "b": "dense"},
    ),
    "inject": optax.inject_hyperparams(
        lambda density: bb.transform(select(KERNEL), density=density)
    )(density=0.5),
    "apply_if_finite": optax.apply_if_finite(optax.chain(optax.adam(1.0), PRUNE), 3),
}


@pytest.mark.parametrize("place", PLACES)
def test_found_at_any_depth(place):
    state = PLACES[place].init(PARAMS)
    (found,) = find(state)
    assert isinstance(found, PruneState)
    assert bb.masks(state)["w"].all()
    assert bb.degrees_of(state)["w"].tolist() == [6] * 4
    assert bb.on_rates(state)["w"].tolist() == [0.5] * 4


def test_found_in_an_object_that_holds_the_optimizer_state():
    held = types.SimpleNamespace(opt_state=PLACES["chain"].init(PARAMS))
    assert bb.masks(held)["w"].all()


def test_found_under_jit_and_in_shapes():
    state = PLACES["chain"].init(PARAMS)
    masks = jax.jit(bb.masks)(state)
    assert masks["w"].shape == KERNEL.shape
    shapes = jax.eval_shape(PLACES["chain"].init, PARAMS)
    assert jax.eval_shape(bb.masks, shapes)["w"].shape == KERNEL.shape


def test_two_transforms_are_both_read():
    kernels = dense(6, 4, "a"), dense(8, 3, "b")
    params = {"a": jnp.ones((6, 4)), "b": jnp.ones((8, 3))}
    tx = optax.chain(*(bb.transform(select(k)) for k in kernels))
    state = tx.init(params)
    assert len(find(state)) == 2
    assert {p: m.shape for p, m in bb.masks(state).items()} == {
        "a": (6, 4),
        "b": (8, 3),
    }
    values = jax.eval_shape(bb.metrics, state)
    assert "a/churn" in values and "b/churn" in values


def test_both_sides_have_a_name_each():
    state = bb.transform(select(KERNEL, "in", "out")).init({"w": PARAMS["w"]})
    shapes = {name: k.shape for name, k in bb.degrees_of(state).items()}
    assert shapes == {"w:in": (4,), "w:out": (6,)}
    assert bb.on_rates(state).keys() == shapes.keys()
    assert bb.masks(state).keys() == {"w"}


def test_fields_are_found_by_name_in_any_chain():
    state = PLACES["chain"].init(PARAMS)
    assert optax.tree.get(state, "bb_masks")["w"].dtype == jnp.uint8
    assert optax.tree.get(state, "bb_count") == 0


def test_the_plan_has_no_leaves():
    state = PRUNE.init(PARAMS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    # Count, mask, 2 means, dormant, churn, stray, density, k_min.
    assert len(jax.tree.leaves(state)) == 9


def test_one_bit_per_weight_and_nothing_else_without_regrowth():
    kernel = dense(64, 32)
    weights = {"w": jnp.ones(kernel.shape)}
    sizes = {
        regrow: sum(
            leaf.nbytes
            for leaf in jax.tree.leaves(
                bb.transform(select(kernel), regrow=regrow).init(weights)
            )
        )
        for regrow in (True, False)
    }
    per_unit = 2 * 4 * 32 + 5 * 4  # and count, churn, stray, density, k_min
    assert sizes[False] == 64 * 32 // 8 + per_unit
    assert sizes[True] == sizes[False] + 4 * 64 * 32


# The step counter ------------------------------------------------------------------
LAST = 2**31 - 1


@pytest.mark.long
@pytest.mark.parametrize(
    "every, start", [(1, 0), (7, 3), (100, 100), (100, LAST - 250)]
)
def test_refreshes_go_on_past_the_last_number_that_int32_holds(every, start):
    """On schedule: as often, and as far apart, as before."""
    tx = bb.transform(
        select(KERNEL), bb.rules.magnitude(), every=every, start=start, density=0.5
    )
    first = LAST - 3 * every // 2
    state = tx.init(PARAMS)._replace(bb_count=jnp.int32(first))
    moved = iter(np.random.default_rng(0).permutation(10_000))

    def step(state, n):
        w = jax.random.normal(jax.random.key(n), KERNEL.shape)
        _, new = tx.update({"w": w}, state, {"w": w})
        return new, (jnp.any(new.bb_masks["w"] != state.bb_masks["w"]), new.bb_count)

    seeds = jnp.asarray([next(moved) for _ in range(4 * every)])
    _, (changed, counts) = jax.jit(lambda s: jax.lax.scan(step, s, seeds))(state)
    at = np.flatnonzero(changed)
    assert len(at) == 4 and set(np.diff(at)) == {every}
    assert (first + at[0] - start) % every == 0
    assert (np.asarray(counts) >= min(start, 2**30)).all()


@pytest.mark.long
def test_masks_stay_past_the_last_number_where_refreshes_have_an_end():
    tx = bb.transform(select(KERNEL), bb.rules.magnitude(), start=0, every=1, stop=LAST)
    state = tx.init(PARAMS)._replace(bb_count=jnp.int32(LAST))
    step, w = jax.jit(tx.update), jnp.asarray(np.random.normal(size=KERNEL.shape), "f4")
    for _ in range(2):
        _, new = step({"w": w}, state, {"w": w})
        np.testing.assert_array_equal(new.bb_masks["w"], state.bb_masks["w"])
        assert new.bb_count == LAST
        state = new


def test_dormant_weights_in_half_precision():
    tx = bb.transform(select(KERNEL), dormant_dtype=jnp.bfloat16)
    assert tx.init(PARAMS).bb_dormant["w"].dtype == jnp.bfloat16
    assert PRUNE.init(PARAMS).bb_dormant["w"].dtype == jnp.float32


@pytest.mark.long
def test_a_stack_of_more_edges_than_an_int32_counts():
    """Counts are of slices, and shares of a whole stack floats."""
    stack, n_in, n_out = 33, 2**13, 2**14
    like = jax.ShapeDtypeStruct
    kernel = bb.Kernel(
        "up", (stack, n_in, n_out), fan_in=(1,), fan_out=(2,), stack=(0,)
    )
    units = bb.Units((kernel,)).select("up", "in")
    params = {"up": like(kernel.shape, jnp.float32)}
    sides = (
        Statistics(
            on_rate=like((stack, n), jnp.float32), count=like((stack, n), jnp.float32)
        )
        for n in (n_in, n_out)
    )
    seen = {"up": Activity(*sides)}
    for rule in (None, bb.rules.magnitude(), bb.rules.random()):
        tx = bb.transform(units, rule, density=0.3)
        state = jax.eval_shape(tx.init, params)
        _, after = jax.eval_shape(tx.update, params, state, params, activity=seen)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
        for read in (bb.masks, bb.degrees_of, bb.metrics, bb.on_rates):
            jax.eval_shape(read, after)
