"""One kernel that makes the units of several layers, which slices take apart.

Every range of its units is measured where its own last nonlinearity is; a range without
one counts as the raw output. In a gate each unit of the product belongs to one column
of the kernel in each range. Values are by hand.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.nn import gelu, glu, relu, sigmoid, silu, softmax, softplus

import bbjax as bb

pytestmark = pytest.mark.usefixtures("lenient")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X = normal(0, 40, 6)
P = {
    "w": normal(1, 6, 16),
    "b": normal(2, 16),
    "two": normal(3, 2, 6, 8),
    "turned": jnp.swapaxes(normal(3, 2, 6, 8), 1, 2),
    "v": normal(5, 6, 8),
    "o": normal(6, 8, 3),
    "small": normal(16, 4, 3),
}


def rate(x):
    return np.mean(np.asarray(x) > 0, axis=tuple(range(np.ndim(x) - 1)))


def halves(h):
    return h[..., :8], h[..., 8:]


def pairs(h):
    h = h.reshape(*h.shape[:-1], 8, 2)
    return h[..., 0], h[..., 1]


def alternating(h):
    return h[:, ::2], h[:, 1::2]


def gate(curve, parted):
    a, b = parted
    return curve(a) * b


W = np.asarray(X) @ np.asarray(P["w"])
PLUS = W + np.asarray(P["b"])
TWO = [np.asarray(X) @ w for w in np.asarray(P["two"])]
V = np.asarray(X) @ np.asarray(P["v"])
A, B = halves(W)


def relued(x):
    return np.maximum(x, 0)


def centred(x):
    return x - x.mean(-1, keepdims=True)


# By name: hidden units of parameters and x; the kernel; on-rates; what is found.
GATES = {
    "two kernels in one array (Gemma)": (
        lambda p, x: gate(
            partial(gelu, approximate=False),
            jnp.moveaxis(jnp.einsum("...F,NFH->...NH", x, p["two"]), -2, 0),
        ),
        "two",
        np.tile(rate(TWO[0] * TWO[1]), (2, 1)),
        "gelu product",
    ),
    "the same, transposed": (
        lambda p, x: gate(
            silu,
            jnp.moveaxis(jnp.einsum("...F,NHF->...NH", x, p["turned"]), -2, 0),
        ),
        "turned",
        np.tile(rate(TWO[0] * TWO[1]), (2, 1)),
        "silu product",
    ),
    "split (SwiGLU)": (
        lambda p, x: gate(silu, jnp.split(x @ p["w"] + p["b"], 2, -1)),
        "w",
        np.tile(rate(PLUS[:, :8] * PLUS[:, 8:]), 2),
        "silu product",
    ),
    "slices": (
        lambda p, x: gate(silu, halves(x @ p["w"])),
        "w",
        np.tile(rate(A * B), 2),
        "silu product",
    ),
    "glu": (
        lambda p, x: glu(x @ p["w"]),
        "w",
        np.tile(rate(A), 2),
        "logistic product",
    ),
    "linen glu": (
        lambda p, x: nn.glu(x @ p["w"]),
        "w",
        np.tile(rate(A), 2),
        "logistic product",
    ),
    "unstacked": (
        lambda p, x: gate(relu, jnp.unstack((x @ p["w"]).reshape(-1, 2, 8), axis=1)),
        "w",
        np.tile(rate(relued(A) * B), 2),
        "relu product",
    ),
    "every other unit": (
        lambda p, x: gate(silu, alternating(x @ p["w"])),
        "w",
        np.repeat(rate(W[:, ::2] * W[:, 1::2]), 2),
        "silu product",
    ),
    "pairs on an axis of their own": (
        lambda p, x: gate(silu, pairs(x @ p["w"])),
        "w",
        np.repeat(rate(W[:, ::2] * W[:, 1::2]), 2),
        "silu product",
    ),
    "a norm of each half before the gate": (
        lambda p, x: gate(silu, tuple(map(centred, halves(x @ p["w"])))),
        "w",
        np.tile(rate(centred(A) * centred(B)), 2),
        "silu product",
    ),
    "a third factor": (
        lambda p, x: gate(silu, halves(x @ p["w"])) * (x @ p["v"]),
        "w",
        np.tile(rate(A * B * V), 2),
        "silu product",
    ),
    "one half a residual stream": (
        lambda p, x: gate(silu, halves(x @ p["w"])) + x @ p["v"],
        "w",
        np.tile(rate(A * B), 2),
        "silu product",
    ),
    "the sum of both halves, then relu": (
        lambda p, x: relu(sum(halves(x @ p["w"]))),
        "w",
        np.tile(rate(A + B), 2),
        "relu",
    ),
    "relu of the whole, then a gate": (
        lambda p, x: gate(lambda a: a, halves(relu(x @ p["w"]))),
        "w",
        np.tile(rate(relued(A) * relued(B)), 2),
        "relu product",
    ),
}


@pytest.mark.parametrize("name", GATES)
def test_each_range_is_measured_after_its_own_last_nonlinearity(name):
    hidden, path, expected, curve = GATES[name]

    def fn(p, x):
        return jnp.mean((hidden(p, x) @ p["o"]) ** 2)

    units = bb.trace(fn, P, X)
    _, activity = bb.observe(fn, units, needs=("mean_abs", "max_abs"))(P, X)
    outputs = activity[path].outputs
    assert units[path].nonlinearity == curve
    assert outputs.on_rate.shape == units[path].out_units
    np.testing.assert_allclose(outputs.on_rate, expected, atol=1e-6)
    assert (np.asarray(outputs.count) % len(X) == 0).all()
    assert path in units.budgeted


@pytest.mark.long
@pytest.mark.parametrize("name", ["split (SwiGLU)", "two kernels in one array (Gemma)"])
def test_a_fused_kernel_is_pruned_by_default_with_a_budget_over_all_its_columns(name):
    hidden, path, expected, _ = GATES[name]

    def fn(p, x):
        return jnp.mean((hidden(p, x) @ p["o"]) ** 2)

    units = bb.trace(fn, P, X)
    assert units.budgeted == {path: ("in",)}
    assert bb.transform(units).init(P)
    _, activity = bb.observe(fn, units)(P, X)
    rule = bb.rules.budgeted_broadcast(competition=0)
    _, masks = bb.prune(P, units, rule, density=0.5, stats=activity)
    degrees = np.sum(masks[path], axis=-2)
    assert degrees.sum() == P[path].size // 2
    asked = bb.degrees(expected.reshape(-1), 6, 0.5)
    np.testing.assert_array_equal(degrees.reshape(-1), asked)


# Ranges with places of their own -----------------------------------------------------
def steps(curve):
    """A recurrent cell with one kernel for four gates, over 9 steps of 5 sequences."""

    def fn(p, xs):
        def body(carry, x):
            c, h = curve(x @ p["in"] + h_of(carry) @ p["back"], carry[0])
            return (c, h), (c, h)

        start = jnp.zeros((5, 4)), jnp.zeros((5, 4))
        return lax.scan(body, start, xs)[1][1] @ p["out"]

    return fn


def h_of(carry):
    return carry[1]


def lstm(gates, c):
    i, f, g, o = jnp.split(gates, 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    return c, sigmoid(o) * jnp.tanh(c)


@pytest.mark.long
def test_the_gates_of_an_lstm_cell_have_a_place_each():
    """`i` and `g` at their product, `f` after its sigmoid, `o` at the hidden state."""
    p = {"in": normal(7, 6, 16), "back": normal(8, 4, 16), "out": normal(9, 4, 3)}
    xs = normal(10, 9, 5, 6)
    fn = steps(lstm)
    units = bb.trace(fn, p, xs)
    _, activity = bb.observe(fn, units)(p, xs)

    c = h = np.zeros((5, 4))
    products, states = [], []
    for x in np.asarray(xs):
        gates = x @ np.asarray(p["in"]) + h @ np.asarray(p["back"])
        i, f, g, o = np.split(gates, 4, -1)
        i, f, o = (1 / (1 + np.exp(-a)) for a in (i, f, o))
        products.append(i * np.tanh(g))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        states.append(h)
    gated, seen = rate(products), rate(states)
    expected = np.concatenate([gated, np.ones(4), gated, seen])
    for path in ("in", "back"):
        assert units[path].nonlinearity == "logistic product/logistic"
        np.testing.assert_allclose(activity[path].outputs.on_rate, expected, atol=1e-6)
        assert path not in units.budgeted
    assert "units after logistic are always on: select it" in str(units)


@pytest.mark.long
def test_a_range_without_a_nonlinearity_counts_as_the_raw_output():
    """As in Mamba's input projection: a gate, what the state reads, and step sizes."""

    def fn(p, x):
        empty, z, inner, step = jnp.split(x @ p["w"] + p["b"], [0, 4, 12], -1)
        assert not empty.size
        y = jnp.cumsum(inner.reshape(-1, 4, 2).sum(-1) * softplus(step), 0)
        return (silu(z) * y) @ p["small"]

    units = bb.trace(fn, P, X)
    _, activity = bb.observe(fn, units)(P, X)
    expected = np.concatenate([rate(PLUS[:, :12]), np.ones(4)])
    np.testing.assert_allclose(activity["w"].outputs.on_rate, expected, atol=1e-6)
    assert units["w"].nonlinearity == "silu/raw/softplus"
    assert not units.budgeted and "always on" in str(units)
    assert list(units.select("w").budgeted) == ["w"]


