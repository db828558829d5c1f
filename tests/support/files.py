"""Files of a small model, and files taken apart and made again with changes."""

import io
import json
import zlib

import jax
import numpy as np
import safetensors.numpy

import bbjax as bb

UP = bb.Kernel("mlp/up", (3, 5), fan_in=(0,), fan_out=(1,), hidden=True)
DOWN = bb.Kernel("mlp/down", (5, 2), fan_in=(0,), fan_out=(1,))
UNITS = bb.Units((UP, DOWN))
MASKS = {
    "mlp/up": np.arange(15).reshape(3, 5) % 2 == 0,
    "mlp/down": np.arange(10).reshape(5, 2) % 3 == 0,
}
PARAMS = {
    "mlp": {
        "up": np.arange(1, 16, dtype=np.float32).reshape(3, 5) * MASKS["mlp/up"],
        "down": np.arange(1, 11, dtype=np.float32).reshape(5, 2) * MASKS["mlp/down"],
    },
    "bias": np.arange(5, dtype=np.float32),
}


def saved(params=PARAMS, masks=None, units=None, extra=None, **options):
    file = io.BytesIO()
    bb.save(file, params, masks, units, extra, **options)
    return file.getvalue()


def loaded(data, like=None, units=None, **options):
    return bb.load(io.BytesIO(data), like, units, **options)


def bits(array):
    array = np.asarray(array)
    return array.dtype, array.shape, array.tobytes()


def assert_same(mine, theirs):
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        assert bits(a) == bits(b)


def header_of(data):
    """Our header in the metadata of a file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["bbjax"])


def rewritten(data, change=None, tensors=None, seal=True):
    """The file with a changed header, its checksum made anew, or changed tensors.

    Args:
      data: the file.
      change: changes the header in place.
      tensors: to replace, by name; None to leave one out.
      seal: make the checksum of the header anew.
    """
    header = header_of(data)
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
    """Makes changes of the header's entry at a path."""

    def changed(**values):
        def change(header):
            for entry in header["entries"]:
                if entry["path"] == path:
                    entry.update(values)

        return change

    return changed


def layout(header, data=b""):
    """Bytes of the container with any text or JSON as its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def flipped(data, at, bit=0):
    """The bytes with one bit flipped."""
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
