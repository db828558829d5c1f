"""Masks as files: plain, small, and refused where they do not fit.

A mask file is a numpy archive (`.npz`) without pickles, one entry per mask and a
header:

    mask/<path>   uint8, ceil(weights / 8): the mask in C order, lowest bit first
    header        JSON in UTF-8 as uint8: format, version, bbjax, and for each mask its
                  path, shape, number of kept weights, and the roles of its axes

so that `numpy.load` reads it without this library, and loading it never runs code. The
same masks give the same bytes. A file is written beside its place and moved there, so
it is whole or not there. What is read is checked against its header, and against the
model that it is for, before anything is returned. Reference: NumPy's NEP 1 (`.npy`).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bbjax.model.checks import Masks, count, on_host
from bbjax.model.leaves import leaves_by_path
from bbjax.model.units import Kernel, Units
from bbjax.model.version import __version__

FORMAT = "bbjax.masks"
VERSION = 1

File = str | os.PathLike[str] | BinaryIO

_WHAT = "a mask file as bb.save_masks writes it"
_REMEDY = "save the masks again"


# Saving --------------------------------------------------------------------------
def save_masks(file: File, masks: Masks, units: Units | None = None) -> None:
    """Writes masks to a file: one bit per weight.

    Args:
      file: a path (the name is taken as it is; `.npz` is the custom), or a binary file
        open for writing. A path holds the old file or the new one, never a part.
      masks: by path, bool arrays of the parameter's shape, of numpy or of JAX, as
        `bb.masks` and `bb.prune` return them.
      units: from `bb.trace`, to write down which axes are inputs and outputs; loading
        for other units then compares them.

    Raises:
      TypeError: not masks by path, or not bool.
      ValueError: no mask, or one of another shape than its kernel in `units`.

    Example:
      >>> file = io.BytesIO()
      >>> save_masks(file, {"w": np.array([[True, False, True]])})
      >>> _ = file.seek(0)
      >>> load_masks(file)
      {'w': array([[ True, False,  True]])}
    """
    found = dict(sorted(on_host(masks).items()))
    header = {
        "format": FORMAT,
        "version": VERSION,
        "bbjax": __version__,
        "masks": [_entry(path, mask, units) for path, mask in found.items()],
    }
    text = json.dumps(header, sort_keys=True).encode()
    arrays = {"header": np.frombuffer(text, np.uint8)}
    for path, mask in found.items():
        arrays[f"mask/{path}"] = np.packbits(mask, bitorder="little")
    write(file, _archive(arrays))


def _entry(path: str, mask: np.ndarray, units: Units | None) -> dict[str, Any]:
    entry = {"path": path, "shape": mask.shape, "kept": count(mask)}
    if units is not None and path in units:
        if mask.shape != units[path].shape:
            raise ValueError(
                f"expected a mask of shape {units[path].shape} for {path!r}, got "
                f"{mask.shape}; pass the units of the model that was pruned"
            )
        entry |= roles_of(units, path)
    return entry


def roles_of(units: Units, path: str) -> dict[str, list[Any]]:
    """What the axes of a kernel are, as files have it.

    Example:
      >>> from bbjax.model.units import Kernel
      >>> roles_of(Units((Kernel("w", (2, 3), fan_in=(0,), fan_out=(1,)),)), "w")
      {'split': [2, 3], 'roles': ['in', 'out']}
    """
    kernel = units[path]
    return {"split": list(kernel.split), "roles": list(kernel.roles)}


def _archive(arrays: Mapping[str, np.ndarray]) -> bytes:
    """As `numpy.savez` would, with nothing of the time and the machine in it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, array, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            archive.writestr(info, entry.getvalue())
    return stream.getvalue()


def write(file: File, data: bytes) -> None:
    """Writes a whole file: a path holds the old one or the new one, never a part."""
    if hasattr(file, "write"):
        file.write(data)
        return
    path = Path(file)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"expected a folder at {str(path.parent)!r} for {path.name!r}, got none; "
            "make it first"
        )
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


