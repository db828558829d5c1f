"""A kernel that is indexed before its products: every slice has a use of its own.

Stacked layers in a loop, or gate and value in one array. Slices are a stack axis, as in
a scan: statistics and budgets are per slice. Values are by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.nn import relu, silu

import bbjax as bb

pytestmark = pytest.mark.usefixtures("lenient")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X = normal(0, 40, 6)
P = {
    "layers": normal(1, 3, 6, 6) / 2,
    "bias": normal(2, 3, 6),
    "two": normal(3, 6, 2, 8),
    "o": normal(4, 8, 3),
}


def rate(x):
    return np.mean(np.asarray(x) > 0, axis=tuple(range(np.ndim(x) - 1)))


def loop(p, x):
    for i in range(3):
        x = relu(x @ p["layers"][i] + p["bias"][i])
    return x


def inputs_of_layers():
    x, found = np.asarray(X), []
    for w, b in zip(np.asarray(P["layers"]), np.asarray(P["bias"]), strict=True):
        found.append(x)
        x = np.maximum(x @ w + b, 0)
    return [*found, x]


def test_layers_in_a_loop_are_a_stack():
    units = bb.trace(loop, P, X)
    kernel = units["layers"]
    assert (kernel.stack, kernel.fan_in, kernel.fan_out) == ((0,), (1,), (2,))
    assert kernel.nonlinearity == "relu" and kernel.uses == 3
    assert list(units.budgeted) == ["layers"]
    _, activity = bb.observe(loop, units, needs=("mean_square",))(P, X)
    seen = inputs_of_layers()
    close = np.testing.assert_allclose
    found = activity["layers"]
    close(found.inputs.mean_square, [np.mean(x**2, 0) for x in seen[:3]], rtol=1e-5)
    close(found.outputs.on_rate, [rate(x) for x in seen[1:]], atol=1e-6)
    assert (np.asarray(found.outputs.count) == 40).all()


@pytest.mark.long
def test_larger_statistics_of_slices():
    units = bb.trace(loop, P, X)
    needs = ("inputs.gram", "inputs.l1", "inputs.abs_map")
    found = bb.calibrate(loop, units, P, [(X[:10],), (X[10:],)], needs=needs)
    inputs = found["layers"].inputs
    seen = inputs_of_layers()[:3]
    grams = [x.T @ x / 40 for x in seen]
    means = np.array([np.abs(x).mean(0) for x in seen])
    np.testing.assert_allclose(inputs.gram, grams, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(inputs.abs_map, means, rtol=1e-5)
    edges = np.abs(P["layers"]) * means[:, :, None]
    np.testing.assert_allclose(inputs.l1, edges, rtol=1e-5)


@pytest.mark.long
def test_gate_and_value_in_one_array_that_is_indexed():
    def fn(p, x):
        return (silu(x @ p["two"][:, 0]) * (x @ p["two"][:, 1])) @ p["o"]

    units = bb.trace(fn, P, X)
    kernel = units["two"]
    assert (kernel.stack, kernel.fan_in, kernel.fan_out) == ((1,), (0,), (2,))
    assert kernel.nonlinearity == "silu product" and list(units.budgeted) == ["two"]
    _, activity = bb.observe(fn, units)(P, X)
    gate, value = (np.asarray(X) @ np.asarray(P["two"][:, i]) for i in (0, 1))
    expected = np.tile(rate(gate * value), (2, 1))
    np.testing.assert_allclose(activity["two"].outputs.on_rate, expected, atol=1e-6)
    _, masks = bb.prune(P, units, bb.rules.magnitude(), density=0.5)
    np.testing.assert_array_equal(np.sum(masks["two"], axis=(0, 2)), [24, 24])


@pytest.mark.long
def test_slices_with_ranges_of_their_own():
    """An index before the product, and halves of its output behind it."""
    p = {"w": normal(5, 2, 6, 8), "o": normal(6, 4, 6)}

    def fn(p, x):
        for i in range(2):
            a, b = jnp.split(x @ p["w"][i], 2, -1)
            x = (relu(a) * b) @ p["o"]
        return x

    units = bb.trace(fn, p, X)
    _, activity = bb.observe(fn, units)(p, X)
    x, expected = np.asarray(X), []
    for w in np.asarray(p["w"]):
        a, b = np.split(x @ w, 2, -1)
        expected.append(np.tile(rate(np.maximum(a, 0) * b), 2))
        x = (np.maximum(a, 0) * b) @ np.asarray(p["o"])
    np.testing.assert_allclose(activity["w"].outputs.on_rate, expected, atol=1e-6)


@pytest.mark.long
def test_slices_inside_scanned_layers():
    p = {"w": normal(9, 3, 2, 6, 8) / 4, "o": normal(10, 3, 8, 6) / 4}

    def fn(p, x):
        def layer(x, p):
            return x + (relu(x @ p["w"][0]) * (x @ p["w"][1])) @ p["o"], None

        return lax.scan(layer, x, p)[0]

    units = bb.trace(fn, p, X)
    assert units["w"].stack == (0, 1) and units["w"].out_units == (8,)
    stats = bb.calibrate(fn, units.select("w"), p, [(X,)], needs=("inputs.gram",))["w"]
    x, grams, expected = np.asarray(X), [], []
    for w, o in zip(np.asarray(p["w"]), np.asarray(p["o"]), strict=True):
        product = np.maximum(x @ w[0], 0) * (x @ w[1])
        grams.append([x.T @ x / 40] * 2)
        expected.append([rate(product)] * 2)
        x = x + product @ o
    np.testing.assert_allclose(stats.outputs.on_rate, expected, atol=1e-6)
    np.testing.assert_allclose(stats.inputs.gram, grams, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_slices_of_a_grouped_convolution():
    p = {"w": normal(7, 2, 3, 2, 4)}
    x = normal(8, 2, 7, 4)

    def layer(w, x):
        spec = ("NWC", "WIO", "NWC")
        how = {"dimension_numbers": spec, "feature_group_count": 2}
        return relu(lax.conv_general_dilated(x, w, (1,), "SAME", **how))

    def fn(p, x):
        return layer(p["w"][1], layer(p["w"][0], x))

    units = bb.trace(fn, p, x)
    assert (units["w"].stack, units["w"].groups) == ((0,), 2)
    _, activity = bb.observe(fn, units)(p, x)
    inner = layer(p["w"][0], x)
    outer = layer(p["w"][1], inner)
    found = activity["w"]
    np.testing.assert_allclose(found.inputs.on_rate, [rate(x), rate(inner)], atol=1e-6)
    np.testing.assert_allclose(
        found.outputs.on_rate, [rate(inner), rate(outer)], atol=1e-6
    )


def test_a_layer_without_a_nonlinearity_is_named():
    def fn(p, x):
        return relu(x @ p["layers"][0]) @ p["layers"][1] @ p["layers"][2]

    units = bb.trace(fn, P, X)
    assert units["layers"].nonlinearity == "relu/raw"


REFUSED = {
    "some slices": (
        lambda p, x: relu(x @ p["layers"][0]) @ p["layers"][1],
        "2 of its 3 slices are multiplied",
    ),
    "the whole, too": (
        lambda p, x: relu(loop(p, x) @ jnp.moveaxis(p["layers"], 0, 1).reshape(6, 18)),
        "used 4 times with different axes",
    ),
    "halves": (
        lambda p, x: x @ p["two"].reshape(6, 16)[:, :8],
        "reaches dot_general through slice",
    ),
    "a sum of slices": (
        lambda p, x: x @ (p["layers"][0] + p["layers"][1]),
        "reaches dot_general through add, after which a weight of 0 is not 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_slices_are_listed_with_the_reason(name):
    fn, why = REFUSED[name]
    (problem,) = bb.trace(fn, P, X).problems
    assert problem[1].startswith(why)


@pytest.mark.long
def test_a_model_with_slices_shrinks_or_says_why_not():
    def fn(p, x):
        return (silu(x @ p["two"][:, 0]) * (x @ p["two"][:, 1])) @ p["o"]

    units = bb.trace(fn, P, X)
    scores = bb.unitwise.group_magnitude(units, P)
    masks = bb.unitwise.cut(units, scores, density=0.5)
    small = bb.shrink(fn, P, masks, X)
    assert small.params["two"].shape == (6, 2, 4)
    np.testing.assert_allclose(
        fn(small.params, X), fn(bb.apply_masks(P, masks), X), rtol=1e-5, atol=1e-5
    )
