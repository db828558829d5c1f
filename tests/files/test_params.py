"""Parameters as files: they come back bit for bit, and small where they are sparse."""

import collections
import json
import os
import subprocess
import sys
import zlib
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import bbjax as bb
from tests.support.files import (
    MASKS,
    PARAMS,
    UNITS,
    assert_same,
    bits,
    header_of,
    loaded,
    saved,
)

DTYPES = (
    *("bool", "int2", "int4", "int8", "int16", "int32", "int64"),
    *("uint2", "uint4", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float8_e4m3fnuz"),
    *("float8_e5m2fnuz", "float8_e4m3", "float8_e3m4", "float8_e8m0fnu"),
    "float4_e2m1fn",
)
both = pytest.mark.parametrize("packed", [True, False], ids=["packed", "dense"])


# Round trips ---------------------------------------------------------------------
@both
def test_parameters_masks_and_extra_come_back(packed):
    extra = {"step": 7, "rates": [0.1, 1e-300], "name": "é/\0", "nested": {"a": None}}
    back = loaded(saved(PARAMS, MASKS, UNITS, extra, packed=packed))
    assert_same(back.params, PARAMS)
    chex.assert_trees_all_equal(back.masks, MASKS, strict=True)
    assert back.extra == extra
    assert json.dumps(back.extra, sort_keys=True) == json.dumps(extra, sort_keys=True)


def test_without_masks_and_extra_there_are_none():
    back = loaded(saved())
    assert_same(back.params, PARAMS)
    assert (back.masks, back.extra, back.header.density) == ({}, None, {})
    assert loaded(saved(extra={})).extra == {}


@both
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_pattern_of_every_dtype_comes_back(dtype, packed):
    """NaN with payloads, infinities and subnormals included."""
    dtype = np.dtype(dtype)
    raw = np.random.default_rng(0).integers(0, 256, (16, 4, dtype.itemsize), np.uint8)
    if dtype.kind == "b":
        raw &= 1
    if "int2" in dtype.name or "int4" in dtype.name or "float4" in dtype.name:
        # Only values of the type: what lies in the other bits of a byte is nobody's.
        raw = raw.view(np.int8).astype(dtype).view(np.uint8)
    array = raw.view(dtype).reshape(16, 4)
    zero = np.zeros((), dtype)
    mask = np.random.default_rng(1).random(array.shape) < 0.4
    pruned = np.where(mask, array, zero)
    params = {"dense": array, "pruned": pruned, "none": array[:0]}
    back = loaded(saved(params, {"pruned": mask}, packed=packed))
    assert_same(back.params, params)


@pytest.mark.parametrize(
    "dtype", [d for d in DTYPES if "64" not in d and "128" not in d]
)
def test_every_dtype_of_jax_comes_back_to_jax(dtype):
    array = jnp.asarray(np.arange(2).reshape(1, 2).astype(dtype))
    back = loaded(saved({"w": array}), like={"w": array}).params["w"]
    assert isinstance(back, jax.Array) and bits(back) == bits(array)


kinds = st.sampled_from([np.dtype(d) for d in ("f4", "f2", "i4", "?", "u1", "c8")])
arrays = kinds.flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)
    )
)
names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/:"), max_size=6
).filter(lambda name: name != "__metadata__")
trees = st.recursive(
    arrays,
    lambda inner: (
        st.dictionaries(names, inner, max_size=3)
        | st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=6,
)


@given(tree=trees, packed=st.booleans(), seed=st.integers(0, 99))
def test_any_tree_with_any_masks_comes_back(tree, packed, seed):
    rng, masks = np.random.default_rng(seed), {}
    paths = [
        "/".join(jax.tree_util.keystr((key,), simple=True) for key in path)
        for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    leaves, structure = jax.tree.flatten(tree)
    for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True)):
        if rng.random() < 0.6:
            masks[path] = np.asarray(rng.random(leaf.shape) < 0.5)
            leaves[i] = np.where(masks[path], leaf, np.zeros((), leaf.dtype))
    tree = jax.tree.unflatten(structure, leaves)
    data = saved(tree, masks or None, packed=packed)
    back = loaded(data, like=tree)
    assert_same(back.params, tree)
    chex.assert_trees_all_equal(back.masks, masks, strict=True)
    assert saved(tree, masks or None, packed=packed) == data


@given(tree=trees)
def test_every_file_is_one_of_safetensors(tree):
    data = saved(tree)
    theirs = safetensors.numpy.load(data)
    entries = {entry["path"]: entry for entry in header_of(data)["entries"]}
    assert theirs.keys() == entries.keys()
    for path, tensor in theirs.items():
        assert entries[path]["crc32"][path] == zlib.crc32(np.ravel(tensor).data)
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0  # so that every tensor is aligned in the file
    text = json.dumps(header_of(data), sort_keys=True)
    again = safetensors.numpy.save(theirs, {"bbjax": text})
    assert len(again) == len(data)
    assert_same(loaded(again).params, loaded(data).params)


