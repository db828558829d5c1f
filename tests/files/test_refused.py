"""Files that are damaged, foreign or of another model: one error, nothing loaded."""

import io
import pickle
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import bbjax as bb
from tests.support.files import (
    MASKS,
    PARAMS,
    UNITS,
    assert_same,
    entry_of,
    flipped,
    layout,
    loaded,
    rewritten,
    saved,
)

DATA = saved(PARAMS, MASKS, UNITS.select("."), {"step": 7})
DENSE = saved(PARAMS, MASKS, packed=False)
PLAIN = saved(PARAMS)


class Bomb:
    """Ends the process when it is unpickled."""

    def __reduce__(self):
        return (eval, ("__import__('os')._exit(1)",))


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


UP = entry_of("mlp/up")
DAMAGED = {
    "empty": (b"", "no safetensors file: its header would end"),
    "random bytes": (
        np.random.default_rng(0).bytes(500),
        "no safetensors file: its header would end",
    ),
    "text": (b"hello world" * 20, "no safetensors file: its header would end"),
    "a pickle": (
        pickle.dumps({"w": Bomb()}),
        "no safetensors file: its header would end",
    ),
    "an npz archive": (npz(w=np.ones(3)), "no item named 'header.npy'"),
    "an npz archive of pickles": (
        npz(w=np.array([Bomb()])),
        "no item named 'header.npy'",
    ),
    "a mask file": (npz(header=np.ones(2, np.uint8)), "Expecting value"),
    "a header cut short": (DATA[:100], "no safetensors file: its header would end"),
    "data cut short": (DATA[:-1], "has bytes"),
    "data too long": (DATA + b"\0", "its tensors end at byte"),
    "another file of safetensors": (
        safetensors.numpy.save({"w": np.ones(3)}, {"format": "np"}),
        "bbjax did not write, with metadata {'format': 'np'}; safetensors.numpy.load",
    ),
    "one without metadata": (
        safetensors.numpy.save({"w": np.ones(3)}),
        "that bbjax did not write, with metadata {}",
    ),
    "another format": (
        rewritten(DATA, lambda h: h.update(format="x")),
        "its format is 'x'",
    ),
    "no format": (rewritten(DATA, lambda h: h.pop("format")), "'format'"),
    "no version": (rewritten(DATA, lambda h: h.pop("version")), "'version'"),
    "no JSON": (safetensors.numpy.save({}, {"bbjax": "{"}), "Expecting"),
    "no object": (
        safetensors.numpy.save({}, {"bbjax": "[1]"}),
        "no object with",
    ),
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
        r"do not both have \['mlp/up:kept'\]",
    ),
    "a tensor more": (
        rewritten(DATA, tensors={"x": np.ones(2)}),
        r"do not both have \['x'\]",
    ),
    "a tensor of another entry": (
        rewritten(DATA, UP(path="other")),
        "'other' has others of its tensors in 'crc32': .*'other:mask'",
    ),
    "another dtype": (
        rewritten(DATA, UP(dtype="int32")),
        r"'mlp/up:kept' is float32 \(8,\), its header says int32 \(8,\)",
    ),
    "a dtype that is none": (
        rewritten(DATA, UP(dtype="O")),
        "'mlp/up' has the dtype 'O' in its header",
    ),
    "an unknown dtype": (rewritten(DATA, UP(dtype="float3")), "float3"),
    "another shape": (rewritten(DATA, UP(shape=[3, 6])), "its header says .* \\(3,\\)"),
    "a huge shape": (
        rewritten(DATA, UP(shape=[10**30])),
        "as 'shape', not the sizes of",
    ),
    "another count": (rewritten(DATA, UP(kept=7)), "keeps 8 weights, its header 7"),
    "keys of another kind": (
        rewritten(saved({"k": jax.random.key(0)}), entry_of("k")(dtype="key<rbg>")),
        r"'k' is key<fry> \(\), its header key<rbg> \(\)",
    ),
}


