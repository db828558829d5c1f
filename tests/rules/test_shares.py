"""The keep rule of NNrelief: the shortest beginning of a unit's entries."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import bbjax as bb
from bbjax.rules.parts.shares import keep_share
from tests.support.runs import dense

SEEDS = st.integers(0, 2**32 - 1)


def by_hand(edges, bias, alpha):
    """The definition, unit by unit, for sizes whose sums are exact."""
    keep = np.zeros((len(edges) + 1, edges.shape[1]), bool)
    for j in range(edges.shape[1]):
        entries = np.append(edges[:, j], bias[j])
        order = np.argsort(-entries, kind="stable")
        reached = np.cumsum(entries[order]) >= alpha * entries.sum()
        keep[order[: np.argmax(reached) + 1], j] = True
        keep[entries == 0, j] = False
    return keep


@functools.partial(jax.jit, static_argnums=0)
def kept(kernel, edges, bias, alpha):
    return keep_share(kernel, edges, bias, alpha)


@given(SEEDS, st.integers(1, 16), st.sampled_from([3, 8, 200]))
def test_the_shortest_beginning_that_reaches_alpha(seed, sixteenths, most):
    rng = np.random.default_rng(seed)
    edges = rng.integers(0, most, (7, 5)).astype(np.float32)
    edges[:, rng.integers(5)] *= rng.integers(2)
    bias = rng.integers(0, most, 5).astype(np.float32) * rng.integers(2)
    alpha = sixteenths / 16
    got = kept(dense(7, 5), edges, bias, np.float32(alpha))
    want = by_hand(edges, bias, alpha)
    np.testing.assert_array_equal(got.edges, want[:-1])
    np.testing.assert_array_equal(got.bias, want[-1])


@pytest.mark.long
def test_equal_entries_are_kept_in_order_and_the_bias_comes_last():
    got = kept(dense(4, 1), jnp.ones((4, 1)), jnp.ones(1), np.float32(0.5))
    assert got.edges[:, 0].tolist() == [True, True, True, False]
    assert not got.bias[0]
    got = kept(dense(4, 1), jnp.ones((4, 1)), jnp.ones(1), np.float32(1))
    assert got.edges.all() and got.bias.all()


@pytest.mark.long
def test_everything_that_is_not_zero_is_kept_at_one():
    """Whatever is beside it: no sum in float32 holds 1e8 and 1e-30 together."""
    edges = jnp.array([[1e8], [1e-30], [0.0], [1.0]])
    got = kept(dense(4, 1), edges, jnp.array([1e-20]), np.float32(1))
    assert got.edges[:, 0].tolist() == [True, True, False, True] and got.bias[0]


@pytest.mark.long
@pytest.mark.parametrize("n, alpha", [(10, 0.9), (20, 0.95), (100, 0.99), (7, 6 / 7)])
def test_an_exact_share_is_enough_at_any_scale(n, alpha):
    """`n` equal entries: all but one are exactly the share `(n - 1) / n`."""
    sizes = jnp.array([1.0, 0.1, 1 / 3, 1e-20, 3e12])
    run = jax.vmap(lambda s: keep_share(dense(n, 1), jnp.full((n, 1), s), None, alpha))
    counts = jax.jit(run)(sizes).edges.sum((1, 2))
    assert counts.tolist() == [n - 1] * 5


@pytest.mark.long
def test_a_unit_without_signal_keeps_nothing():
    got = kept(dense(3, 2), jnp.zeros((3, 2)), jnp.array([0.0, 2.0]), 0.9)
    assert not got.edges.any() and got.bias.tolist() == [False, True]


@pytest.mark.long
def test_masks_are_nested_in_alpha(getkey):
    edges = jax.random.uniform(getkey(), (12, 6))
    bias = jax.random.uniform(getkey(), (6,))
    alphas = jnp.linspace(0.05, 1, 20)
    run = jax.vmap(lambda a: keep_share(dense(12, 6), edges, bias, a))
    masks = jax.jit(run)(alphas)
    assert (masks.edges[:-1] <= masks.edges[1:]).all()
    assert (masks.bias[:-1] <= masks.bias[1:]).all()
    assert masks.edges[-1].all() and masks.edges[0].sum() <= 6


# Layouts -------------------------------------------------------------------------
STACKED = bb.Kernel("w", (3, 5, 4), stack=(0,), fan_in=(2,), fan_out=(1,))
TWO_IN = bb.Kernel("w", (2, 4, 3), fan_in=(0, 2), fan_out=(1,))
GROUPED = dataclasses.replace(
    bb.Kernel("w", (3, 2, 6), fan_in=(1,), fan_out=(2,), spatial=(0,)),
    groups=2,
    split=(3, 2, 2, 3),
    roles=("spatial", "in", "group", "out"),
)


@pytest.mark.long
@pytest.mark.parametrize(
    "kernel, columns, units",
    [
        (STACKED, lambda e: e.swapaxes(1, 2).transpose(1, 0, 2), (3, 5)),
        (TWO_IN, lambda e: e.transpose(0, 2, 1).reshape(6, 4), (4,)),
        (GROUPED, lambda e: e, (6,)),
    ],
    ids=["stacked", "two_in", "grouped"],
)
def test_every_unit_of_every_layout_is_on_its_own(kernel, columns, units):
    rng = np.random.default_rng(3)
    edges = rng.integers(0, 9, kernel.edge_shape).astype(np.float32)
    bias = rng.integers(0, 9, units).astype(np.float32)
    got = kept(kernel, edges, bias, np.float32(0.75))
    flat = columns(edges).reshape(-1, math.prod(units))
    want = by_hand(flat, bias.reshape(-1), 0.75)
    mine = columns(np.asarray(got.edges)).reshape(want[:-1].shape)
    np.testing.assert_array_equal(mine, want[:-1])
    np.testing.assert_array_equal(got.bias.reshape(-1), want[-1])
    assert got.edges.shape == kernel.edge_shape and got.bias.shape == units


# Placement -----------------------------------------------------------------------
@pytest.mark.long
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("d", None), P(None, "d")], ids=["rows", "columns"])
def test_masks_do_not_depend_on_where_weights_are(spec, kind, getkey):
    edges = jax.random.uniform(getkey(), (16, 8))
    bias = jax.random.uniform(getkey(), (8,))
    want = kept(dense(16, 8), edges, bias, np.float32(0.7))
    mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        edges = jax.device_put(edges, NamedSharding(mesh, spec))
        bias = jax.device_put(bias, NamedSharding(mesh, P(spec[1])))
        got = keep_share(dense(16, 8), edges, bias, 0.7)
    np.testing.assert_array_equal(got.edges, want.edges)
    np.testing.assert_array_equal(got.bias, want.bias)
