"""What goes with units: companions, readers, and what makes a unit 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bbjax as bb
from bbjax import graph
from tests.support.trace_case import SHAPES, X, head, layer_normed, traced, wide
from tests.support.zoo_case import relu, weights


# Companions ----------------------------------------------------------------------
def normed(p, x):
    h = x @ p["up"]
    h = (h - jnp.mean(h, 0, keepdims=True)) * wide(p, "scale") + wide(p, "bias")
    return head(p, jnp.where(h > 0, h, wide(p, "slope") * h))


def running(p, x, mean=None, var=None):
    mean, var = jnp.ones(6), jnp.ones(6)
    h = (x @ p["up"] - mean[None]) * lax.rsqrt(var + 1e-3)[None] * wide(p, "scale")
    return head(p, h + wide(p, "bias"))


COMPANIONS = {
    "bias": (lambda p, x: head(p, x @ p["up"] + wide(p, "bias")), "bias", ("bias",)),
    "first_axis_is_1": (lambda p, x: head(p, p["row"] + x @ p["up"]), "row", ("row",)),
    "cast": (
        lambda p, x: head(
            p,
            lax.convert_element_type(
                (x @ p["up"]).astype(jnp.bfloat16)
                + wide(p, "bias").astype(jnp.bfloat16),
                jnp.float32,
            ),
        ),
        "bias",
        ("bias",),
    ),
    "after_a_curve": (
        lambda p, x: jnp.tanh(x @ p["up"]) + wide(p, "bias") @ p["table"],
        "",
        ("table",),
    ),
    "after_relu": (
        lambda p, x: (relu(x @ p["up"]) + wide(p, "bias")) @ p["down"],
        "",
        ("bias",),
    ),
    "scaled_before": (
        lambda p, x: head(p, 0.5 * (x @ p["up"]) + wide(p, "bias")),
        "",
        ("bias",),
    ),
    "batch_norm_and_slopes": (normed, "", ("scale", "bias", "slope")),
    "layer_norm": (layer_normed, "", ("scale", "bias")),
    "running_mean": (running, "", ("scale", "bias")),
    "scalar": (lambda p, x: head(p, x @ p["up"] * p["one"]), "", ()),
    "square": (lambda p, x: head(p, x @ p["up"] + p["table"]), "", ("table",)),
    "of_another_order": (
        lambda p, x: head(p, x @ p["up"] + wide(p, "bias")[:, ::-1]),
        "",
        (),
    ),
    "normalised": (
        lambda p, x: head(p, x @ p["up"] + jax.nn.softmax(wide(p, "bias"))),
        "",
        ("bias",),
    ),
}


@pytest.mark.parametrize("name", COMPANIONS)
def test_companions_and_bias(name):
    fn, bias, companions = COMPANIONS[name]
    units = traced(fn, *SHAPES)
    kernel = units["up"]
    assert (kernel.bias, kernel.companions) == (bias, companions)
    ((made, _),) = units.graph.made_by("up")
    assert tuple(c.path for c in made.companions) == companions
    for place in made.companions:
        assert place.shape == SHAPES[place.path]
        want = np.broadcast_to(np.arange(6), place.shape).ravel()
        np.testing.assert_array_equal(place.units, want)


def test_statistics_among_the_parameters_are_companions():
    def fn(p, x):
        h = (x @ p["up"] - wide(p, "slope")) * lax.rsqrt(wide(p, "scale") + 1e-3)
        return head(p, h + wide(p, "bias"))

    kernel = traced(fn, *SHAPES)["up"]
    assert kernel.closed and kernel.companions == ("slope", "scale", "bias")


def test_a_companion_may_be_stored_in_another_order():
    """A scan over the second axis of a bias."""

    def fn(p, x):
        def layer(h, w):
            up, bias, down = w
            return h, relu(h @ up + bias[None]) @ down

        return lax.scan(layer, x, (p["up"], jnp.moveaxis(p["bias"], 1, 0), p["down"]))

    shapes = {"up": (3, 4, 6), "bias": (6, 3), "down": (3, 6, 2)}
    units = traced(fn, **shapes)
    kernel = units["up"]
    assert kernel.closed and kernel.companions == ("bias",)
    ((made, up),) = units.graph.made_by("up")
    (bias,) = made.companions
    np.testing.assert_array_equal(bias.units, up.units.reshape(3, 6).T.ravel())
    assert kernel.bias == ""  # its entries are not in the units' order


def test_kernels_made_by_hand_are_in_no_set():
    kernel = bb.Kernel("w", (4, 6), fan_in=(0,), fan_out=(1,), companions=("b",))
    plain = bb.Kernel("w", (4, 6), fan_in=(0,), fan_out=(1,))
    assert not plain.closed and plain.companions == plain.stream == ()
    assert hash(kernel) == hash(kernel) and kernel != plain
    assert bb.Units((kernel,)).graph.made_by("w") == ()


# Readers -------------------------------------------------------------------------
def heads(p, x):
    """Rows of `down` in the order (half, third) of units in the order (third, half)."""
    h = relu(x @ p["up"]).reshape(-1, 3, 2)
    return h.swapaxes(1, 2).reshape(-1, 6) @ p["down"]


def repeated(p, x):
    h = relu(x @ p["up"])
    both = jnp.broadcast_to(h[:, None], (h.shape[0], 2, 6)).reshape(-1, 12)
    return both @ p["wide"]


def each_twice(p, x):
    h = relu(x @ p["up"])
    both = jnp.broadcast_to(h[:, :, None], (h.shape[0], 6, 2)).reshape(-1, 12)
    return both @ p["wide"]


ONCE = [0, 1, 2, 3, 4, 5]
READ = {
    "plain": (lambda p, x: head(p, x @ p["up"]), "down", ONCE),
    "other_order": (heads, "down", [0, 2, 4, 1, 3, 5]),
    "repeated": (repeated, "wide", ONCE + ONCE),
    "each_twice": (each_twice, "wide", [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
    "first_row": (lambda p, x: jnp.tanh(x @ p["up"])[:1] @ p["down"], "down", ONCE),
    "beside_others": (
        lambda p, x: jnp.concatenate([x, x @ p["up"], x[:, :2]], 1) @ p["wide"],
        "wide",
        [-1] * 4 + ONCE + [-1] * 2,
    ),
}


@pytest.mark.parametrize("name", READ)
def test_which_input_is_which_unit(name):
    fn, reader, want = READ[name]
    units = traced(fn, "up", "down", wide=(12, 2))
    ((made, up),) = units.graph.made_by("up")
    ((path, place),) = graph.consumers(units)["up"]
    number = {int(unit): n for n, unit in enumerate(up.units)} | {-1: -1}
    assert path == reader and made.size == 6
    assert [number[int(unit)] for unit in place.units] == want
    assert units["up"].closed and units["up"].why_not == ""


def test_one_product_may_make_a_unit_twice():
    """Both halves of a fused kernel make the units of a gate."""

    def fn(p, x):
        gate, up = jnp.split(x @ p["both"], 2, axis=1)
        return (jax.nn.silu(gate) * up) @ p["down"]

    params = weights(both=(4, 12), down=(6, 2))
    units = bb.trace(fn, params, X)
    ((made, place),) = units.graph.made_by("both")
    assert made.size == 6 and place.units.tolist() == ONCE + ONCE
    keep = np.arange(12) % 6 > 1
    keep[1] = True  # a half that is kept keeps the unit
    pruned, _ = graph.remove_units(params, units, {"both": keep})
    gone = [0, 6]
    np.testing.assert_array_equal(np.flatnonzero(~np.any(pruned["both"], 0)), gone)
    np.testing.assert_array_equal(np.flatnonzero(~np.any(pruned["down"], 1)), [0])


def test_all_kernels_of_a_stream_make_its_units():
    def fn(p, x):
        stream = x @ p["up"]
        stream = stream + relu(stream @ p["table"]) * (x @ p["other"])
        return head(p, stream)

    units = traced(fn, "up", "other", "down", "table")
    (made,) = [s for s in units.graph.sets if not s.why_not]
    assert {place.path for place in made.makers} == {"up", "table", "other"}
    assert {place.path for place in made.readers} == {"table", "down"}
    assert units.paths == ("up", "table", "other", "down")
    assert units["up"].stream == ("table", "other")
    assert units["other"].stream == ("up", "table")
    assert all(units[n].closed for n in ("up", "other", "table"))


# Zeros ---------------------------------------------------------------------------
NEVER = ((),)
ZERO_IF = {
    "relu": (lambda p, x: relu(x @ p["up"]), (("up",),)),
    "bias": (lambda p, x: relu(x @ p["up"] + wide(p, "bias")), (("bias",), ("up",))),
    "sigmoid": (lambda p, x: jax.nn.sigmoid(x @ p["up"]), NEVER),
    "relu6": (lambda p, x: jax.nn.relu6(x @ p["up"]), (("up",),)),
    "clipped_above_0": (lambda p, x: jnp.clip(x @ p["up"], 1.0, 2.0), NEVER),
    "shifted": (lambda p, x: x @ p["up"] + 1.0, NEVER),
    "gate": (lambda p, x: jnp.tanh(x @ p["up"]) * (x @ p["other"]), (("up", "other"),)),
    "scale": (lambda p, x: (x @ p["up"] + 1.0) * wide(p, "scale"), (("scale",),)),
    "stream": (lambda p, x: x @ p["up"] + x @ p["other"], (("other",), ("up",))),
    "scalar": (lambda p, x: (x @ p["up"] + 1.0) * p["one"], NEVER),
    "layer_norm": (
        lambda p, x: (lambda h: h - jnp.mean(h, 1, keepdims=True))(
            x @ p["up"] * wide(p, "scale")
        ),
        NEVER,
    ),
    "batch_norm": (
        lambda p, x: (lambda h: h - jnp.mean(h, 0, keepdims=True))(x @ p["up"]),
        (("up",),),
    ),
}


@pytest.mark.parametrize("name", ZERO_IF)
def test_what_makes_a_unit_zero(name):
    fn, sets = ZERO_IF[name]
    units = traced(lambda p, x: fn(p, x) @ p["down"], *SHAPES)
    ((_, place),) = units.graph.read_by("down")
    assert {frozenset(s) for s in place.zero_if} == {frozenset(s) for s in sets}
