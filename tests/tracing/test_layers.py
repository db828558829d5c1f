"""Stacks of layers: what scans over parameters slice, and what is no stack."""

import jax
import jax.numpy as jnp
from jax import lax

import bbjax as bb
from tests.support.smaller import drawn

X = jnp.ones((2, 5, 6))


def stacks(fn, params, *args):
    found = bb.trace(fn, params, *args).graph.stacks
    return {stack.name: (stack.layers, set(stack.members)) for stack in found}


def scanned(p, x):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p)[0]


def test_scans_have_a_stack_each_in_their_order():
    def fn(p, x):
        return scanned(p["b"], scanned(p["a"], x)) * p["c"]

    params = drawn(a=(3, 6, 6), b=(3, 6, 6)) | {"c": jnp.ones(())}
    assert stacks(fn, params, X) == {
        "a[0]": (3, {("a", 0)}),
        "b[0]": (3, {("b", 0)}),
    }
    assert list(stacks(fn, params, X)) == ["a[0]", "b[0]"]


def test_parameters_that_meet_before_the_scan_are_of_one_stack():
    def fn(p, x):
        return scanned(p["w"] * p["scale"][:, None, None], x)

    params = drawn(w=(3, 6, 6), scale=(3,))
    assert stacks(fn, params, X) == {"scale[0]": (3, {("scale", 0), ("w", 0)})}


def test_shapes_of_members_are_known():
    params = drawn(w=(3, 6, 6))
    (stack,) = bb.trace(lambda p, x: scanned(p["w"], x), params, X).graph.stacks
    assert stack.shapes == ((3, 6, 6),)


def test_a_scan_over_positions_is_no_stack():
    """The sum of data and positions is no parameter."""

    def fn(p, x):
        def step(h, x):
            h = jnp.tanh(x @ p["in"] + h @ p["own"])
            return h, h

        rows = jnp.swapaxes(x + p["places"][None], 0, 1)
        return lax.scan(step, jnp.zeros((2, 4)), rows)[1]

    params = {**drawn(**{"in": (6, 4), "own": (4, 4)}), "places": jnp.ones((5, 6))}
    assert stacks(fn, params, X) == {}


def test_one_layer_is_no_stack():
    assert stacks(lambda p, x: scanned(p["w"], x), drawn(w=(1, 6, 6)), X) == {}


def test_unstacked_layers_are_no_stack():
    def fn(p, x):
        for w in p:
            x = jax.nn.relu(x @ w)
        return x

    assert stacks(fn, [jnp.ones((6, 6))] * 3, X) == {}


def test_the_layers_of_the_smaller_model_are_known():
    params = drawn(up=(3, 6, 8), down=(3, 8, 6))

    def fn(p, x):
        step = lambda x, p: (x + jax.nn.relu(x @ p["up"]) @ p["down"], None)  # noqa: E731
        return lax.scan(step, x, p)[0]

    units = bb.trace(fn, params, X)
    masks = bb.unitwise.cut(units, bb.unitwise.group_magnitude(units, params), 0.5)
    small = bb.shrink(fn, params, masks, X)
    (stack,) = small.units.graph.stacks
    assert stack.shapes == ((3, 4, 6), (3, 6, 4))
