"""Files that are damaged, foreign or of another model: one error, nothing loaded."""

import io
import json
import pickle
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import bbjax as bb
from tests.files.test_params import MASKS, PARAMS, UNITS, assert_same, loaded, saved

DATA = saved(PARAMS, MASKS, UNITS.select("."), {"step": 7})
DENSE = saved(PARAMS, MASKS, packed=False)
PLAIN = saved(PARAMS)


def rewritten(data, change=None, tensors=None, seal=True):
    """The file with a changed header, its checksum made anew, or changed tensors."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["bbjax"])
    found = safetensors.numpy.load(data) | (tensors or {})
    found = {name: tensor for name, tensor in found.items() if tensor is not None}
    if change is not None:
        change(header)
    if seal:
        header.pop("crc32", None)
        text = json.dumps(header, sort_keys=True).encode()
        header["crc32"] = zlib.crc32(text)
    return safetensors.numpy.save(found, {"bbjax": json.dumps(header, sort_keys=True)})


def entry_of(path):
    """A change of the header's entry at a path."""

    def changed(**values):
        def change(header):
            for entry in header["entries"]:
                if entry["path"] == path:
                    entry.update(values)

        return change

    return changed


class Bomb:
    """Ends the process when it is unpickled."""

    def __reduce__(self):
        return (eval, ("__import__('os')._exit(1)",))


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


UP = entry_of("mlp/up")
CONTAINER = "Error while deserializing"  # what safetensors says of other bytes
DAMAGED = {
    "empty": (b"", CONTAINER),
    "random bytes": (np.random.default_rng(0).bytes(500), CONTAINER),
    "text": (b"hello world" * 20, CONTAINER),
    "a pickle": (pickle.dumps({"w": Bomb()}), CONTAINER),
    "an npz archive": (npz(w=np.ones(3)), CONTAINER),
    "an npz archive of pickles": (npz(w=np.array([Bomb()])), CONTAINER),
    "a mask file": (npz(header=np.ones(2, np.uint8)), CONTAINER),
    "a header cut short": (DATA[:100], CONTAINER),
    "data cut short": (DATA[:-1], CONTAINER),
    "data too long": (DATA + b"\0", CONTAINER),
    "another file of safetensors": (
        safetensors.numpy.save({"w": np.ones(3)}, {"format": "np"}),
        r"of someone else, with metadata \['format'\]; safetensors.numpy.load_file",
    ),
    "one without metadata": (
        safetensors.numpy.save({"w": np.ones(3)}),
        r"of someone else, with metadata \[\]",
    ),
    "another format": (
        rewritten(DATA, lambda h: h.update(format="x")),
        "its format is 'x'",
    ),
    "no format": (rewritten(DATA, lambda h: h.pop("format")), "'format'"),
    "no version": (rewritten(DATA, lambda h: h.pop("version")), "'version'"),
    "no JSON": (safetensors.numpy.save({}, {"bbjax": "{"}), "Expecting"),
    "no object": (safetensors.numpy.save({}, {"bbjax": "[1]"}), "list indices"),
    "deep JSON": (safetensors.numpy.save({}, {"bbjax": "[" * 10**5}), "recursion"),
    "another extra": (
        rewritten(DATA, lambda h: h["extra"].update(step=8), seal=False),
        "its header has changed since it was written",
    ),
    "a flipped weight": (
        flipped(PLAIN, len(PLAIN) - 30),
        "bytes of 'mlp/.*' have changed",
    ),
    "a flipped kept value": (
        flipped(DATA, -30 % len(DATA)),
        "bytes of '.*' have changed",
    ),
    "a flipped mask": (
        rewritten(DATA, tensors={"mlp/up:mask": np.zeros(2, np.uint8)}),
        "the bytes of 'mlp/up:mask' have changed since they were written",
    ),
    "a tensor missing": (
        rewritten(DATA, tensors={"mlp/up:kept": None}),
        r"does not name \['mlp/up:kept'\]",
    ),
    "a tensor more": (rewritten(DATA, tensors={"x": np.ones(2)}), r"not name \['x'\]"),
    "a tensor of another entry": (
        rewritten(DATA, UP(path="other")),
        "'other:mask' is missing",
    ),
    "another dtype": (
        rewritten(DATA, UP(dtype="int32")),
        r"'mlp/up:kept' is \('F32', \(8,\)\), its header says \('I32', \(8,\)\)",
    ),
    "a dtype that is none": (
        rewritten(DATA, UP(dtype="O")),
        "'mlp/up:kept' is said .*O",
    ),
    "an unknown dtype": (rewritten(DATA, UP(dtype="float3")), "float3"),
    "another shape": (rewritten(DATA, UP(shape=[3, 6])), "its header says .* \\(3,\\)"),
    "a huge shape": (rewritten(DATA, UP(shape=[10**30])), "its header says"),
    "another count": (rewritten(DATA, UP(kept=7)), "keeps 8 weights, its header 7"),
    "keys of another kind": (
        rewritten(saved({"k": jax.random.key(0)}), entry_of("k")(dtype="key<rbg>")),
        r"'k' is key<fry> \(\), its header key<rbg> \(\)",
    ),
}


