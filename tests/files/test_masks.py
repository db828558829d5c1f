"""Masks as files: they come back bit for bit, and only where they fit."""

import io
import os
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import bbjax as bb
from bbjax.files import container
from bbjax.files.masks import load_masks, save_masks
from tests.support.files import entry_of, flipped, header_of, rewritten

UNITS = bb.Units(
    (
        bb.Kernel("Dense_0/kernel", (3, 5), fan_in=(0,), fan_out=(1,), hidden=True),
        bb.Kernel("Dense_1/kernel", (5, 2), fan_in=(0,), fan_out=(1,)),
    )
)
PARAMS = {
    "Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)},
    "Dense_1": {"kernel": jnp.ones((5, 2))},
}
MASKS = {
    "Dense_1/kernel": np.arange(10).reshape(5, 2) % 3 == 0,
    "Dense_0/kernel": np.arange(15).reshape(3, 5) % 2 == 0,
}

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
paths = st.text(st.characters(exclude_categories=["Cs"]))
mask_sets = st.dictionaries(paths, hnp.arrays(bool, shapes), min_size=1, max_size=4)


def saved(masks=MASKS, units=None):
    file = io.BytesIO()
    save_masks(file, masks, units)
    return file.getvalue()


def loaded(data, like=None):
    return load_masks(io.BytesIO(data), like)


def kernels_of(data):
    return container.read(io.BytesIO(data), "masks")[1].header.kernels


def assert_same(mine, theirs):
    chex.assert_trees_all_equal(mine, theirs, strict=True)


# Round trips ---------------------------------------------------------------------
@given(masks=mask_sets)
def test_any_masks_come_back(masks):
    back = loaded(saved(masks), like=masks)
    assert_same(back, masks)
    assert list(back) == sorted(masks)


@given(masks=mask_sets, swap=st.randoms(use_true_random=False))
def test_the_same_masks_give_the_same_bytes_in_any_order(masks, swap):
    order = list(masks)
    swap.shuffle(order)
    assert saved({path: masks[path].copy() for path in order}) == saved(masks)


def test_bytes_hold_no_time(monkeypatch):
    before = saved()
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert saved() == before


def test_a_file_holds_one_bit_per_weight_for_any_reader_of_safetensors():
    mask = np.random.rand(100, 80) < 0.3
    data = saved({"w": mask})
    assert len(data) < mask.size / 8 + 1000
    tensors = safetensors.numpy.load(data)
    assert tensors.keys() == {"w:mask"} and tensors["w:mask"].dtype == np.uint8
    read = np.unpackbits(tensors["w:mask"], count=mask.size, bitorder="little")
    np.testing.assert_array_equal(read.reshape(mask.shape), mask)


def test_the_header_says_what_is_in_the_file():
    header = header_of(saved(units=UNITS))
    assert header["format"] == "bbjax.masks"
    assert (header["version"], header["bbjax"]) == (2, bb.__version__)
    entry = header["entries"][0]
    assert entry.pop("crc32").keys() == {"Dense_0/kernel:mask"}
    assert entry == {
        "path": "Dense_0/kernel",
        "shape": [3, 5],
        "kept": 8,
        "split": [3, 5],
        "roles": ["in", "out"],
    }
    assert "roles" not in header_of(saved())["entries"][0]


def test_masks_of_biases_have_no_roles():
    masks = {**MASKS, "Dense_0/bias": np.ones(5, bool)}
    data = saved(masks, UNITS)
    assert "roles" not in header_of(data)["entries"][0]
    assert_same(loaded(data, like=PARAMS), masks)


def test_masks_of_an_optimizer_state_come_back():
    tx = optax.chain(optax.sgd(0.1), bb.transform(UNITS.select("Dense")))
    masks = bb.masks(tx.init(PARAMS))
    assert_same(loaded(saved(masks, UNITS), like=UNITS.select("Dense")), masks)


def test_sharded_masks_are_gathered():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    mask = np.random.rand(16, 3) < 0.5
    sharded = jax.device_put(mask, NamedSharding(mesh, P("x")))
    assert saved({"w": sharded}) == saved({"w": mask})


