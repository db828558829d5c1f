"""`inputs.gram`: the mean outer product of a kernel's inputs, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bbjax as bb
from tests.support import zoo
from tests.support.zoo_case import normal, relu, weights

GRAM = ("inputs.gram",)


def grams(fn, params, *args, **options):
    units = bb.trace(fn, params, *args)
    observed = bb.observe(fn, units, needs=GRAM, **options)
    observed = jax.jit(observed)
    return {p: a.inputs.gram for p, a in observed(params, *args)[1].items()}


def by_hand(x, units=1, lead=0):
    """Mean of x x^T, units last, per index of the first `lead` axes: float64."""
    x = np.asarray(x, np.float64)
    stack = x.shape[:lead]
    n = int(np.prod(x.shape[x.ndim - units :]))
    slices = x.reshape(int(np.prod(stack)), -1, n)
    return np.stack([s.T @ s / len(s) for s in slices]).reshape(*stack, n, n)


def close(got, want, rtol=1e-5):
    assert got.dtype == jnp.float32 and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


def mlp(p, x):
    return jnp.sum(relu(x @ p["up"]) @ p["down"])


P, X = weights(up=(4, 6), down=(6, 2)), normal(1, 3, 5, 4)


def test_of_matrix_products():
    got = grams(mlp, P, X)
    close(got["up"], by_hand(X))
    close(got["down"], by_hand(relu(X @ P["up"])))


def test_only_where_it_is_asked_for():
    units = bb.trace(mlp, P, X)
    for needs, held in ((GRAM, True), ((), False), (("mean_square",), False)):
        activity = bb.observe(mlp, units, needs=needs)(P, X)[1]
        assert (activity["up"].inputs.gram is not None) == held
        assert activity["up"].outputs.gram is None


@pytest.mark.long
def test_its_diagonal_is_the_mean_square():
    units = bb.trace(mlp, P, X)
    seen = bb.observe(mlp, units, needs=(*GRAM, "inputs.mean_square"))(P, X)[1]
    for side in (seen["up"].inputs, seen["down"].inputs):
        np.testing.assert_allclose(jnp.diag(side.gram), side.mean_square, rtol=1e-6)


@pytest.mark.long
def test_padding_is_left_out_whatever_stands_there():
    real = jnp.arange(5)[None] < jnp.array([5, 2, 3])[:, None]
    rows = np.asarray(X)[np.asarray(real)]
    for junk in (0.0, 1e3, jnp.nan):
        dirty = jnp.where(real[..., None], X, junk)
        close(grams(mlp, P, dirty, where=real)["up"], by_hand(rows))


@pytest.mark.long
def test_products_of_bfloat16_are_summed_in_float32():
    x = normal(2, 4096, 4).astype(jnp.bfloat16)
    fn = lambda p, x: jnp.sum((x @ p["w"]).astype(jnp.float32))  # noqa: E731
    w = {"w": jnp.ones((4, 2), jnp.bfloat16)}
    close(grams(fn, w, x)["w"], by_hand(x.astype(jnp.float32)))


def test_of_several_contracted_axes_in_the_kernels_order():
    """Inputs (batch, dim, head) against a kernel (head, dim, out)."""
    x, p = normal(3, 5, 3, 2), weights(o=(2, 3, 4))
    fn = lambda p, x: jnp.sum(jnp.einsum("bkh,hkd->bd", x, p["o"]))  # noqa: E731
    close(grams(fn, p, x)["o"], by_hand(jnp.swapaxes(x, 1, 2), units=2))


@pytest.mark.parametrize("name", ["experts", "ensemble"])
def test_of_stacked_kernels_slice_by_slice(name):
    model, _ = zoo.built(name)
    (x,), p = model.args, model.params
    bias = p["bias"][:, None] if name == "ensemble" else jnp.zeros((3, 1, 5))
    got = grams(model.fn, p, x)
    close(got["up"], by_hand(x, lead=1))
    h = relu(jnp.einsum("ecd,edf->ecf", x, p["up"]) + bias)
    close(got["down"], by_hand(h, lead=1))


@pytest.mark.long
def test_of_scanned_layers_layer_by_layer():
    """Two nested scans; every layer has its own inputs."""
    model, _ = zoo.built("nested_scan")
    (x,), p = model.args, model.params
    ins, hidden = [], []
    for i, j in np.ndindex(2, 3):
        h = relu(x @ p["up"][i, j])
        ins.append(by_hand(x))
        hidden.append(by_hand(h))
        x = x + jnp.tanh(h @ p["down"][i, j])
    got = grams(model.fn, p, *model.args)
    close(got["up"], np.reshape(ins, (2, 3, *ins[0].shape)))
    close(got["down"], np.reshape(hidden, (2, 3, *hidden[0].shape)))


def test_of_a_kernel_that_is_used_twice():
    model, _ = zoo.built("tied")
    (x,), p = model.args, model.params
    both = jnp.concatenate([x, relu(x @ p["w"])])
    close(grams(model.fn, p, x)["w"], by_hand(both))


@pytest.mark.long
def test_of_a_convolution_that_is_a_matrix_product():
    x, p = normal(4, 2, 5, 3), weights(w=(1, 3, 4))
    dims = ("NHC", "HIO", "NHC")

    def fn(p, x):
        return jnp.sum(
            lax.conv_general_dilated(x, p["w"], (1,), "SAME", dimension_numbers=dims)
        )

    close(grams(fn, p, x)["w"], by_hand(x))
    members = {"w": jnp.stack([p["w"], -p["w"]])}
    both = jnp.stack([x, x**2])

    def ensemble(p, x):
        return jnp.sum(jax.vmap(lambda w, x: fn({"w": w}, x))(p["w"], x))

    close(grams(ensemble, members, both)["w"], by_hand(both, lead=1))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_of_a_sharded_batch(kind):
    x = normal(5, 16, 4)
    want = grams(mlp, P, x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        units = bb.trace(mlp, P, split)
        got = jax.jit(bb.observe(mlp, units, needs=GRAM))(P, split)[1]
    for path in want:
        close(got[path].inputs.gram, np.asarray(want[path], np.float64))


@pytest.mark.parametrize(
    ("window", "options", "text"),
    [
        (3, {}, r"a convolution with window \(3,\); leave it out"),
        (1, {"feature_group_count": 2}, "a convolution in 2 groups"),
        (1, {"window_strides": (2,)}, "does not read every position once"),
    ],
)
def test_other_convolutions_are_refused(window, options, text):
    groups = options.get("feature_group_count", 1)
    x, p = normal(6, 2, 6, 4), weights(w=(window, 4 // groups, 4))
    options = {"window_strides": (1,), **options}
    dims = ("NHC", "HIO", "NHC")

    def fn(p, x):
        return jnp.sum(
            lax.conv_general_dilated(
                x, p["w"], padding="SAME", dimension_numbers=dims, **options
            )
        )

    expected = "matrix product to measure 'inputs.gram' of 'w', got .*"
    with pytest.raises(ValueError, match=expected + text):
        grams(fn, p, x)


@pytest.mark.parametrize("need", ["gram", "outputs.gram"])
def test_the_side_has_to_be_said(need):
    units = bb.trace(mlp, P, X)
    text = f"expected 'inputs.gram', got '{need}'; it is measured only on the side"
    with pytest.raises(ValueError, match=text):
        bb.observe(mlp, units, needs=(need,))


def test_a_need_names_a_side_that_exists():
    units = bb.trace(mlp, P, X)
    for need in ("weights.mean_abs", "median"):
        with pytest.raises(ValueError, match=f"statistics out of .* got '{need}'"):
            bb.observe(mlp, units, needs=(need,))


@pytest.mark.long
def test_a_need_of_one_side_is_measured_there_alone():
    units = bb.trace(mlp, P, X)
    needs = ("outputs.max_abs", "zero_share")
    seen = bb.observe(mlp, units, needs=needs)(P, X)[1]["up"]
    assert seen.inputs.max_abs is None and seen.outputs.max_abs is not None
    assert seen.inputs.zero_share is not None and seen.outputs.zero_share is not None