def test_one_range_with_a_nonlinearity_is_enough_for_the_default_selection():
    def fn(p, x):
        a, b = halves(x @ p["w"])
        return relu(a) @ p["o"] + b @ p["o"]

    units = bb.trace(fn, P, X)
    _, activity = bb.observe(fn, units)(P, X)
    np.testing.assert_allclose(activity["w"].outputs.on_rate, rate(W), atol=1e-6)
    assert units["w"].nonlinearity == "relu/raw" and list(units.budgeted) == ["w"]
    assert "after relu/raw" in str(units)


def test_a_gate_that_is_taken_apart_again():
    """Columns j and 8 + j belong to unit j, and the halves of the units have curves."""

    def fn(p, x):
        hidden = gate(silu, halves(x @ p["w"]))
        a, b = relu(hidden[:, :4] - 0.1), jnp.tanh(hidden[:, 4:] + 0.2)
        return a @ p["small"] + b @ p["narrow"]

    params = P | {"narrow": normal(17, 4, 3)}
    units = bb.trace(fn, params, X)
    _, activity = bb.observe(fn, units)(params, X)
    product = A / (1 + np.exp(-A)) * B
    shifted = np.concatenate([product[:, :4] - 0.1, product[:, 4:] + 0.2], 1)
    found = activity["w"].outputs.on_rate
    np.testing.assert_allclose(found, np.tile(rate(shifted), 2), atol=1e-6)
    assert units["w"].nonlinearity == "relu/tanh" and "w" in units.budgeted