# Files ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "path"])
def test_a_path_is_taken_as_it_is(tmp_path, kind):
    path = tmp_path / "masks"
    save_masks(kind(path), MASKS)
    assert [p.name for p in tmp_path.iterdir()] == ["masks"]
    assert_same(load_masks(kind(path)), MASKS)


def test_a_path_has_the_rights_of_any_new_file(tmp_path):
    save_masks(tmp_path / "masks", MASKS)
    (tmp_path / "other").touch()
    modes = {p.stat().st_mode for p in tmp_path.iterdir()}
    assert len(modes) == 1


def test_open_files_are_used_where_they_stand(tmp_path):
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"before")
        save_masks(file, MASKS)
        file.seek(len(b"before"))
        assert_same(load_masks(file), MASKS)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "masks.safetensors"
    save_masks(path, MASKS)

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_masks(path, {"w": np.ones(3, bool)})
    assert [p.name for p in tmp_path.iterdir()] == ["masks.safetensors"]
    assert_same(load_masks(path), MASKS)


def test_bad_masks_leave_the_old_file(tmp_path):
    path = tmp_path / "masks.safetensors"
    save_masks(path, MASKS)
    with pytest.raises(TypeError, match="expected a bool mask at 'w', got float32"):
        save_masks(path, {"w": np.ones(3, np.float32)})
    assert_same(load_masks(path), MASKS)


@pytest.mark.parametrize(("mask", "kind"), [(None, "NoneType"), ({"w": 1}, "dict")])
def test_masks_stand_by_whole_paths(tmp_path, mask, kind):
    with pytest.raises(TypeError, match=f"mask at 'mlp', got {kind}; .* whole path"):
        save_masks(tmp_path / "masks.safetensors", {"mlp": mask})


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="folder at '.*none' for 'masks.safetensors'"
    ):
        save_masks(tmp_path / "none" / "masks.safetensors", MASKS)


def test_a_missing_file_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_masks(tmp_path / "none.safetensors")


# What is no set of masks ---------------------------------------------------------
@pytest.mark.parametrize("bad", [[np.ones(3, bool)], {0: np.ones(3, bool)}, 3])
def test_masks_are_by_path(bad):
    with pytest.raises(TypeError, match="expected masks by path, got .*bb.masks"):
        save_masks(io.BytesIO(), bad)


def test_no_mask_is_refused():
    with pytest.raises(ValueError, match="expected at least one mask, got none"):
        save_masks(io.BytesIO(), {})


def test_a_mask_of_another_shape_than_its_kernel_is_not_saved():
    message = r"expected a mask of shape \(3, 5\) for 'Dense_0/kernel', got \(5, 3\)"
    with pytest.raises(ValueError, match=message):
        saved({"Dense_0/kernel": np.ones((5, 3), bool)}, UNITS)


