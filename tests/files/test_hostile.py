"""Files made to do harm: refused by one error, which names what is wrong, in bounds."""

import io
import json
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy

import bbjax as bb
from bbjax.files import container, encoding
from tests.support.files import (
    MASKS,
    PARAMS,
    UNITS,
    assert_same,
    entry_of,
    header_of,
    loaded,
    rewritten,
    saved,
)
from tests.support.fixtures import FIXTURES

DATA = saved(PARAMS, MASKS, UNITS.select("."), {"step": 7})
LONGEST = 2000  # characters of a message


def refused(data, reason, **options):
    """The message with which a file is refused."""
    with pytest.raises(ValueError, match=reason) as caught:
        loaded(data, **options)
    assert len(str(caught.value)) < LONGEST
    return str(caught.value)


def renamed(data, path, other):
    """The file with another path in place of one, in names of tensors as well."""
    tensors = {}
    for entry in header_of(data)["entries"]:
        if entry["path"] == path:
            crcs = {n.replace(path, other, 1): c for n, c in entry["crc32"].items()}
            change = entry_of(path)(path=other, crc32=crcs)
            tensors = {name: None for name in entry["crc32"]}
    found = safetensors.numpy.load(data)
    tensors |= {name.replace(path, other, 1): found[name] for name in [*tensors]}
    return rewritten(data, change, tensors)


# Depth and length ----------------------------------------------------------------
@pytest.mark.parametrize("levels", [encoding.DEPTH + 1, 60_000, 180_000])
def test_a_very_deep_path_is_refused_in_little_memory(levels):
    data = renamed(saved({"w": np.ones(2)}), "w", "/".join("a" * levels))
    tracemalloc.start()
    refused(data, f"path of at most {encoding.DEPTH} levels, got {levels} in 'a/a/a/")
    assert tracemalloc.get_traced_memory()[1] < 60 * len(data) + 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("length", [10_000, 400_000])
def test_long_paths_load_and_are_shortened_in_messages(length):
    path = "x" * length
    data = saved({path: np.ones(2, np.float32)})
    assert list(loaded(data).params) == [path]
    refused(data, "2 differences", like={"w": np.ones(2, np.float32)})
    refused(rewritten(data, entry_of(path)(dtype="int32")), "damaged", like=None)


def test_the_deepest_path_is_saved_and_loaded_and_one_deeper_is_not_saved(tmp_path):
    def tree(levels):
        found = np.ones(2)
        for _ in range(levels):
            found = {"a": found}
        return found

    deepest = tree(encoding.DEPTH)
    assert_same(loaded(saved(deepest)).params, deepest)
    with pytest.raises(ValueError, match="at most 256 levels, got 257 in 'a/a"):
        bb.save(tmp_path / "deep", tree(encoding.DEPTH + 1))
    with pytest.raises(ValueError, match="at most 256 levels, got 300 in 'a/a"):
        bb.save_masks(tmp_path / "deep", {"/".join("a" * 300): np.ones(2, bool)})
    assert not list(tmp_path.iterdir())


def test_what_no_reader_would_take_is_not_saved(monkeypatch):
    deepest = chain(encoding.DEPTH - 1)
    assert loaded(saved(extra=deepest)).extra == deepest
    for levels in (encoding.DEPTH, 900, 5000):
        with pytest.raises(ValueError, match="expected extra as a dict .*levels|recur"):
            saved(extra=chain(levels))
    monkeypatch.setattr(container, "MOST_JSON", 1000)
    with pytest.raises(ValueError, match="at most 1,000 bytes of paths and extra, got"):
        saved(extra={"a": "b" * 1000})
    refused(DATA, r"its header has \d+ bytes, more than 1000")


def chain(levels):
    found = {}
    for _ in range(levels):
        found = {"a": found}
    return found


def test_a_path_that_is_no_unicode_is_not_saved():
    with pytest.raises(
        ValueError, match="a path that UTF-8 can hold, got .*ud800.*rename the"
    ):
        saved({"a\ud800": np.ones(2)})


def test_many_differences_are_counted_and_the_first_ones_shown():
    many = saved({f"layer{i}": np.ones(1) for i in range(500)})
    message = refused(many, "got 501 differences", like={"w": np.ones(1)})
    assert "w: missing in the file\n" in message
    assert message.splitlines()[-1].startswith("  ... and 4")


# Fields --------------------------------------------------------------------------
def field(**values):
    return lambda header: header.update(values)


def without(name):
    return lambda header: header.pop(name)