@given(masks=st.randoms(use_true_random=False))
def test_bytes_depend_on_what_is_saved_and_on_nothing_else(masks):
    order = list(MASKS)
    masks.shuffle(order)
    again = {path: jnp.asarray(MASKS[path]) for path in order}
    turned = jax.tree.map(lambda x: np.asarray(x.T, order="F").T, PARAMS)
    assert saved(turned, again, UNITS) == saved(PARAMS, MASKS, UNITS)


def test_the_order_of_leaves_in_a_tree_is_nothing_to_a_file():
    a, b = np.ones(2), np.zeros(3)
    turned = collections.OrderedDict(b=b, a=a)  # JAX keeps the order of these
    assert saved(turned) == saved({"a": a, "b": b})


def test_other_layouts_in_memory_are_the_same_array():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for same in (np.asfortranarray(array), array.astype(">f4"), jnp.asarray(array)):
        assert saved({"w": same}) == saved({"w": array})


def test_numbers_and_random_keys_come_back_as_what_they_are():
    params = {
        "p": 0.1,
        "n": 3,
        "on": True,
        "z": 1 - 2j,
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 3),
    }
    for back in (loaded(saved(params)), loaded(saved(params), like=params)):
        for name in ("p", "n", "on", "z"):
            assert type(back.params[name]) is type(params[name])
            assert back.params[name] == params[name]
        for name in ("key", "keys"):
            assert back.params[name].dtype == params[name].dtype
            mine, theirs = map(jax.random.key_data, (back.params[name], params[name]))
            np.testing.assert_array_equal(mine, theirs, strict=True)


def test_sharded_parameters_are_gathered():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    w = np.arange(48, dtype=np.float32).reshape(16, 3)
    sharded = jax.device_put(w, NamedSharding(mesh, P("x")))
    assert saved({"w": sharded}) == saved({"w": w})


# Into a tree ---------------------------------------------------------------------
class Pair(NamedTuple):
    first: jax.Array
    rest: list


def test_any_tree_is_filled_by_path():
    tree = Pair(jnp.ones(2), [jnp.zeros(3, jnp.int32), {"x": (jnp.ones(()),)}])
    data = saved(tree)
    assert_same(loaded(data, like=jax.tree.map(jnp.zeros_like, tree)).params, tree)
    flat = loaded(data).params
    assert flat["rest"]["1"]["x"]["0"] == 1.0 and list(flat) == ["first", "rest"]


def test_a_single_array_is_a_tree():
    assert_same(loaded(saved(np.arange(3))).params, np.arange(3))


def test_leaves_come_as_the_kind_and_where_they_are_in_the_tree():
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4])
    spread = NamedSharding(mesh, P("x"))
    like = {
        "host": np.zeros((4, 2), np.float32),
        "device": jnp.zeros((4, 2)),
        "mesh": jax.device_put(jnp.zeros((4, 2)), spread),
        "shape": jax.ShapeDtypeStruct((4, 2), jnp.float32),
        "placed": jax.ShapeDtypeStruct((4, 2), jnp.float32, sharding=spread),
    }
    w = np.arange(8, dtype=np.float32).reshape(4, 2)
    back = loaded(saved(dict.fromkeys(like, w)), like).params
    assert_same(back, dict.fromkeys(like, w))
    assert isinstance(back["host"], np.ndarray)
    assert not back["device"].committed and not back["shape"].committed
    assert back["mesh"].sharding == back["placed"].sharding == spread
    assert not np.asarray(like["device"]).any()  # what was passed is as it was


def test_loading_without_a_tree_touches_no_device():
    leaves = jax.tree.leaves(loaded(saved(PARAMS, MASKS)).params)
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)


def test_arrays_that_were_loaded_can_be_changed():
    back = loaded(saved(PARAMS | {"odd": np.ones(2, "c8")}, MASKS))
    arrays = [*jax.tree.leaves(back.params), *back.masks.values()]
    assert all(array.flags.writeable and array.flags.aligned for array in arrays)


def test_functions_in_a_tree_stay_those_of_the_tree():
    back = loaded(
        saved({"f": np.tanh, "w": np.ones(2)}), {"f": np.sin, "w": np.zeros(2)}
    )
    assert back.params["f"] is np.sin and back.params["w"].all()
    assert list(loaded(saved({"f": np.tanh, "w": np.ones(2)})).params) == ["w"]


