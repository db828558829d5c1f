"""Mask files of version 1: numpy archives (`.npz`) without pickles, read for ever.

    mask/<path>   uint8, ceil(weights / 8): the mask in C order, lowest bit first
    header        JSON in UTF-8 as uint8: format, version, bbjax, and for each mask its
                  path, shape, number of kept weights, and the roles of its axes

Reference: NumPy's NEP 1 (`.npy`).
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from typing import Any

import numpy as np


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
        header = json.loads(_vector(archive, "header").tobytes())
        if header["version"] != 1:
            raise ValueError(f"a numpy archive of version {header['version']!r}")
        entries, tensors = header["masks"], {}
        for entry in entries:
            name = f"{entry['path']}:mask"
            tensors[name] = _vector(archive, f"mask/{entry['path']}")
            entry["crc32"] = {name: zlib.crc32(tensors[name].data)}
    return {**header, "extra": None, "entries": entries}, tensors


def _vector(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of bytes: none takes more memory than the file has bytes."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name!r} is compressed")
    stream = io.BytesIO(archive.read(info))
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name!r} is of another npy version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    data = stream.read()
    if dtype != np.uint8 or shape != (len(data),):
        raise ValueError(f"{name!r} is no vector of {len(data)} bytes")
    return np.frombuffer(data, np.uint8)