UP = entry_of("mlp/up")
HEADERS = {
    "no extra": (without("extra"), "its header has no 'extra'"),
    "a list as extra": (field(extra=[]), r"has \[\] as 'extra', not an object or null"),
    "no entries": (without("entries"), "its header has no 'entries'"),
    "entries of a number": (field(entries=3), "has 3 as 'entries', not a list"),
    "an entry of text": (field(entries=["w"]), "an entry is 'w', no object"),
    "an entry twice": (
        lambda header: header["entries"].append(header["entries"][0]),
        "it has 'bias' twice",
    ),
    "no bbjax": (without("bbjax"), "its header has no 'bbjax'"),
    "bbjax of a number": (field(bbjax=1), "has 1 as 'bbjax', not a string"),
    "no version": (without("version"), "its header has no 'version'"),
    "a version below 0": (field(version=-3), "has -3 as 'version', not a whole number"),
    "version 0": (field(version=0), "its version is 0"),
    "a true version": (field(version=True), "has True as 'version', not a whole numb"),
    "a version of text": (field(version="1"), "has '1' as 'version'"),
    "a fraction as version": (field(version=1.0), "has 1.0 as 'version'"),
    "a field more": (field(more=1), "its header has the unknown field 'more'"),
    "a budget of text": (UP(budget="8"), "'mlp/up' has '8' as 'budget', not a list"),
    "a budget of fractions": (UP(budget=[8.0]), r"has \[8.0\] as 'budget', not a list"),
    "another budget": (UP(budget=[9]), r"'mlp/up' keeps \[8\] edges, its header \[9\]"),
    "two budgets": (UP(budget=[4, 4]), r"keeps \[8\] edges, its header \[4, 4\]"),
    "kept of text": (UP(kept="8"), "'mlp/up' has '8' as 'kept', not a whole number"),
    "kept that is true": (UP(kept=True), "has True as 'kept'"),
    "packed of a number": (UP(packed=1), "has 1 as 'packed', not true or false"),
    "actuators of text": (UP(actuators="in"), "has 'in' as 'actuators', not a list"),
    "an unknown actuator": (
        UP(actuators=["up"]),
        "as 'actuators', not a list of sides",
    ),
    "a field of an entry more": (
        UP(more=1),
        "of 'mlp/up' has the unknown field 'more'",
    ),
    "a number with a mask": (UP(number="float"), "has both 'number' and 'kept'"),
    "a key with a mask": (UP(key="fry"), "has both 'key' and 'kept'"),
    "a number of another kind": (
        entry_of("bias")(number="str"),
        r"has 'str' as 'number', not one of \['bool', 'complex', 'float', 'int'\]",
    ),
    "checksums of text": (UP(crc32="no"), "has 'no' as 'crc32', not a CRC-32 for each"),
    "a checksum too large": (UP(crc32={"mlp/up:mask": 2**40}), "as 'crc32'"),
    "too many axes": (UP(shape=[1] * 65), "as 'shape', not the sizes of an array"),
}


@pytest.mark.parametrize("change, reason", HEADERS.values(), ids=HEADERS)
def test_missing_and_wrong_fields_are_refused_by_name(change, reason):
    refused(rewritten(DATA, change), f"damaged or something else.*{reason}")


@pytest.mark.parametrize("field", ["split", "roles", "kept", "packed", "dtype"])
def test_fields_of_an_entry_belong_together(field):
    def change(header):
        for entry in header["entries"]:
            if entry["path"] == "mlp/up":
                del entry[field]

    refused(rewritten(DATA, change), f"'mlp/up' has .*no ({field!r}|'packed')")


@pytest.mark.parametrize("value, kind", [(1, "bool"), (1.5, "int"), (True, "float")])
def test_a_number_of_another_kind_than_the_header_says_is_refused(value, kind):
    data = rewritten(saved({"n": value}), entry_of("n")(number=kind))
    refused(data, f"'n' is {value}, no {kind}")


def test_a_header_in_other_words_is_refused():
    """What a file says has one form, so that no two readers understand it otherwise."""
    tensors = safetensors.numpy.load(DATA)
    for text, reason in {
        '{"version": 1, "version": 2}': "the key 'version' occurs twice",
        '{"version": NaN}': "NaN is no number of JSON",
        '{"a": ' * 10_000: "recursion",
    }.items():
        refused(safetensors.numpy.save(tensors, {"bbjax": text}), reason)
    loose = json.dumps(header_of(DATA), sort_keys=True, indent=1)
    refused(safetensors.numpy.save(tensors, {"bbjax": loose}), "not written as bbjax")


