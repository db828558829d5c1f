"""RIA: the formula against numpy, kernels of all forms, zeros, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.rules import magnitude, ria
from tests.support.runs import candidates, dense

RULE = ria()


def select(kernel, w, square, budget, rule=RULE, **rest):
    seen = candidates(kernel, jnp.asarray(w), budget, **rest)
    square = jnp.asarray(square, jnp.float32)
    statistics = seen.statistics | {"inputs.mean_square": square}
    return np.asarray(rule.select(dataclasses.replace(seen, statistics=statistics)))


def score(w, square, exponent=0.5):
    """The formula of one matrix (in, out), sum by sum."""
    size, found = np.abs(np.asarray(w, np.float64)), np.zeros(np.shape(w))
    for i, j in np.ndindex(*size.shape):
        if size[i, j]:
            shares = size[i, j] / size[:, j].sum() + size[i, j] / size[i].sum()
            found[i, j] = shares * np.sqrt(square[i]) ** exponent
    return found


def keep(scores, k):
    """Each column's k best, ties to the lowest index."""
    order = np.argsort(-scores, axis=0, kind="stable")
    return np.argsort(order, axis=0, kind="stable") < k


def layer(n=12, units=10):
    w = np.random.normal(size=(n, units)) * np.exp(np.random.normal(size=(n, 1)))
    return w.astype(np.float32), np.exp(2 * np.random.normal(size=n))


@pytest.mark.parametrize("exponent", [0, 0.5, 1, 2.5])
def test_the_formula(exponent):
    w, square = layer()
    mask = select(dense(12, 10), w, square, 40, ria(exponent))
    np.testing.assert_array_equal(mask, keep(score(w, square, exponent), 4))


def test_the_only_edge_of_an_input_is_kept():
    """By |w| and by Wanda's score it is the first to go."""
    w = np.ones((8, 6), np.float32)
    w[5] = 0.0
    w[5, 2] = 0.1
    assert select(dense(8, 6), w, np.ones(8), 6)[5, 2]


def test_without_activity_and_with_equal_inputs_shares_decide_alone():
    w, square = layer()
    shares = keep(score(w, np.ones(12)), 4)
    for rule, sizes in ((ria(0), square), (RULE, np.full(12, 0.3))):
        mask = select(dense(12, 10), w, sizes, 40, rule)
        np.testing.assert_array_equal(mask, shares)


def test_a_factor_of_all_weights_or_inputs_changes_nothing():
    w, square = layer()
    mask = select(dense(12, 10), w, square, 40)
    for factor in (2.0**-40, 2.0**40):
        same = select(dense(12, 10), w * np.float32(factor), square * factor, 40)
        np.testing.assert_array_equal(same, mask)


def test_rows_and_columns_of_zeros_and_dead_inputs():
    w, square = layer()
    w[3], w[:, 4], square[7] = 0.0, 0.0, 0.0
    mask = select(dense(12, 10), w, square, 40)
    np.testing.assert_array_equal(mask, keep(score(w, square), 4))
    nothing = select(dense(12, 10), 0 * w, square, 40)
    np.testing.assert_array_equal(nothing.sum(0), 4)


def test_a_weight_that_is_not_finite_goes_first_and_harms_no_other():
    w, square = layer()
    wanted = w.copy()
    wanted[2, 3] = wanted[6, 8] = 0.0
    w[2, 3], w[6, 8] = np.nan, np.inf
    mask = select(dense(12, 10), w, square, 40)
    others = [j for j in range(10) if j != 8]
    right = keep(score(wanted, square), 4)
    np.testing.assert_array_equal(mask[:, others], right[:, others])
    assert not mask[2, 3]


@pytest.mark.long
def test_slices_of_a_stack_are_layers_of_their_own():
    kernel = bb.Kernel("w", (12, 3, 10), fan_in=(0,), stack=(1,), fan_out=(2,))
    ws, squares = zip(*(layer() for _ in range(3)), strict=True)
    w, square = np.stack(ws, axis=1), np.stack(squares)
    mask = select(kernel, w, square, [40, 20, 60])
    for at, k in enumerate((4, 2, 6)):
        wanted = keep(score(w[:, at], square[at]), k)
        np.testing.assert_array_equal(mask[:, at], wanted)