@pytest.mark.parametrize("data, reason", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_or_foreign_file_is_refused_with_the_reason(data, reason):
    message = f"expected a file as bb.save writes it, got .*damaged.*{reason}.*copy, or"
    with pytest.raises(ValueError, match=message):
        loaded(data)


def test_weights_that_their_own_mask_prunes_are_refused():
    full = np.ones((3, 5), np.float32)
    crcs = {
        "mlp/up": zlib.crc32(full),
        "mlp/up:mask": zlib.crc32(np.packbits(MASKS["mlp/up"], bitorder="little")),
    }
    data = rewritten(DENSE, UP(crc32=crcs), {"mlp/up": full})
    with pytest.raises(ValueError, match="'mlp/up' has 7 weights that its mask prunes"):
        loaded(data)


def test_the_name_of_a_damaged_file_is_in_the_message(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(DATA[:-7])
    with pytest.raises(
        ValueError, match="got '.*broken.safetensors', which is damaged"
    ):
        bb.load(path)
    with open(path, "rb") as file, pytest.raises(ValueError, match="broken"):
        bb.load(file)


def test_a_missing_file_and_a_folder_are_the_usual_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        bb.load(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        bb.load(tmp_path)


def test_a_newer_version_asks_for_an_upgrade():
    newer = rewritten(
        DATA,
        lambda h: h.update(version=2, bbjax="9.9", entries="new"),
        seal=False,
    )
    message = (
        "a file of version 1 or older, got .* of version 2, written by bbjax 9.9; up"
    )
    with pytest.raises(ValueError, match=message):
        loaded(newer)


@pytest.mark.parametrize("data", [DATA, DENSE, PLAIN], ids=["packed", "dense", "plain"])
def test_no_flipped_bit_goes_unnoticed(data):
    """One bit in every byte: an error, or (in mere blanks of the JSON) the same."""
    whole, same = loaded(data), 0
    for at in range(len(data)):
        broken = data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]
        try:
            back = loaded(broken)
        except ValueError as error:
            assert "a file" in str(error)
        else:
            same += 1
            assert_same(back[:2], whole[:2])
            assert back[2:] == whole[2:]
    assert same < 40


@given(cut=st.integers(0, len(DATA) - 1))
def test_no_part_of_a_file_is_loaded(cut):
    with pytest.raises(ValueError, match="damaged or something else"):
        loaded(DATA[:cut])


# Masks that are not there --------------------------------------------------------
def test_a_file_without_masks_is_refused_where_masks_are_needed():
    message = "expected a file with masks, got .* without any; save .*bb.masks"
    with pytest.raises(ValueError, match=message):
        loaded(PLAIN, require_masks=True)
    assert loaded(DATA, require_masks=True).masks.keys() == MASKS.keys()


def test_selected_kernels_must_have_a_mask():
    message = (
        "expected the kernels of these units, got 1 difference; .*\n"
        "  mlp/up: without a mask in the file, selected here"
    )
    with pytest.raises(ValueError, match=message):
        loaded(PLAIN, units=UNITS.select("up"))
    assert loaded(PLAIN, units=UNITS).masks == {}


# Another model -------------------------------------------------------------------
def turned(kernel):
    return bb.Kernel(kernel.path, kernel.shape, fan_in=(1,), fan_out=(0,))


def of_shape(*shape):
    return bb.Units((bb.Kernel("mlp/up", shape, fan_in=(0,), fan_out=(1,)),))


OTHER_UNITS = {
    "a kernel missing": (
        bb.Units((bb.Kernel("w", (2, 2), fan_in=(0,), fan_out=(1,)),)),
        "w: missing in the file",
    ),
    "a shape": (of_shape(3, 6), r"mlp/up: shape \(3, 5\) in the file, \(3, 6\) here"),
    "roles": (
        bb.Units((turned(UNITS["mlp/up"]),)),
        r"mlp/up: axes \[3, 5\] \['in', 'out'\] in the file, .* \['out', 'in'\] here",
    ),
    "actuators": (
        UNITS.select("up", actuator="out"),
        r"mlp/up: actuators \('in',\) in the file, \('out',\) here",
    ),
}


@pytest.mark.parametrize("units, difference", OTHER_UNITS.values(), ids=OTHER_UNITS)
def test_a_file_of_other_units_is_refused_by_path(units, difference):
    message = f"the kernels of these units, got 1 difference; load .*\n  {difference}"
    with pytest.raises(ValueError, match=message):
        loaded(DATA, units=units)


def test_units_are_compared_only_where_the_file_knows_them():
    assert_same(loaded(DATA, units=UNITS.select(".")).params, PARAMS)
    assert_same(loaded(DATA, units=UNITS).params, PARAMS)
    turned_up = bb.Units((turned(UNITS["mlp/up"]),))
    assert_same(loaded(saved(PARAMS, MASKS), units=turned_up).params, PARAMS)


def test_all_differences_from_a_tree_are_listed():
    like = {
        "mlp": {"up": np.zeros((5, 3), np.float32), "down": np.zeros((5, 2), np.int32)},
        "bias": 1.0,
        "new": jnp.zeros(2),
    }
    with pytest.raises(ValueError, match="parameters like these, got 4 diff") as caught:
        loaded(DATA, like)
    assert sorted(line.strip() for line in str(caught.value).splitlines()[1:]) == [
        "bias: float32 (5,) in the file, a Python float here",
        "mlp/down: float32 (5, 2) in the file, int32 (5, 2) here",
        "mlp/up: float32 (3, 5) in the file, float32 (5, 3) here",
        "new: missing in the file",
    ]
    with pytest.raises(ValueError, match="2 differences; .*\n  bias: only in the file"):
        loaded(DATA, {"mlp": {"up": PARAMS["mlp"]["up"]}})


def test_a_function_is_no_place_for_an_array():
    like = {**PARAMS, "bias": np.tanh}
    with pytest.raises(ValueError, match=r"bias: float32 \(5,\) in the file, no array"):
        loaded(DATA, like)


def test_a_dtype_that_jax_would_narrow_is_refused():
    like = {"w": jax.ShapeDtypeStruct((2,), np.float64)}
    with pytest.raises(
        ValueError, match=r"w: float64 \(2,\) needs the .*jax_enable_x64"
    ):
        loaded(saved({"w": np.ones(2)}), like)


def test_a_refused_file_leaves_the_module_as_it_was():
    model = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(model))
    data = saved(
        {"kernel": np.ones((3, 5), np.float32), "bias": np.ones(4, np.float32)}
    )
    with pytest.raises(ValueError, match=r"bias: float32 \(4,\) in the file"):
        loaded(data, model)
    assert_same(nnx.to_pure_dict(nnx.state(model)), before)


def test_paths_that_do_not_nest_need_a_tree():
    tree = {"a": np.ones(1), "a/b": np.ones(2)}
    data = saved(tree)
    with pytest.raises(ValueError, match=r"nest as dicts, got \['a'\] .* pass `like`"):
        loaded(data)
    assert_same(loaded(data, like=tree).params, tree)


@pytest.mark.parametrize("params", [{"name": "net"}, jax.nn.relu])
def test_what_holds_no_parameters_is_not_saved(tmp_path, params):
    with pytest.raises(ValueError, match="expected parameters with arrays or numbers"):
        bb.save(tmp_path / "net.safetensors", params)
    assert not list(tmp_path.iterdir())