def test_queries_keys_and_values_are_measured_as_before():
    def fn(p, x):
        q, k, v = jnp.split(x @ p["w"] + p["b"], [4, 8], -1)
        return (softmax(q @ k.T / 2.0) @ v) @ p["o"]

    units = bb.trace(fn, P, X)
    _, activity = bb.observe(fn, units, needs=("outputs.mean_abs",))(P, X)
    assert units["w"].nonlinearity == "" and units["o"].reads == ("w",)
    np.testing.assert_allclose(activity["w"].outputs.on_rate, rate(PLUS), atol=1e-6)
    np.testing.assert_allclose(
        activity["w"].outputs.mean_abs, np.abs(PLUS).mean(0), rtol=1e-5
    )


@pytest.mark.long
def test_a_range_of_one_unit_and_ranges_inside_scanned_layers():
    layers = {"w": normal(11, 3, 6, 13) / 4, "o": normal(12, 3, 6, 6) / 4}

    def fn(p, x):
        def layer(x, p):
            gate, value, scale = jnp.split(x @ p["w"], [6, 12], -1)
            return x + (silu(gate) * value * jnp.tanh(scale)) @ p["o"], None

        return lax.scan(layer, x, p)[0]

    units = bb.trace(fn, layers, X)
    _, activity = bb.observe(fn, units)(layers, X)
    x, expected = np.asarray(X), []
    for w, o in zip(np.asarray(layers["w"]), np.asarray(layers["o"]), strict=True):
        gates, value, scale = np.split(x @ w, [6, 12], -1)
        product = gates / (1 + np.exp(-gates)) * value * np.tanh(scale)
        expected.append(np.concatenate([*np.tile(rate(product), (2, 1)), rate(scale)]))
        x = x + product @ o
    found = activity["w"].outputs.on_rate
    assert found.shape == (3, 13)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.long
def test_ranges_of_an_ensemble_with_padding():
    """Members differ in their kernels; half of the positions are padding."""
    p = {"w": normal(18, 3, 6, 16), "o": normal(19, 8, 2)}
    x = jnp.stack([X, -X, 2 * X + 1]).reshape(3, 8, 5, 6)
    where = jnp.arange(5)[None] < jnp.arange(1, 9)[:, None] % 5

    def fn(p, x):
        return jax.vmap(lambda w, x: gate(silu, halves(x @ w)) @ p["o"])(p["w"], x)

    units = bb.trace(fn, p, x)
    assert units["w"].stack == (0,) and list(units.budgeted) == ["w"]
    _, activity = bb.observe(fn, units.select("w"), where=where)(p, x)
    real = np.asarray(x)[:, np.asarray(where)]
    products = [
        np.split(a @ w, 2, -1) for a, w in zip(real, np.asarray(p["w"]), strict=True)
    ]
    expected = [np.tile(rate(a * b), 2) for a, b in products]
    outputs = activity["w"].outputs
    np.testing.assert_allclose(outputs.on_rate, expected, atol=1e-6)
    assert (np.asarray(outputs.count) == where.sum()).all()


@pytest.mark.long
@pytest.mark.parametrize("groups", [1, 2])
def test_halves_of_a_convolution(groups):
    w = normal(13, 3, 4 // groups, 8)
    p = {"w": w, "o": normal(14, 4, 3)}
    x = normal(15, 2, 7, 4)

    def conv(p, x):
        return lax.conv_general_dilated(
            x,
            p["w"],
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=groups,
        )

    def fn(p, x):
        a, b = jnp.split(conv(p, x), 2, -1)
        return (relu(a) * b) @ p["o"]

    units = bb.trace(fn, p, x)
    needs = ("outputs.abs_map",)
    activity = bb.calibrate(fn, units.select("w"), p, [(x,)], needs=needs)["w"].outputs
    a, b = np.split(np.asarray(conv(p, x)), 2, -1)
    product = np.maximum(a, 0) * b
    np.testing.assert_allclose(activity.on_rate, np.tile(rate(product), 2), atol=1e-6)
    maps = np.tile(np.abs(product).mean(0), 2)
    np.testing.assert_allclose(activity.abs_map, maps, rtol=1e-5, atol=1e-6)