# Loading -------------------------------------------------------------------------
def load_masks(file: File, like: Any = None) -> dict[str, np.ndarray]:
    """Reads masks from a file that `save_masks` wrote.

    Args:
      file: a path, or a binary file open for reading.
      like: what the masks are for; they are compared before they are returned.

        * parameters (any tree of arrays, an `nnx.Module`): every mask must be of a
          parameter and have its shape; parameters may lack one;
        * `bb.Units`: every mask must be of a kernel and have its shape and, where the
          file knows them, its roles; kernels chosen by `select` must have one;
        * other masks: the same paths and shapes.

    Returns:
      By path, bool arrays of numpy, in order of the path: on the host, so that no
      device is touched; JAX takes them as they are.

    Raises:
      ValueError: not a mask file, a damaged one, one of a newer version, or masks that
        do not fit; the message lists all differences.

    Example:
      >>> file = io.BytesIO()
      >>> save_masks(file, {"w": np.ones((2, 3), bool)})
      >>> _ = file.seek(0)
      >>> load_masks(file, like={"w": np.ones((2, 4)), "b": np.ones(4)})
      Traceback (most recent call last):
      ValueError: expected masks that fit these parameters, got 1 difference; ...
        w: shape (2, 3) in the file, (2, 4) here
    """
    name, archive = _opened(file)
    with archive:
        entries = _header(archive, name)
        with reading(name, _WHAT, _REMEDY):
            masks = {e["path"]: _mask(archive, e) for e in entries}
    if like is not None:
        _compare({e["path"]: e for e in entries}, like, name)
    return masks


def read(file: File) -> tuple[str, bytes]:
    """The name of a file, for messages, and its bytes."""
    if hasattr(file, "read"):
        return str(getattr(file, "name", "a file object")), file.read()
    return str(file), Path(file).read_bytes()


def saved_kernels(file: File) -> dict[str, Kernel]:
    """The kernels that a mask file knows: those saved with `units`.

    Args:
      file: a path, or a binary file open for reading.

    Returns:
      By path, kernels with the shape and the roles of their axes and nothing else; a
      mask that was saved without `units` has none.

    Raises:
      ValueError: not a mask file, a damaged one, or one of a newer version.

    Example:
      >>> file = io.BytesIO()
      >>> kernel = Kernel("w", (2, 3), fan_in=(0,), fan_out=(1,))
      >>> save_masks(file, {"w": np.ones((2, 3), bool)}, Units((kernel,)))
      >>> _ = file.seek(0)
      >>> saved_kernels(file)["w"].in_units
      (2,)
    """
    name, archive = _opened(file)
    with archive:
        entries = _header(archive, name)
    with reading(name, _WHAT, _REMEDY):
        return {e["path"]: kernel_of(e) for e in entries if "roles" in e}


def kernel_of(entry: Mapping[str, Any]) -> Kernel:
    """The kernel that `roles_of` wrote down, with its axes and nothing else.

    Raises:
      ValueError: roles that no kernel has.
    """
    split, roles = tuple(entry["split"]), tuple(entry["roles"])
    known = {"stack", "group", "in", "out", "spatial"}
    whole = all(type(n) is int for n in split)
    if not whole or len(split) != len(roles) or not known.issuperset(roles):
        raise ValueError(f"{entry['path']!r} has axes {split} in roles {roles}")
    if math.prod(split) != math.prod(entry["shape"]):
        raise ValueError(f"{entry['path']!r} of {entry['shape']} has axes {split}")
    groups = math.prod(n for n, r in zip(split, roles, strict=True) if r == "group")
    made = {"split": split, "roles": roles, "groups": groups}
    return Kernel(entry["path"], tuple(entry["shape"]), **made)


def _opened(file: File) -> tuple[str, zipfile.ZipFile]:
    """The name of a file, for messages, and its archive."""
    name, data = read(file)
    with reading(name, _WHAT, _REMEDY):
        return name, zipfile.ZipFile(io.BytesIO(data))


