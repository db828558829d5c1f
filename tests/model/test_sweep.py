"""The sweeps: what is cut was unused, or always 0."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax import graph
from tests.support.zoo_case import normal, relu, weights
from tests.support.zoo_gated import NETS

X = normal(51, 5, 4)


@functools.cache
def traced(name):
    net = NETS[name]
    return net, bb.trace(lambda p, x: net.fn(p, x, {}), net.params, net.x)


def masked(params, masks):
    keep = {n: masks.get(n, True) for n in params}
    return {n: jnp.where(keep[n], v, 0) for n, v in params.items()}


def some(name, seed, share):
    """Random masks: single entries, and all outgoing edges of one unit."""
    _, units = traced(name)
    rng, masks = np.random.default_rng(seed), {}
    for kernel in units.kernels:
        mask = rng.random(kernel.shape) < share
        for made, place in units.graph.read_by(kernel.path):
            gone = rng.integers(made.size)
            kept = (place.units != gone).reshape(kernel.per_unit_shape("inputs"))
            mask &= np.asarray(kernel.full(kernel.spread(jnp.asarray(kept), "inputs")))
        masks[kernel.path] = mask
    for made in units.graph.sets:
        for companion in made.companions:
            masks[companion.path] = rng.random(companion.shape) < share
    return masks


@pytest.mark.sampled(10)
@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_a_sweep_only_cuts_and_changes_nothing_that_is_computed(name, forward):
    net, units = traced(name)
    sweep = jax.jit(lambda m: graph.sweep(units, m, forward=forward))
    cut = 0
    for seed in range(3):
        masks = some(name, seed, 0.6)
        swept = sweep(masks)
        assert set(swept) == set(masks)
        for path, mask in masks.items():
            assert not np.any(np.asarray(swept[path]) & ~mask), path
            cut += int(np.sum(mask)) - int(np.sum(swept[path]))
        before = net.fn(masked(net.params, masks), net.x, {})
        after = net.fn(masked(net.params, swept), net.x, {})
        chex.assert_trees_all_close(before, after, rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_equal(sweep(swept), swept)
    assert cut > 0


def swept(fn, params, forward=False, **cut):
    """Kept units of each parameter after a sweep; `cut` gives units that lose out."""
    units = bb.trace(fn, params, X)
    masks = {n: np.ones(v.shape, bool) for n, v in params.items()}
    for name, where in cut.items():
        masks[name][where] = False
    found = graph.sweep(units, masks, forward=forward)
    return {n: np.asarray(m) for n, m in found.items()}


def lost(mask, axis=1):
    """Units of an axis that lost every edge."""
    return np.flatnonzero(~mask.any(axis=1 - axis)).tolist()


DEEP = weights(a=(4, 5), bias=(5,), b=(5, 6), c=(6, 2))


def deep(p, x, curve=relu):
    h = curve(x @ p["a"] + p["bias"][None])
    return curve(h @ p["b"]) @ p["c"]


def test_backward_reaches_through_layers():
    """Unit 2 of a is read by unit 1 of b alone, which is unused."""
    only = np.zeros((5, 6), bool)
    only[2, [0, 2, 3, 4, 5]] = True
    found = swept(deep, DEEP, c=1, b=only)
    assert lost(found["b"]) == [1]
    assert lost(found["a"]) == [2]
    assert np.flatnonzero(~found["bias"]).tolist() == [2]


def test_backward_leaves_a_unit_with_one_edge():
    only = np.zeros((5, 6), bool)
    only[2, 1:] = True
    found = swept(deep, DEEP, b=only)
    assert lost(found["a"]) == [] and found["bias"].all()


@pytest.mark.long
def test_a_unit_is_used_at_any_position():
    """Of a flatten: a unit goes when the edges of all its positions are cut."""
    net, units = traced("flattened")
    mask = np.ones((6, 4, 2), bool)
    mask[:, 1], mask[:5, 2] = False, False
    found = graph.sweep(units, {"dense": mask.reshape(24, 2)})
    gone = ~np.asarray(found["conv"]).any(axis=(0, 1, 2))
    assert np.flatnonzero(gone).tolist() == [1]
    np.testing.assert_array_equal(found["bias"], ~gone)


@pytest.mark.long
def test_a_unit_is_used_by_any_reader():
    _, units = traced("two_readers")
    left, right = np.ones((6, 3), bool), np.ones((6, 2), bool)
    left[[1, 2]], right[[2, 3]] = False, False
    found = graph.sweep(units, {"left": left, "right": right})
    assert lost(np.asarray(found["up"])) == [2]
    alone = graph.sweep(units, {"left": np.zeros((6, 3), bool)})
    assert set(alone) == {"left"}  # the other reader is kept whole


def test_layers_of_a_scan_are_swept_one_by_one():
    _, units = traced("scanned")
    mask = np.ones((3, 6, 4), bool)
    mask[0, 1], mask[2, 4] = False, False
    found = graph.sweep(units, {"down": mask})
    gone = ~np.asarray(found["up"]).any(axis=1)
    assert np.argwhere(gone).tolist() == [[0, 1], [2, 4]]
    np.testing.assert_array_equal(found["bias"], ~gone)


def test_units_with_other_uses_stay():
    def net(p, x):
        h = relu(x @ p["up"])
        return h @ p["down"], h

    params = weights(up=(4, 5), down=(5, 2))
    assert lost(swept(net, params, down=1)["up"]) == []


@pytest.mark.parametrize("curve", [relu, jnp.tanh, jax.nn.gelu, jax.nn.silu, jnp.abs])
def test_forward_follows_a_unit_that_is_always_zero(curve):
    net = functools.partial(deep, curve=curve)
    column = (slice(None), 2)
    assert lost(swept(net, DEEP, True, a=column, bias=2)["b"], 0) == [2]
    assert lost(swept(net, DEEP, True, a=column)["b"], 0) == []  # its value is its bias
    assert lost(swept(net, DEEP, True, bias=2)["b"], 0) == []
    assert lost(swept(net, DEEP, False, a=column, bias=2)["b"], 0) == []


@pytest.mark.parametrize("curve", [jax.nn.sigmoid, jnp.exp, jax.nn.softplus, jnp.cos])
def test_forward_leaves_what_makes_something_of_0(curve):
    net = functools.partial(deep, curve=curve)
    found = swept(net, DEEP, True, a=(slice(None), 2), bias=2)
    assert lost(found["b"], 0) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("curve", "gone"), [(jax.nn.silu, [1, 2]), (jax.nn.sigmoid, [2])]
)
def test_forward_and_backward_through_a_gate(curve, gone):
    """One factor that is 0 is enough; then the other one is unused."""

    def net(p, x):
        return (curve(x @ p["gate"]) * (x @ p["up"])) @ p["down"]

    params = weights(gate=(4, 5), up=(4, 5), down=(5, 2))
    everywhere = slice(None)
    found = swept(net, params, True, gate=(everywhere, 1), up=(everywhere, 2))
    assert lost(found["down"], 0) == gone
    assert lost(found["gate"]) == [1, 2]
    assert lost(found["up"]) == gone


@pytest.mark.long
def test_forward_needs_every_kernel_of_a_stream():
    _, units = traced("residual")
    masks = {n: np.ones(units[n].shape, bool) for n in ("embed", "down0", "down1")}
    masks |= {"start": np.ones(5, bool)}
    for path in ("embed", "down0", "down1"):
        masks[path][:, 1] = False
    masks["embed"][:, 2] = False
    masks["start"][[1, 2]] = False
    found = graph.sweep(units, masks, forward=True)
    assert lost(np.asarray(found["up0"]), 0) == [1, 2]  # before the first block
    assert lost(np.asarray(found["up1"]), 0) == [1]
    assert lost(np.asarray(found["head"]), 0) == [1]


@pytest.mark.long
def test_refuses_a_mask_of_another_shape():
    _, units = traced("mlp")
    text = r"expected a mask of shape \(6, 3\) for 'down', got \(3, 6\)"
    with pytest.raises(ValueError, match=text):
        graph.sweep(units, {"down": np.ones((3, 6), bool)})
