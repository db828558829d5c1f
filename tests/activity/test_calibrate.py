"""`bb.calibrate`: a stream of batches is one big batch; `merge` adds what hosts saw."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bbjax as bb
from bbjax.activity.calibrate import calibrate, merge
from bbjax.activity.statistics import PER_EDGE, STATISTICS, Activity, Statistics
from tests.support import zoo
from tests.support.zoo_case import normal, relu, weights
from tests.support.zoo_conv import convolution

EVERYTHING = [
    {"gram": "inputs.gram", "positions": "outputs.positions"}.get(s, f"inputs.{s}")
    for s in STATISTICS
] + ["outputs.mean_abs", "outputs.max_abs", "outputs.abs_map"]
MAPS = [need for need in EVERYTHING if need != "inputs.gram"]


def mlp(p, x):
    return jnp.sum(relu(x @ p["up"]) @ p["down"])


P, X = weights(up=(4, 6), down=(6, 2)), normal(1, 24, 4)
UNITS = bb.trace(mlp, P, X)


def conv_net(p, x):
    h = relu(convolution(x, p["a"], window_strides=(2,)))
    return jnp.sum(convolution(h, p["b"], feature_group_count=2))


CONV, IMAGES = weights(a=(3, 2, 4), b=(2, 2, 6)), normal(2, 24, 7, 2)
CONV_UNITS = bb.trace(conv_net, CONV, IMAGES)


def cut(x, *sizes):
    """Batches of these sizes, the last one with what is left."""
    return [(part,) for part in jnp.split(x, np.cumsum(sizes))]


def same(got, want, rtol=2e-6):
    """Equal statistics: on-rates, counts and what is the same everywhere exactly."""
    chex.assert_trees_all_equal_structs(got, want)
    leaves = jax.tree_util.tree_leaves_with_path(want)
    for (key, b), a in zip(leaves, jax.tree.leaves(got), strict=True):
        name = key[-1].name
        exact = name in ("on_rate", "count", "samples", "positions")
        tolerance = 0.0 if exact else rtol
        np.testing.assert_allclose(
            np.asarray(a), b, tolerance, tolerance * np.abs(b).max(), err_msg=name
        )


# The stream ----------------------------------------------------------------------
STREAMS = {
    "matrix": (mlp, UNITS, P, X, EVERYTHING),
    "conv": (conv_net, CONV_UNITS, CONV, IMAGES, MAPS),
}


@functools.cache
def whole(stream):
    """What one big batch gives."""
    fn, units, params, x, needs = STREAMS[stream]
    return calibrate(fn, units, params, [(x,)], needs=needs)


def streamed(stream, batches):
    fn, units, params, _, needs = STREAMS[stream]
    return calibrate(fn, units, params, batches, needs=needs)


@pytest.mark.long
@pytest.mark.parametrize("stream", STREAMS)
def test_batches_are_one_big_batch(stream):
    """A generator, with a smaller last batch."""
    batches = (batch for batch in cut(STREAMS[stream][3], 10, 10))
    same(streamed(stream, batches), whole(stream))


@pytest.mark.long
def test_is_what_observe_says():
    needs = ("mean_abs", "inputs.gram", "inputs.abs_map")
    units = UNITS.select(".*")
    want = bb.observe(mlp, units, needs=needs)(P, X)[1]
    same(calibrate(mlp, units, P, [(X,)], needs=needs), want)


def test_without_a_selection_large_statistics_are_those_of_what_is_pruned():
    needs = ("mean_abs", "inputs.gram", "inputs.abs_map")
    found = calibrate(mlp, UNITS, P, [(X,)], needs=needs)
    for path, (inputs, _) in found.items():
        assert inputs.mean_abs is not None
        pruned = path in UNITS.budgeted
        assert (inputs.gram is not None) == (inputs.abs_map is not None) == pruned
    assert set(found) > set(UNITS.budgeted)


def test_compiles_once_per_shape_of_batch():
    traced = []

    def fn(p, x, scale):
        traced.append(x.shape)
        return mlp(p, x * scale)

    batches = [(x, 2.0) for (x,) in cut(X, 7, 7, 7)]
    units = bb.trace(fn, P, *batches[0])
    traced.clear()
    calibrate(fn, units, P, batches)
    assert traced == [(7, 4), (3, 4)]


@pytest.mark.long
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_eight_devices_are_one(kind, stream):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        there = [(jax.device_put(x, split),) for (x,) in cut(STREAMS[stream][3], 8, 8)]
        same(streamed(stream, there), whole(stream))


@pytest.mark.long
def test_counts_survive_more_samples_than_float32_counts():
    n, times = 2**21 + 1, 13
    x = jnp.where(jnp.arange(n) % 3 == 0, 1.0, -1.0)[:, None]
    fn = lambda p, x: jnp.sum(x @ p["w"])  # noqa: E731
    params = {"w": jnp.ones((1, 1))}
    units = bb.trace(fn, params, x)
    seen = calibrate(fn, units, params, [(x,)] * times)["w"].inputs
    assert sum([np.float32(n)] * times, np.float32(0)) != np.float32(times * n)
    assert seen.count[0] == np.float32(times * n)
    assert seen.on_rate[0] == np.float32(-(-n // 3) / n)


@pytest.mark.long
def test_padding_counts_in_no_batch():
    real = jnp.arange(5)[None] < jnp.array([5, 2, 3, 0])[:, None]
    x = normal(3, 4, 5, 4)

    def fn(p, x, real):
        del real
        return mlp(p, x)

    units = bb.trace(fn, P, x, real)
    batches = [
        (jnp.where(r[..., None], v, jnp.nan), r)
        for v, r in ((x[:3], real[:3]), (x[3:], real[3:]))
    ]
    got = calibrate(fn, units, P, batches, where=lambda x, real: real, needs=EVERYTHING)
    rows = x[np.asarray(real)]
    same(got, calibrate(mlp, UNITS, P, [(rows,)], needs=EVERYTHING))


def test_selected_kernels_alone_or_all():
    assert set(calibrate(mlp, UNITS, P, [(X,)])) == {"up", "down"}
    chosen = UNITS.select("up")
    assert set(calibrate(mlp, chosen, P, [(X,)])) == {"up"}


@pytest.mark.long
def test_a_module_with_state_is_left_as_it_was():
    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.up, self.down = (
                nnx.Linear(4, 6, rngs=rngs),
                nnx.Linear(6, 2, rngs=rngs),
            )
            self.seen = nnx.Variable(jnp.zeros(()))

        def __call__(self, x):
            self.seen[...] += 1.0
            return self.down(relu(self.up(x)))

    net = Net()
    fn = lambda net, x: jnp.sum(net(x))  # noqa: E731
    got = calibrate(fn, bb.trace(fn, net, X), net, cut(X, 10))
    assert net.seen[...] == 0
    hidden = np.asarray(relu(net.up(X)) > 0, np.float32)
    np.testing.assert_allclose(got["down/kernel"].inputs.on_rate, hidden.mean(0))


@pytest.mark.long
def test_arguments_that_are_no_arrays():
    def fn(p, x, power, config):
        return mlp(p, x**power * config.scale)

    one, three = _Opaque(1.0), _Opaque(3.0)
    units = bb.trace(fn, P, X, 1, one)
    batches = [(X, 1, one), (X, 2, one), (X, 1, three)]
    got = calibrate(fn, units, P, batches, needs=["inputs.mean_abs"])["up"].inputs
    want = np.abs(np.concatenate([X, X**2, 3 * X])).mean(0)
    np.testing.assert_allclose(got.mean_abs, want, rtol=1e-6)


class _Opaque:
    """An argument that can be neither hashed nor compared."""

    __hash__ = None

    def __init__(self, scale):
        self.scale = scale


def test_what_the_result_alone_needs_is_not_computed():
    """A head whose output no machine could hold."""

    def fn(p, x):
        wide = jnp.tile(x @ p["up"], (2**20, 1))
        return jnp.sum(jnp.sort(wide @ wide.T))

    units = bb.trace(fn, P, X)
    seen = calibrate(fn, units, P, [(X,)])["up"].inputs
    np.testing.assert_allclose(seen.on_rate, (X > 0).mean(0))


# Merging -------------------------------------------------------------------------
@pytest.mark.long
@pytest.mark.parametrize("stream", STREAMS)
def test_merged_parts_are_the_whole(stream):
    a, b, c = (streamed(stream, [p]) for p in cut(STREAMS[stream][3], 8, 8))
    near(merge(merge(a, b), c), whole(stream))
    near(merge(a, merge(b, c)), merge(merge(a, b), c))
    near(merge(b, a), merge(a, b))


def near(got, want):
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_units_that_one_part_did_not_measure_come_from_the_other():
    """Branches: each part of the data takes the other one."""
    model, units = zoo.built("cond")
    args = [normal(8, 6, 4), normal(9, 6, 4)]
    seen = [bb.observe(model.fn, units)(model.params, x)[1] for x in args]
    empty = jax.tree.map(jnp.zeros_like, seen[0])
    same(merge(seen[0], empty), seen[0])
    same(merge(empty, empty), empty)


def test_what_cannot_be_merged_is_listed():
    one = calibrate(mlp, UNITS, P, [(X,)])
    other = calibrate(mlp, UNITS.select("up"), P, [(X,)], needs=["inputs.mean_abs"])
    text = r"'down' in one of them only; inputs of 'up': mean_abs in one of them only"
    with pytest.raises(ValueError, match=text):
        merge(one, other)
    short = {"w": Activity(*[Statistics(jnp.ones(n), jnp.ones(n)) for n in (2, 3)])}
    long = {"w": Activity(*[Statistics(jnp.ones(n), jnp.ones(n)) for n in (2, 4)])}
    with pytest.raises(
        ValueError, match=r"outputs of 'w': .* of shape \(3,\) and \(4,"
    ):
        merge(short, long)
    bare = {"w": Activity(Statistics(jnp.ones(2)), Statistics(jnp.ones(2)))}
    with pytest.raises(ValueError, match="inputs of 'w': no count"):
        merge(bare, bare)


@pytest.mark.long
def test_sizes_of_edges_merge_only_with_the_same_weights():
    needs = ["inputs.fro_of_mean"]
    one = calibrate(conv_net, CONV_UNITS, CONV, [(IMAGES,)], needs=needs)
    moved = jax.tree.map(lambda v: v + 1, CONV)
    other = calibrate(conv_net, CONV_UNITS, moved, [(IMAGES,)], needs=needs)
    with pytest.raises(ValueError, match="inputs of 'a': different weights"):
        merge(one, other)


@pytest.mark.parametrize("bad", [None, [1], {"w": 1.0}])
def test_merge_takes_activity(bad):
    one = calibrate(mlp, UNITS, P, [(X,)])
    with pytest.raises(TypeError, match="activity by kernel path.*bb.calibrate"):
        merge(one, bad)


# Refusals ------------------------------------------------------------------------
def test_zero_batches():
    with pytest.raises(ValueError, match="at least one batch, got none; pass an iter"):
        calibrate(mlp, UNITS, P, iter([]))


@pytest.mark.parametrize("batches", [[X], X, (X, X), [[X]], [{"x": X}]])
def test_a_batch_is_a_tuple_of_arguments(batches):
    text = re.escape("wrap a single argument as (x,)")
    with pytest.raises(TypeError, match="expected a tuple of the arg.*" + text):
        calibrate(mlp, UNITS, P, batches)


def test_batches_are_iterable():
    with pytest.raises(TypeError, match="an iterable of batches, got int; pass a list"):
        calibrate(mlp, UNITS, P, 3)


def test_wrong_kinds_of_arguments():
    with pytest.raises(TypeError, match="units from bb.trace, got dict"):
        calibrate(mlp, {}, P, [(X,)])
    with pytest.raises(TypeError, match="`on` to be a function"):
        calibrate(mlp, UNITS, P, [(X,)], on=1.0)
    with pytest.raises(TypeError, match="expected a function of"):
        calibrate(3, UNITS, P, [(X,)])


@pytest.mark.parametrize("broken", [jnp.nan, jnp.inf])
def test_activity_that_is_not_finite_names_the_kernel(broken):
    bad = X.at[3, 1].set(broken)
    text = (
        r"finite activity, got NaN or infinity in \['on_rate'.* inputs of 'up'; check"
    )
    with pytest.raises(ValueError, match=text):
        calibrate(mlp, UNITS, P, [(X,), (bad,), (X,)])


def test_a_kernel_that_no_sample_reaches_is_named():
    nothing = jnp.zeros(24, bool)
    with pytest.raises(
        ValueError, match="samples of the inputs of 'up', got none; all"
    ):
        calibrate(mlp, UNITS, P, [(X,)], where=nothing)


@pytest.mark.long
def test_maps_of_different_sizes():
    batches = [(IMAGES,), (IMAGES[:, :5],)]
    calibrate(conv_net, CONV_UNITS, CONV, batches)
    for need in ("inputs.abs_map", "inputs.l1", "outputs.positions"):
        text = (
            r"maps of one size and kind at 'a', got inside \(7,\) and \(5,\); measure"
        )
        with pytest.raises(ValueError, match=text):
            calibrate(conv_net, CONV_UNITS, CONV, batches, needs=[need])


@pytest.mark.parametrize("name", [*PER_EDGE, "positions"])
def test_training_does_not_measure_edges(name):
    need = f"{'outputs' if name == 'positions' else 'inputs'}.{name}"
    text = f"statistics per unit, got .'{need}'., which .* once with bb.calibrate"
    with pytest.raises(ValueError, match=text):
        bb.observe(mlp, UNITS, needs=(need,))
