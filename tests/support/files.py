"""Saved files, taken apart and made again with changes by safetensors itself."""

import json
import zlib

import safetensors.numpy


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
