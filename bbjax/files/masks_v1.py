"""Mask files of version 1: numpy archives (`.npz`) without pickles, read for ever.

    mask/<path>   uint8, ceil(weights / 8): the mask in C order, lowest bit first
    header        JSON in UTF-8 as uint8: format, version, bbjax, and for each mask its
                  path, shape, number of kept weights, and the roles of its axes

Reference: NumPy's NEP 1 (`.npy`).
"""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any

import numpy as np

from bbjax.files import fields

_HEAD = 128  # bytes of the header of a vector
_MAGIC = b"\x93NUMPY\x01\x00v\x00"


def is_one(data: bytes) -> bool:
    """Whether bytes begin as a zip archive does.

    In a safetensors file they would be the length of a header of many gigabytes.
    """
    return data[:4] == b"PK\3\4" and data[4:8] > bytes(4)


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and tensors of a file, as they would be in a file of today.

    The checksums of the zip archive are compared.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(info.file_size for info in archive.infolist()) > len(data):
            raise ValueError("its arrays are larger than the file")
        header = fields.parsed(_vector(archive, "header").tobytes())
        fields.check(header, _FIELDS, "its header")
        if header["version"] != 1:
            raise ValueError(f"a numpy archive of version {header['version']!r}")
        entries, tensors = header["masks"], {}
        names = {"header.npy"} | {f"mask/{_path(entry)}.npy" for entry in entries}
        if len(names) != len(entries) + 1 or sorted(names) != sorted(
            archive.namelist()
        ):
            others = sorted(names ^ set(archive.namelist()))[:5]
            raise ValueError(f"its header and its arrays do not both have {others}")
        for entry in entries:
            name = f"{entry['path']}:mask"
            tensors[name] = _vector(archive, f"mask/{entry['path']}")
            entry["crc32"] = {name: zlib.crc32(tensors[name].data)}
    about = {name: header[name] for name in ("format", "version", "bbjax")}
    return {**about, "extra": None, "entries": entries}, tensors


_FIELDS = {
    **{"format": fields.TEXT, "version": fields.SIZE, "bbjax": fields.TEXT},
    "masks": fields.LIST,
}
# What lists hold is checked as in files of today.
_ENTRY = {
    **{"path": fields.TEXT, "shape": fields.LIST, "kept": fields.SIZE},
    **{"split": fields.LIST.optional, "roles": fields.LIST.optional},
}


def _path(entry: Any) -> str:
    fields.check(entry, _ENTRY, fields.entry_name(entry))
    return entry["path"]


def _vector(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of bytes, which takes no more memory than the file has bytes.

    Its header is compared with the text that numpy writes, and not parsed.
    """
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name!r} is compressed")
    data = archive.read(info)
    size = len(data) - _HEAD
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}"
    if data[:_HEAD] != _MAGIC + f"{text:<{_HEAD - len(_MAGIC) - 1}}\n".encode():
        raise ValueError(f"{name!r} is no vector of {max(size, 0)} bytes, as npy 1.0")
    return np.frombuffer(data, np.uint8, offset=_HEAD)
