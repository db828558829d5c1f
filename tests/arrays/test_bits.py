"""`pack`, `unpack` and `count` against `numpy.packbits`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bbjax.arrays.bits import count, pack, unpack

needs_8_devices = pytest.mark.skipif(
    jax.device_count() < 8, reason="needs 8 devices: XLA_FLAGS of tests/conftest.py"
)


@pytest.mark.long
@given(
    shape=st.lists(st.integers(1, 19), min_size=1, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_round_trip(shape, seed, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    mask = np.random.default_rng(seed).random(shape) < 0.5
    bits = pack(mask, axis)
    assert bits.dtype == jnp.uint8
    np.testing.assert_array_equal(bits, np.packbits(mask, axis, bitorder="little"))
    np.testing.assert_array_equal(unpack(bits, axis, shape[axis]), mask)


@pytest.mark.parametrize("axes", [None, 1, (1, 2), [0, 1], (2, 1, 0)])
def test_count(axes):
    mask = np.random.default_rng(0).random((5, 13, 4)) < 0.5
    got = count(pack(mask, 1), axes)
    over = tuple(axes) if isinstance(axes, list) else axes
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, mask.sum(over))


def test_empty_axis():
    mask = np.zeros((0, 3), bool)
    assert pack(mask, 0).shape == (0, 3)
    assert unpack(pack(mask, 0), 0, 0).shape == (0, 3)


def test_jit_vmap_scan():
    masks = np.random.default_rng(0).random((4, 11, 3)) < 0.5
    bits = jax.jit(jax.vmap(lambda m: pack(m, 0)))(masks)
    np.testing.assert_array_equal(bits, pack(masks, 1))
    step = lambda _, b: (None, unpack(b, 0, 11))  # noqa: E731
    np.testing.assert_array_equal(jax.lax.scan(step, None, bits)[1], masks)


def test_unpack_fuses():
    """One loop over the entries: no gather, and only the result is written."""
    bits = jax.ShapeDtypeStruct((64, 48), jnp.uint8)
    compiled = jax.jit(lambda b: unpack(b, 0, 512)).lower(bits).compile()
    assert not re.search(r" (gather|scatter|sort)\(", compiled.as_text())
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes == 0
    assert memory.output_size_in_bytes == 512 * 48


@needs_8_devices
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x", None), P(None, "x")])
@pytest.mark.parametrize("axis", [0, 1])
def test_shards_stay_where_they_are(spec, axis, axis_type):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    mask = np.random.default_rng(0).random((128, 64)) < 0.5
    sharding = NamedSharding(mesh, spec)
    packed = jax.jit(lambda m: pack(m, axis))
    unpacked = jax.jit(lambda b: unpack(b, axis, mask.shape[axis]))

    placed = jax.device_put(mask, sharding)
    bits = packed(placed)
    back = unpacked(bits)
    np.testing.assert_array_equal(back, mask)
    assert bits.sharding.is_equivalent_to(sharding, 2)
    assert back.sharding.is_equivalent_to(sharding, 2)
    for step, x in ((packed, placed), (unpacked, bits)):
        text = step.lower(x).compile().as_text()
        assert not re.search(r"all-(gather|reduce|to-all)|collective-permute", text)


BITS = np.zeros((2, 3), np.uint8)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: pack(BITS, 0), TypeError, "expected a bool mask, got uint8; compare"),
        (lambda: pack(BITS > 0, 2), ValueError, "with 2 axes, got 2; .* -2 to 1"),
        (lambda: pack(BITS > 0, 1.0), TypeError, "axis to be an int, got 1.0; name"),
        (lambda: unpack(BITS > 0, 0, 9), TypeError, "uint8 bits, got bool; make them"),
        (lambda: unpack(BITS, -3, 9), ValueError, "with 2 axes, got -3; give one"),
        (lambda: unpack(BITS, 0, 8), ValueError, "size from 9 to 16 .* axis 0, got 8;"),
        (lambda: unpack(BITS, 0, 17), ValueError, "got 17; give the size that was"),
        (lambda: count(BITS > 0), TypeError, "expected uint8 bits, got bool"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()
