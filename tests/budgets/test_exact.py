"""The budget to the edge, against Python's integers and fractions."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bbjax.budgets.exact import check_density, exact_budget

MOST = 2**31 - 1
EDGES = st.one_of(
    st.integers(0, MOST), st.sampled_from([0, 1, 2, 3, 2**24 + 1, MOST - 1, MOST])
)


def exact(density: np.float32, edges: int) -> int:
    return round(Fraction(float(density)) * edges)


def floats_in_unit_interval(bits: list[int]) -> np.ndarray:
    """Every float32 of [0, 1], subnormals too, is one of the bit patterns."""
    return np.array([b % 0x3F800001 for b in bits], np.uint32).view(np.float32)


@given(EDGES, st.lists(st.integers(0, 2**32), min_size=32, max_size=32))
def test_array_density_is_rounded_exactly(edges, bits):
    densities = floats_in_unit_interval(bits)
    got = np.asarray(exact_budget(jnp.asarray(densities), edges))
    assert got.tolist() == [exact(d, edges) for d in densities]


@given(
    st.lists(EDGES, min_size=8, max_size=8),
    st.lists(st.integers(0, 2**32), min_size=8, max_size=8),
)
def test_edges_may_be_an_array(edges, bits):
    densities, counts = floats_in_unit_interval(bits), np.array(edges, np.int32)
    got = jax.jit(exact_budget)(jnp.asarray(densities), jnp.asarray(counts))
    assert got.tolist() == [exact(*pair) for pair in zip(densities, edges, strict=True)]
    one = exact_budget(float(densities[0]), jnp.asarray(counts))
    assert one.tolist() == [exact(densities[0], n) for n in edges]


@pytest.mark.long
@given(EDGES, st.integers(1, 31), st.integers(0, 2**24 - 1))
@example(MOST, 1, 1)
def test_halves_go_to_the_even_number(edges, shift, odd):
    density = np.float32((odd | 1) % 2 ** min(shift, 24) / 2**shift)
    assert int(exact_budget(jnp.asarray(density), edges)) == exact(density, edges)


@pytest.mark.long
@given(EDGES, st.floats(0, 1))
def test_python_float_is_pythons_round(edges, density):
    budget = exact_budget(density, edges)
    assert budget.dtype == jnp.int32 and int(budget) == round(density * edges)


@pytest.mark.long
@pytest.mark.parametrize("edges", [1, 7, 300_000_007, MOST])
def test_traced_equals_concrete(edges):
    densities = jnp.asarray(np.linspace(0.001, 1, 64, dtype=np.float32))
    want = [exact(d, edges) for d in np.asarray(densities)]
    jitted = jax.jit(lambda d: exact_budget(d, edges))
    assert jitted(densities).tolist() == want
    assert jax.vmap(jitted)(densities).tolist() == want


@pytest.mark.long
def test_float32_product_would_miss():
    density, edges = np.float32(0.7), 300_000_000
    naive = int(np.round(density * np.float32(edges)))
    assert naive != exact(density, edges) == int(exact_budget(jnp.float32(0.7), edges))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_widened_first(dtype):
    density = jnp.asarray(0.7, dtype)
    assert int(exact_budget(density, 10**9)) == exact(np.float32(density), 10**9)


@pytest.mark.long
def test_float64_keeps_its_digits():
    with jax.enable_x64(True):
        density = jnp.asarray(0.7, jnp.float64)
        budget = jax.jit(lambda d: exact_budget(d, 300_000_000))(density)
    assert budget.dtype == jnp.int32 and int(budget) == 210_000_000


@pytest.mark.long
def test_arrays_outside_the_range_are_clipped():
    wild = jnp.array([jnp.nan, 2.0, jnp.inf, -1.0, -jnp.inf, -0.0])
    assert exact_budget(wild, 10).tolist() == [10, 10, 10, 0, 0, 0]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("density", [0, 0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_density_outside_its_range_is_refused(density):
    with pytest.raises(ValueError, match=r"density: expected .* \(0, 1\], got .*pass"):
        check_density(density)
    with pytest.raises(ValueError, match=r"density: expected .* \(0, 1\], got .*pass"):
        check_density(jnp.array([0.5, density]), (2,))


@pytest.mark.long
def test_density_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"or shape \(3,\), got \(2,\); pass one"):
        check_density(jnp.ones(2), (3,))


@pytest.mark.long
def test_traced_density_is_not_looked_at():
    jax.jit(check_density)(2.0)
