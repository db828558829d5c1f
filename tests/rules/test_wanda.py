"""Wanda: the published case, what its score is, and its budget."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.rules import wanda
from tests.support.runs import candidates, dense

X = np.array(
    [[1, 2, 0, 1], [0, 1, 1, 3], [2, 0, 1, 1], [1, 1, 2, 0], [3, 1, 0, 2]], np.float32
)
W = np.array([[1, -2, 0.5, 3], [0.1, 0.2, -4, 1]], np.float32).T  # (in, out)
RULE = wanda()
STACKED = bb.Kernel("w", (2, 6, 9), stack=(0,), fan_in=(1,), fan_out=(2,))
CONV = bb.Kernel("w", (3, 3, 4, 5), spatial=(0, 1), fan_in=(2,), fan_out=(3,))


def select(kernel, w, square, budget, **rest):
    seen = candidates(kernel, w, budget, **rest)
    statistics = seen.statistics | {"inputs.mean_square": square}
    return RULE.select(dataclasses.replace(seen, statistics=statistics))


compiled = jax.jit(
    select,
    static_argnames=("kernel", "actuators", "k_min", "regrow", "pattern"),
)


def chosen(kernel, w, square, budget, jit=True, **rest):
    w, square = jnp.asarray(w), jnp.asarray(square, jnp.float32)
    return np.asarray((compiled if jit else select)(kernel, w, square, budget, **rest))


def keep(score, k):
    """Each column's k best, ties to the lowest index."""
    order = np.argsort(-score, axis=0, kind="stable")
    return np.argsort(order, axis=0, kind="stable") < k


@pytest.mark.parametrize("pattern", [None, bb.n_m(2, 4)], ids=str)
def test_published_case(pattern):
    """Of four edges two stay, so that the pattern says the same."""
    mask = chosen(dense(4, 2), W, np.mean(X**2, axis=0), 4, pattern=pattern)
    np.testing.assert_array_equal(mask.T, [[0, 1, 0, 1], [0, 0, 1, 1]])


@pytest.mark.long
def test_from_calibration_to_parameters():
    params = {"w": jnp.asarray(W)}
    units = bb.trace(lambda p, x: x @ p["w"], params, X).select("w")
    stats = bb.calibrate(
        lambda p, x: x @ p["w"], units, params, [(X[:2],), (X[2:],)], needs=RULE.needs
    )
    pruned, masks = bb.prune(params, units, RULE, density=0.5, stats=stats)
    np.testing.assert_array_equal(masks["w"].T, [[0, 1, 0, 1], [0, 0, 1, 1]])
    np.testing.assert_array_equal(pruned["w"], W * np.asarray(masks["w"]))


def test_inputs_of_one_size_leave_magnitude():
    w = np.random.normal(size=(12, 10)).astype(np.float32)
    mask = chosen(dense(12, 10), w, np.full(12, 0.7), 40)
    np.testing.assert_array_equal(mask, keep(np.abs(w), 4))


def test_a_large_input_saves_small_weights():
    w = np.random.normal(size=(12, 10)).astype(np.float32)
    w[3] *= 0.01
    square = np.ones(12)
    assert not chosen(dense(12, 10), w, square, 40)[3].any()
    square[3] = 1e8
    assert chosen(dense(12, 10), w, square, 40)[3].all()


@pytest.mark.long
def test_scores_of_a_convolution_are_summed_over_the_window():
    w = np.random.normal(size=CONV.shape).astype(np.float32)
    square = np.random.uniform(0.1, 3.0, 4)
    mask = chosen(CONV, w, square, 10)
    score = np.abs(w).sum((0, 1)) * np.sqrt(square)[:, None]
    np.testing.assert_array_equal(mask, keep(score, 2))


@pytest.mark.long
def test_outgoing_edges_do_not_see_the_norm():
    """It is the same for all edges of the unit."""
    w = np.random.normal(size=(12, 10)).astype(np.float32)
    square = np.random.uniform(0.1, 3.0, 12)
    mask = chosen(dense(12, 10), w, square, 36, actuators=("out",))
    np.testing.assert_array_equal(mask, keep(np.abs(w).T, 3).T)


@pytest.mark.long
@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("actuators", [("in",), ("in", "out")], ids="+".join)
def test_budget_is_exact(density, actuators):
    w = np.random.normal(size=STACKED.shape).astype(np.float32)
    square = np.random.uniform(size=(2, 6))
    budget = max(round(density * 54), 9)
    mask = chosen(STACKED, w, square, budget, actuators=actuators)
    np.testing.assert_array_equal(mask.sum((1, 2)), budget)
    if actuators == ("in",):
        assert np.ptp(mask.sum(1)) <= 1


def test_jit_changes_nothing_and_permuted_units_permute_masks():
    w = np.random.normal(size=(12, 10)).astype(np.float32)
    square = np.random.uniform(size=12).astype(np.float32)
    mask = chosen(dense(12, 10), w, square, 40)
    eager = chosen(dense(12, 10), w, square, 40, jit=False)
    np.testing.assert_array_equal(eager, mask)
    rows, columns = np.random.permutation(12), np.random.permutation(10)
    mixed = chosen(dense(12, 10), w[rows][:, columns], square[rows], 40)
    np.testing.assert_array_equal(mixed, mask[rows][:, columns])


def test_bfloat16_is_scored_in_float32():
    w = jnp.asarray(np.random.normal(size=(12, 10)), jnp.bfloat16)
    square = np.random.uniform(size=12).astype(np.float32)
    wanted = chosen(dense(12, 10), w.astype(jnp.float32), square, 40)
    np.testing.assert_array_equal(chosen(dense(12, 10), w, square, 40), wanted)


def test_weights_that_are_not_finite_go_first():
    w = np.random.normal(size=(12, 10)).astype(np.float32)
    w[2, 3] = np.nan
    mask = chosen(dense(12, 10), w, np.ones(12), 110)
    assert not mask[2, 3] and mask.sum() == 110


@pytest.mark.long
def test_works_while_training():
    """With running means in place of a calibration."""
    params = {"up": jnp.asarray(W), "down": jnp.ones((2, 1))}

    def fn(p, x):
        return jnp.sum(jax.nn.relu(x @ p["up"]) @ p["down"])

    units = bb.trace(fn, params, X).select("up")
    tx = bb.transform(units, RULE, density=0.5, start=0)
    seen = bb.observe(fn, units, needs=RULE.needs)
    _, activity = jax.jit(seen)(params, X)
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = jax.jit(tx.update)(zeros, tx.init(params), params, activity=activity)
    np.testing.assert_array_equal(
        np.asarray(bb.masks(state)["up"]).T, [[0, 1, 0, 1], [0, 0, 1, 1]]
    )
