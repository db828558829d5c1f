"""Checks of numbers that users pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbjax.model.numbers import check_int, check_number


def test_ints_are_checked():
    assert check_int("n", np.int64(3), 0, 3, "why") == 3
    with pytest.raises(ValueError, match=r"n: expected an int in \[0, 3\], got 4; why"):
        check_int("n", 4, 0, 3, "why")
    with pytest.raises(TypeError, match=r"n: expected an int in .*, got 2.0; why"):
        check_int("n", 2.0, 0, 3, "why")
    with pytest.raises(TypeError, match="n: expected an int"):
        jax.jit(lambda n: check_int("n", n, 0, 3, "why"))(2)


@pytest.mark.parametrize("number", [0, 0.5, np.float32(0.25), jnp.array(0.75)])
def test_numbers_of_any_type_are_floats(number):
    assert check_number("x", number, "[0, 1)", "why") == float(number)


@pytest.mark.parametrize("bad", [-1, 1, float("nan"), float("inf")])
def test_numbers_outside_of_an_interval(bad):
    with pytest.raises(ValueError, match=r"expected x in \[0, 1\), got .*; why"):
        check_number("x", bad, "[0, 1)", "why")
    with pytest.raises(ValueError, match=r"expected x in \(1, inf\), got .*; why"):
        check_number("x", bad, "(1, inf)", "why")


@pytest.mark.parametrize("bad", ["many", None, [1], np.ones(1), jnp.ones(2)])
def test_what_is_no_number(bad):
    with pytest.raises(TypeError, match="expected x to be a number, got .*; why"):
        check_number("x", bad, "[0, 1)", "why")


def test_traced_numbers_pass():
    assert jax.jit(lambda x: check_number("x", x, "[0, 1)", "why"))(2.0) == 2.0