# Sizes ---------------------------------------------------------------------------
def of_no_kept_weights(weights, dtype=np.float64):
    """A file whose arrays are much larger than itself."""
    bits = bytes(-(-weights // 8))
    crcs = {"w:kept": 0, "w:mask": zlib.crc32(bits)}
    tensors = {"w:kept": np.zeros(0, dtype), "w:mask": np.frombuffer(bits, np.uint8)}
    small = saved({"w": np.zeros(1, dtype)}, {"w": np.zeros(1, bool)})
    return rewritten(small, entry_of("w")(shape=[weights], crc32=crcs), tensors)


def test_a_file_that_would_grow_beyond_the_limit_is_refused_with_both_sizes():
    weights = 2**28
    data = of_no_kept_weights(weights)
    tracemalloc.start()
    message = refused(data, "at most 2,147,483,648 bytes, got .* would take 2,415,91")
    assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
    tracemalloc.stop()
    assert f"of {len(data):,} bytes" in message
    assert f"max_bytes={9 * weights}" in message
    with pytest.raises(ValueError, match="would take 2,415,919,104"):
        bb.load_masks(io.BytesIO(data))


def test_the_limit_is_that_of_the_caller():
    data = of_no_kept_weights(1000)
    refused(data, "at most 8,999 bytes, got .*, which would take 9,000", max_bytes=8999)
    assert loaded(data, max_bytes=9000).params["w"].shape == (1000,)
    file = io.BytesIO(data)
    with pytest.raises(ValueError, match="at most 10 bytes"):
        bb.load_masks(file, max_bytes=10)
    with pytest.raises(TypeError, match="max_bytes: expected an int .*, got '1 GB'"):
        loaded(data, max_bytes="1 GB")
    with pytest.raises(ValueError, match="max_bytes: expected an int .*, got -1"):
        loaded(data, max_bytes=-1)


def test_what_a_file_holds_itself_is_no_growth(monkeypatch):
    data = saved({"w": np.ones(10_000)})
    monkeypatch.setattr(container, "MOST", 100)
    assert loaded(data).params["w"].shape == (10_000,)


# Mask files of version 1 ---------------------------------------------------------
def archive(header):
    """A numpy archive whose header has any bytes as its own npy header."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("header.npy", b"\x93NUMPY\x01\x00" + header)
    return file.getvalue()


def npy(text):
    return len(text).to_bytes(2, "little") + text


HEADS = {
    "a text that ends": npy(b"{'descr': '|u1', 'shape': (" + b"\n" * 90),
    "an indented text": npy(b"  {\n      'descr': 3\n   }" + b" " * 90),
    "deep brackets": npy(b"(" * 9_000),
    "long numbers": npy(b"{'shape': (" + b"9" * 9_000 + b",)}"),
    "null bytes": npy(b"\0" * 118),
    "nothing": b"",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_no_parser_sees_the_text_of_an_npy_header(head):
    with pytest.raises(ValueError, match="'header' is no vector of .* bytes, as npy"):
        bb.load_masks(io.BytesIO(archive(head)))


def test_an_archive_that_counts_its_bytes_several_times_is_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("header.npy", bytes(10_000))
    data = bytearray(file.getvalue())
    directory = data[data.rindex(b"PK\1\2") : data.rindex(b"PK\5\6")]
    end = data.rindex(b"PK\5\6")
    data[end:end] = directory * 5
    tail = data.rindex(b"PK\5\6")
    data[tail + 8 : tail + 12] = (6).to_bytes(2, "little") * 2
    data[tail + 12 : tail + 16] = (6 * len(directory)).to_bytes(4, "little")
    with pytest.raises(ValueError, match="its arrays are larger than the file"):
        bb.load_masks(io.BytesIO(bytes(data)))


def test_a_mask_that_the_header_leaves_out_is_not_lost():
    data = (FIXTURES / "masks_v1_units.npz").read_bytes()
    with np.load(io.BytesIO(data)) as found:
        arrays = dict(found)
    header = json.loads(arrays["header"].tobytes())
    header["masks"].pop()
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match=r"do not both have \['mask/layers/up.npy'\]"):
        bb.load_masks(io.BytesIO(file.getvalue()))


def test_bits_beyond_the_weights_are_refused():
    bits = np.packbits(MASKS["mlp/up"], bitorder="little") | np.uint8([0, 128])

    for entry in header_of(DATA)["entries"]:
        if entry["path"] == "mlp/up":
            crcs = entry["crc32"] | {"mlp/up:mask": zlib.crc32(bits)}
    data = rewritten(DATA, UP(crc32=crcs), {"mlp/up:mask": bits})
    refused(data, "'mlp/up' has bits beyond its 15 weights in its mask")