# What is no mask file ------------------------------------------------------------
DATA = saved()
OTHER = entry_of("Dense_0/kernel")
DAMAGED = {
    "empty": (b"", "no safetensors file"),
    "text": (b"hello world" * 20, "no safetensors file"),
    "cut short": (DATA[: len(DATA) // 2], "no safetensors file"),
    "another file of safetensors": (
        safetensors.numpy.save({"w": np.ones(3)}),
        "that bbjax did not write",
    ),
    "another format": (
        rewritten(DATA, lambda h: h.update(format="x")),
        "its format is 'x'",
    ),
    "no JSON": (safetensors.numpy.save({}, {"bbjax": "{"}), "Expecting"),
    "no format": (
        safetensors.numpy.save({}, {"bbjax": "[1]"}),
        "no object with",
    ),
    "a mask missing": (
        rewritten(DATA, tensors={"Dense_0/kernel:mask": None}),
        r"do not both have \['Dense_0/kernel:mask'\]",
    ),
    "bits missing": (
        rewritten(DATA, tensors={"Dense_0/kernel:mask": np.zeros(1, np.uint8)}),
        r"'Dense_0/kernel:mask' is uint8 \(1,\), its header says uint8 \(2,\)",
    ),
    "other bits": (
        rewritten(DATA, tensors={"Dense_0/kernel:mask": np.zeros(2, np.uint8)}),
        "bytes of 'Dense_0/kernel:mask' have changed",
    ),
    "another count": (
        rewritten(DATA, OTHER(kept=0)),
        "'Dense_0/kernel' keeps 8 weights, its header 0",
    ),
    "another dtype": (
        rewritten(DATA, tensors={"Dense_0/kernel:mask": np.zeros(2, np.int8)}),
        r"is int8 \(2,\), its header says uint8 \(2,\)",
    ),
    "no path": (rewritten(DATA, OTHER(path=3)), "has 3 as 'path', not a string"),
    "a huge shape": (
        rewritten(DATA, OTHER(shape=[10**30])),
        "as 'shape', not the sizes",
    ),
    "a negative shape": (
        rewritten(DATA, OTHER(shape=[-1])),
        r"'Dense_0/kernel' has \[-1\] as 'shape', not the sizes of an array",
    ),
}


@pytest.mark.parametrize("data, reason", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_or_foreign_file_is_refused_with_the_reason(data, reason):
    message = f"expected a mask file as bb.save_masks .*damaged.*{reason}.*save it"
    with pytest.raises(ValueError, match=message):
        loaded(data)


def test_pickles_are_not_read():
    class Bomb:
        def __reduce__(self):
            return (os._exit, (1,))

    with pytest.raises(ValueError, match="damaged or something else"):
        loaded(pickle.dumps(Bomb()))


def test_the_name_of_a_damaged_file_is_in_the_message(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"?")
    with pytest.raises(ValueError, match="broken.safetensors"):
        load_masks(path)
    with open(path, "rb") as file, pytest.raises(ValueError, match="broken"):
        load_masks(file)


def test_a_newer_version_asks_for_an_upgrade():
    data = rewritten(
        DATA, lambda h: h.update(version=3, bbjax="9.9", entries="new"), seal=False
    )
    message = "version 2 or older, got .* of version 3, written by bbjax 9.9; upgrade"
    with pytest.raises(ValueError, match=message):
        loaded(data)


@given(
    at=st.integers(0, len(DATA) - 1), bit=st.integers(0, 7), cut=st.integers(0, 4000)
)
def test_a_broken_file_is_refused_or_says_the_same(at, bit, cut):
    for data in (flipped(DATA, at, bit), DATA[:cut] if cut < len(DATA) else DATA):
        try:
            back = loaded(data)
        except ValueError as error:
            assert "mask file" in str(error)
        else:
            assert_same(back, MASKS)


# Files of models -----------------------------------------------------------------
def test_masks_of_a_model_are_read_alone():
    params = {path: np.float32(mask) for path, mask in MASKS.items()}
    file = io.BytesIO()
    bb.save(file, {**params, "bias": np.ones(5)}, MASKS, UNITS)
    assert_same(loaded(file.getvalue(), like=UNITS), MASKS)


def test_a_model_without_masks_has_none_to_read():
    file = io.BytesIO()
    bb.save(file, {"w": np.ones(3)})
    with pytest.raises(ValueError, match="a file with masks, got .* without any; save"):
        loaded(file.getvalue())


def test_a_mask_file_is_no_model():
    message = "a file with parameters, got .* masks alone; bb.load_masks reads it"
    with pytest.raises(ValueError, match=message):
        bb.load(io.BytesIO(DATA))


# Fitting a model -----------------------------------------------------------------
FITS = {
    "parameters": PARAMS,
    "shapes": jax.eval_shape(lambda: PARAMS),
    "units": UNITS,
    "a selection": UNITS.select("Dense_1"),
    "masks": {path: jnp.zeros(mask.shape, bool) for path, mask in MASKS.items()},
}


@pytest.mark.parametrize("like", FITS.values(), ids=FITS)
def test_masks_that_fit_are_loaded(like):
    assert_same(loaded(saved(units=UNITS), like), MASKS)


def test_masks_fit_an_nnx_module():
    model = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
    masks = {"kernel": np.ones((3, 5), bool)}
    assert_same(loaded(saved(masks), model), masks)
    with pytest.raises(ValueError, match=r"kernel: shape \(3, 4\) in the file"):
        loaded(saved({"kernel": np.ones((3, 4), bool)}), model)


def turned(kernel):
    return bb.Kernel(kernel.path, kernel.shape, fan_in=(1,), fan_out=(0,))


MISFITS = {
    "parameters": (
        {"Dense_0": {"kernel": jnp.ones((5, 3))}, "other": jnp.ones(2)},
        ["Dense_0/kernel: shape (3, 5) in the file, shape (5, 3) here"]
        + ["Dense_1/kernel: only in the file"],
    ),
    "masks": (
        {"Dense_0/kernel": np.ones((3, 5), bool), "v": np.ones(1, bool)},
        ["v: missing in the file", "Dense_1/kernel: only in the file"],
    ),
    "units": (
        bb.Units((turned(UNITS.kernels[0]),)),
        [
            "Dense_0/kernel: axes [3, 5] ['in', 'out'] in the file, axes [3, 5] "
            "['out', 'in'] here",
            "Dense_1/kernel: only in the file",
        ],
    ),
    "a selection": (
        bb.Units(
            (*UNITS.kernels, bb.Kernel("w", (2, 2), fan_in=(0,), fan_out=(1,)))
        ).select("."),
        ["w: missing in the file"],
    ),
}


@pytest.mark.parametrize("like, differences", MISFITS.values(), ids=MISFITS)
def test_masks_that_do_not_fit_are_refused_with_all_differences(like, differences):
    with pytest.raises(ValueError, match="expected masks that fit these") as caught:
        loaded(saved(units=UNITS), like)
    head, *lines = str(caught.value).splitlines()
    assert sorted(line.strip() for line in lines) == sorted(differences)
    plural = "s" * (len(differences) > 1)
    assert f"got {len(differences)} difference{plural};" in head


def test_roles_are_compared_only_where_the_file_knows_them():
    like = bb.Units((turned(UNITS.kernels[0]), UNITS.kernels[1]))
    assert_same(loaded(saved(), like), MASKS)


# Kernels of a file ---------------------------------------------------------------
def test_a_file_knows_the_kernels_it_was_saved_with():
    kernels = kernels_of(saved(units=UNITS))
    for path in UNITS:
        kernel, own = kernels[path], UNITS[path]
        assert kernel.edge_shape == own.edge_shape and kernel.shape == own.shape
        assert (kernel.in_units, kernel.out_units) == (own.in_units, own.out_units)
    assert kernels_of(saved()) == {}


def test_groups_and_stacks_of_a_file_have_their_units():
    grouped = bb.Kernel(
        *("g", (3, 2, 6)),
        groups=2,
        split=(3, 2, 2, 3),
        roles=("spatial", "in", "group", "out"),
    )
    stack = bb.Kernel("s", (4, 2, 3), stack=(0,), fan_in=(1,), fan_out=(2,))
    masks = {"g": np.ones((3, 2, 6), bool), "s": np.ones((4, 2, 3), bool)}
    found = kernels_of(saved(masks, bb.Units((grouped, stack))))
    assert (found["g"].in_units, found["g"].out_units) == ((4,), (6,))
    assert found["g"].groups == 2 and found["g"].edge_shape == (2, 2, 3)
    assert found["s"].stack_shape == (4,) and found["s"].edge_count == 6


@pytest.mark.parametrize(
    "changed, reason",
    [
        (
            {"roles": ["in", "sideways"]},
            "has .'in', 'sideways'. as 'roles', not a list of",
        ),
        ({"roles": ["in"]}, "has axes .3, 5. in roles .'in',."),
        ({"split": [3, 4]}, "of .3, 5. has axes .3, 4."),
        ({"split": [3.0, 5.0]}, r"has \[3.0, 5.0\] as 'split', not the sizes"),
        ({"roles": ["in", 3]}, "has .'in', 3. as 'roles', not a list of roles"),
        ({"split": None}, "has None as 'split', not the sizes"),
    ],
)
def test_axes_that_make_no_kernel_are_refused(changed, reason):
    data = rewritten(saved(units=UNITS), OTHER(**changed))
    with pytest.raises(ValueError, match=f"damaged or something else.*{reason}"):
        loaded(data)
