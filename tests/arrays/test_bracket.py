"""The search for the last integer at which something holds, and keys of floats."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbjax.arrays.bracket import Bracket, bisect
from bbjax.arrays.keys import from_key, key, top_key

INT32 = jnp.iinfo(jnp.int32)


def found(f, limit, low, high):
    """For each limit the last integer with `f` at most the limit."""
    low, high = (jnp.full_like(limit, end, jnp.int32) for end in (low, high))
    start = Bracket(low, f(low), high, f(high))
    return jax.jit(lambda b: bisect(f, lambda value: value <= limit, b))(start)


def test_ends_are_neighbours_and_hold_what_f_is_there():
    limits = jnp.array([0, 1, 24, 25, 26, 80])
    b = found(lambda t: t * t, limits, 0, 9)
    assert b.low.tolist() == [0, 1, 4, 5, 5, 8]
    chex.assert_trees_all_equal(
        b, Bracket(b.low, b.low**2, b.low + 1, (b.low + 1) ** 2)
    )


def test_as_wide_as_the_integers_are():
    limits = jnp.array([INT32.min, -1, 0, 1, INT32.max - 1])
    b = found(lambda t: t, limits, INT32.min, INT32.max)
    chex.assert_trees_all_equal(b.low, limits)


def test_results_of_any_shape_and_number():
    weights = jnp.arange(6).reshape(2, 3)

    def f(t):
        return {"each": t[:, None] * weights, "all": t}

    start = Bracket(
        *(x for end in (0, 50) for x in (jnp.full(2, end), f(jnp.full(2, end))))
    )
    b = bisect(f, lambda made: jnp.sum(made["each"], 1) <= 36, start)
    assert b.low.tolist() == [12, 3]
    chex.assert_trees_all_equal((b.at_low, b.at_high), (f(b.low), f(b.low + 1)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_keys_have_the_order_of_floats(dtype):
    tiny = jnp.finfo(dtype).smallest_subnormal
    ordered = [-np.inf, -2.0, -1.0, -tiny, 0.0, tiny, 0.5, 1.0, np.inf]
    keys = key(jnp.array(ordered, dtype))
    assert (jnp.diff(keys) > 0).all() and keys.dtype == jnp.int32
    assert keys[-1] == -keys[0] == top_key(dtype) and keys[4] == 0
    chex.assert_trees_all_equal(from_key(keys, dtype), jnp.array(ordered, dtype))
    odd = key(jnp.array([-0.0, np.nan, -np.nan], dtype))
    assert odd.tolist() == [0, -top_key(dtype) - 1, -top_key(dtype) - 1]