@pytest.mark.long
def test_a_convolution_is_summed_over_its_window():
    kernel = bb.Kernel("w", (3, 3, 6, 5), spatial=(0, 1), fan_in=(2,), fan_out=(3,))
    w = np.random.normal(size=kernel.shape).astype(np.float32)
    square = np.random.uniform(0.1, 3.0, 6)
    mask = select(kernel, w, square, 10)
    np.testing.assert_array_equal(mask, keep(score(np.abs(w).sum((0, 1)), square), 2))


@pytest.mark.long
def test_sums_of_a_grouped_convolution_stay_inside_the_group():
    kernel = bb.Kernel(
        "w", (3, 4, 10), groups=2, split=(3, 4, 2, 5),
        roles=("spatial", "in", "group", "out"),
    )  # fmt: skip
    w = np.random.normal(size=kernel.split).astype(np.float32)
    square = np.random.uniform(0.1, 3.0, 8)
    mask = select(kernel, w, square, 20)
    sizes = np.abs(w).sum(0)
    for g in range(2):
        wanted = keep(score(sizes[:, g], square[4 * g : 4 * g + 4]), 2)
        np.testing.assert_array_equal(mask[:, g], wanted)


@pytest.mark.parametrize("actuators", [("out",), ("in", "out")], ids="+".join)
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_budgets_of_other_sides_are_exact(actuators, density):
    w, square = layer()
    budget = round(density * 120)
    mask = select(dense(12, 10), w, square, budget, actuators=actuators)
    assert mask.sum() == budget
    if actuators == ("out",) and budget == 60:
        np.testing.assert_array_equal(mask, keep(score(w, square).T, 5).T)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_scored_in_float32(dtype):
    w, square = layer()
    w = jnp.asarray(w, dtype)
    wanted = keep(score(w.astype(jnp.float32), square), 4)
    np.testing.assert_array_equal(select(dense(12, 10), w, square, 40), wanted)


@pytest.mark.long
def test_a_pattern_keeps_the_best_of_each_group():
    w, square = layer()
    mask = select(dense(12, 10), w, square, 60, pattern=bb.n_m(2, 4))
    scores = score(w, square).reshape(3, 4, 10)
    wanted = [keep(part, 2) for part in scores]
    np.testing.assert_array_equal(mask, np.concatenate(wanted))


@pytest.mark.long
def test_the_exponent_may_be_traced():
    w, square = layer()

    def run(exponent):
        seen = candidates(dense(12, 10), jnp.asarray(w), 40)
        statistics = seen.statistics | {"inputs.mean_square": jnp.asarray(square, "f4")}
        return ria(exponent).select(dataclasses.replace(seen, statistics=statistics))

    many = jax.jit(jax.vmap(run))(jnp.array([0.0, 0.5, 2.0]))
    for mask, exponent in zip(many, (0.0, 0.5, 2.0), strict=True):
        np.testing.assert_array_equal(mask, keep(score(w, square, exponent), 4))


def test_its_score_has_a_name_for_other_rules():
    """Edges of a layer compete, as the published code has them do by default."""
    w, square = layer()
    by_name = magnitude(score="ria")
    np.testing.assert_array_equal(
        select(dense(12, 10), w, square, 40, by_name),
        select(dense(12, 10), w, square, 40),
    )
    pooled = select(
        dense(12, 10), w, square, 40, magnitude(scope="layer", score="ria"), k_min=0
    )
    best = np.argsort(-score(w, square), axis=None)[:40]
    wanted = np.zeros(120, bool)
    wanted[best] = True
    np.testing.assert_array_equal(pooled.ravel(), wanted)


@pytest.mark.long
@pytest.mark.usefixtures("unchecked")
def test_bad_exponents():
    with pytest.raises(TypeError, match="expected exponent to be a number, got '1'"):
        ria("1")
    for bad in (-0.5, np.inf, np.nan):
        with pytest.raises(ValueError, match=r"expected exponent in \[0, inf\), got"):
            ria(bad)
