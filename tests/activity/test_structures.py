"""What is measured for a unit, over structures of published networks.

The value of a unit is taken after the last nonlinearity that belongs to it. Norms,
dropout, scales and positional terms that follow do not count; units that are added to
those of another kernel before a nonlinearity count as the sum. Values are by hand.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.nn import gelu, relu, sigmoid, silu, softplus

import bbjax as bb

pytestmark = pytest.mark.usefixtures("lenient")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X, Y, T = normal(0, 40, 6), normal(1, 40, 4), normal(2, 40, 3)
POSITIONS = normal(3, 40, 8)
ENDS, STARTS = jnp.arange(60) % 40, jnp.arange(60) * 7 % 40
NEAR = normal(4, 40, 40)
SHAPES = {
    "w": (6, 8),
    "v": (6, 8),
    "y": (4, 8),
    "shift": (3, 8),
    "scale": (3, 8),
    "low": (6, 2),
    "high": (2, 8),
    "again": (8, 8),
    "o": (8, 3),
}
P = {name: normal(10 + i, *shape) for i, (name, shape) in enumerate(SHAPES.items())}
P |= {"b": normal(30, 8), "g": normal(31, 8)}


def rate(x):
    return np.mean(np.asarray(x) > 0, axis=tuple(range(np.ndim(x) - 1)))


def layer_norm(x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5)


def batch_norm(x):
    mean = x.mean(0)
    return (x - mean) * lax.rsqrt(((x - mean) ** 2).mean(0) + 1e-5)


def group_norm(x):  # of an image of 40 positions, units in 2 groups
    y = x.reshape(40, 2, 4)
    mean = y.mean((0, 2), keepdims=True)
    y = (y - mean) * lax.rsqrt(((y - mean) ** 2).mean((0, 2), keepdims=True) + 1e-5)
    return y.reshape(x.shape)


def pooled(x):
    return jnp.repeat(x.reshape(20, 2, 8).max(1), 2, 0)


def two_readers(t, w):
    return silu(t) @ w + (silu(t) @ w) * 0.5


def structures():
    """By name: hidden units of parameters and x; by kernel the value and its curve."""
    W, V, IN = X @ P["w"], X @ P["v"], Y @ P["y"]
    SHIFT, SCALE = T @ P["shift"], T @ P["scale"]
    KEPT = POSITIONS > 0
    return {
        "bias and relu": (
            lambda p, x: relu(x @ p["w"] + p["b"]),
            {"w": (relu(W + P["b"]), "relu")},
        ),
        "positions after relu": (
            lambda p, x: relu(x @ p["w"]) + POSITIONS,
            {"w": (relu(W), "relu")},
        ),
        "batch norm after relu": (
            lambda p, x: batch_norm(relu(x @ p["w"])) * p["g"] + p["b"],
            {"w": (relu(W), "relu")},
        ),
        "layer norm after relu": (
            lambda p, x: layer_norm(relu(x @ p["w"])) * p["g"] + p["b"],
            {"w": (relu(W), "relu")},
        ),
        "batch norm before relu": (
            lambda p, x: relu(batch_norm(x @ p["w"]) * p["g"] + p["b"]),
            {"w": (relu(batch_norm(W) * P["g"] + P["b"]), "relu")},
        ),
        "dropout after gelu": (
            lambda p, x: jnp.where(
                KEPT, gelu(x @ p["w"], approximate=False) / 0.5, 0.0
            ),
            {"w": (W, "gelu")},
        ),
        "gelu, as it is approximated": (
            lambda p, x: gelu(x @ p["w"]) + POSITIONS,
            {"w": (gelu(W), "gelu")},
        ),
        "layer scale after silu": (
            lambda p, x: silu(x @ p["w"]) * p["g"],
            {"w": (W, "silu")},
        ),
        "two inputs": (
            lambda p, x: relu(x @ p["w"] + Y @ p["y"] + p["b"]),
            dict.fromkeys("wy", (relu(W + IN + P["b"]), "relu")),
        ),
        "a difference of two kernels": (
            lambda p, x: jnp.tanh(x @ p["w"] - Y @ p["y"]),
            dict.fromkeys("wy", (W - IN, "tanh")),
        ),
        "modulated by a condition (FiLM)": (
            lambda p, x: silu((x @ p["w"]) * (1 + T @ p["scale"]) + T @ p["shift"]),
            {"w": (W * (1 + SCALE) + SHIFT, "silu")},
        ),
        "low rank beside the kernel (LoRA)": (
            lambda p, x: relu(x @ p["w"] + x @ p["low"] @ p["high"]),
            dict.fromkeys(("w", "high"), (W + X @ P["low"] @ P["high"], "relu")),
        ),
        "gated by sigmoid (GLU)": (
            lambda p, x: sigmoid(x @ p["w"]) * (x @ p["v"]),
            dict.fromkeys("wv", (V, "logistic product")),
        ),
        "gated by silu (SwiGLU)": (
            lambda p, x: silu(x @ p["w"]) * (x @ p["v"]),
            dict.fromkeys("wv", (W * V, "silu product")),
        ),
        "gated without a nonlinearity": (
            lambda p, x: (x @ p["w"]) * (x @ p["v"]),
            dict.fromkeys("wv", (W * V, "product")),
        ),
        "gated by gelu, then a norm": (
            lambda p, x: layer_norm(gelu(x @ p["w"], approximate=False) * (x @ p["v"])),
            dict.fromkeys("wv", (W * V, "gelu product")),
        ),
        "residual block, relu after the sum": (
            lambda p, x: relu(relu(x @ p["w"]) + relu(x @ p["v"]) @ p["again"]),
            {
                "v": (V, "relu"),
                "again": (relu(W) + relu(V) @ P["again"], "relu"),
            },
        ),
        "residual block, norm and relu after the sum": (
            lambda p, x: relu(batch_norm(x @ p["v"]) + batch_norm(x @ p["w"])),
            dict.fromkeys("wv", (batch_norm(V) + batch_norm(W), "relu")),
        ),
        "residual stream, norm after the sum": (
            lambda p, x: layer_norm(x @ p["w"] + relu(x @ p["v"]) @ p["again"]),
            {"w": (W, ""), "v": (V, "relu"), "again": (relu(V) @ P["again"], "")},
        ),
        "a gate, then a sum with another kernel": (
            lambda p, x: silu(x @ p["w"]) * (x @ p["v"]) + Y @ p["y"],
            dict.fromkeys("wv", (W * V, "silu product")) | {"y": (IN, "")},
        ),
        "a sum before the nonlinearity and one after it": (
            lambda p, x: relu(x @ p["w"] + x @ p["v"]) - Y @ p["y"],
            dict.fromkeys("wv", (W + V, "relu")) | {"y": (IN, "")},
        ),
        "one nonlinearity, computed for each of two readers": (
            lambda p, x: two_readers(x @ p["w"] + p["b"], p["again"]),
            {"w": (W + P["b"], "silu")},
        ),
        "two nonlinearities": (
            lambda p, x: relu(jnp.tanh(x @ p["w"]) + p["b"]),
            {"w": (jnp.tanh(W) + P["b"], "relu")},
        ),
        "squared relu": (
            lambda p, x: jnp.square(relu(x @ p["w"])),
            {"w": (W, "square")},
        ),
        "added to data": (
            lambda p, x: relu(x @ p["w"] + POSITIONS),
            {"w": (relu(W + POSITIONS), "relu")},
        ),
        "added to pooled units": (
            lambda p, x: relu(x @ p["w"] + pooled(relu(x @ p["v"]))),
            {"w": (relu(W + pooled(relu(V))), "relu"), "v": (V, "relu")},
        ),
        "group norm over positions, before silu": (
            lambda p, x: silu(group_norm(x @ p["w"]) * p["g"] + p["b"]),
            {"w": (group_norm(W) * P["g"] + P["b"], "silu")},
        ),
        "pooled before relu": (
            lambda p, x: relu((x @ p["w"]).reshape(20, 2, 8).max(1)),
            {"w": (relu(W.reshape(20, 2, 8).max(1)), "relu")},
        ),
        "a mean over positions before relu": (
            lambda p, x: relu((x @ p["w"]).reshape(8, 5, 8).mean(1) + p["b"]),
            {"w": (relu(W.reshape(8, 5, 8).mean(1) + P["b"]), "relu")},
        ),
        "some positions, then relu": (
            lambda p, x: relu((x @ p["w"])[5:]),
            {"w": (relu(W[5:]), "relu")},
        ),
        "messages along edges, then relu": (
            lambda p, x: relu(jax.ops.segment_sum((x @ p["w"])[ENDS], STARTS, 40)),
            {"w": (relu(jax.ops.segment_sum(W[ENDS], STARTS, 40)), "relu")},
        ),
        "a matrix of neighbours, then relu": (
            lambda p, x: relu(NEAR @ (x @ p["w"]) + x @ p["v"]),
            {"w": (W, ""), "v": (relu(NEAR @ W + V), "relu")},
        ),
        "attention, then tanh": (
            lambda p, x: jnp.tanh(jax.nn.softmax(x @ x.T) @ (x @ p["w"])),
            {"w": (jax.nn.softmax(X @ X.T) @ W, "tanh")},
        ),
        "pooled over the batch": (
            lambda p, x: relu(x @ p["w"]).reshape(20, 2, 8).max(1),
            {"w": (W, "relu")},
        ),
        "highway": (
            lambda p, x: sigmoid(x @ p["v"]) * relu(x @ p["w"]) + p["b"],
            dict.fromkeys("wv", (relu(W), "logistic product")),
        ),
    }


with jax.numpy_rank_promotion("allow"):
    STRUCTURES = structures()


@pytest.mark.sampled(19)
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_value_of_a_unit_is_taken_after_its_last_nonlinearity(name):
    hidden, expected = STRUCTURES[name]

    def fn(p, x):
        return jnp.mean((hidden(p, x) @ p["o"]) ** 2)

    units = bb.trace(fn, P, X)
    _, activity = bb.observe(fn, units)(P, X)
    for path, (value, nonlinearity) in expected.items():
        assert sorted(units[path].nonlinearity.split()) == sorted(nonlinearity.split())
        found = activity[path].outputs.on_rate
        np.testing.assert_allclose(found, rate(value), atol=1e-6, err_msg=path)
    assert set(units.budgeted) >= {p for p, (_, name) in expected.items() if name}


ALWAYS_ON = {"sigmoid": sigmoid, "softplus": softplus, "exp": jnp.exp, "softmax": None}


@pytest.mark.parametrize("name", ALWAYS_ON)
def test_units_that_are_always_on_are_not_selected_by_default(name):
    curve = ALWAYS_ON[name] or jax.nn.softmax

    def fn(p, x):
        return curve(x @ p["w"]) @ p["o"] + relu(x @ p["v"]) @ p["o"]

    units = bb.trace(fn, P, X)
    assert list(units.budgeted) == ["v"]
    row = next(line for line in str(units).splitlines() if line.startswith("w "))
    assert "not selected by default: always on: select it and choose on=" in row
    assert list(units.select("w").budgeted) == ["w"]


def test_a_kernel_whose_units_have_one_edge_is_in_the_table_with_the_reason():
    model = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Conv(4, (3, 3)), nn.relu])
    x = normal(40, 2, 5, 5, 1)
    params = model.init(jax.random.key(0), x)
    params = {"net": params, "o": normal(41, 4, 2)}

    def fn(p, x):
        return model.apply(p["net"], x).mean((1, 2)) @ p["o"]

    units = bb.trace(fn, params, x)
    row = next(line for line in str(units).splitlines() if "layers_0/kernel" in line)
    assert "not selected by default: one edge a unit leaves no choice" in row


# Recurrent cells -------------------------------------------------------------------
@pytest.mark.long
def test_a_plain_recurrent_cell_is_measured_after_the_sum():
    rnn = nn.RNN(nn.SimpleCell(5), return_carry=False)
    x = normal(50, 3, 7, 4)
    params = rnn.init(jax.random.key(1), x)

    def fn(params, x):
        return rnn.apply(params, x)

    units = bb.trace(fn, params, x)
    hidden, activity = bb.observe(fn, units)(params, x)
    assert {k.nonlinearity for k in units.kernels} == {"tanh"}
    for path in units.paths:
        np.testing.assert_allclose(activity[path].outputs.on_rate, rate(hidden))


def sigmoid_of(x):
    return 1 / (1 + np.exp(-x))


def lstm_by_hand(p, x, c, h):
    """The next carry, and by gate the value of its unit."""
    at = {
        name: x @ p[f"i{name}"]["kernel"]
        + h @ p[f"h{name}"]["kernel"]
        + p[f"h{name}"]["bias"]
        for name in "ifgo"
    }
    i, f, o = (sigmoid_of(at[name]) for name in "ifo")
    product = i * np.tanh(at["g"])
    c = f * c + product
    h = o * np.tanh(c)
    return (c, h), {"i": product, "f": f, "g": product, "o": h}


def gru_by_hand(p, x, h, _):
    at = {name: x @ p[f"i{name}"]["kernel"] + p[f"i{name}"]["bias"] for name in "rzn"}
    z = sigmoid_of(at["z"] + h @ p["hz"]["kernel"])
    r = sigmoid_of(at["r"] + h @ p["hr"]["kernel"])
    n = np.tanh(at["n"] + r * (h @ p["hn"]["kernel"] + p["hn"]["bias"]))
    new = (1 - z) * n
    return (new + z * h, None), {"r": new, "z": z, "n": new}


CELLS = {"lstm": (nn.LSTMCell, lstm_by_hand), "gru": (nn.GRUCell, gru_by_hand)}


@pytest.mark.long
@pytest.mark.parametrize("name", CELLS)
def test_the_gates_of_recurrent_cells(name):
    """Factors count as their product; a gate that meets no other units as itself."""
    cell, by_hand = CELLS[name]
    rnn, x = nn.RNN(cell(5)), normal(51, 3, 7, 4)
    params = rnn.init(jax.random.key(2), x)["params"]

    def fn(params, x):
        return rnn.apply({"params": params}, x)

    units = bb.trace(fn, params, x)
    _, activity = bb.observe(fn, units)(params, x)
    carry, values = (np.zeros((3, 5)), np.zeros((3, 5))), []
    weights = jax.tree.map(np.asarray, params["cell"])
    for t in range(7):
        carry, seen = by_hand(weights, np.asarray(x[:, t]), *carry)
        values.append(seen)
    assert len(units.paths) == 2 * len(values[0])
    for path in units.paths:
        gate = path.split("/")[1][1]
        expected = rate([seen[gate] for seen in values])
        found = activity[path].outputs.on_rate
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=path)


def test_complex_weights_are_refused_by_name():
    params = {"w": normal(60, 4, 6).astype(jnp.complex64), "o": normal(61, 6, 3)}

    def fn(p, x):
        return relu((x @ p["w"]).real) @ p["o"]

    units = bb.trace(fn, params, normal(62, 5, 4).astype(jnp.complex64))
    assert "not selected by default: its weights are complex" in str(units)
    for build in (bb.transform, lambda u: bb.prune(params, u, bb.rules.magnitude())):
        with pytest.raises(ValueError, match="real weights for 'w', got complex64"):
            build(units.select("w"))


@pytest.mark.long
@pytest.mark.parametrize("tied", [False, True])
def test_a_token_embedding_is_no_bias(tied):
    """The first block behind it counts before the sum, as in every residual stream."""
    rng = np.random.default_rng(0)
    shapes = {"emb": (50, 16), "w": (16, 16), "out": (16, 50)}
    params = {
        n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()
    }
    tokens = jnp.asarray(rng.integers(0, 50, (2, 8)))

    def fn(p, tokens):
        embedded = p["emb"][tokens]
        stream = embedded + embedded @ p["w"]
        return stream @ (p["emb"].T if tied else p["out"])

    units = bb.trace(fn, params, tokens)
    _, activity = bb.observe(fn, units.only(units.paths))(params, tokens)
    want = np.mean(np.asarray(params["emb"][tokens] @ params["w"]) > 0, axis=(0, 1))
    np.testing.assert_allclose(activity["w"].outputs.on_rate, want, atol=1e-6)
