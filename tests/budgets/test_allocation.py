"""Densities as numbers of edges: the same for all, by path, by shape."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bbjax as bb
from bbjax.budgets.allocation import budgets
from tests.support.runs import dense

STEP = jnp.int32(0)
UP, DOWN, OUT = dense(20, 100, "up"), dense(100, 20, "down"), dense(20, 10, "out")
STACK = bb.Kernel("stack", (3, 8, 16), stack=(0,), fan_in=(1,), fan_out=(2,))
CONV = bb.Kernel("conv", (3, 3, 16, 32), spatial=(0, 1), fan_in=(2,), fan_out=(3,))


def edges(density, kernels, step=0, k_min=0):
    spent = budgets(density, kernels, jnp.int32(step), k_min)
    return [np.asarray(e) for e in spent.edges]


def test_one_density_rounds_for_every_kernel_and_slice():
    got = edges(0.33, [UP, STACK])
    assert got[0] == round(0.33 * 2000)
    np.testing.assert_array_equal(got[1], [round(0.33 * 128)] * 3)


def test_a_pool_rounds_once():
    """Three kernels of 5 edges at .3: 1.5 each rounds to 2, but 4.5 of 15 to 4."""
    three = [dense(5, 1, name) for name in "abc"]
    spent = budgets(0.3, three, STEP)
    assert [int(e) for e in spent.edges] == [2, 2, 2]
    assert int(spent.pool([0, 1, 2])) == round(0.3 * 15) == 4
    assert int(spent.pool([1])) == 2


def test_density_by_path_takes_the_first_match():
    by_path = {"^up$": 0.5, "o": 0.1, ".*": 0.9}
    assert [int(e) for e in edges(by_path, [UP, DOWN, OUT])] == [1000, 200, 20]


def test_density_by_path_may_be_scheduled():
    by_path = {"up": bb.ramp(0.2, 0, 10), ".*": 1.0}
    assert int(edges(by_path, [UP, DOWN], step=5)[0]) == 1200
    assert int(edges(by_path, [UP, DOWN], step=10)[0]) == 400


@pytest.mark.parametrize(
    "by_path, text",
    [
        ({"up": 0.5, "upp": 0.1, ".*": 1.0}, r"match a budgeted kernel, got \['upp'\]"),
        ({"up": 0.5}, r"density for every budgeted kernel, got none for \['down'\]"),
        ({"*": 0.5}, r"expected a regular expression, got '\*'.*write \"\.\*\""),
    ],
)
def test_patterns_that_fit_badly(by_path, text):
    with pytest.raises(ValueError, match=text):
        edges(by_path, [UP, DOWN])


def erdos_renyi(shapes, total):
    """Real-valued densities in fractions: dense layers are taken out one by one."""
    raw = {i: Fraction(sum(s), int(np.prod(s))) for i, s in enumerate(shapes)}
    size = [int(np.prod(s)) for s in shapes]
    full = set()
    while True:
        left = [i for i in raw if i not in full]
        rest = total - sum(size[i] for i in full)
        scale = rest / sum(raw[i] * size[i] for i in left)
        over = {i for i in left if scale * raw[i] > 1}
        if not over:
            return [Fraction(1) if i in full else scale * raw[i] for i in raw]
        full |= over


@pytest.mark.long
@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=4),
    st.integers(5, 100),
)
def test_erk_is_the_formula_and_spends_the_budget(shapes, percent):
    kernels = [dense(*shape, f"k{i}") for i, shape in enumerate(shapes)]
    total = sum(k.edge_count for k in kernels)
    got = edges(bb.erk(percent / 100), kernels)
    budget = round(percent / 100 * total)
    assert sum(got) == budget
    if budget:
        for n, density, kernel in zip(
            got, erdos_renyi(shapes, Fraction(budget)), kernels, strict=True
        ):
            assert abs(n - density * kernel.edge_count) < 2


@pytest.mark.long
def test_erk_counts_the_window_and_every_slice():
    """A slice of a stack is a layer; a convolution's window makes it sparser."""
    one_by_one = bb.Kernel(
        "c", (1, 1, 16, 32), spatial=(0, 1), fan_in=(2,), fan_out=(3,)
    )
    kernels = [CONV, one_by_one, STACK]
    got = edges(bb.erk(0.3), kernels)
    raw = [(3 + 3 + 16 + 32) / (9 * 512), (1 + 1 + 48) / 512, 24 / 128]
    share = [r * k.edge_count for r, k in zip(raw, kernels, strict=True)]
    total = round(0.3 * (512 + 512 + 3 * 128))
    scale = total / (share[0] + share[1] + 3 * share[2])
    for n, real in zip(got, share, strict=True):
        np.testing.assert_allclose(n, scale * real, atol=1.5)
    assert got[2].shape == (3,) and sum(n.sum() for n in got) == total


@pytest.mark.long
def test_erk_leaves_every_unit_its_floor():
    got = edges(bb.erk(0.06), [UP, OUT], k_min=[100, 10])
    assert sum(got) == round(0.06 * 2200) and got[0] >= 100 and got[1] >= 10


@pytest.mark.long
def test_everything_may_be_traced():
    def run(density, step):
        return budgets(bb.erk(density), [UP, DOWN, OUT], step).edges

    many = jax.jit(jax.vmap(run, (0, None)))(jnp.array([0.1, 0.5]), jnp.int32(3))
    assert [int(n) for n in sum(many)] == [round(0.1 * 4200), round(0.5 * 4200)]


@pytest.mark.long
def test_an_outcome_asks_for_everything():
    spent = budgets(None, [UP, STACK], STEP)
    assert int(spent.edges[0]) == 2000 and spent.edges[1].tolist() == [128] * 3
    assert np.isnan(spent.asked[0])
