"""The table of primitives, against what the primitives compute."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bbjax.tracing import jaxprs, primitives
from bbjax.tracing.moves import Kept, Mixed, Move, Padded, Ranged, Repeated, Tiled

X = np.random.default_rng(0).normal(size=(4, 3, 6)).astype(np.float32)


def equation(function: Callable[..., Any], *args: Any) -> Any:
    """The only equation of a function."""
    (eqn,) = jaxprs.opened(jax.make_jaxpr(function)(*args))[0].eqns
    return eqn


MOVING: dict[str, Callable[[Any], Any]] = {
    "transpose": lambda x: lax.transpose(x, (2, 0, 1)),
    "broadcast_in_dim": lambda x: lax.broadcast_in_dim(x, (5, 4, 3, 6), (1, 2, 3)),
    "reshape": lambda x: lax.reshape(x, (12, 6)),
    "squeeze": lambda x: lax.squeeze(x[:, :1], (1,)),
    "expand_dims": lambda x: lax.expand_dims(x, (0, 2)),
    "rev": lambda x: lax.rev(x, (0, 2)),
    "slice": lambda x: lax.slice(x, (1, 0, 0), (3, 3, 5), (1, 1, 2)),
    "split": lambda x: lax.split(x, (1, 3, 2), axis=2),
    "tile": lambda x: lax.tile(x, (1, 2, 1)),
    "pad": lambda x: lax.pad(x, 9.0, ((1, 2, 0), (0, 0, 0), (0, 0, 1))),
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (1, 0, 0), (2, 3, 6)),
    "reduce_sum": lambda x: x.sum((0, 2)),
    "reduce_max": lambda x: x.max(1),
    "reduce_min": lambda x: x.min(1),
    "reduce_prod": lambda x: x.prod(1),
    "argmax": lambda x: lax.argmax(x, 1, jnp.int32),
    "cumsum": lambda x: lax.cumsum(x, 1),
    "cumprod": lambda x: lax.cumprod(x, 2),
    "cummax": lambda x: lax.cummax(x, 0),
    "sort": lambda x: lax.sort(x, dimension=1),
    "top_k": lambda x: lax.top_k(x, 2),
    "reduce_window_max": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 1), (1, 1, 2), "SAME"
    ),
    "reduce_window_sum": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 1, 3), (1, 1, 1), "SAME"
    ),
}
if hasattr(lax, "unstack_p") or hasattr(lax, "unstack"):
    MOVING["unstack"] = lambda x: lax.unstack(x, axis=1)


def found(name: str) -> tuple[Any, list[Move], Callable[[Any], list[np.ndarray]]]:
    """The equation of a case, its moves, and the function of its operand."""
    jaxpr = jaxprs.opened(jax.make_jaxpr(MOVING[name])(X))[0]
    eqn = jaxpr.eqns[-1]
    if eqn.primitive.name != name:
        pytest.skip(f"this release of JAX makes {eqn.primitive.name} of it")
    moves = primitives.moves_of(eqn)
    assert moves is not None and len(moves) == len(eqn.outvars)

    def apply(x: Any) -> list[np.ndarray]:
        rest = [a.val for a in eqn.invars[1:]]
        outs = eqn.primitive.bind(x, *rest, **eqn.params)
        outs = outs if eqn.primitive.multiple_results else [outs]
        return [np.asarray(out) for out in outs]

    return eqn, moves, apply


def operand(eqn: Any) -> np.ndarray:
    shape = eqn.invars[0].aval.shape
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", MOVING)
def test_moves_account_for_every_axis(name):
    eqn, moves, apply = found(name)
    x = operand(eqn)
    for move, out in zip(moves, apply(x), strict=True):
        if move.reshaped is not None:
            assert sorted(move.reshaped) == list(range(x.ndim))
            np.testing.assert_array_equal(
                out, x.transpose(move.reshaped).reshape(out.shape)
            )
            continue
        assert len(move.axes) == out.ndim
        origins = [o for o in (*move.axes, *move.gone) if not isinstance(o, Repeated)]
        assert sorted(o.axis for o in origins) == list(range(x.ndim))


@pytest.mark.parametrize("name", MOVING)
def test_a_result_goes_with_the_axes_that_are_kept(name):
    """Entries of a kept axis in another order make the same order of the result."""
    eqn, moves, apply = found(name)
    x = operand(eqn)
    for i, (move, out) in enumerate(zip(moves, apply(x), strict=True)):
        for axis, origin in enumerate(move.axes):
            if isinstance(origin, Repeated):
                np.testing.assert_array_equal(out, out.take([0], axis) + 0 * out)
            if isinstance(origin, Kept):
                order = np.random.default_rng(2).permutation(x.shape[origin.axis])
                shuffled = apply(x.take(order, origin.axis))[i]
                np.testing.assert_array_equal(shuffled, out.take(order, axis))


@pytest.mark.parametrize("name", MOVING)
def test_parts_of_an_axis_are_where_the_move_says(name):
    """What lies outside a range can be anything, without a change of the result."""
    eqn, moves, apply = found(name)
    x = operand(eqn)
    for i, (move, out) in enumerate(zip(moves, apply(x), strict=True)):
        for axis, origin in enumerate((*move.axes, *move.gone)):
            if isinstance(origin, Ranged):
                _, start, size, step = origin
                some = np.arange(start, start + size * step, step)
                other = x + 100
                at = [slice(None)] * x.ndim
                at[origin.axis] = some
                other[tuple(at)] = x[tuple(at)]
                np.testing.assert_array_equal(apply(other)[i], out)
                if axis < out.ndim:  # and its entries come in this order
                    for n, entry in enumerate(some):
                        moved = x.copy()
                        at[origin.axis] = entry
                        moved[tuple(at)] += 1
                        hit = np.argwhere(apply(moved)[i] != out)
                        assert set(hit[:, axis]) == {n}
            if isinstance(origin, Padded):
                inside = np.arange(origin.before, out.shape[axis] - origin.after)
                assert len(inside) == x.shape[origin.axis]
                for n in inside:
                    moved = x.copy()
                    at = [slice(None)] * x.ndim
                    at[origin.axis] = n - origin.before
                    moved[tuple(at)] += 1
                    hit = np.argwhere(apply(moved)[i] != out)
                    assert set(hit[:, axis]) == {n}
            if isinstance(origin, Tiled):
                tiled = np.concatenate([x] * origin.times, origin.axis)
                np.testing.assert_array_equal(out, tiled)
            if isinstance(origin, Mixed) and axis < out.ndim:
                assert origin.size == out.shape[axis]


def test_every_row_that_moves_entries_is_tried():
    reading = {n for n, row in primitives.TABLE.items() if row.read is not None}
    alike = {"reduce_and", "reduce_or", "reduce_xor", "argmin", "reduce_window_min"}
    alike |= {"cummin", "cumlogsumexp", *primitives.ACROSS, "unstack"}
    assert reading - alike == MOVING.keys() - {"unstack"}


NUMBERS = [None, -1.0, 0.0, 2.0]
CASES: dict[str, Callable[..., Any]] = {
    "mul": lax.mul,
    "div": lambda x, y: lax.div(x, y),
    "add": lax.add,
    "sub": lax.sub,
    "max": lax.max,
    "min": lax.min,
    "pow": lambda x, y: lax.pow(jnp.abs(x), y),
    "rem": lax.rem,
    "atan2": lax.atan2,
    "complex": lax.complex,
    "nextafter": lax.nextafter,
    "clamp": lax.clamp,
    "select_n": lambda c, x, y: lax.select_n(c > 0, x, y),
    "eq": lax.eq,
    "gt": lax.gt,
}
UNARY = {
    name: getattr(lax, name)
    for name in sorted(primitives.UNARY)
    if hasattr(lax, name)
    and name not in ("clamp", "integer_pow", "convert_element_type")
}
SKIPPED = {"reduce_precision", "bitcast_convert_type", "population_count", "not", "clz"}
SKIPPED |= {"pcast", "pvary", "copy_p"}  # need a mesh, or are no functions


def values(operands: int, n: int = 200) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.normal(size=n).astype(np.float32) for _ in range(operands)]


@pytest.mark.parametrize("name", sorted(CASES))
def test_results_are_zero_where_the_table_says(name):
    operands = 3 if name in ("clamp", "select_n") else 2
    given = {} if name == "select_n" else None
    for numbers in itertools.product(NUMBERS, repeat=operands):
        if given is not None and numbers[0] is not None:
            continue
        rule = primitives.zero_if(name, {}, numbers)
        if rule is None:
            continue
        for choice in itertools.product(*rule):
            ins = values(operands)
            for i, number in enumerate(numbers):
                if number is not None:
                    ins[i][:] = number
            for i in choice:
                ins[i][:] = 0
            if name == "div":  # where it is defined
                ins[1][ins[1] == 0] = 1
            if numbers and any(numbers[i] not in (None, 0.0) for i in choice):
                continue  # this operand is another constant
            assert not np.asarray(CASES[name](*ins)).any(), (numbers, choice)


@pytest.mark.parametrize("name", sorted(UNARY.keys() - SKIPPED))
def test_zero_makes_zero_where_the_table_says(name):
    try:
        result = np.asarray(UNARY[name](np.zeros(3, np.float32)))
    except TypeError:
        result = np.asarray(UNARY[name](np.zeros(3, np.complex64)))
    keeps = primitives.zero_if(name, {}, [None]) == primitives.ITSELF
    assert keeps == (not result.any())


@pytest.mark.parametrize("power", [-2, -1, 1, 2, 3])
def test_powers_keep_zero_if_they_are_positive(power):
    eqn = equation(lambda x: lax.integer_pow(x, power), jnp.ones(3))
    rule = primitives.zero_if("integer_pow", eqn.params, [None])
    assert (rule is not None) == (power > 0)
    assert np.isinf(lax.integer_pow(np.zeros(1, np.float32), power)).any() == (
        power < 0
    )


def test_of_a_primitive_without_a_row_nothing_is_known():
    eqn = equation(lax.zeta, np.ones(4, np.float32), np.ones(4, np.float32))
    assert eqn.primitive.name not in primitives.TABLE
    assert primitives.zero_if(eqn.primitive.name, eqn.params, [None] * 2) is None
    assert primitives.moves_of(eqn) is None
