"""What edges contribute, and maps: convolutions of every kind against plain loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bbjax as bb
from bbjax.activity.calibrate import calibrate
from bbjax.activity.convolution import Geometry, edge_norms
from bbjax.activity.statistics import PER_EDGE
from tests.support.zoo_case import normal, relu, weights
from tests.support.zoo_conv import convolution

NEEDS = [*(f"inputs.{s}" for s in PER_EDGE), "inputs.abs_map", "outputs.positions"]


def measured(fn, params, *batches, needs=NEEDS, **options):
    """Statistics of kernel `w` from one batch or several."""
    units = bb.trace(fn, params, *batches[0])
    return calibrate(fn, units, params, batches, needs=needs, **options)["w"]


# By hand -------------------------------------------------------------------------
def one_map(x, k, strides, padding, dilation):
    """`k * x` for one channel: plain loops over output positions and the window."""
    x = np.pad(x, padding)
    reach = [d * (n - 1) + 1 for d, n in zip(dilation, k.shape, strict=True)]
    shape = [(n - r) // s + 1 for n, r, s in zip(x.shape, reach, strides, strict=True)]
    out = np.zeros(shape)
    for at in np.ndindex(*shape):
        for tap in np.ndindex(*k.shape):
            place = (
                a * s + t * d
                for a, s, t, d in zip(at, strides, tap, dilation, strict=True)
            )
            out[at] += k[tap] * x[tuple(place)]
    return out


def by_hand(x, w, *, strides=None, padding=None, dilation=None, groups=1):
    """The three sizes of every edge; x (N, *positions, C), w (*window, in, out)."""
    x, w = np.abs(np.asarray(x, np.float64)), np.abs(np.asarray(w, np.float64))
    n = w.ndim - 2
    strides, dilation = strides or (1,) * n, dilation or (1,) * n
    padding = padding or ((0, 0),) * n
    inputs, outputs = w.shape[-2:]
    sizes = {name: np.zeros((inputs, outputs)) for name in PER_EDGE}
    for i, j in np.ndindex(inputs, outputs):
        channel = j // (outputs // groups) * inputs + i
        maps = [
            one_map(v[..., channel], w[..., i, j], strides, padding, dilation)
            for v in x
        ]
        sizes["fro_of_mean"][i, j] = np.linalg.norm(np.mean(maps, 0))
        sizes["mean_of_fro"][i, j] = np.mean([np.linalg.norm(m) for m in maps])
        sizes["l1"][i, j] = np.mean([m.sum() for m in maps])
    shape = (inputs, outputs) if groups == 1 else (inputs, groups, outputs // groups)
    return {k: v.reshape(shape) for k, v in sizes.items()} | {
        "abs_map": x.mean(0),
        "positions": maps[0].size,
    }


def matches(activity, want):
    inputs = activity.inputs
    for name in (*PER_EDGE, "abs_map"):
        got = getattr(inputs, name)
        assert got.dtype == jnp.float32 and got.shape == want[name].shape, name
        np.testing.assert_allclose(got, want[name], 1e-5, 1e-6, err_msg=name)
    positions = activity.outputs.positions
    np.testing.assert_array_equal(
        positions, np.full(positions.shape, want["positions"])
    )


# Convolutions --------------------------------------------------------------------
def net(options):
    return lambda p, x: jnp.sum(relu(convolution(x, p["w"], **options)))


CASES = {  # window, groups, options
    "same": ((3,), 1, {"padding": ((1, 1),)}),
    "stride": ((3,), 2, {"window_strides": (2,), "padding": ((0, 1),)}),
    "dilated": ((2, 3), 1, {"rhs_dilation": (2, 1), "padding": ((1, 0), (2, 1))}),
    "3d": ((2, 1, 2), 2, {"padding": ((0, 0), (0, 0), (1, 1))}),
    "pointwise": ((1, 1), 1, {"window_strides": (2, 2), "padding": ((0, 0),) * 2}),
    "depthwise": ((3,), 4, {"padding": ((1, 1),)}),
}
NAMES = {"window_strides": "strides", "rhs_dilation": "dilation", "padding": "padding"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", CASES)
def test_of_convolutions(case):
    window, groups, options = CASES[case]
    x = normal(1, 4, *(6, 5, 4)[: len(window)], 4)
    p = weights(w=(*window, 4 // groups, 8))
    fn = net({**options, "feature_group_count": groups})
    want = by_hand(
        x, p["w"], groups=groups, **{NAMES[k]: v for k, v in options.items()}
    )
    matches(measured(fn, p, (x[:2],), (x[2:],)), want)


@pytest.mark.long
def test_channels_first():
    x, p = normal(2, 3, 2, 6, 5), weights(w=(4, 2, 3, 2))
    fn = lambda p, x: jnp.sum(lax.conv(x, p["w"], (2, 1), "VALID"))  # noqa: E731
    want = by_hand(
        jnp.moveaxis(x, 1, -1), jnp.transpose(p["w"], (2, 3, 1, 0)), strides=(2, 1)
    )
    for name in PER_EDGE:  # the kernel's own order: (out, in)
        want[name] = want[name].T
    matches(measured(fn, p, (x,)), want)


@pytest.mark.long
def test_a_transposed_convolution_with_a_reversed_window():
    x, p = normal(3, 2, 4, 2), weights(w=(3, 3, 2))  # (window, out, in)
    dims = ("NHC", "HIO", "NHC")

    def fn(p, x):
        return jnp.sum(
            lax.conv_transpose(
                x, p["w"], (2,), "VALID", dimension_numbers=dims, transpose_kernel=True
            )
        )

    spread = np.zeros((2, 7, 2), np.float32)
    spread[:, ::2] = x
    w = jnp.transpose(p["w"][::-1], (0, 2, 1))
    want = by_hand(spread, w, padding=((2, 2),))
    want |= {name: want[name].T for name in PER_EDGE}
    want["abs_map"] = np.abs(x).mean(0)
    matches(measured(fn, p, (x,)), want)


@pytest.mark.long
def test_the_weights_are_those_that_the_product_reads():
    """Cast and masked on the way: an edge contributes what the product sees."""
    x, p = normal(4, 3, 6, 2), weights(w=(3, 2, 4))
    mask = normal(5, 3, 2, 4) > 0

    def fn(p, x):
        w = jnp.where(mask, p["w"], 0.0).astype(jnp.bfloat16)
        return jnp.sum(convolution(x.astype(jnp.bfloat16), w).astype(jnp.float32))

    half = [v.astype(jnp.bfloat16).astype(jnp.float32) for v in (x, p["w"])]
    want = by_hand(half[0], jnp.where(mask, half[1], 0.0), padding=((1, 1),))
    matches(measured(fn, p, (x,)), want)


@pytest.mark.long
def test_vmapped_convolutions_member_by_member():
    x, p = normal(6, 3, 2, 5, 2), weights(w=(3, 2, 2, 4))
    one = lambda w, x: convolution(x, w, padding="VALID")  # noqa: E731
    fn = lambda p, x: jnp.sum(jax.vmap(one)(p["w"], x))  # noqa: E731
    stacked(
        measured(fn, p, (x,)), [by_hand(v, w) for w, v in zip(p["w"], x, strict=True)]
    )


@pytest.mark.long
def test_members_that_see_the_same_input_are_output_units():
    """A kernel (member, window, in, group and out): the edge view keeps its order."""
    x, p = normal(6, 3, 5, 4), weights(w=(3, 2, 2, 6))
    options = {"padding": ((0, 0),), "feature_group_count": 2}
    one = net(options)
    fn = lambda p, x: jnp.sum(jax.vmap(lambda w: one({"w": w}, x))(p["w"]))  # noqa: E731
    rows = [by_hand(x, w, groups=2) for w in p["w"]]
    want = {name: np.stack([row[name] for row in rows]) for name in PER_EDGE}
    matches(measured(fn, p, (x,)), rows[0] | want)


@pytest.mark.long
def test_scanned_convolutions_layer_by_layer():
    x, p = normal(7, 2, 5, 3), weights(w=(3, 2, 3, 3))

    @jax.checkpoint
    def layer(x, w):
        return relu(convolution(x, w)), None

    fn = lambda p, x: jnp.sum(lax.scan(layer, x, p["w"])[0])  # noqa: E731
    rows, here = [], x
    for w in p["w"]:
        rows.append(by_hand(here, w, padding=((0, 1),)))
        here = layer(here, w)[0]
    stacked(measured(fn, p, (x,)), rows)


def stacked(activity, rows):
    names = (*PER_EDGE, "abs_map")
    want = {name: np.stack([row[name] for row in rows]) for name in names}
    matches(activity, want | {"positions": rows[0]["positions"]})


@pytest.mark.long
def test_a_kernel_that_is_used_twice_sees_samples_of_both():
    x, p = normal(8, 2, 5, 3), weights(w=(1, 3, 3))

    def fn(p, x):
        return jnp.sum(convolution(relu(convolution(x, p["w"])), p["w"]))

    both = jnp.concatenate([x, relu(convolution(x, p["w"]))])
    matches(measured(fn, p, (x,)), by_hand(both, p["w"]))


def test_uses_that_move_differently_are_refused():
    x, p = normal(8, 2, 5, 3), weights(w=(1, 3, 3))

    def fn(p, x):
        h = convolution(x, p["w"], window_strides=(2,))
        return jnp.sum(convolution(h, p["w"]))

    text = r"maps of one size and kind at 'w', got inside \(5,\) and \(3,\)"
    with pytest.raises(ValueError, match=text):
        measured(fn, p, (x,))


@pytest.mark.long
@pytest.mark.parametrize("spatial", [False, True])
def test_padding_is_silent_in_a_map(spatial):
    """A sample counts if any of it is real; what stands in its padding does not."""
    x, p = normal(9, 4, 5, 2), weights(w=(3, 2, 3))
    real = jnp.arange(5)[None] < jnp.array([5, 2, 3, 0])[:, None]
    mask = real if spatial else jnp.array([True, False, True, False])
    full = jnp.broadcast_to(mask if spatial else mask[:, None], real.shape)
    seen = np.asarray(jnp.where(full[..., None], x, 0.0))[np.any(full, axis=1)]
    want = by_hand(seen, p["w"], padding=((1, 1),))
    for junk in (0.0, 1e3):
        dirty = jnp.where(full[..., None], x, junk)
        got = measured(net({}), p, (dirty,), where=mask)
        matches(got, want)
        assert got.inputs.samples.tolist() == [float(len(seen))] * 2


# Matrix products -----------------------------------------------------------------
@pytest.mark.long
def test_of_a_matrix_product_the_three_sizes_are_one():
    """NNrelief's dense score |w_ij| mean |x_i|, over every entry that is real."""
    x, p = normal(10, 3, 4, 5), weights(w=(5, 2))
    fn = lambda p, x: jnp.sum(x @ p["w"])  # noqa: E731
    seen = measured(fn, p, (x[:1],), (x[1:],))
    mean = np.abs(x).mean((0, 1))
    np.testing.assert_allclose(seen.inputs.abs_map, mean, rtol=1e-6)
    for name in PER_EDGE:
        want = np.abs(p["w"]) * mean[:, None]
        np.testing.assert_allclose(getattr(seen.inputs, name), want, rtol=1e-6)
    assert seen.outputs.positions.tolist() == [1.0, 1.0]
    assert seen.inputs.windows is None


