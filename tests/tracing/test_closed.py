"""Which units can be removed, and the reason where they cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bbjax as bb
from bbjax import graph
from tests.support.trace_case import SHAPES, X, head, layer_normed, traced, wide
from tests.support.zoo_case import normal, relu, weights


def last_value(p, x):
    """A scan carries the units to its next step."""

    def step(h, x):
        h = jnp.tanh(x @ p["wx"] + h @ p["wh"])
        return h, h @ p["wo"]

    return lax.scan(step, jnp.zeros((4, 3)), x[:, None].repeat(4, 1))[1]


def shared_bias(p, x):
    h = relu(x @ p["up"] + wide(p, "bias"))
    return relu(h @ p["table"] + wide(p, "bias")) @ p["down"]


def shared_slopes(p, x):
    h = relu(x @ p["up"] * wide(p, "scale"))
    return h @ p["down"], (x @ p["other"]) * jnp.sum(p["scale"] * x[0, 0])


def conditional(p, x):
    h = relu(x @ p["up"])
    return lax.cond(h[0, 0] > 0, lambda: x[0, 0], lambda: x[0, 1]), h @ p["down"]


def used_twice(p, x):
    h = relu(x @ p["up"])
    return h @ p["down"], x[:, :1].repeat(6, 1) @ p["down"]


def looked_up(p, x):
    return relu(x @ p["up"]) @ p["down"], p["down"][jnp.argmax(x, 1)]


OPEN = {
    "output": (lambda p, x: (relu(x @ p["up"]), head(p, x @ p["up"])), "returns them"),
    "no_reader": (lambda p, x: (x @ p["up"], x[0])[1], "no kernel reads them"),
    "input_added": (
        lambda p, x: head(p, x @ p["up"] + jnp.tile(x, (1, 2))[:, :6]),
        "add joins them with another value",
    ),
    "choice_of_input": (
        lambda p, x: head(p, jnp.where(x[:, :1] > 0, x @ p["up"], x[:, :1])),
        "select_n joins them with another value",
    ),
    "layer_norm": (layer_normed, "reduce_sum runs over its units"),
    "softmax": (
        lambda p, x: jax.nn.softmax(x @ p["up"]) @ p["down"],
        "reduce_max runs over its units",
    ),
    "reversed": (lambda p, x: (x @ p["up"])[:, ::-1] @ p["down"], "rev turns them"),
    "part": (lambda p, x: (x @ p["up"])[:, 1:] @ p["table"][1:], "is followed through"),
    "two_orders": (
        lambda p, x: head(p, (lambda h: h + h[:, ::-1])(x @ p["up"])),
        "rev turns them",
    ),
    "cond": (conditional, "is followed through"),
    "shared_scale": (shared_slopes, "reduce_sum runs over its units"),
    "softmax_of_a_bias": (
        lambda p, x: head(p, x @ p["up"] + jax.nn.softmax(wide(p, "bias"))),
        "weights that act on them depend on all of them",
    ),
    "reader_reads_more": (used_twice, "'down' reads other values with the same weight"),
    "reader_is_looked_up": (looked_up, "gather picks some of them"),
    "reader_is_normalised": (
        lambda p, x: relu(x @ p["up"]) @ (p["down"] - jnp.mean(p["down"])),
        "weights that act on them depend on all of them",
    ),
    "normalised": (
        lambda p, x: head(p, x @ (p["up"] / jnp.sum(jnp.abs(p["up"])))),
        "weights that act on them depend on all of them",
    ),
    "callback": (
        lambda p, x: head(p, jax.pure_callback(lambda h: h, SIX, x @ p["up"])),
        "pure_callback is not followed",
    ),
    "pairs": (
        lambda p, x: (
            (lambda h: jnp.einsum("ti,tj->tij", h, h).reshape(6, -1))(x @ p["up"])
            @ p["long"]
        ),
        "pairs them with each other",
    ),
}
SIX = jax.ShapeDtypeStruct((6, 6), jnp.float32)


def _turned(h):
    return h.reshape(-1, 2, 3).swapaxes(1, 2).reshape(-1, 6)


@pytest.mark.parametrize("name", OPEN)
def test_units_with_other_uses_are_not_closed(name):
    fn, why = OPEN[name]
    kernel = traced(fn, *SHAPES, long=(36, 2))["up"]
    assert not kernel.closed and why in kernel.why_not


def test_slices_of_experts_may_be_stored_in_another_order():
    def fn(p, x):
        h = relu(jnp.einsum("egcd,egdf->egcf", x, p["up"]))
        return jnp.einsum("egcf,gefd->egcd", h, p["down"])

    shapes = {"up": (2, 3, 4, 6), "down": (3, 2, 6, 4)}
    units = traced(fn, x=normal(63, 2, 3, 5, 4), **shapes)
    assert units["up"].closed
    ((path, place),) = graph.consumers(units)["up"]
    order = np.arange(36).reshape(2, 3, 6).transpose(1, 0, 2)
    np.testing.assert_array_equal(place.units.reshape(3, 2, 6), order)
    assert path == "down"


def test_weights_of_each_unit_make_the_units_too():
    """A pooling with one weight per unit and position."""

    def fn(p, x):
        h = relu(jnp.einsum("btd,df->btf", x, p["up"]))
        return jnp.einsum("btf,ft->bf", h, p["pool"]) @ p["down"]

    shapes = {"up": (4, 6), "pool": (6, 5), "down": (6, 2)}
    units = traced(fn, x=normal(64, 2, 5, 4), **shapes)
    assert units["up"].closed and units["up"].stream == ("pool",)


def test_what_decides_a_branch_is_used():
    def fn(p, x):
        one = x @ p["one_unit"]
        branch = lax.cond(one[0, 0] > 0, lambda: x[0, 0], lambda: x[0, 1])
        return branch, relu(one) @ p["last"]

    assert not traced(fn, one_unit=(4, 1), last=(1, 2))["one_unit"].closed


def test_a_carry_keeps_its_units():
    units = traced(last_value, wx=(4, 3), wh=(3, 3), wo=(3, 2))
    assert units["wx"].closed and units["wh"].closed
    assert units["wx"].stream == ("wh",)
    (read,) = [p for s in units.graph.sets for p in s.readers if p.path == "wo"]
    assert set(read.zero_if) == {("wh",), ("wx",)}


def test_one_open_kernel_opens_its_stream():
    def fn(p, x):
        first = x @ p["up"]
        return head(p, first + x @ p["other"]), first

    units = traced(fn, *SHAPES)
    for name in ("up", "other"):
        assert units[name].why_not == "the function returns them"
        assert not units[name].closed


CLOSED = {
    "dropout": lambda p, x: head(
        p, jnp.where(jax.random.bernoulli(KEY, 0.5, (6, 6)), x @ p["up"], 0.0)
    ),
    "mask": lambda p, x: head(p, jnp.where(x[:, :1] > 0, x @ p["up"], -1.0)),
    "gate_of_data": lambda p, x: head(p, (x @ p["up"]) * x[:, :1]),
    "penalty": lambda p, x: (
        jnp.sum(head(p, x @ p["up"])) + sum(jnp.sum(w**2) for w in p.values())
    ),
    "printed": lambda p, x: (jax.debug.print("{}", x[0]), head(p, x @ p["up"]))[1],
    "unused": lambda p, x: (jnp.sum(x @ p["up"]), head(p, x @ p["up"]))[1],
    "own_derivative": lambda p, x: head(p, cubed(x @ p["up"])),
    "squeeze_and_excite": lambda p, x: head(
        p,
        (lambda h: h * jax.nn.sigmoid(jnp.mean(h, 0, keepdims=True) @ p["table"]))(
            x @ p["up"]
        ),
    ),
    "positions_mixed": lambda p, x: (
        jnp.tanh(jnp.einsum("td,ts->sd", relu(x @ p["up"]), p["table"])) @ p["down"]
    ),
}
CLOSED |= {
    "concatenated": lambda p, x: jnp.concatenate([x @ p["up"], x], 1) @ p["tall"],
    "stream_in_another_order": lambda p, x: head(
        p, (x @ p["up"]) + _turned(x @ p["other"])
    ),
    "shared_bias": shared_bias,
    "table": lambda p, x: head(p, x @ p["up"] + p["table"]),
    "used_again_on_its_own_stream": lambda p, x: head(p, again(p, x @ p["up"])),
}
KEY = jax.random.key(62)


def again(p, x):
    """First it reads the start of the stream, then a sum with itself."""
    for _ in range(2):
        x = x + relu(x @ p["table"])
    return x


@jax.custom_vjp
def cubed(x):
    return x**3


cubed.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x * x * g,))


@pytest.mark.parametrize("name", CLOSED)
def test_units_without_other_uses_are_closed(name):
    """What closed means: other weights of a removed unit are the same function."""
    fn, rng = CLOSED[name], np.random.default_rng(0)
    shapes = {**SHAPES, "tall": (10, 2)}
    params = weights(**shapes)
    units = bb.trace(fn, params, X)
    kernel = units["up"]
    assert kernel.closed, kernel.why_not
    keep = {
        path: rng.random(units[path].per_unit_shape("outputs")) < 0.5
        for path in ("up", *kernel.stream)
    }
    pruned, masks = graph.remove_units(params, units, keep)
    readers = {path for path, _ in graph.consumers(units)["up"]}
    noise = {n: normal(70 + i, *s) for i, (n, s) in enumerate(shapes.items())}
    changed = {
        path: jnp.where(masks[path], pruned[path], noise[path])
        for path in masks
        if path not in readers
    }
    if name != "penalty":  # it depends on the weights themselves
        one, other = fn(pruned, X), fn({**pruned, **changed}, X)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert changed


def test_queries_and_keys_are_removed_together():
    """A product of two values sums over them: one of the two has to be 0."""

    def fn(p, x):
        return jax.nn.softmax((x @ p["up"]) @ (x @ p["other"]).T) @ x

    params = weights(up=(4, 6), other=(4, 6))
    units = bb.trace(fn, params, X)
    assert units["up"].closed and units["up"].stream == ("other",)
    (made,) = [s for s in units.graph.sets if not s.why_not]
    assert not made.apart and not made.readers
    keep = np.arange(6) % 2 > 0
    pruned, _ = graph.remove_units(params, units, {"up": keep, "other": keep})
    small = {name: value[:, keep] for name, value in params.items()}
    np.testing.assert_allclose(fn(pruned, X), fn(small, X), rtol=1e-5)


def test_two_factors_that_are_not_0_at_0_are_not_closed():

    def fn(p, x):
        return jnp.exp(x @ p["up"]) @ (1 + x @ p["other"]).T @ x

    units = traced(fn, "up", "other")
    assert units["up"].why_not == "a product of two values sums over them"


def test_a_unit_of_experts_by_groups_is_removed_in_all_of_them():
    """The rows of all experts are one array: no unit is there for one expert alone."""
    sizes = np.array([3, 0, 4])
    expert = np.repeat(np.arange(3), sizes)

    def fn(p, x):
        h = relu(lax.ragged_dot(x, p["up"], jnp.asarray(sizes)) + p["bias"][expert])
        return lax.ragged_dot(h, p["down"], jnp.asarray(sizes))

    params, x = weights(up=(3, 4, 6), down=(3, 6, 2), bias=(3, 6)), normal(64, 7, 4)
    units = bb.trace(fn, params, x)
    assert units["up"].closed and units["up"].companions == ("bias",)
    assert units["down"].why_not == "the function returns them"
    keep = np.arange(18).reshape(3, 6) % 6 > 2
    keep[1, 0] = True  # one expert keeps it: so do the others
    pruned, masks = graph.remove_units(params, units, {"up": keep})
    kept = np.array([True, False, False, True, True, True])
    np.testing.assert_array_equal(masks["up"], np.broadcast_to(kept, (3, 4, 6)))
    np.testing.assert_array_equal(
        masks["down"], np.broadcast_to(kept[:, None], (3, 6, 2))
    )
    up, down, bias = (np.asarray(params[n]) for n in ("up", "down", "bias"))
    rows = [
        (np.maximum(row @ up[e] + bias[e], 0) * kept) @ down[e]
        for e, row in zip(expert, np.asarray(x), strict=True)
    ]
    np.testing.assert_allclose(fn(pruned, x), rows, rtol=1e-4, atol=1e-5)
