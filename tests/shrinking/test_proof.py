"""Programs on smaller parameters: which differences count, and who makes them."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax.shrinking import layouts
from tests.support.smaller import cut, drawn, same

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 8)), jnp.float32)
SQUARE = jnp.asarray(np.random.default_rng(1).standard_normal((3, 3)), jnp.float32)


# Layouts -------------------------------------------------------------------------
def read(layout, array):
    """The entries that a layout says an array has."""
    shape = [math.prod(p.size for p in axis) for axis in layout.axes]
    found = np.empty(shape, array.dtype)
    for index in itertools.product(*map(range, shape)):
        at = [0] * array.ndim
        for axis, i in zip(layout.axes, index, strict=True):
            for piece in reversed(axis):
                i, digit = divmod(i, piece.size)
                if piece.axis is not None:
                    at[piece.axis] += digit * piece.stride
        found[index] = array[tuple(at)]
    return found


MOVES = {
    "axes of size 1": lambda x: x[:, None, :, None].squeeze(1),
    "repeats": lambda x: jnp.broadcast_to(x[:, None], (4, 3, 6)).reshape(12, 6),
    "a split axis": lambda x: x.reshape(4, 2, 3).transpose(2, 0, 1).reshape(3, 8),
    "an outer axis": lambda x: jnp.broadcast_to(x, (2, 4, 6)).reshape(2, 24),
    "joined and split": lambda x: x.reshape(24).reshape(2, 12).reshape(2, 4, 3).T,
    "digits in another order": lambda x: x.reshape(2, 2, 6).transpose(1, 0, 2),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_layout_has_the_entries_of_the_array(name):
    array = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    closed = jax.make_jaxpr(MOVES[name])(array)
    found = {
        closed.jaxpr.invars[0]: layouts.unmoved(layouts.Origin(array.shape), (4, 6))
    }
    for eqn in closed.jaxpr.eqns:
        found[eqn.outvars[0]] = layouts.moved(eqn, found[eqn.invars[0]])
    expected = np.asarray(MOVES[name](array))
    result = read(found[closed.jaxpr.outvars[0]], array)
    np.testing.assert_array_equal(result.reshape(expected.shape), expected)


def test_a_reshape_across_digits_is_no_layout():
    (eqn,) = jax.make_jaxpr(lambda x: x.reshape(3, 4))(jnp.ones((2, 6))).eqns
    layout = layouts.unmoved(layouts.Origin((2, 6)), (2, 6))
    assert layouts.moved(eqn, layout) is None  # no row of 4 is part of a row of 6


# Programs that differ in axes of size 1 ------------------------------------------
def attend(p, x, mask):
    """Masked attention with a bias for each head, all sizes from the parameters."""
    q, k, v = (jnp.einsum("btd,dhe->bthe", x, p[n]) for n in "qkv")
    scores = jnp.einsum("bthe,bshe->bhts", q * p["scale"][None, None, :, None], k)
    scores = jnp.where(mask[:, None, None, :], scores, jnp.float32(-1e9))
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    scores = jnp.where(causal, scores, jnp.float32(-1e9))
    scores = scores + p["slope"][None, :, None, None]
    out = jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(scores), v)
    rows = p["o"].reshape(-1, p["o"].shape[-1])
    return out.reshape(*out.shape[:2], -1) @ rows


ATTENTION = drawn(
    **dict.fromkeys("qkv", (8, 4, 2)), scale=(4,), slope=(4,), o=(4, 2, 8)
)


@pytest.mark.parametrize("heads", [1, 2])
def test_masked_attention_is_left_with_any_number_of_heads(heads):
    mask = jnp.arange(5)[None] < jnp.array([[5], [3]])
    units = bb.trace(attend, ATTENTION, X, mask)
    scores = bb.unitwise.group_magnitude(units, ATTENTION)
    masks = bb.unitwise.cut(units, scores, heads / 4)
    small = bb.shrink(attend, ATTENTION, masks, X, mask)
    assert small.params["q"].shape == (8, heads, 1)
    assert small.params["o"].shape == (heads, 1, 8)
    same(attend, ATTENTION, masks, small, X, mask)


WITH_ONE = {
    "another axis": lambda x, one: x * x[0][(None,) if one else (..., None)],
    "a transposed operand": lambda x, one: jnp.sin(x.T if one else x),
    "rows for columns": lambda x, one: jnp.sin(
        jnp.broadcast_to(x[0] if one else x[0][:, None], (3, 3))
    ),
    "rows in another order": lambda x, one: jnp.sin(
        (x if one else x.T).reshape(9).reshape(3, 3)
    ),
    "another number in a call": lambda x, one: jnp.clip(x, 0, 1 if one else 2),
    "another call": lambda x, one: (jax.nn.relu if one else jnp.tanh)(x),
    "another result": lambda x, one: x.T if one else x,
}


@pytest.mark.parametrize("name", WITH_ONE)
def test_a_program_that_reads_other_entries_is_another_one(name):
    def fn(p, x):
        h = jnp.tanh(x @ p["u"])
        return WITH_ONE[name](x, h.shape[1] == 1), h @ p["d"]

    params = drawn(u=(3, 2), d=(2, 4))
    masks = cut(params, u=np.s_[:, 1], d=np.s_[1])
    small = bb.shrink(fn, params, masks, SQUARE)
    same(fn, params, masks, small, SQUARE)
    assert small.params["u"].shape == (3, 2) and small.report.changes[0].why


def test_what_is_not_followed_has_to_be_the_same_inside():
    def fn(p, x):
        h = jnp.tanh(x @ p["u"])
        scale = 1 / math.sqrt(h.shape[1])

        def step(state):
            return state[0] + 1, state[1] * scale

        _, y = jax.lax.while_loop(lambda s: s[0] < 3, step, (0, x))
        return h @ p["d"] + y[:, :1]

    params = drawn(u=(3, 4), d=(4, 2))
    masks = cut(params, u=np.s_[:, 1:], d=np.s_[1:])
    small = bb.shrink(fn, params, masks, SQUARE)
    assert small.params["u"].shape == (3, 4)
    assert small.report.changes[0].why == "mul takes the number 1 where it took 0.5"


# Who makes a difference ----------------------------------------------------------
def layered(heads):
    """Layers whose even ones have a fixed number of heads; counts its calls."""
    calls = []

    def fn(p, x):
        calls.append(1)
        for number, layer in enumerate(p["layers"]):
            h = x @ layer["up"]
            if number % 2 == 0:
                h = h.reshape(*x.shape[:-1], heads, -1) * jnp.float32(0.5)
                h = h.reshape(*x.shape[:-1], -1)
            x = x + jnp.tanh(h) @ layer["down"]
        return x

    return fn, calls


@pytest.mark.long
def test_few_traces_find_the_layers_that_cannot_shrink():
    layers = [drawn(up=(8, 6), down=(6, 8)) for _ in range(12)]
    params = {"layers": layers}
    fn, calls = layered(heads=3)
    units = bb.trace(fn, params, X)
    scores = bb.unitwise.group_magnitude(units, params)
    masks = bb.unitwise.cut(units, scores, 0.67)  # 2 of 3 heads, 1 of 2 dimensions ...
    calls.clear()
    small = bb.shrink(fn, params, masks, X)
    assert len(calls) <= 16  # one by one, there would be more than 24
    widths = [layer["up"].shape[1] for layer in small.params["layers"]]
    assert widths == [3, 4] * 6  # heads stay, their dimensions do not
    same(fn, params, masks, small, X)


def attention(count, calls):
    """Layers of attention that divide by the root of the size of a head."""

    def fn(p, x):
        calls.append(1)
        for layer in p["layers"]:
            q, k, v = (jnp.einsum("...le,ehd->...lhd", x, layer[n]) for n in "qkv")
            q = q / jnp.sqrt(q.shape[-1]).astype(q.dtype)
            w = jax.nn.softmax(jnp.einsum("...lhd,...mhd->...hlm", q, k))
            h = jnp.einsum("...hlm,...mhd->...lhd", w, v)
            x = x + jnp.einsum("...lhd,hde->...le", h, layer["o"])
            x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
        return x

    heads = {name: (8, 4, 6) for name in "qkv"}
    shapes = heads | {"o": (4, 6, 8), "up": (8, 12), "down": (12, 8)}
    return fn, {"layers": [drawn(**shapes) for _ in range(count)]}


@pytest.mark.long
def test_a_root_of_a_size_names_the_axis_of_the_arrays_that_it_scales():
    """So the number of traces is the same for any number of layers."""
    counts = []
    for layers in (2, 5):
        calls = []
        fn, params = attention(layers, calls)
        units = bb.trace(fn, params, X)
        scores = bb.unitwise.group_magnitude(units, params)
        masks = bb.unitwise.cut(units, scores, 0.5)
        calls.clear()
        small = bb.shrink(fn, params, masks, X)
        counts.append(len(calls))
        same(fn, params, masks, small, X)
        for layer in small.params["layers"]:
            assert layer["q"].shape == (8, 2, 6)  # heads go, their size stays
            assert layer["v"].shape == (8, 2, 3)
            assert layer["up"].shape == (8, 6)
    assert counts[0] == counts[1] <= 9  # some at other sizes of the arguments


def test_an_error_without_words_is_reported_with_its_place():
    def fn(p, x):
        h = x @ p["u"]
        if h.shape[-1] % 2:
            raise AssertionError
        return jnp.tanh(h) @ p["d"]

    params = drawn(u=(8, 4), d=(4, 2))
    masks = cut(params, u=np.s_[:, 3], d=np.s_[3])
    (change,) = bb.shrink(fn, params, masks, X).report.changes
    assert "AssertionError: test_proof.py, line " in change.why
    assert change.why.endswith(", in fn")


@pytest.mark.long
def test_a_group_of_the_same_size_is_not_taken_for_the_one_that_makes_a_difference():
    """The root of 2 of 4 entries of a head; the values have 2 of 4 entries as well."""

    def net(p, x):
        q, k, v = x @ p["q"], x @ p["k"], x @ p["v"]
        weights = jax.nn.softmax(q @ k.swapaxes(1, 2) / q.shape[-1] ** 0.5)
        return jax.nn.relu(weights @ v @ p["o"] @ p["up"]) @ p["down"]

    shapes = {n: (8, 4) for n in "qkv"} | {"o": (4, 6), "up": (6, 10), "down": (10, 3)}
    params = drawn(**shapes)
    units = bb.trace(net, params, X)
    scores = bb.unitwise.group_magnitude(units, params)
    masks = bb.unitwise.cut(units, scores, 0.5)
    small = bb.shrink(net, params, masks, X)
    after = {c.group: c.after for c in small.report.changes}
    assert after == {"q[1]": 4, "v[1]": 2, "o[1]": 3, "up[1]": 5}
    same(net, params, masks, small, X)
