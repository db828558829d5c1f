"""Checks of numbers that users pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbjax.model.numbers import (
    are_numbers,
    check_called,
    check_flag,
    check_int,
    check_number,
    check_seed,
)


def test_ints_are_checked():
    assert check_int("n", np.int64(3), 0, 3, "why") == 3
    with pytest.raises(ValueError, match=r"n: expected an int in \[0, 3\], got 4; why"):
        check_int("n", 4, 0, 3, "why")
    with pytest.raises(TypeError, match=r"n: expected an int in .*, got 2.0; why"):
        check_int("n", 2.0, 0, 3, "why")
    for bad in ("2", True, np.True_, jnp.array(True), None, np.ones(2, int)):
        with pytest.raises(TypeError, match="n: expected an int .*, got .*; why"):
            check_int("n", bad, 0, 3, "why")
    assert check_int("n", jnp.array(2), 0, 3, "why") == 2
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


@pytest.mark.parametrize(
    "bad",
    ["many", "0.5", b"0", None, [1], np.ones(1), jnp.ones(2), True, np.True_, 0.5j],
)
def test_what_is_no_number(bad):
    with pytest.raises(TypeError, match="expected x to be a number, got .*; why"):
        check_number("x", bad, "[0, 1)", "why")


def test_traced_numbers_pass():
    assert jax.jit(lambda x: check_number("x", x, "[0, 1)", "why"))(2.0) == 2.0


@pytest.mark.parametrize(
    "number, inside, rounded",
    [
        (0.99999999, "[0, 1)", "1.0"),
        (1e-50, "(0, inf)", "0.0"),
        (1e300, "[0, inf)", "inf"),
        (0.49999999999, "[0, 0.5)", "0.5"),
    ],
)
def test_numbers_that_float32_cannot_tell_from_one_outside(number, inside, rounded):
    text = f"got {number!r}, in float32 {rounded}; why".replace("+", r"\+")
    with pytest.raises(ValueError, match=text):
        check_number("x", number, inside, "why")


def test_tiny_numbers_are_0_where_0_is_allowed():
    assert check_number("x", 1e-50, "[0, 1)", "why") == 1e-50


def test_what_numbers_are():
    good = (1, 0.5, np.float16(1), np.ones(2, int), jnp.ones(2, jnp.bfloat16), [1, 2.0])
    assert all(map(are_numbers, good))
    bad = (True, "1", None, [True], np.array("1"), jnp.array(False), 1j, {}, [1, "1"])
    assert not any(map(are_numbers, bad))


def test_flags():
    assert check_flag("f", True) is True and check_flag("f", np.False_) is False
    for bad in (1, 0, "yes", None, jnp.array(True)):
        with pytest.raises(TypeError, match="expected f to be True or False, got"):
            check_flag("f", bad)
    with pytest.raises(TypeError, match="expected f to be True or False"):
        jax.jit(lambda f: check_flag("f", f))(True)


def test_seeds():
    assert [check_seed(s) for s in (-1, np.uint32(7), 2**32 - 1)] == [-1, 7, 2**32 - 1]
    assert int(jax.jit(check_seed)(3)) == 3
    with pytest.raises(TypeError, match="seed: expected an int .*, got '3'; it starts"):
        check_seed("3")
    with pytest.raises(ValueError, match="seed: expected an int .*, got 4294967296"):
        check_seed(2**32)


def test_factories_that_were_not_called():
    check_called("f", jnp.square, "x", "g(1)")
    check_called("f", max, "x", "g(1)")  # no signature is known
    text = r"expected f to be a function of x, got factory\(a, b\); call a .*, e.g. g"
    with pytest.raises(TypeError, match=text):
        check_called("f", factory, "x", "g(1)")


def factory(a, b):
    return a, b


def test_closed_ends_are_inside_whatever_float32_makes_of_them():
    for end in (1e-6, 0.1, 0.3):
        assert check_number("x", end, f"[{end}, 1]", "why") == end
        assert check_number("x", end, f"[0, {end}]", "why") == end
