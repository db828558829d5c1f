"""`bb.trace` on what models do between kernels: where units end, and who reads them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from tests.support.zoo_case import normal, rate, relu, weights

X = normal(1, 6, 4)
P = weights(w=(4, 6), v=(4, 6), o=(6, 2))
RAW = "no nonlinearity: sign of the raw output"


def outputs(fn, params=P, x=X):
    """Units of a function, and the measured on-rates of each kernel's outputs."""
    units = bb.trace(fn, params, x)
    _, activity = bb.observe(fn, units)(params, x)
    return units, {path: a.outputs.on_rate.tolist() for path, a in activity.items()}


def head(p, h):
    return jnp.sum(h @ p["o"])


A, B = X @ P["w"], X @ P["v"]
SEEN_BY_ALL = {
    "residual": (lambda p, x: head(p, relu(x @ p["w"]) + x @ p["v"]), relu(A), B),
    "maximum": (lambda p, x: head(p, jnp.maximum(x @ p["w"], x @ p["v"])), A, B),
    "scale_and_shift": (
        lambda p, x: head(p, relu((x @ p["w"]) * jax.nn.sigmoid(x @ p["v"]) + 1.0)),
        relu(A * jax.nn.sigmoid(B) + 1.0),
        relu(A * jax.nn.sigmoid(B) + 1.0),
    ),
    "two_readers": (  # the first reader ends what both see
        lambda p, x: _two_readers(relu(x @ p["w"]), p["o"]) + head(p, x @ p["v"]),
        relu(A),
        B,
    ),
    "concatenation": (
        lambda p, x: jnp.sum(
            jnp.tanh(jnp.concatenate([relu(x @ p["w"]), x @ p["v"]], 1))
            @ jnp.concatenate([p["o"], p["o"]])
        ),
        relu(A),
        B,
    ),
    "mixing_positions": (
        lambda p, x: head(p, _mirrored(relu(x @ p["w"])) + relu(x @ p["v"])),
        relu(A),
        relu(B),
    ),
}


def _two_readers(h, w):
    first = h @ w
    return jnp.sum(first) + jnp.sum(jnp.tanh(h - 0.5) @ w)


def _mirrored(h):
    return jnp.tanh(h - h[:, ::-1])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", SEEN_BY_ALL)
def test_outputs_end_where_other_units_mix_in(name):
    fn, w, v = SEEN_BY_ALL[name]
    _, got = outputs(fn)
    assert got["w"] == pytest.approx(rate(w).tolist())
    assert got["v"] == pytest.approx(rate(v).tolist())


CURVES = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "logistic": jax.nn.sigmoid,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "square": lambda x: jnp.square(jax.nn.relu(x)),
    "max": lambda x: jnp.maximum(x, 0.0),
    "select_n": lambda x: jnp.where(x > 0, x, 0.0),
    "mish": jax.nn.mish,
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", CURVES)
def test_nonlinearities_are_named_and_measured(name):
    curve = CURVES[name]
    units, got = outputs(lambda p, x: head(p, curve(x @ p["w"] + 0.1)))
    assert units["w"].nonlinearity == name
    assert got["w"] == pytest.approx(rate(curve(A + 0.1)).tolist())
    always_on = name in ("softplus", "logistic")
    assert [s.path for s in units.selected] == ([] if always_on else ["w"])
    assert ("always on: select it and choose on=" in str(units)) == always_on


def test_table_says_when_only_a_sign_is_measured():
    units = bb.trace(lambda p, x: head(p, x @ p["w"]) + head(p, relu(x @ p["v"])), P, X)
    rows = {line.split()[0]: line for line in str(units).splitlines()}
    assert rows["w"].endswith(RAW)
    assert rows["v"].endswith("after relu")
    assert (
        units.selected
        == bb.trace(lambda p, x: head(p, x @ p["w"]) + head(p, relu(x @ p["v"])), P, X)
        .select("v")
        .selected
    )


REGULARISERS = {
    "mean_square": lambda h: jnp.mean(h**2),
    "l1": lambda h: jnp.sum(jnp.abs(h)),
    "decorrelate": lambda h: jnp.sum(jnp.square(h.T @ h)),
    "variance": lambda h: jnp.var(h),
}


@pytest.mark.long
@pytest.mark.parametrize("name", REGULARISERS)
def test_a_regulariser_changes_nothing_that_is_measured(name):
    def fn(p, x):
        h = relu(x @ p["w"])
        y = h @ p["o"]
        return jnp.mean(y**2) + REGULARISERS[name](h) + jnp.sum(p["w"] ** 2)

    params = {n: P[n] for n in ("w", "o")}
    _, got = outputs(fn, params)
    assert got["w"] == pytest.approx(rate(relu(A)).tolist())
    assert got["o"] == pytest.approx(rate(relu(A) @ P["o"]).tolist())


@pytest.mark.long
def test_last_layer_is_measured_at_its_logits():
    def fn(p, x):
        return -jnp.mean(jax.nn.log_softmax(relu(x @ p["w"]) @ p["o"])[:, 0])

    units, got = outputs(fn, {n: P[n] for n in ("w", "o")})
    assert got["o"] == pytest.approx(rate(relu(A) @ P["o"]).tolist())
    assert not units["o"].hidden and units["o"].nonlinearity == ""


