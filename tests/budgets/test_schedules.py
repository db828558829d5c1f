"""The density ramp, against its formula in fractions."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbjax.budgets.schedules import ramp


def exact(step: int, density: float, start: int, steps: int, power: int) -> float:
    if steps == 0:
        return 1.0 if step < start else density
    t = min(max(Fraction(step - start, steps), Fraction(0)), Fraction(1))
    return float(Fraction(density) + (1 - Fraction(density)) * (1 - t) ** power)


@given(
    st.integers(0, 400),
    st.floats(0.01, 1),
    st.integers(0, 200),
    st.integers(0, 200),
    st.sampled_from([1, 2, 3]),
)
def test_is_the_formula(step, density, start, steps, power):
    value = ramp(density, start, steps, power)(step)
    assert value.dtype == jnp.float32 and value.shape == ()
    np.testing.assert_allclose(value, exact(step, density, start, steps, power), 1e-6)


@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize("density", [0.01, 0.3, 0.7, 1.0])
def test_ends_are_exact_and_it_never_rises(density, power):
    values = np.asarray(ramp(density, 100, 997, power)(jnp.arange(1300)))
    assert (values[:101] == 1).all()
    assert (values[100 + 997 :] == np.float32(density)).all()
    assert (np.diff(values) <= 0).all() and values.max() == 1


def test_cubic_is_below_linear():
    inside = jnp.arange(101, 199)
    assert (ramp(0.1, 100, 100, 3)(inside) < ramp(0.1, 100, 100)(inside)).all()


def test_no_steps_is_a_jump():
    assert ramp(0.5, 3, 0)(jnp.arange(6)).tolist() == [1, 1, 1, 0.5, 0.5, 0.5]
    assert float(ramp(0.5, 0, 0)(0)) == 0.5


@pytest.mark.parametrize("kind", [int, np.int64, jnp.int32, jnp.uint32, jnp.int16])
def test_any_integer_step(kind):
    schedule = ramp(0.5, 100, 200)
    for step, value in [(0, 1.0), (200, 0.75), (301, 0.5)]:
        assert float(schedule(kind(step))) == value
        assert float(jax.jit(schedule)(kind(step))) == value


def test_late_steps_are_told_apart():
    schedule = ramp(0.5, 2**30, 4)
    steps = [2**30 + i for i in range(6)]
    assert [float(schedule(s)) for s in steps] == [1, 0.875, 0.75, 0.625, 0.5, 0.5]
    assert float(schedule(2**31 - 1)) == 0.5


def test_inside_vmap_and_scan():
    schedule, steps = ramp(0.2, 2, 5, 3), jnp.arange(9)
    scanned = jax.lax.scan(lambda n, _: (n + 1, schedule(n)), 0, length=9)[1]
    np.testing.assert_allclose(scanned, schedule(steps), 1e-6)
    np.testing.assert_allclose(jax.vmap(schedule)(steps), schedule(steps), 1e-6)


def test_final_density_may_be_traced():
    final = jax.vmap(lambda d: ramp(d, 0, 10)(5))(jnp.array([0.5, 1.0]))
    assert final.tolist() == [0.75, 1.0]


@pytest.mark.parametrize("density", [0, 1.5, float("nan")])
def test_bad_density(density):
    with pytest.raises(ValueError, match=r"density: expected .*\(0, 1\], got .*; pass"):
        ramp(density, 0, 10)


@pytest.mark.parametrize("power", [0, -1, float("inf"), float("nan")])
def test_bad_power(power):
    with pytest.raises(ValueError, match=r"expected power in \(0, inf\), got .*; u"):
        ramp(0.5, 0, 10, power)


@pytest.mark.long
def test_bad_counts():
    with pytest.raises(ValueError, match=r"start: expected .*got -1; .* update"):
        ramp(0.5, -1, 10)
    with pytest.raises(ValueError, match=r"steps: expected .*got -1; .* updates"):
        ramp(0.5, 0, -1)
    with pytest.raises(ValueError, match=r"steps: expected an int in \[0, 0\], got 1"):
        ramp(0.5, 2**31 - 1, 1)
    with pytest.raises(TypeError, match=r"start: expected an int .*got 0\.5"):
        ramp(0.5, 0.5, 10)
    with pytest.raises(TypeError, match=r"steps: expected an int .*got 10\.0"):
        ramp(0.5, 0, 10.0)