@pytest.mark.parametrize("data, reason", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_or_foreign_file_is_refused_with_the_reason(data, reason):
    message = f"expected a file as bb.save writes it, got .*damaged.*{reason}.*save it"
    with pytest.raises(ValueError, match=message):
        loaded(data)


U8 = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
META = {"__metadata__": {"bbjax": "{}"}}
LAYOUTS = {
    "no JSON": (b"{", "Expecting property name"),
    "no UTF-8": (b'{"\xff": 1}', "codec can't decode"),
    "no object": (b"[]", r"its layout is \[\], no object"),
    "no number": (b"3", "its layout is 3, no object"),
    "metadata that are none": ({"__metadata__": None}, "with metadata None"),
    "a header of ours that is no text": (
        {"__metadata__": {"bbjax": 3}, "w": U8},
        "its header is 3, no text",
    ),
    "deep JSON": (b'{"__metadata__":' + b"[" * 10**5, "recursion"),
    "a gap": ({**META, "w": U8 | {"data_offsets": [1, 2]}}, "'w' has bytes .*not from"),
    "an overlap": ({**META, "v": U8, "w": U8}, "'w' has bytes .* to .*, not from"),
    "a negative place": (
        {**META, "w": U8 | {"data_offsets": [-1, 1]}},
        r"'w' has \[-1, 1\] as 'data_offsets'",
    ),
    "backwards": ({**META, "w": U8 | {"data_offsets": [1, 0]}}, "'w' has bytes"),
    "a negative end": ({**META, "w": U8 | {"data_offsets": [0, -1]}}, "data_offsets"),
    "beyond the end": ({**META, "w": U8 | {"data_offsets": [0, 10**30]}}, "has bytes"),
    "broken places": ({**META, "w": U8 | {"data_offsets": [0.0, 2.0]}}, "data_offsets"),
    "one place": ({**META, "w": U8 | {"data_offsets": [0]}}, "data_offsets"),
    "no place": ({**META, "w": {"dtype": "U8", "shape": [2]}}, "'data_offsets'"),
    "no tensor": ({**META, "w": 3}, "the tensor 'w' is 3, no object"),
    "an unknown dtype": (
        {**META, "w": U8 | {"dtype": "F3"}},
        "'w' has 'F3' as 'dtype'",
    ),
    "a shape too large": ({**META, "w": U8 | {"shape": [3]}}, "cannot reshape"),
    "a huge shape": ({**META, "w": U8 | {"shape": [10**30]}}, "Maximum allowed dim"),
    "a dtype too wide": ({**META, "w": U8 | {"dtype": "F32"}}, "buffer size"),
    "data left": (
        {**META, "w": U8 | {"shape": [1], "data_offsets": [0, 1]}},
        "its tensors end at byte .* of ",
    ),
}


@pytest.mark.parametrize("header, reason", LAYOUTS.values(), ids=LAYOUTS)
def test_a_hostile_layout_is_refused_with_the_reason(header, reason):
    with pytest.raises(ValueError, match=f"expected a file .*damaged.*{reason}"):
        loaded(layout(header, b"ab"))


@given(
    places=st.lists(
        st.tuples(
            st.integers(-1, 9),
            st.integers(-1, 9),
            st.sampled_from([("U8", 1), ("I16", 2)]),
        ),
        max_size=3,
    ),
    size=st.integers(0, 9),
)
def test_a_layout_that_is_accepted_is_one_for_safetensors(places, size):
    tensors = {
        f"w{i}": {"dtype": code, "shape": [abs(b - a) // n], "data_offsets": [a, b]}
        for i, (a, b, (code, n)) in enumerate(places)
    }
    data = layout({**META, **tensors}, bytes(size))
    try:
        safetensors.numpy.load(data)
        reason = "'format'"  # that is next
    except safetensors.SafetensorError:
        reason = "byte|reshape|buffer|data_offsets"
    with pytest.raises(ValueError, match=f"something else .*({reason})"):
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
        "a file .* of version 1 or older, got .* of version 2, written by bbjax 9.9; up"
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
    "a shape": (
        of_shape(3, 6),
        r"mlp/up: shape \(3, 5\) in the file, shape \(3, 6\) here",
    ),
    "roles": (
        bb.Units((turned(UNITS["mlp/up"]),)),
        r"mlp/up: axes \[3, 5\] \['in', 'out'\] in the file, .* \['out', 'in'\] here",
    ),
    "actuators": (
        UNITS.select("up", actuator="out"),
        r"mlp/up: actuators \('in',\) in the file, actuators \('out',\) here",
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
        ValueError, match=r"w: float64 .*file, float64 .* without .*jax_enable_x64"
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
    for tree in ({"a": np.ones(1), "a/b": np.ones(2)}, {"a+": 1.0, "a+/b/c": 2.0}):
        data = saved(tree)
        with pytest.raises(ValueError, match="nest as dicts, got 'a.*and.*pass `like`"):
            loaded(data)
        assert_same(loaded(data, like=tree).params, tree)


@pytest.mark.parametrize("params", [{"name": "net"}, jax.nn.relu])
def test_what_holds_no_parameters_is_not_saved(tmp_path, params):
    with pytest.raises(ValueError, match="expected parameters with arrays or numbers"):
        bb.save(tmp_path / "net.safetensors", params)
    assert not list(tmp_path.iterdir())
