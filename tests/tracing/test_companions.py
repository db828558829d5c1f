"""What a trace says of units beyond their kernel: companions, links, silence."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import bbjax as bb
from tests.support.trace_case import SHAPES, head, layer_normed, traced, wide
from tests.support.zoo_case import relu


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
        (),
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
    "square": (lambda p, x: head(p, x @ p["up"] + p["table"]), "", ()),
    "of_another_order": (
        lambda p, x: head(p, x @ p["up"] + wide(p, "bias")[:, ::-1]),
        "",
        (),
    ),
    "normalised": (
        lambda p, x: head(p, x @ p["up"] + jax.nn.softmax(wide(p, "bias"))),
        "",
        (),
    ),
}


@pytest.mark.parametrize("name", COMPANIONS)
def test_companions_and_bias(name):
    fn, bias, companions = COMPANIONS[name]
    kernel = traced(fn, *SHAPES)["up"]
    assert (kernel.bias, kernel.companions) == (bias, companions)
    assert tuple(c.path for c in kernel.placed) == companions
    assert all(c.shape == SHAPES[c.path] for c in kernel.placed)
    assert all(c.layout == ((6, 1),) for c in kernel.placed)


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
    kernel = traced(fn, **shapes)["up"]
    assert kernel.closed and kernel.companions == ("bias",)
    assert kernel.placed[0].layout == ((6, 1), (3, 6))
    assert kernel.bias == ""  # its entries are not in the units' order


def test_kernels_made_by_hand_place_companions_in_order():
    kernel = bb.Kernel("w", (4, 6), fan_in=(0,), fan_out=(1,), companions=("b",))
    (placed,) = kernel.placed
    assert tuple(placed) == ("b", (6,), ((6, 1),))
    plain = bb.Kernel("w", (4, 6), fan_in=(0,), fan_out=(1,))
    assert not plain.closed and plain.links == plain.placed == plain.stream == ()
    assert hash(kernel) == hash(kernel) and kernel != plain


# Links ---------------------------------------------------------------------------
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


LINKS = {
    "plain": (lambda p, x: head(p, x @ p["up"]), "down", ((6, 1),)),
    "other_order": (heads, "down", ((2, 1), (3, 2))),
    "repeated": (repeated, "wide", ((2, 0), (6, 1))),
    "each_twice": (each_twice, "wide", ((6, 1), (2, 0))),
    "first_row": (
        lambda p, x: jnp.tanh(x @ p["up"])[:1] @ p["down"],
        "down",
        ((6, 1),),
    ),
}


@pytest.mark.parametrize("name", LINKS)
def test_which_input_is_which_unit(name):
    fn, reader, layout = LINKS[name]
    units = traced(fn, "up", "down", wide=(12, 2))
    (link,) = units[reader].links
    assert (link.path, link.layout) == ("up", layout)
    assert units["up"].closed and units["up"].why_not == ""


def test_a_link_for_every_kernel_that_is_read():
    def fn(p, x):
        stream = x @ p["up"]
        stream = stream + relu(stream @ p["table"]) * (x @ p["other"])
        return head(p, stream)

    units = traced(fn, "up", "other", "down", "table")
    assert [link.path for link in units["table"].links] == ["up"]
    assert {link.path for link in units["down"].links} == {"up", "other", "table"}
    assert units.paths == ("up", "table", "other", "down")
    assert units["up"].stream == ("table", "other")
    assert units["other"].stream == ("up", "table")
    assert all(units[n].closed for n in ("up", "other", "table"))


# Silence -------------------------------------------------------------------------
NEVER = ((),)
SILENT = {
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


@pytest.mark.parametrize("name", SILENT)
def test_what_makes_a_unit_silent(name):
    fn, silent = SILENT[name]
    units = traced(lambda p, x: fn(p, x) @ p["down"], *SHAPES)
    assert {frozenset(s) for s in units["down"].links[0].zero_if} == {
        frozenset(s) for s in silent
    }
