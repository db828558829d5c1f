"""Mask files of version 1: what is damaged or does not fit is refused.

That they load is in `test_fixtures.py`.
"""

import io
import json
import os
import zipfile

import chex
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bbjax as bb
from tests.support.files import flipped
from tests.support.fixtures import FIXTURES, KERNELS, OF_KERNELS

DATA = (FIXTURES / "masks_v1_units.npz").read_bytes()


def loaded(data, like=None):
    return bb.load_masks(io.BytesIO(data), like)


def rewritten(save=np.savez, **changes):
    """The file with entries replaced, None to leave one out, a dict for the header."""
    with np.load(io.BytesIO(DATA), allow_pickle=False) as archive:
        entries = {name: archive[name] for name in archive.files}
    for name, value in changes.items():
        if isinstance(value, dict):
            text = json.dumps(json.loads(entries["header"].tobytes()) | value).encode()
            value = np.frombuffer(text, np.uint8)
        entries[name] = value
    file = io.BytesIO()
    save(file, **{k: v for k, v in entries.items() if v is not None})
    return file.getvalue()


def with_mask(path="conv", shape=(3, 2, 5), kept=22, **more):
    entry = {"path": path, "shape": shape, "kept": kept, **more}
    others = dict.fromkeys(("mask/bias", "mask/grouped", "mask/layers/up"))
    return rewritten(header={"masks": [entry]}, **others)


DAMAGED = {
    "cut short": (DATA[: len(DATA) // 2], "not a zip file"),
    "another archive": (rewritten(header=None), "no item named 'header.npy'"),
    "another format": (rewritten(header={"format": "x"}), "its format is 'x'"),
    "another version": (rewritten(header={"version": 2}), "archive of version 2"),
    "no JSON": (rewritten(header=np.frombuffer(b"{", np.uint8)), "Expecting"),
    "no format": (
        rewritten(header=np.frombuffer(b"[1]", np.uint8)),
        "no object with",
    ),
    "a mask missing": (
        rewritten(**{"mask/conv": None}),
        r"do not both have \['mask/conv.npy'\]",
    ),
    "bits missing": (
        rewritten(**{"mask/conv": np.zeros(1, np.uint8)}),
        r"'conv:mask' is uint8 \(1,\), its header says uint8 \(4,\)",
    ),
    "other bits": (
        rewritten(**{"mask/conv": np.zeros(4, np.uint8)}),
        "'conv' keeps 0 weights, its header 22",
    ),
    "another dtype": (
        rewritten(**{"mask/conv": np.zeros(4, np.int8)}),
        "no vector of 4 bytes",
    ),
    "compressed": (rewritten(np.savez_compressed), "is compressed"),
    "no path": (with_mask(path=3), "has 3 as 'path', not a string"),
    "a huge shape": (
        with_mask(shape=[10**30]),
        "as 'shape', not the sizes of an array",
    ),
    "a negative shape": (with_mask(shape=[-1]), r"'conv' has \[-1\] as 'shape'"),
    "no roles": (
        with_mask(split=[3, 2, 5], roles=["in", "out", "up"]),
        "'conv' has .'in', 'out', 'up'. as 'roles', not",
    ),
    "another npy version": (
        DATA.replace(b"NUMPY\1", b"NUMPY\2"),
        "CRC|npy version",
    ),
}


@pytest.mark.parametrize("data, reason", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_with_the_reason(data, reason):
    message = f"expected a mask file as bb.save_masks .*damaged.*{reason}.*save it"
    with pytest.raises(ValueError, match=message):
        loaded(data)


def test_an_npy_version_of_the_future_is_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("header.npy", b"\x93NUMPY\2\0")
    with pytest.raises(ValueError, match="'header' is no vector of 0 bytes"):
        loaded(file.getvalue())


def test_pickles_are_not_read():
    class Bomb:
        def __reduce__(self):
            return (os._exit, (1,))

    file = io.BytesIO()
    np.savez(file, header=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="damaged or something else"):
        loaded(file.getvalue())


def test_masks_that_do_not_fit_are_refused_with_all_differences():
    turned = bb.Kernel("conv", (3, 2, 5), spatial=(0,), fan_in=(2,), fan_out=(1,))
    others = [kernel for kernel in KERNELS.kernels if kernel.path != "conv"]
    with pytest.raises(ValueError, match="these units, got 2 differences") as caught:
        loaded(DATA, bb.Units((turned, *others)))
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "bias: only in the file",
        "conv: axes [3, 2, 5] ['spatial', 'in', 'out'] in the file, axes [3, 2, 5] "
        "['spatial', 'out', 'in'] here",
    ]


def test_a_model_is_not_read_from_it():
    message = "a file with parameters, got .* masks alone; bb.load_masks reads it"
    with pytest.raises(ValueError, match=message):
        bb.load(io.BytesIO(DATA))


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
            chex.assert_trees_all_equal(back, OF_KERNELS, strict=True)