# What a file holds ---------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8])
def test_size_goes_down_with_density(dtype):
    rng, sizes = np.random.default_rng(0), []
    for density in (1.0, 0.5, 0.25, 0.1):
        mask = rng.permutation(128 * 128).reshape(128, 128) < density * 128 * 128
        w = np.where(mask, np.ones((), dtype), np.zeros((), dtype))
        data = saved({"w": w}, {"w": mask})
        payload = mask.sum() * w.itemsize + mask.size / 8
        assert 0 < len(data) - payload < 600  # the header
        sizes.append(len(data))
        assert len(data) < len(saved({"w": w}, {"w": mask}, packed=False)) + 50
    assert sizes == sorted(sizes, reverse=True)


def test_any_reader_finds_dense_weights_under_their_paths(tmp_path):
    path = tmp_path / "dense.safetensors"
    bb.save(path, PARAMS, MASKS, packed=False)
    tensors = safetensors.numpy.load_file(path)
    assert_same(tensors["mlp/up"], PARAMS["mlp"]["up"])
    assert_same(tensors["bias"], PARAMS["bias"])
    read = np.unpackbits(tensors["mlp/up:mask"], count=15, bitorder="little")
    np.testing.assert_array_equal(read.reshape(3, 5), MASKS["mlp/up"])


def test_any_reader_can_unpack_what_is_packed():
    tensors = safetensors.numpy.load(saved(PARAMS, MASKS))
    read = np.unpackbits(tensors["mlp/down:mask"], count=10, bitorder="little")
    dense = np.zeros(10, np.float32)
    dense[read == 1] = tensors["mlp/down:kept"]
    assert_same(dense.reshape(5, 2), PARAMS["mlp"]["down"])
    assert "mlp/down" not in tensors


def test_the_header_says_what_was_kept_of_what():
    header = loaded(saved(PARAMS, MASKS, UNITS.select("up", actuator="out"))).header
    assert (header.version, header.bbjax) == (1, bb.__version__)
    assert header.kept == {"mlp/up": 8, "mlp/down": 4}
    assert header.density == {"mlp/up": 8 / 15, "mlp/down": 0.4}
    assert header.budgets == {"mlp/up": (8,), "mlp/down": (4,)}
    assert header.actuators == {"mlp/up": ("out",)}
    assert loaded(saved(PARAMS, MASKS)).header.budgets == {}


def test_budgets_are_edges_of_each_slice():
    """Of a stack, each layer; of a convolution, windows that keep anything."""
    kernel = bb.Kernel(
        "w", (2, 3, 4, 5), stack=(0,), spatial=(1,), fan_in=(2,), fan_out=(3,)
    )
    mask = np.random.rand(2, 3, 4, 5) < 0.3
    header = loaded(saved({"w": mask * 1.0}, {"w": mask}, bb.Units((kernel,)))).header
    assert header.budgets == {"w": tuple(mask.any(1).sum((1, 2)).tolist())}
    assert header.kept == {"w": mask.sum()}


def test_the_checksum_of_the_header_is_of_its_json_with_sorted_keys():
    header = header_of(saved(PARAMS, MASKS, UNITS.select("up"), {"a": 1}))
    crc = header.pop("crc32")
    assert crc == zlib.crc32(json.dumps(header, sort_keys=True).encode())
    (entry,) = (e for e in header["entries"] if e["path"] == "mlp/up")
    assert entry.pop("crc32")["mlp/up:mask"] == zlib.crc32(
        np.packbits(MASKS["mlp/up"], bitorder="little")
    )
    assert entry == {
        "path": "mlp/up",
        "shape": [3, 5],
        "dtype": "float32",
        "kept": 8,
        "packed": True,
        "split": [3, 5],
        "roles": ["in", "out"],
        "actuators": ["in"],
        "budget": [8],
    }


