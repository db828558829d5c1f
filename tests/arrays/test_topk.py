"""`top_k_mask` against a stable sort in numpy, and on eight devices."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bbjax.arrays.topk import kth_largest, top_k_mask

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)
METHODS = ("count", "top_k")
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-40, -1e-40, 1.0, -1.0]

needs_8_devices = pytest.mark.skipif(
    jax.device_count() < 8, reason="needs 8 devices: XLA_FLAGS of tests/conftest.py"
)


def oracle(scores, k, axes):
    """Stable argsort of every unit; NaN last, zeros equal."""
    scores, k = np.asarray(scores), np.asarray(k)
    last = tuple(range(-len(axes), 0))
    moved = np.moveaxis(scores, axes, last)
    rows = moved.reshape(np.size(k), -1).astype(np.float64)
    order = np.argsort(-rows, axis=1, kind="stable")  # numpy sorts NaN last
    kept = np.arange(rows.shape[1]) < np.reshape(k, (-1, 1))
    mask = np.zeros(rows.shape, bool)
    np.put_along_axis(mask, order, kept, 1)
    return np.moveaxis(mask.reshape(moved.shape), last, axes)


def problem(rng, shape, axes, dtype=np.float32, levels=None):
    """Scores (with ties and special values if levels) and k from 0 to n."""
    scores = rng.normal(size=shape)
    if levels:
        scores = np.round(scores * levels) / levels
        special = rng.choice(SPECIAL, size=shape)
        scores = np.where(rng.random(shape) < 0.3, special, scores)
    others = [s for a, s in enumerate(shape) if a not in axes]
    n = np.prod([shape[a] for a in axes])
    return scores.astype(dtype), rng.integers(0, n + 1, others).astype(np.int32)


@pytest.mark.sampled(13)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((96, 40), 0),
        ((96, 40), 1),
        ((37, 53), 0),
        ((37, 53), -1),
        ((3, 48, 5), 1),
        ((3, 3, 8, 6), (0, 1, 2)),
        ((3, 8, 6), (2, 0)),
        ((16,), 0),
        ((4, 6), (1, 0)),
        ((1, 5), 0),
    ],
)
def test_equals_a_stable_sort(shape, axis, dtype, method):
    axes = tuple(a % len(shape) for a in np.atleast_1d(axis))
    for levels in (None, 2):
        rng = np.random.default_rng(len(shape))
        scores, k = problem(rng, shape, axes, dtype, levels)
        mask = top_k_mask(scores, k, axis=axis, method=method)
        np.testing.assert_array_equal(mask, oracle(scores, k, axes))


@pytest.mark.long
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    axis=st.sampled_from([0, 1, (0, 1), (1, 0)]),
    values=st.lists(
        st.sampled_from(SPECIAL) | st.floats(width=16), min_size=1, max_size=6
    ),
)
def test_any_values(seed, dtype, axis, values):
    rng = np.random.default_rng(seed)
    axes = tuple(np.atleast_1d(axis))
    _, k = problem(rng, (24, 10), axes)
    scores = rng.choice(np.array(values, dtype), size=(24, 10))
    expected = oracle(scores, k, axes)
    for method in METHODS:
        mask = top_k_mask(scores, k, axis=axis, method=method)
        np.testing.assert_array_equal(mask, expected)


def test_subnormal_scores_are_not_zero():
    scores = np.array([-1e-40, 0.0, 1e-45, 1e-40], np.float32)
    mask = top_k_mask(scores, 2, axis=0)
    np.testing.assert_array_equal(mask, [False, False, True, True])


def test_float64():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        scores, k = problem(rng, (64, 9), (0,), np.float64)
        scores[:, 0] = 1 + np.arange(64) * 2.0**-52  # equal in float32
        for method in METHODS:
            mask = top_k_mask(jnp.asarray(scores), k, axis=0, method=method)
            np.testing.assert_array_equal(mask, oracle(scores, k, (0,)))
        got = kth_largest(jnp.asarray(scores), k, 0)
        kept = np.where(oracle(scores, k, (0,)), scores, np.inf)
        np.testing.assert_array_equal(got, kept.min(0))


def test_eight_bit_floats():
    rng = np.random.default_rng(0)
    scores, k = problem(rng, (32, 9), (0,), ml_dtypes.float8_e4m3fn)
    mask = top_k_mask(scores, k, axis=0)
    np.testing.assert_array_equal(mask, oracle(scores, k, (0,)))


@pytest.mark.parametrize("k", [0, 1, 12, 99, -3, 10**12])
@pytest.mark.parametrize("axis", [0, 1])
def test_one_k_for_all_is_clipped(k, axis):
    scores = np.random.default_rng(0).normal(size=(12, 7)).astype(np.float32)
    counts = jnp.sum(top_k_mask(scores, k, axis=axis), axis)
    assert (counts == min(max(k, 0), scores.shape[axis])).all()


def test_narrow_k():
    scores = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    mask = top_k_mask(scores, jnp.array([200, 255], jnp.uint8), axis=0)
    np.testing.assert_array_equal(jnp.sum(mask, 0), [200, 255])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty(shape):
    assert top_k_mask(np.zeros(shape, np.float32), 1, axis=0).shape == shape


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_jit_vmap_scan(method):
    rng = np.random.default_rng(0)
    scores, k = problem(rng, (5, 32, 6), (1,), levels=2)
    select = functools.partial(top_k_mask, axis=0, method=method)
    expected = oracle(scores, k, (1,))
    scores = jnp.asarray(scores)

    np.testing.assert_array_equal(jax.jit(jax.vmap(select))(scores, k), expected)
    moved = jnp.moveaxis(scores, 0, 2)
    mask = jax.vmap(select, in_axes=(2, 0), out_axes=2)(moved, k)
    np.testing.assert_array_equal(jnp.moveaxis(mask, 2, 0), expected)
    _, masks = jax.lax.scan(lambda _, x: (None, select(*x)), None, (scores, k))
    np.testing.assert_array_equal(masks, expected)

    over_k = jax.vmap(select, in_axes=(None, 0))(scores[0], k)
    for mask, one in zip(over_k, k, strict=True):
        np.testing.assert_array_equal(mask, oracle(scores[0], one, (0,)))


def test_one_compilation_for_all_k():
    once = chex.assert_max_traces(lambda x, k: top_k_mask(x, k, axis=0), n=1)
    select = jax.jit(once)
    scores = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    for k in (1, 5, 16):
        assert int(select(scores, np.full(4, k, np.int32)).sum()) == 4 * k


@pytest.mark.parametrize("axis", [0, 1, (1, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kth_largest(dtype, axis):
    axes = tuple(np.atleast_1d(axis))
    scores, k = problem(np.random.default_rng(2), (32, 12), axes, dtype, levels=2)
    got = kth_largest(scores, k, axis)
    assert got.dtype == scores.dtype and got.shape == k.shape
    kept = np.where(oracle(scores, k, axes), scores.astype(np.float32), np.inf)
    np.testing.assert_array_equal(np.asarray(got, np.float32), kept.min(axis))


def test_kth_largest_at_the_ends():
    scores = np.array([[-0.0, np.nan, -1.0, np.inf]] * 5, np.float32)
    got = kth_largest(scores, np.arange(5, dtype=np.int32), 1)
    np.testing.assert_array_equal(got, [np.inf, np.inf, 0.0, -1.0, np.nan])
    assert not np.signbit(got[2])


@pytest.mark.long
@needs_8_devices
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x", None), P(None, "x"), P("y", "x")])
def test_eight_devices_as_one(spec, axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    for axes in ((0,), (1,), (0, 1)):
        scores, k = problem(np.random.default_rng(0), (64, 48), axes, levels=4)
        placed = jax.device_put(scores, NamedSharding(mesh, spec))
        if len(axes) == 1:
            k = jax.device_put(k, NamedSharding(mesh, P("x")))
        mask = top_k_mask(placed, k, axis=axes)
        np.testing.assert_array_equal(mask, oracle(scores, k, axes))
        assert mask.sharding.is_equivalent_to(placed.sharding, 2)


@needs_8_devices
@pytest.mark.parametrize("spec", [P("x", None), P(None, "x")])
def test_reference_runs_on_an_explicit_mesh(spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    scores, k = problem(np.random.default_rng(0), (16, 24), (0,), levels=2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(scores, NamedSharding(mesh, spec))
        mask = top_k_mask(placed, k, axis=0, method="top_k")
    np.testing.assert_array_equal(mask, oracle(scores, k, (0,)))


@needs_8_devices
@pytest.mark.parametrize("axis", [0, 1])
def test_sharded_selection_reduces_units_only(axis):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    shape, spec = (128, 192), P("x", None) if axis == 0 else P(None, "x")
    scores = jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(mesh, spec)
    )
    k = jax.ShapeDtypeStruct((shape[1 - axis],), jnp.int32)
    select = jax.jit(lambda x, k: top_k_mask(x, k, axis=axis, method="count"))
    text = select.lower(scores, k).compile().as_text()
    assert not re.findall(r"all-gather|all-to-all|collective-permute| sort\(", text)
    reduced = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    assert reduced
    most = 7 * shape[1 - axis]  # thresholds at once, for every unit
    for operand in re.findall(r"\[([\d,]*)\]", " ".join(reduced)):
        assert np.prod([int(d) for d in operand.split(",") if d]) <= most


SCORES = np.zeros((4, 3), np.float32)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: top_k_mask(SCORES, 1, axis=0, method="sort"),
            ValueError,
            r"expected method in .*, got 'sort'; use 'auto'",
        ),
        (
            lambda: top_k_mask(SCORES.astype(int), 1, axis=0),
            TypeError,
            "expected float scores, got int32; cast them",
        ),
        (
            lambda: top_k_mask(SCORES, 1.0, axis=0),
            TypeError,
            "expected integer k, got float64; round it",
        ),
        (
            lambda: top_k_mask(SCORES, np.ones(4, bool), axis=1),
            TypeError,
            "expected integer k, got bool",
        ),
        (
            lambda: top_k_mask(SCORES, np.ones(4, int), axis=0),
            ValueError,
            r"expected k of shape \(3,\) .* got \(4,\); give one k per unit",
        ),
        (
            lambda: top_k_mask(SCORES, np.ones((1, 3), int), axis=0),
            ValueError,
            r"expected k of shape \(3,\) .* got \(1, 3\)",
        ),
        (
            lambda: top_k_mask(SCORES, 1, axis=0.5),
            TypeError,
            "expected axis to be an int or a tuple of ints, got 0.5; use",
        ),
        (
            lambda: top_k_mask(SCORES, 1, axis=2),
            ValueError,
            "expected distinct axes of scores with 2 axes, got 2; .* -2 to 1",
        ),
        (lambda: top_k_mask(SCORES, 1, axis=(0, -2)), ValueError, r"got \(0, -2\)"),
        (lambda: top_k_mask(SCORES, 1, axis=()), ValueError, r"got \(\)"),
        (lambda: kth_largest(SCORES, 1, 5), ValueError, "got 5"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.long
def test_constants_of_a_compiled_program():
    """A program that knows the scores, in another layout, finds the same entries."""
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(24, 8)), jnp.float32)
    inner = jax.jit(lambda x: top_k_mask(x.T, 5, axis=1))
    np.testing.assert_array_equal(jax.jit(lambda: inner(scores))(), inner(scores))


@needs_8_devices
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_every_device_of_a_shard_map_searches_its_own_scores(method, check_vma):
    mesh = jax.make_mesh((8,), ("data",))
    scores = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    scores[3:5] = 1.0  # ties, on two devices alone
    k = np.arange(8, dtype=np.int32) * 9
    pick = functools.partial(top_k_mask, axis=1, method=method)
    specs = {"in_specs": (P("data"), P("data")), "out_specs": P("data")}
    by_hand = jax.jit(jax.shard_map(pick, mesh=mesh, check_vma=check_vma, **specs))
    placed = jax.device_put((scores, k), NamedSharding(mesh, P("data")))
    np.testing.assert_array_equal(by_hand(*placed), oracle(scores, k, (1,)))
    assert "all-reduce" not in by_hand.lower(*placed).compile().as_text()