@pytest.mark.long
def test_of_a_matrix_product_in_any_order_of_axes():
    """Experts whose kernel is (out, expert, in head, in dim)."""
    x, p = normal(11, 6, 3, 4, 2), weights(w=(5, 3, 2, 4))
    fn = lambda p, x: jnp.sum(jnp.einsum("bedh,oehd->beo", x, p["w"]))  # noqa: E731
    mean = np.abs(np.asarray(x)).mean(0).swapaxes(1, 2)
    seen = measured(fn, p, (x,)).inputs
    np.testing.assert_allclose(seen.l1, np.abs(p["w"]) * mean[None], rtol=1e-5)
    np.testing.assert_allclose(seen.abs_map, mean, rtol=1e-6)


def test_the_worked_example_of_nnrelief():
    """SPEC of the method: X, W and the importances beside them."""
    x = jnp.array([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    p = {"w": jnp.array([[1.0, -1.0], [5.0, 5.0], [2.0, 0.5]])}
    fn = lambda p, x: jnp.sum(x @ p["w"])  # noqa: E731
    seen = measured(fn, p, (x,)).inputs
    assert seen.fro_of_mean.tolist() == [[2.0, 2.0], [0.0, 0.0], [2.0, 0.5]]


# Theory --------------------------------------------------------------------------
@pytest.mark.long
def test_sizes_bound_what_cutting_an_edge_changes():
    """The mean change of a unit's map is at most the size of the edge that is cut."""
    x, p = normal(12, 4, 6, 5, 3), weights(w=(3, 2, 3, 4))
    options = {"window_strides": (2, 1)}
    seen = measured(net(options), p, (x,)).inputs
    for i, j in itertools.product(range(3), range(4)):
        cut = p["w"].at[:, :, i, j].set(0.0)
        gap = np.asarray(convolution(x, p["w"] - cut, **options))[..., j]
        change = np.mean([np.linalg.norm(g) for g in gap])
        assert change <= seen.mean_of_fro[i, j] * (1 + 1e-5)
        assert np.mean(np.abs(gap).sum((1, 2))) <= seen.l1[i, j] * (1 + 1e-5)
    assert (seen.fro_of_mean <= seen.mean_of_fro * (1 + 1e-5)).all()


def test_memory_is_that_of_the_layers_own_output():
    """The loop over input units never holds the maps of two of them."""
    kernel = bb.Kernel("w", (3, 3, 64, 8), fan_in=(2,), fan_out=(3,), spatial=(0, 1))
    geometry = Geometry(
        kernel, (16, 16), (16, 16), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)
    )
    x, w = jnp.ones((4, 16, 16, 1, 64)), jnp.ones((1, 64, 8, 3, 3))
    run = jax.jit(lambda x, w: edge_norms(x, w, geometry, 2))
    temp = run.lower(x, w).compile().memory_analysis().temp_size_in_bytes
    output = 4 * 4 * 16 * 16 * 8
    assert temp < 4 * (output + x.nbytes)  # all maps at once: 64 * output


def test_a_kernel_on_the_left_of_its_convolution_is_refused():
    p, x = weights(w=(4, 2, 3)), normal(15, 5, 2, 6)
    fn = lambda p, x: jnp.sum(lax.conv(p["w"], x, (1,), "SAME"))  # noqa: E731
    with pytest.raises(ValueError, match="'w' to be the right operand of its conv"):
        measured(fn, p, (x,))


# Maps of outputs -----------------------------------------------------------------
@pytest.mark.long
def test_maps_of_output_units():
    x, p = normal(13, 3, 6, 2), weights(w=(3, 2, 4))
    seen = measured(net({}), p, (x,), needs=["outputs.abs_map"])
    h = np.abs(convolution(x, p["w"])).mean(0)  # a last layer: its raw output
    np.testing.assert_allclose(seen.outputs.abs_map, h, rtol=1e-5)
    assert seen.inputs.abs_map is None


@pytest.mark.long
def test_samples_have_to_come_first_in_an_output_map():
    x, p = normal(14, 6, 3, 2), weights(w=(3, 2, 4))
    dims = ("HNC", "HIO", "HNC")

    def fn(p, x):
        return jnp.sum(
            lax.conv_general_dilated(x, p["w"], (1,), "SAME", dimension_numbers=dims)
        )

    matches(
        measured(fn, p, (x,)),
        by_hand(jnp.swapaxes(x, 0, 1), p["w"], padding=((1, 1),)),
    )
    text = "samples on the first axis of the convolution of 'w', got them on axis 1"
    with pytest.raises(ValueError, match=text):
        measured(fn, p, (x,), needs=["outputs.abs_map"])