@pytest.mark.long
def test_squeeze_and_excite_owns_the_product_on_one_side_only():
    params = weights(w=(4, 6), a=(6, 3), b=(3, 6), o=(6, 2))

    def fn(p, x):  # x is (batch, time, features)
        h = relu(x @ p["w"])
        gate = jax.nn.sigmoid(relu(jnp.mean(h, 1) @ p["a"]) @ p["b"])
        return jnp.sum((h * gate[:, None]) @ p["o"])

    units = bb.trace(fn, params, normal(2, 2, 5, 4))
    assert units["a"].reads == ("w",)  # before the product
    assert set(units["o"].reads) == {"w", "b"}
    assert units["w"].nonlinearity == "relu"  # the squeeze reads it before the gate
    assert units["b"].nonlinearity == "relu product"


LINKS = {
    "pooling": lambda h: h.reshape(6, 3, 2, 6).max(2).reshape(18, 6),
    "transpose": lambda h: jnp.swapaxes(jnp.swapaxes(h, 0, 1), 0, 1),
    "heads": lambda h: (
        h.reshape(36, 2, 3).transpose(1, 0, 2).swapaxes(0, 1).reshape(36, 6)
    ),
    "norm": lambda h: (h - h.mean(1, keepdims=True)) / (h.std(1, keepdims=True) + 1e-3),
    "pooled_norm": lambda h: LINKS["norm"](h.reshape(6, 6, 6).mean(1)),
}


@pytest.mark.parametrize("name", LINKS)
def test_links_go_on_through(name):
    def fn(p, x):
        return jnp.sum(LINKS[name](relu(x @ p["w"])) @ p["o"])

    units = bb.trace(fn, {n: P[n] for n in ("w", "o")}, normal(3, 36, 4))
    assert units["o"].reads == ("w",)


@pytest.mark.long
def test_flattened_positions_are_part_of_the_input_units():
    params = weights(w=(3, 2, 4), o=(20, 2))

    def fn(p, x):
        dims = ("NHC", "HIO", "NHC")
        h = jax.lax.conv_general_dilated(
            x, p["w"], (1,), "SAME", dimension_numbers=dims
        )
        return jnp.sum(relu(h).reshape(x.shape[0], -1) @ p["o"])

    units = bb.trace(fn, params, normal(4, 2, 5, 2))
    assert units["o"].in_units == (20,) and units["o"].reads == ("w",)


def test_a_residual_stream_is_nobodys_units():
    params = weights(w=(4, 4), o=(4, 2))
    units = bb.trace(lambda p, x: jnp.sum((x + relu(x @ p["w"])) @ p["o"]), params, X)
    assert units["o"].reads == ()


def test_router_is_no_input_of_its_experts():
    params = weights(r=(4, 3), up=(3, 4, 5), down=(3, 5, 4))

    def fn(p, x):
        gate = jax.nn.softmax(x @ p["r"])
        sent = jnp.einsum("te,td->etd", gate, x)
        h = relu(jnp.einsum("etd,edf->etf", sent, p["up"]))
        return jnp.sum(jnp.einsum("etf,efd->etd", h, p["down"]))

    units = bb.trace(fn, params, X)
    assert units["up"].stack == (0,) and units["up"].reads == ()
    assert units["down"].reads == ("up",)


def test_a_shared_ensemble_input_makes_one_wide_layer():
    params = weights(w=(3, 4, 5), o=(3, 5, 2))

    def fn(p, x):
        member = lambda w, o: jnp.sum(relu(x @ w) @ o)  # noqa: E731
        return jnp.sum(jax.vmap(member)(p["w"], p["o"]))

    units = bb.trace(fn, params, X)
    assert (units["w"].fan_in, units["w"].fan_out) == ((1,), (0, 2))
    assert units["o"].stack == (0,) and units["o"].reads == ("w",)


@pytest.mark.long
def test_every_factor_of_a_product_owns_its_units():
    params = weights(a=(4, 6), b=(4, 6), c=(4, 6), o=(6, 2))

    def product(p, x):
        return (x @ p["c"]) * (jnp.tanh(x @ p["a"]) * (x @ p["b"]))

    units, got = outputs(lambda p, x: head(p, product(p, x)), params)
    for path in "abc":
        assert got[path] == pytest.approx(rate(product(params, X)).tolist())
        assert units[path].nonlinearity == "tanh product"
    assert set(units["o"].reads) == {"a", "b", "c"}


@pytest.mark.long
def test_factors_may_store_their_units_in_another_order():
    params = weights(gate=(4, 2, 3), up=(3, 2, 4), o=(2, 3, 4))

    def product(p, x):
        gate = jnp.einsum("bd,dhk->bhk", x, p["gate"])
        return jax.nn.silu(gate) * jnp.einsum("bd,khd->bhk", x, p["up"])

    def fn(p, x):
        return jnp.sum(jnp.einsum("bhk,hkd->bd", product(p, x), p["o"]))

    _, got = outputs(fn, params)
    want = rate(product(params, X), 2)
    assert np.asarray(got["gate"]) == pytest.approx(want)
    assert np.asarray(got["up"]) == pytest.approx(want.T)


@pytest.mark.long
def test_scans_inside_vmap_have_two_stack_axes():
    params, x = weights(w=(2, 3, 4, 4)), normal(5, 2, 6, 4)

    def member(w, x):
        last, _ = jax.lax.scan(lambda h, w: (relu(h @ w), None), x, w, reverse=True)
        return jnp.sum(last)

    units, got = outputs(lambda p, x: jnp.sum(jax.vmap(member)(p["w"], x)), params, x)
    assert units["w"].stack == (0, 1)
    for i in range(2):
        h = x[i]
        for j in (2, 1, 0):  # the scan runs backwards
            h = relu(h @ params["w"][i, j])
            assert got["w"][i][j] == pytest.approx(rate(h).tolist())
