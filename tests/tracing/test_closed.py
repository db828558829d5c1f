"""Who else listens to units: what a trace calls closed, and what keeps it open."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests.support.trace_case import SHAPES, head, layer_normed, traced, wide
from tests.support.zoo_case import normal, relu


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
    "layer_norm": (layer_normed, "reduce_sum mixes them"),
    "softmax": (
        lambda p, x: jax.nn.softmax(x @ p["up"]) @ p["down"],
        "reduce_max mixes them",
    ),
    "reversed": (lambda p, x: (x @ p["up"])[:, ::-1] @ p["down"], "rev mixes them"),
    "part": (lambda p, x: (x @ p["up"])[:, 1:] @ p["table"][1:], "slice mixes them"),
    "concatenated": (
        lambda p, x: jnp.concatenate([x @ p["up"], x], 1) @ p["tall"],
        "concatenate",
    ),
    "scores": (
        lambda p, x: jax.nn.softmax((x @ p["up"]) @ (x @ p["other"]).T),
        "dot_general mixes them",
    ),
    "two_orders": (
        lambda p, x: head(p, (lambda h: h + h[:, ::-1])(x @ p["up"])),
        "rev mixes them",
    ),
    "stream_in_another_order": (
        lambda p, x: head(p, (x @ p["up"]) + _turned(x @ p["other"])),
        "add joins them with units in another order",
    ),
    "cond": (conditional, "slice mixes them"),
    "shared_bias": (shared_bias, "'bias' acts on the units of several kernels"),
    "shared_scale": (shared_slopes, "'scale' is mixed with data by reduce_sum, too"),
    "table": (
        lambda p, x: head(p, x @ p["up"] + p["table"]),
        "a parameter has several entries for each of them",
    ),
    "softmax_of_a_bias": (
        lambda p, x: head(p, x @ p["up"] + jax.nn.softmax(wide(p, "bias"))),
        "a function of parameters",
    ),
    "reader_reads_more": (used_twice, "'down' reads other values with the same weight"),
    "reader_is_looked_up": (looked_up, "'down' is mixed with data by gather, too"),
    "reader_is_normalised": (
        lambda p, x: relu(x @ p["up"]) @ (p["down"] - jnp.mean(p["down"])),
        "dot_general mixes them",
    ),
    "normalised": (
        lambda p, x: head(p, x @ (p["up"] / jnp.sum(jnp.abs(p["up"])))),
        "its weights reach the product changed",
    ),
    "callback": (
        lambda p, x: head(p, jax.pure_callback(lambda h: h, SIX, x @ p["up"])),
        "pure_callback mixes them",
    ),
}
SIX = jax.ShapeDtypeStruct((6, 6), jnp.float32)


def _turned(h):
    return h.reshape(-1, 2, 3).swapaxes(1, 2).reshape(-1, 6)


@pytest.mark.parametrize("name", OPEN)
def test_units_that_others_listen_to_are_not_closed(name):
    fn, why = OPEN[name]
    kernel = traced(fn, *SHAPES, tall=(10, 2))["up"]
    assert not kernel.closed and why in kernel.why_not


def test_slices_in_another_order_are_not_linked():
    def fn(p, x):
        h = relu(jnp.einsum("egcd,egdf->egcf", x, p["up"]))
        return jnp.einsum("egcf,gefd->egcd", h, p["down"])

    shapes = {"up": (2, 3, 4, 6), "down": (3, 2, 6, 4)}
    units = traced(fn, x=normal(63, 2, 3, 5, 4), **shapes)
    assert units["down"].links == () and not units["up"].closed
    shapes["down"] = (2, 3, 6, 4)
    units = traced(
        lambda p, x: fn({**p, "down": p["down"].swapaxes(0, 1)}, x),
        x=normal(63, 2, 3, 5, 4),
        **shapes,
    )
    assert units["down"].links[0].path == "up" and units["up"].closed


def test_units_with_weights_of_their_own_are_not_closed():
    """A pooling with one weight per unit and position."""

    def fn(p, x):
        h = relu(jnp.einsum("btd,df->btf", x, p["up"]))
        return jnp.einsum("btf,ft->bf", h, p["pool"]) @ p["down"]

    shapes = {"up": (4, 6), "pool": (6, 5), "down": (6, 2)}
    units = traced(fn, x=normal(64, 2, 5, 4), **shapes)
    assert units["up"].why_not == "dot_general mixes them"


def test_what_decides_a_branch_listens():
    def fn(p, x):
        one = x @ p["one_unit"]
        branch = lax.cond(one[0, 0] > 0, lambda: x[0, 0], lambda: x[0, 1])
        return branch, relu(one) @ p["last"]

    kernel = traced(fn, one_unit=(4, 1), last=(1, 2))["one_unit"]
    assert kernel.why_not == "cond depends on them"


def test_a_carry_is_not_closed():
    units = traced(last_value, wx=(4, 3), wh=(3, 3), wo=(3, 2))
    assert not units["wx"].closed and not units["wh"].closed


def test_one_open_kernel_opens_its_stream():
    def fn(p, x):
        first = x @ p["up"]
        return head(p, first + x @ p["other"]), first

    units = traced(fn, *SHAPES)
    assert units["up"].why_not == "the function returns them"
    text = "they are added to 'up': the function returns them"
    assert units["other"].why_not == text and not units["other"].closed


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
KEY = jax.random.key(62)


@jax.custom_vjp
def cubed(x):
    return x**3


cubed.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x * x * g,))


@pytest.mark.parametrize("name", CLOSED)
def test_units_that_kernels_alone_read_are_closed(name):
    kernel = traced(CLOSED[name], "up", "down", "table")["up"]
    assert kernel.closed, kernel.why_not


def test_a_block_used_again_on_its_own_stream_is_not_closed():
    """First it reads the start of the stream, then a sum with itself."""

    def fn(p, x):
        x = x @ p["up"]
        for _ in range(2):
            x = x + relu(x @ p["table"])
        return head(p, x)

    units = traced(fn, "up", "table", "down")
    assert units["table"].uses == 2
    assert not units["table"].closed and not units["up"].closed