# Files ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "path"])
def test_a_path_is_taken_as_it_is(tmp_path, kind):
    path = tmp_path / "model"
    bb.save(kind(path), PARAMS)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert_same(bb.load(kind(path)).params, PARAMS)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    bb.save(path, PARAMS)

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        bb.save(path, {"w": np.ones(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert_same(bb.load(path).params, PARAMS)


@pytest.mark.long
def test_the_package_safetensors_is_not_needed():
    code = """if True:
        import io, sys
        sys.modules["safetensors"] = None
        import bbjax as bb
        import numpy as np
        file, params, masks = io.BytesIO(), {"w": np.eye(3)}, {"w": np.eye(3) > 0}
        bb.save(file, params, masks)
        file.seek(0)
        assert (bb.load(file).params["w"] == params["w"]).all()
        bb.save_masks(file, masks)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


# What cannot be saved ------------------------------------------------------------
REFUSED = {
    "extra that is no dict": (dict(extra=[1]), "expected extra as a dict .*got list"),
    "extra with a tuple": (dict(extra={"a": (1, 2)}), "expected extra as .*tuples"),
    "extra with int keys": (dict(extra={1: 2}), "no strings, would change"),
    "extra with NaN": (dict(extra={"a": float("nan")}), "not JSON compliant"),
    "extra with an array": (dict(extra={"a": jnp.ones(2)}), "put arrays into params"),
    "a mask without parameter": (
        dict(masks={"x": np.ones(2, bool)}),
        r"for every mask; differences: 'x': mask of \(2,\), no parameter",
    ),
    "a mask of another shape": (
        dict(masks={"bias": np.ones(2, bool)}),
        r"'bias': mask of \(2,\), float32 \(5,\)",
    ),
    "weights that are not pruned": (
        dict(masks={"bias": np.arange(5) < 3, "mlp/up": np.ones((3, 5), bool)}),
        r"pruned weights to be 0, got others: 2 of 2 in 'bias'; put .*bb.apply_masks",
    ),
    "no mask at all": (dict(masks={}), "expected at least one mask"),
    "units of another shape": (
        dict(units=bb.Units((bb.Kernel("bias", (1, 5), fan_in=(0,), fan_out=(1,)),))),
        r"for every kernel; .*'bias': kernel of \(1, 5\), float32 \(5,\)",
    ),
    "units of another model": (
        dict(units=bb.Units((bb.Kernel("x", (1, 5), fan_in=(0,), fan_out=(1,)),))),
        r"'x': kernel of \(1, 5\), no parameter",
    ),
    "a selected kernel without a mask": (
        dict(masks={"mlp/up": MASKS["mlp/up"]}, units=UNITS.select("down")),
        r"a mask for every selected kernel, got none for \['mlp/down'\]",
    ),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_saved_is_refused_and_leaves_the_old_file(
    arguments, message, tmp_path
):
    path = tmp_path / "model.safetensors"
    bb.save(path, {"old": np.ones(1)})
    with pytest.raises(ValueError, match=message):
        bb.save(path, PARAMS, **arguments)
    assert list(bb.load(path).params) == ["old"]


KEY = jax.random.key(0)
BAD_TREES = {
    "text": (
        {"w": np.array(["a"])},
        None,
        TypeError,
        "array of numbers at 'w', got <U1",
    ),
    "objects": ({"w": np.array([{}])}, None, TypeError, "at 'w', got object"),
    "shapes": (
        jax.eval_shape(lambda: {"w": jnp.ones(2)}),
        None,
        TypeError,
        "expected parameters with values, got a shape at 'w'",
    ),
    "a huge int": ({"w": 2**70}, None, TypeError, "at 'w', got object"),
    "one path twice": (
        {"a/b": np.ones(1), "a": {"b": np.ones(1)}},
        None,
        ValueError,
        r"one leaf for each path, got several at \['a/b'\]; rename",
    ),
    "one name twice": (
        {"w": np.ones(1), "w:mask": np.ones(1)},
        {"w": np.ones(1, bool)},
        ValueError,
        r"of their own for all tensors, got \['w:mask'\] again for 'w:mask'",
    ),
    "a name of the container": (
        {"__metadata__": np.ones(1)},
        None,
        ValueError,
        r"got \['__metadata__'\] again",
    ),
    "a masked key": (
        {"w": KEY},
        {"w": np.ones((), bool)},
        ValueError,
        r"'w': mask of \(\), key<fry> \(\)",
    ),
    "a masked number": (
        {"w": 1.0},
        {"w": np.ones((), bool)},
        ValueError,
        r"'w': mask of \(\), a Python float",
    ),
    "masks of floats": ({"w": np.ones(1)}, {"w": np.ones(1)}, TypeError, "a bool mask"),
}


@pytest.mark.parametrize(
    "tree, masks, error, message", BAD_TREES.values(), ids=BAD_TREES
)
def test_trees_that_cannot_be_saved_are_refused(tree, masks, error, message):
    with pytest.raises(error, match=message):
        saved(tree, masks)


def test_apply_masks_makes_parameters_that_can_be_saved():
    dense = jax.tree.map(lambda x: jnp.asarray(x) + 1, PARAMS)
    with pytest.raises(ValueError, match="7 of 7 in 'mlp/up', 6 of 6 in 'mlp/down'"):
        saved(dense, MASKS)
    pruned = bb.apply_masks(dense, MASKS)
    assert_same(loaded(saved(pruned, MASKS), like=pruned).params, pruned)


@pytest.mark.long
def test_minus_zero_is_pruned_as_well():
    w, mask = np.array([-0.0, 2.0], np.float32), np.array([False, True])
    assert_same(loaded(saved({"w": w}, {"w": mask})).params["w"], np.float32([0, 2]))
