"""The one format of masks and models: safetensors, with a header of bbjax.

    8 bytes     length of the JSON that follows, little-endian
    JSON        for each tensor its dtype, shape and place in the data; in the metadata,
                under "bbjax", the header of bbjax as a string
    data        the tensors in C order, little-endian, without gaps

The header of bbjax is JSON, too: format, version, bbjax (version of the library),
extra, an `Entry` for each leaf, and the CRC-32 of all that. Any reader of safetensors
finds the tensors, and reading never runs code: there is no pickle. What is read is
checked as a whole before anything is returned.
Reference: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bbjax.files import atomic, encoding, fields, masks_v1
from bbjax.files.atomic import File
from bbjax.files.encoding import CODES, DTYPES, Entry
from bbjax.model.kernel import Kernel
from bbjax.model.numbers import check_int
from bbjax.model.text import printable, shortened
from bbjax.model.version import __version__

MODEL, MASKS = "bbjax.params", "bbjax.masks"
NEWEST = {MODEL: 1, MASKS: 2}
MOST, TIMES = 2**31, 4  # bytes of all arrays, or times the size of the file: allowed
MOST_JSON = 100_000_000  # bytes, as in safetensors
_METADATA, _KEY = "__metadata__", "bbjax"
_PLACE = {  # of a tensor
    "dtype": fields.Field("a dtype", lambda v: type(v) is str and v in DTYPES),
    "shape": fields.SIZES,
    "data_offsets": fields.Field(
        "the first and the last byte", lambda v: fields.SIZES.fits(v) and len(v) == 2
    ),
}
_FIRST = {"format": fields.TEXT, "version": fields.SIZE}
_FIELDS = {
    **_FIRST,
    "bbjax": fields.TEXT,
    "extra": fields.of_kind("an object or null", dict, type(None)),
    "entries": fields.LIST,
    "crc32": fields.CHECKSUM,
}


class Header(NamedTuple):
    """What a file says about itself and its masks.

    Attributes:
      version: of the format.
      bbjax: version of the library that wrote it.
      kept: number of kept weights, for each path with a mask.
      density: kept share of the weights, likewise.
      actuators: of each masked kernel that `units` selected, by path.
      budgets: kept edges of each stack slice, row-major, by path of each masked kernel
        of `units`.
      kernels: shape and roles of the axes, by path of each kernel of `units`.
    """

    version: int
    bbjax: str
    kept: dict[str, int]
    density: dict[str, float]
    actuators: dict[str, tuple[str, ...]]
    budgets: dict[str, tuple[int, ...]]
    kernels: dict[str, Kernel]


class Loaded(NamedTuple):
    """What `bb.load` read.

    Attributes:
      params: the parameters.
      masks: by path, bool arrays of numpy; empty if the file has none.
      extra: what was saved as such, or None.
      header: versions, densities, budgets.
    """

    params: Any
    masks: dict[str, np.ndarray]
    extra: Any
    header: Header


# Writing -------------------------------------------------------------------------
def write(
    file: File,
    form: str,
    leaves: Sequence[tuple[Entry, Mapping[str, np.ndarray]]],
    extra: Mapping[str, object] | None = None,
) -> None:
    """Writes a whole file: a path holds the old one or the new one, never a part.

    Args:
      file: a path, or a binary file open for writing.
      form: `MODEL` or `MASKS`.
      leaves: entry and tensors of each, as `encoding.pack` returns them.
      extra: anything that JSON holds, by name.

    Raises:
      FileNotFoundError: the folder of the path is missing.
      ValueError: two tensors of one name, more than `MOST_JSON` bytes of paths and
        extra, or a path that is no regular file.
    """
    header = {"format": form, "version": NEWEST[form], "bbjax": __version__}
    header |= {"extra": extra, "entries": [entry for entry, _ in leaves]}
    data = _assembled({**header, "crc32": _checksum(header)}, _by_name(leaves))
    atomic.write(file, data)


def _by_name(
    leaves: Sequence[tuple[Entry, Mapping[str, np.ndarray]]],
) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for entry, own in leaves:
        if twice := sorted(own.keys() & {*tensors, _METADATA}):
            raise ValueError(
                f"expected names of their own for all tensors, got {twice} again for "
                f"{entry['path']!r}; rename the parameter"
            )
        tensors |= own
    return tensors


def _assembled(
    header: Mapping[str, object], tensors: Mapping[str, np.ndarray]
) -> bytes:
    layout: dict[str, object] = {_METADATA: {_KEY: _text(header)}}
    data, end, order = [], 0, list(DTYPES)
    codes = {name: CODES[tensor.dtype.name] for name, tensor in tensors.items()}
    for name in sorted(tensors, key=lambda name: (order.index(codes[name]), name)):
        data.append(encoding.as_bytes(tensors[name]).data)
        begin, end = end, end + tensors[name].nbytes
        shape = tensors[name].shape
        place = {"dtype": codes[name], "shape": shape, "data_offsets": (begin, end)}
        layout[name] = place
    text = json.dumps(layout, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > MOST_JSON - 16:
        raise ValueError(
            f"expected at most {MOST_JSON:,} bytes of paths and extra, got "
            f"{len(text):,}; put large values into params, as arrays"
        )
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *data])


def _text(header: Mapping[str, object]) -> str:
    return json.dumps(header, sort_keys=True)


def _checksum(header: Mapping[str, object]) -> int:
    """CRC-32 of all fields but the checksum itself."""
    rest = {key: value for key, value in header.items() if key != "crc32"}
    return zlib.crc32(_text(rest).encode())


# Reading -------------------------------------------------------------------------
def read(
    file: File, what: str, masks: bool = True, max_bytes: int | None = None
) -> tuple[str, Loaded]:
    """Reads masks or a model: the whole file, or nothing and an error.

    Args:
      file: a path, or a binary file open for reading.
      what: the file should be, for messages.
      masks: refuse a file without masks.
      max_bytes: of memory for all arrays and masks; None for `MOST` bytes or `TIMES`
        times the size of the file, whichever is more.

    Returns:
      The name of the file, for messages, and what it holds. Parameters are by path:
      arrays of numpy, random keys and Python numbers; none in a mask file.

    Raises:
      ValueError: not such a file, a damaged one, one of a newer version, or one whose
        arrays would take more memory.

    Example:
      >>> import io
      >>> file = io.BytesIO()
      >>> write(file, MODEL, [], extra={"step": 7})
      >>> _ = file.seek(0)
      >>> read(file, "a model", masks=False)[1].extra
      {'step': 7}
    """
    if max_bytes is not None:
        check_int("max_bytes", max_bytes, 0, 2**63 - 1, "the memory to load into")
    if hasattr(file, "read"):
        name, data = str(getattr(file, "name", "a file object")), file.read()
    else:
        name, data = str(file), Path(file).read_bytes()
    name = shortened(name, 300)
    with _refusing(name, what):
        old = masks_v1.is_one(data)
        header, tensors, text = (*masks_v1.parts(data), "") if old else _parts(data)
        form, version = _version(header)
    if version > (newest := NEWEST[form]):
        raise ValueError(
            f"expected {what}, of version {newest} or older, got {name!r} of version "
            f"{version}, written by bbjax {_short(header.get('bbjax'))}; upgrade bbjax"
        )
    with _refusing(name, what):
        if not old:
            _check_header(header, text)
        entries = _entries(header, tensors)
    _check_size(entries, len(data), max_bytes, name)
    with _refusing(name, what):
        found = _loaded(header, entries, tensors)
    if masks and not found.masks:
        raise ValueError(
            f"expected a file with masks, got {name!r} without any; save the pruned "
            "parameters with masks=bb.masks(opt_state)"
        )
    return name, found


@contextlib.contextmanager
def _refusing(name: str, what: str) -> Iterator[None]:
    """Turns each error that foreign bytes may cause into one, with the reason."""
    try:
        yield
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError),
        *(NotImplementedError, RuntimeError, OverflowError, AttributeError),
    ) as error:
        raise ValueError(
            f"expected {what}, got {name!r}, which is damaged or something else "
            f"({_short(error)}); load a whole copy, or save it again"
        ) from error


def _short(value: object) -> str:
    """A text of a file, short and printable."""
    return shortened(printable(str(value)), 1000)


def _parts(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """The header of bbjax, the tensors by name, and the text of the header.

    The tensors fill the rest of the file.
    """
    end = start = 8 + int.from_bytes(data[:8], "little")
    if not 8 < start <= len(data):
        raise ValueError(
            f"no safetensors file: its header would end at byte {start} of {len(data)}"
        )
    if start > MOST_JSON:
        raise ValueError(f"its header has {start} bytes, more than {MOST_JSON}")
    layout = fields.parsed(data[8:start].decode())
    if not isinstance(layout, dict):
        raise ValueError(f"its layout is {fields.short(layout)}, no object with fields")
    metadata = layout.pop(_METADATA, {})
    if not isinstance(metadata, dict) or _KEY not in metadata:
        raise ValueError(
            f"a safetensors file that bbjax did not write, with metadata "
            f"{fields.short(metadata)}; safetensors.numpy.load_file reads it"
        )
    for name, place in layout.items():
        fields.check(place, _PLACE, f"the tensor {fields.short(name)}")
    tensors, view = {}, memoryview(data)
    for name, place in sorted(layout.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = (start + offset for offset in place["data_offsets"])
        if not first == end <= last <= len(data):
            raise ValueError(f"{name!r} has bytes {first} to {last}, not from {end} on")
        # A copy: aligned, writable, and independent of the rest of the file.
        own = np.frombuffer(bytearray(view[first:last]), DTYPES[place["dtype"]])
        tensors[name] = own.reshape(place["shape"])
        end = last
    if end < len(data):
        raise ValueError(f"its tensors end at byte {end} of {len(data)}")
    return _header(text := metadata[_KEY]), tensors, text


def _header(text: Any) -> dict[str, Any]:
    if not isinstance(text, str):
        raise ValueError(f"its header is {fields.short(text)}, no text")
    header = fields.parsed(text)
    if not isinstance(header, dict):
        raise ValueError(f"its header is {fields.short(header)}, no object with fields")
    return header


def _version(header: Mapping[str, Any]) -> tuple[str, int]:
    """Format and version, which say whether the rest can be read."""
    found = {name: header[name] for name in _FIRST if name in header}
    fields.check(found, _FIRST, "its header")
    if (form := found["format"]) not in NEWEST:
        raise ValueError(f"its format is {fields.short(form)}")
    if not found["version"]:
        raise ValueError("its version is 0")
    return form, found["version"]


def _check_header(header: Mapping[str, Any], text: str) -> None:
    fields.check(header, _FIELDS, "its header")
    if text != _text(header):
        raise ValueError("its header is not written as bbjax writes it")
    if _checksum(header) != header["crc32"]:
        raise ValueError("its header has changed since it was written")


def _entries(
    header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> dict[str, Entry]:
    """The entries by path, which have all of the tensors and nothing else."""
    entries: dict[str, Entry] = {}
    for entry in header["entries"]:
        encoding.check_entry(entry)
        if entry["path"] in entries:
            raise ValueError(f"it has {fields.short(entry['path'])} twice")
        entries[entry["path"]] = entry
    said = {tensor for entry in entries.values() for tensor in entry["crc32"]}
    if said != tensors.keys():
        others = sorted(said ^ tensors.keys())[:5]
        raise ValueError(f"its header and its data do not both have {others}")
    return entries


def _check_size(
    entries: Mapping[str, Entry], size: int, max_bytes: int | None, name: str
) -> None:
    """Refuses a file whose arrays would take too much memory, before they do.

    A mask of 8 weights has one byte, and pruned weights have none.
    """
    most = max(MOST, TIMES * size) if max_bytes is None else max_bytes
    needed = sum(map(encoding.unpacked_bytes, entries.values()))
    if needed > most:
        raise ValueError(
            f"expected a file whose arrays and masks take at most {most:,} bytes, got "
            f"{name!r} of {size:,} bytes, which would take {needed:,}; if you trust "
            f"it, load it with max_bytes={needed}"
        )


def _loaded(
    header: Mapping[str, Any],
    entries: Mapping[str, Entry],
    tensors: Mapping[str, np.ndarray],
) -> Loaded:
    """What the tensors hold, once everything agrees with the header."""
    found = {path: encoding.unpack(e, tensors) for path, e in entries.items()}
    values = {path: value for path, (value, _) in found.items() if value is not None}
    masks = {path: mask for path, (_, mask) in found.items() if mask is not None}
    kept = {path: entries[path]["kept"] for path in masks}
    about = Header(
        version=header["version"],
        bbjax=header["bbjax"],
        kept=kept,
        density={p: kept[p] / m.size if m.size else 1.0 for p, m in masks.items()},
        actuators={
            p: tuple(e["actuators"]) for p, e in entries.items() if "actuators" in e
        },
        budgets={p: tuple(e["budget"]) for p, e in entries.items() if "budget" in e},
        kernels={p: encoding.kernel_of(e) for p, e in entries.items() if "roles" in e},
    )
    return Loaded(values, masks, header["extra"], about)
