"""Kernels in views: what every axis means, and that no view loses or mixes anything.

The layouts of `tests/support/oracle.py` list the edges of each kind of kernel one by
one; views are held against those lists.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bbjax as bb
from bbjax.model.leaves import leaves_by_path
from bbjax.model.units import Selected
from tests.support import oracle

GROUPED = ("spatial", "in", "group", "out")
KERNELS = {
    "dense": (
        bb.Kernel("w", (3, 4), fan_in=(0,), fan_out=(1,)),
        oracle.dense(3, 4),
    ),
    "transposed": (
        bb.Kernel("w", (4, 3), fan_in=(1,), fan_out=(0,)),
        oracle.transposed(4, 3),
    ),
    "stacked": (
        bb.Kernel("w", (2, 3, 4), stack=(0,), fan_in=(1,), fan_out=(2,)),
        oracle.stacked(2, 3, 4),
    ),
    "heads": (
        bb.Kernel("w", (3, 2, 5), fan_in=(0,), fan_out=(1, 2)),
        oracle.heads(3, 2, 5),
    ),
    "conv": (
        bb.Kernel("w", (2, 3, 4, 5), spatial=(0, 1), fan_in=(2,), fan_out=(3,)),
        oracle.conv(2, 3, 4, 5),
    ),
    "grouped": (
        bb.Kernel(
            "w",
            (1, 3, 2, 6),
            groups=2,
            split=(1, 3, 2, 2, 3),
            roles=("spatial", *GROUPED),
        ),
        oracle.conv(1, 3, 4, 6, groups=2),
    ),
    "depthwise": (
        bb.Kernel("w", (3, 1, 4), groups=4, split=(3, 1, 4, 1), roles=GROUPED),
        None,
    ),
    "odd": (  # units in two axes on either side of the others, the stack in between
        bb.Kernel("w", (2, 5, 3, 4), fan_out=(0, 3), stack=(1,), fan_in=(2,)),
        None,
    ),
}
BY_NAME = pytest.mark.parametrize("name", KERNELS)
LISTED = pytest.mark.parametrize("name", [n for n, (_, x) in KERNELS.items() if x])
SIDES = pytest.mark.parametrize("side", ["inputs", "outputs"])


def numbered(shape):
    return jnp.arange(np.prod(shape, dtype=int), dtype=jnp.float32).reshape(shape)


def units_of(kernel, side):
    return kernel.in_units if side == "inputs" else kernel.out_units


# Sizes ---------------------------------------------------------------------------
@LISTED
def test_sizes(name):
    kernel, layout = KERNELS[name]
    edges = layout.slices[0]
    assert np.prod(kernel.stack_shape, dtype=int) == len(layout.slices)
    assert kernel.edge_count == len(edges)
    assert np.prod(kernel.edge_shape) == len(edges) * len(layout.slices)
    assert kernel.unit_count("in") == np.prod(kernel.out_units) == layout.targets
    assert kernel.unit_count("out") == np.prod(kernel.in_units) == layout.sources
    for actuator, unit in (("in", 1), ("out", 0)):
        degrees = np.bincount([e[unit] for e in edges])
        assert set(degrees) == {kernel.fan(actuator)}


def test_sizes_of_a_depthwise_convolution():
    kernel, _ = KERNELS["depthwise"]
    assert kernel.in_units == kernel.out_units == (4,)
    assert kernel.fan("in") == kernel.fan("out") == 1


# Views ---------------------------------------------------------------------------
@BY_NAME
def test_edge_view_and_back(name):
    kernel, _ = KERNELS[name]
    w = numbered(kernel.shape)
    edges = kernel.edges(w)
    assert edges.shape == kernel.split
    np.testing.assert_array_equal(kernel.weights(edges), w)
    assert kernel.sum_spatial(edges).shape == kernel.edge_shape


@LISTED
def test_an_edge_is_the_sum_over_its_window(name):
    kernel, layout = KERNELS[name]
    w = np.asarray(numbered(kernel.shape))
    want = [sum(w[at] for at in e.at) for edges in layout.slices for e in edges]
    np.testing.assert_array_equal(kernel.sum_spatial(kernel.edges(w)).ravel(), want)


@BY_NAME
def test_a_value_per_edge_reaches_its_whole_window(name):
    kernel, _ = KERNELS[name]
    per_edge = numbered(kernel.edge_shape)
    spread = jnp.broadcast_to(kernel.over_spatial(per_edge), kernel.split)
    window = np.prod(kernel.split) / np.prod(kernel.edge_shape)
    np.testing.assert_array_equal(kernel.sum_spatial(spread), per_edge * window)


@LISTED
@SIDES
def test_spread_gives_every_edge_the_value_of_its_unit(name, side):
    kernel, layout = KERNELS[name]
    per_unit = np.asarray(numbered(kernel.stack_shape + units_of(kernel, side)))
    rows = per_unit.reshape(len(layout.slices), -1)
    end = 0 if side == "inputs" else 1
    want = [r[e[end]] for r, es in zip(rows, layout.slices, strict=True) for e in es]
    got = jnp.broadcast_to(kernel.spread(per_unit, side), kernel.edge_shape)
    np.testing.assert_array_equal(got.ravel(), want)


@LISTED
@SIDES
def test_gather_adds_up_the_edges_of_every_unit(name, side):
    kernel, layout = KERNELS[name]
    per_edge = np.asarray(numbered(kernel.edge_shape))
    want = np.zeros(kernel.stack_shape + units_of(kernel, side))
    rows = want.reshape(len(layout.slices), -1)
    flat = per_edge.reshape(len(layout.slices), -1)
    for row, values, edges in zip(rows, flat, layout.slices, strict=True):
        for value, edge in zip(values, edges, strict=True):
            row[edge[0 if side == "inputs" else 1]] += value
    np.testing.assert_array_equal(kernel.gather(per_edge, side), want)


@BY_NAME
@SIDES
def test_gather_undoes_spread_up_to_the_fan(name, side):
    kernel, _ = KERNELS[name]
    per_unit = numbered(kernel.stack_shape + units_of(kernel, side))
    full = jnp.broadcast_to(kernel.spread(per_unit, side), kernel.edge_shape)
    fan = kernel.fan("out" if side == "inputs" else "in")
    np.testing.assert_array_equal(kernel.gather(full, side), fan * per_unit)


@BY_NAME
@SIDES
def test_spread_and_gather_are_transposes(name, side):
    """<spread u, e> = <u, gather e>, for all u and e."""
    kernel, _ = KERNELS[name]
    shape = kernel.stack_shape + units_of(kernel, side)
    u, e = np.random.randint(0, 9, shape), np.random.randint(0, 9, kernel.edge_shape)
    u, e = u.astype(np.float32), e.astype(np.float32)
    left = (np.asarray(kernel.spread(u, side)) * e).sum()
    assert left == (u * np.asarray(kernel.gather(e, side))).sum()


@st.composite
def any_kernel(draw):
    """Axes of any roles in any order, sizes 1 to 4, at least one of each side."""
    others = st.lists(st.sampled_from(["in", "out", "stack", "spatial"]), max_size=3)
    roles = draw(st.permutations(["in", "out", *draw(others)]))
    sizes = st.lists(st.integers(1, 4), min_size=len(roles), max_size=len(roles))
    axes = {
        name: tuple(i for i, r in enumerate(roles) if r == role)
        for name, role in (
            ("fan_in", "in"),
            ("fan_out", "out"),
            ("stack", "stack"),
            ("spatial", "spatial"),
        )
    }
    return bb.Kernel("w", tuple(draw(sizes)), **axes)


@pytest.mark.long
@settings(max_examples=12)  # every shape compiles
@given(any_kernel())
def test_any_order_of_axes(kernel):
    """Against einsum, which names axes instead of counting them."""
    w = np.random.randint(-9, 9, kernel.shape).astype(np.float32)
    names = dict(enumerate("abcdef"))
    axes = {"inputs": kernel.fan_in, "outputs": kernel.fan_out}
    all_axes = "".join(names[i] for i in range(w.ndim))
    for side, own in axes.items():
        out = "".join(names[i] for i in kernel.stack + own)
        per_edge = kernel.sum_spatial(kernel.edges(jnp.asarray(w)))
        want = np.einsum(f"{all_axes}->{out}", w)
        np.testing.assert_array_equal(kernel.gather(per_edge, side), want)
        spread = kernel.over_spatial(kernel.spread(jnp.asarray(want), side))
        again = np.einsum(f"{all_axes},{out}->{all_axes}", np.ones_like(w), want)
        np.testing.assert_array_equal(jnp.broadcast_to(spread, kernel.split), again)


def test_views_of_what_trace_finds():
    """A grouped convolution, as `trace` describes it, is the one listed by hand."""

    def fn(params, x):
        y = jax.lax.conv_general_dilated(
            x,
            params["w"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )
        return jnp.sum(jax.nn.relu(y))

    listed, _ = KERNELS["grouped"]
    w = jax.ShapeDtypeStruct(listed.shape, jnp.float32)
    x = jax.ShapeDtypeStruct((2, 5, 5, 4), jnp.float32)
    found = bb.trace(fn, {"w": w}, x)["w"]
    assert (found.split, found.roles, found.groups) == (listed.split, listed.roles, 2)


# Units ---------------------------------------------------------------------------
A = bb.Kernel(
    "enc/a", (3, 4), fan_in=(0,), fan_out=(1,), hidden=True, nonlinearity="relu"
)
B = bb.Kernel("enc/b", (4, 5), fan_in=(0,), fan_out=(1,), hidden=True)
C = bb.Kernel("dec/c", (5, 2), fan_in=(0,), fan_out=(1,))
ONE = bb.Kernel(
    "dec/d", (1, 4), fan_in=(0,), fan_out=(1,), hidden=True, nonlinearity="relu"
)
UNITS = bb.Units((A, B, C, ONE))


def test_default_selection():
    """Hidden, before a nonlinearity, and with a choice to make."""
    assert UNITS.selected == (Selected("enc/a", "in"),)
    assert UNITS.budgeted == {"enc/a": ("in",)}


def test_select_searches_anywhere_in_the_path():
    assert set(UNITS.select("enc").budgeted) == {"enc/a", "enc/b"}
    assert set(UNITS.select("c$").budgeted) == {"dec/c"}
    assert UNITS.select("c$", "out").budgeted == {"dec/c": ("out",)}
    assert UNITS.selection is None  # frozen: select makes another


def test_only_these_paths_whatever_was_chosen():
    assert UNITS.select("dec", "out").only(["dec/c", "enc/b", "dec/c"]).selected == (
        Selected("dec/c", "in"),
        Selected("enc/b", "in"),
    )
    assert UNITS.only(["enc/b"], "out") == UNITS.select("enc/b", "out")
    for choose in (UNITS.select, lambda path, side: UNITS.only([path], side)):
        with pytest.raises(ValueError, match='expected actuator "in" or "out"'):
            choose("enc/b", "output")
    with pytest.raises(KeyError, match="path of a kernel, got 'enc/e'; near misses"):
        UNITS.only(["enc/e"])


def test_add_joins_selections_without_repeats():
    both = UNITS.select("enc/a") + UNITS.select("enc", "out") + UNITS.select("enc/a")
    assert both.budgeted == {"enc/a": ("in", "out"), "enc/b": ("out",)}
    assert len(both.selected) == 3


def test_units_are_frozen_data():
    assert hash(UNITS) == hash(bb.Units((A, B, C, ONE)))
    assert UNITS.select("a") == UNITS.select("a") != UNITS.select("a", "out")
    assert {UNITS: 1}[bb.Units((A, B, C, ONE))] == 1


def test_units_as_a_collection():
    assert UNITS.paths == tuple(UNITS) == ("enc/a", "enc/b", "dec/c", "dec/d")
    assert len(UNITS) == 4 and "enc/a" in UNITS and "enc" not in UNITS
    assert UNITS["dec/c"] is C


def test_table():
    lines = str(UNITS.select("enc/a") + UNITS.select("enc/a", "out")).splitlines()
    assert (
        lines[0].split()
        == "kernel shape units in -> out budget outputs measured".split()
    )
    assert "enc/a" in lines[2] and "in+out" in lines[2] and "after relu" in lines[2]
    assert len(lines) == 6 and not any(line.endswith(" ") for line in lines)
    grouped = str(bb.Units((KERNELS["grouped"][0], KERNELS["stacked"][0])))
    assert "4 -> 6  2 groups" in grouped and "3 -> 4  x2 stacked" in grouped
    assert "cannot be used: t: gathered" in str(bb.Units((A,), (("t", "gathered"),)))


def test_paths():
    tree = {"layers": [{"kernel": 1.0}, {"value": 2.0}]}
    paths = [path for path, _ in leaves_by_path(tree)[0]]
    assert paths == ["layers/0/kernel", "layers/1/value"]