@contextlib.contextmanager
def reading(
    name: str, what: str, remedy: str, *more: type[Exception]
) -> Iterator[None]:
    """What readers raise on bytes that are not theirs, as one error with the reason.

    Args:
      name: of the file.
      what: the file should be.
      remedy: what to do.
      more: errors of the reader besides those of zip, npy and JSON.
    """
    known: tuple[type[Exception], ...] = (
        *(zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError),
        *(NotImplementedError, RuntimeError, OverflowError),
    )
    try:
        yield
    except known + more as error:
        raise ValueError(
            f"expected {what}, got {name!r}, which is damaged or something else "
            f"({error}); {remedy}"
        ) from error


def refuse_newer(version: int, newest: int, by: Any, what: str, name: str) -> None:
    """Refuses a file of a version that this library does not know yet."""
    if version > newest:
        raise ValueError(
            f"expected {what} of version {newest} or older, got {name!r} of version "
            f"{version}, written by bbjax {by}; upgrade bbjax"
        )


def _header(archive: zipfile.ZipFile, name: str) -> list[dict[str, Any]]:
    with reading(name, _WHAT, _REMEDY):
        header = json.loads(_array(archive, "header").tobytes())
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}")
        version = int(header["version"])
    refuse_newer(version, VERSION, header.get("bbjax"), "a mask file", name)
    with reading(name, _WHAT, _REMEDY):
        return [_checked(entry) for entry in header["masks"]]


def _checked(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the header with the kinds that the rest relies on."""
    shape = tuple(entry["shape"])
    if not isinstance(entry["path"], str):
        raise TypeError("a path is no text")
    if not all(type(n) is int and n >= 0 for n in (*shape, entry["kept"])):
        raise ValueError(f"sizes of {entry['path']!r} are no whole numbers")
    return {**entry, "shape": shape}


def _mask(archive: zipfile.ZipFile, entry: Mapping[str, Any]) -> np.ndarray:
    path, shape = entry["path"], entry["shape"]
    bits, size = _array(archive, f"mask/{path}"), math.prod(shape)
    if bits.size != -(-size // 8):
        raise ValueError(
            f"{path!r} has {bits.size} bytes, its shape {shape} takes {-(-size // 8)}"
        )
    mask = np.unpackbits(bits, count=size, bitorder="little").view(bool)
    if (kept := count(mask)) != entry["kept"]:
        raise ValueError(f"{path!r} keeps {kept} weights, its header {entry['kept']}")
    return mask.reshape(shape)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """A vector of bytes: no entry takes more memory than the file has bytes."""
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


# Fitting -------------------------------------------------------------------------
def _compare(entries: Mapping[str, Mapping[str, Any]], like: Any, name: str) -> None:
    if isinstance(like, Units):
        what, shapes = "units", {path: like[path].shape for path in like}
        needed = [] if like.selection is None else list(like.budgeted)
    else:
        shapes = {path: np.shape(leaf) for path, leaf in leaves_by_path(like)[0]}
        what, needed = (
            ("masks", list(shapes)) if _is_masks(like) else ("parameters", [])
        )
    found = [f"{p}: missing in the file" for p in needed if p not in entries]
    for path, entry in entries.items():
        if path not in shapes:
            found.append(f"{path}: only in the file")
        elif entry["shape"] != shapes[path]:
            found.append(
                f"{path}: shape {entry['shape']} in the file, {shapes[path]} here"
            )
        elif isinstance(like, Units) and "roles" in entry:
            found += other_roles(entry, roles_of(like, path))
    refuse_misfits(found, f"masks that fit these {what}", name)


def other_roles(entry: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """How the axes of a kernel differ between the file and here, in words."""
    there = {key: entry.get(key) for key in here}
    if there == here:
        return []
    return [
        f"{entry['path']}: axes {there['split']} {there['roles']} in the file, "
        f"{here['split']} {here['roles']} here"
    ]


def refuse_misfits(found: Sequence[str], what: str, name: str) -> None:
    """Refuses a file with all differences from what it is for, one per line."""
    if found:
        raise ValueError(
            f"expected {what}, got {len(found)} difference{'s' * (len(found) > 1)}; "
            f"load {name!r} for the model it was saved from:\n  " + "\n  ".join(found)
        )


def _is_masks(like: Any) -> bool:
    if not isinstance(like, Mapping):
        return False
    return all(str(getattr(mask, "dtype", "")) == "bool" for mask in like.values())
