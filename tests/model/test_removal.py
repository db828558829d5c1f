"""Removing units: the rest computes what it did with these units set to 0 by hand."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbjax as bb
from bbjax import graph
from tests.support.zoo_gated import NETS


@functools.cache
def traced(name):
    net = NETS[name]
    return net, bb.trace(lambda p, x: net.fn(p, x, {}), net.params, net.x)


def choices(name, seed=0):
    """Which units stay: as many in each slice, in all kernels of a group the same."""
    net, units = traced(name)
    rng, keep = np.random.default_rng(seed), {}
    for group in net.groups:
        kernel = units[group[0]]
        stacks = int(np.prod(kernel.stack_shape))
        one = rng.permutation(np.arange(kernel.unit_count("in")) % 3 > 0)
        rows = np.stack([rng.permutation(one) for _ in range(stacks)])
        for path in group:
            keep[path] = rows.reshape(units[path].per_unit_shape("outputs"))
    return keep


def zeroed(name, keep):
    """What the net computes with units set to 0 where they are read."""
    net, _ = traced(name)
    gates = {g[0]: jnp.asarray(keep[g[0]], jnp.float32) for g in net.groups}
    spread = {p: v if v.ndim > 1 else v[None] for p, v in gates.items()}
    if net.x.ndim == 4:
        spread = {p: v[None, None] for p, v in spread.items()}
    return net.fn(net.params, net.x, spread)


assert_same = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NETS)
def test_a_removed_unit_is_a_unit_at_zero(name):
    net, units = traced(name)
    keep = choices(name)
    pruned, masks = graph.remove_units(net.params, units, keep)
    got = net.fn(pruned, net.x, {})
    assert_same(got, zeroed(name, keep))
    changed = (
        jax.tree.leaves(got)[0] - jax.tree.leaves(net.fn(net.params, net.x, {}))[0]
    )
    assert np.abs(changed).max() > 1e-3
    for path, mask in masks.items():
        assert mask.dtype == bool and mask.shape == net.params[path].shape
        np.testing.assert_array_equal(
            pruned[path], np.where(mask, net.params[path], 0), err_msg=path
        )
    untouched = set(net.params) - set(masks)
    assert all(pruned[path] is net.params[path] for path in untouched)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", [n for n, net in NETS.items() if net.shrinks])
def test_smaller_arrays_compute_the_same(name):
    net, units = traced(name)
    keep = choices(name)
    small = shrunk(net.params, units, keep)
    sizes = [sum(v.size for v in p.values()) for p in (small, net.params)]
    assert sizes[0] < 0.8 * sizes[1]
    pruned, _ = graph.remove_units(net.params, units, keep)
    assert_same(net.fn(small, net.x, {}), net.fn(pruned, net.x, {}))


def shrunk(params, units, keep):
    """Arrays without the removed units, by hand from the sets of units."""
    small = {path: np.asarray(v) for path, v in params.items()}
    for made in units.graph.sets:
        first = made.makers[0]
        if first.path not in keep:
            continue
        kept = np.ones(made.size, bool)
        kept[first.units] = keep[first.path].reshape(-1)
        for place in (*made.makers, *made.companions, *made.readers):
            mine = kept[place.units]
            if place in made.companions:
                stack, axis = units[first.path].stack, len(place.shape) - 1
                mine = mine.reshape(place.shape) if stack else mine
            else:
                side = "inputs" if place in made.readers else "outputs"
                kernel = units[place.path]
                stack = kernel.stack
                (axis,) = kernel.fan_in if side == "inputs" else kernel.fan_out
                mine = mine.reshape(kernel.per_unit_shape(side))
            small[place.path] = chosen(small[place.path], mine, stack, axis)
    return small


def chosen(array, kept, stack, axis):
    """Entries along an axis where `kept`, slice by slice."""
    if not stack:
        return np.compress(kept, array, axis)
    assert stack == (0,)
    rows = [np.compress(k, a, axis - 1) for k, a in zip(kept, array, strict=True)]
    return np.stack(rows)


@pytest.mark.long
@pytest.mark.parametrize("name", ["scanned", "residual"])
def test_works_under_jit_with_a_traced_choice(name):
    net, units = traced(name)
    keep = choices(name)
    jitted = jax.jit(lambda p, k: graph.remove_units(p, units, k))
    assert_same(jitted(net.params, keep), graph.remove_units(net.params, units, keep))


def test_a_unit_of_a_stream_is_removed_if_all_its_kernels_allow_it():
    net, units = traced("residual")
    keep = {p: np.ones(5, bool) for p in ("embed", "down0", "down1")}
    keep["embed"][:3], keep["down0"][1:4], keep["down1"][1:] = False, False, False
    pruned, _ = graph.remove_units(net.params, units, keep)
    gone = np.array([False, True, True, False, False])
    np.testing.assert_array_equal(np.all(pruned["embed"] == 0, axis=0), gone)
    np.testing.assert_array_equal(np.all(pruned["head"] == 0, axis=1), gone)


@pytest.mark.long
def test_the_side_of_the_producer_alone():
    net, units = traced("mlp")
    keep = np.array([True, False, True, True, False, True])
    pruned, masks = graph.remove_units(net.params, units, {"up": keep}, consumers=False)
    assert set(masks) == {"up", "bias"}
    assert_same(net.fn(pruned, net.x, {}), zeroed("mlp", {"up": keep}))
    last = np.array([True, False, True])
    pruned, masks = graph.remove_units(
        net.params, units, {"down": last}, consumers=False
    )
    assert set(masks) == {"down", "last"}
    want = np.where(last, net.fn(net.params, net.x, {}), 0)
    np.testing.assert_allclose(net.fn(pruned, net.x, {}), want, rtol=1e-5)


@pytest.mark.long
def test_one_kernel_of_a_stream_keeps_what_it_shares():
    """A bias on the sum is still that of the other kernel."""

    def net(p, x):
        return relu_sum(p, x) @ p["out"]

    def relu_sum(p, x):
        return jax.nn.relu(x @ p["a"] + x @ p["b"] + p["bias"][None])

    params = {n: jnp.ones((4, 3)) for n in "ab"}
    params |= {"bias": jnp.ones(3), "out": jnp.ones((3, 2))}
    units = bb.trace(net, params, jnp.ones((5, 4)))
    assert units["a"].companions == units["b"].companions == ("bias",)
    gone = np.array([True, False, True])
    alone = graph.remove_units(params, units, {"a": gone}, consumers=False)[1]
    both = graph.remove_units(params, units, {"a": gone, "b": gone}, consumers=False)[1]
    assert set(alone) == {"a"}
    np.testing.assert_array_equal(both["bias"], gone)


def test_consumers_are_listed_for_every_kernel():
    _, units = traced("residual")
    readers = graph.consumers(units)
    assert tuple(readers) == units.paths
    for path in ("embed", "down0", "down1"):  # they make the units of one stream
        assert [reader for reader, _ in readers[path]] == ["up0", "up1", "head"]
    assert readers["head"] == ()


# Errors --------------------------------------------------------------------------
def refused(error, text, keep, params=None, **options):
    net, units = traced("residual")
    with pytest.raises(error, match=text):
        graph.remove_units(params or net.params, units, keep, **options)


def test_refuses_units_with_other_uses():
    text = "'head': the function returns them; leave it out, or pass consumers=False"
    refused(ValueError, text, {"head": np.ones(2, bool)})
    bare = bb.Units((bb.Kernel("w", (2, 3), fan_in=(0,), fan_out=(1,)),))
    with pytest.raises(ValueError, match="the trace does not list their readers"):
        graph.remove_units({"w": jnp.ones((2, 3))}, bare, {"w": np.ones(3, bool)})


def test_refuses_a_part_of_a_stream():
    text = r"'embed' without \['down0', 'down1'\]"
    refused(ValueError, text, {"embed": np.ones(5, bool)})


@pytest.mark.long
def test_refuses_other_paths_shapes_and_types():
    refused(ValueError, "paths of kernels in `keep`, got 'bias'", {"bias": np.ones(5)})
    text = r"shape \(6,\) for 'up0', one entry per output unit, got \(5,\)"
    refused(ValueError, text, {"up0": np.ones(5, bool)})
    text = "expected a bool array for 'up0', got float32"
    refused(TypeError, text, {"up0": np.ones(6, np.float32)})


@pytest.mark.long
def test_refuses_a_tree_without_the_parameter():
    net, _ = traced("residual")
    params = {n: v for n, v in net.params.items() if n != "down0"}
    text = r"expected a parameter of shape \(6, 5\) at 'down0', got none"
    refused(ValueError, text, {"up0": np.ones(6, bool)}, params)
