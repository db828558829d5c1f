"""Arrays as tensors of a file and back, bit for bit; masked ones without their zeros.

A leaf at `path` becomes one or two tensors, and an `Entry` that describes them:

    path          the whole array, C order
    path:mask     its mask: uint8, ceil(weights / 8) bytes, C order, lowest bit first
    path:kept     its kept values in C order, in place of the whole array

so that a kernel of b bytes per weight takes `density + 1 / (8 b)` of its dense size.
safetensors has no name for some dtypes (int4, complex, most float8): these are stored
as their bytes, with one more axis. Random keys are stored as their key data. The entry
keeps the dtype and the CRC-32 of each tensor's bytes, so that damage is found.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping
from typing import Any, Required, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.files import fields
from bbjax.model.checks import count
from bbjax.model.kernel import Kernel
from bbjax.model.text import shortened

# dtypes by their names in safetensors, in the order in which their tensors are stored:
# wide ones first, so that all are aligned. Every release since 0.5 has these.
DTYPES = {
    **{"U64": "uint64", "I64": "int64", "F64": "float64"},
    **{"F32": "float32", "U32": "uint32", "I32": "int32"},
    **{"BF16": "bfloat16", "F16": "float16", "U16": "uint16", "I16": "int16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{"I8": "int8", "U8": "uint8", "BOOL": "bool"},
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
OTHER = "no array"
_NUMBERS = {kind.__name__: kind for kind in (bool, int, float, complex)}
DEPTH = 256  # levels of a path, at most
_AXES = 64  # of an array, as in numpy
_LARGEST = 2**63
# All dtypes by name: those of JAX, and those that numpy alone has (long double).
_NUMERIC = {
    dtype.name: dtype
    for dtype in (
        *(np.dtype(code) for code in "?bhilqBHILQefdgFDG"),
        *(getattr(kind, "dtype", None) for kind in vars(jnp).values()),
    )
    if isinstance(dtype, np.dtype)
}


class Entry(TypedDict, total=False):
    """What the header of a file says about a leaf."""

    path: Required[str]
    shape: Required[list[int]]
    crc32: Required[dict[str, int]]  # of the bytes of each tensor, by its name
    dtype: str  # missing where a mask alone is stored
    key: str  # implementation of random keys
    number: str  # type of a Python number
    kept: int  # weights that the mask keeps; missing without a mask
    packed: bool  # whether only the kept values are stored
    split: list[int]  # of the kernel, as in `Kernel`
    roles: list[str]  # likewise
    actuators: list[str]  # of the kernel, if it was selected
    budget: list[int]  # kept edges of each stack slice, row-major


# Leaves --------------------------------------------------------------------------
def is_key(leaf: object) -> bool:
    """Whether a leaf is an array of random keys (`jax.random.key`)."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def is_number(leaf: object) -> bool:
    """Whether a leaf is a Python number."""
    return type(leaf) in _NUMBERS.values()


def describe(leaf: object) -> str:
    """Kind and shape of a leaf in words: equal where one leaf can replace another.

    Example:
      >>> describe(np.ones((2, 3), np.float16)), describe(1.0), describe(max)
      ('float16 (2, 3)', 'a Python float', 'no array')
    """
    if is_number(leaf):
        return f"a Python {type(leaf).__name__}"
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return OTHER
    return f"{getattr(leaf.dtype, 'name', leaf.dtype)} {tuple(leaf.shape)}"


def host_array(path: str, leaf: Any) -> np.ndarray:
    """A leaf as an array of numpy, in C order; random keys as their key data.

    Raises:
      TypeError: its dtype is not numeric.
    """
    array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    if not _is_numeric(array.dtype):
        raise TypeError(
            f"expected an array of numbers at {path!r}, got {array.dtype}; cast it, or "
            "leave it out of the tree"
        )
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _is_numeric(dtype: np.dtype) -> bool:
    return any(jax.dtypes.issubdtype(dtype, kind) for kind in (np.number, np.bool_))


def nonzero(values: np.ndarray) -> int:
    """Number of values that are not 0; NaN is not 0."""
    return int(np.count_nonzero(values != np.zeros((), values.dtype)))


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of an array in C order: uint8, one axis."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


# To tensors ----------------------------------------------------------------------
def pack(
    path: str, leaf: Any, mask: np.ndarray | None = None, packed: bool = True
) -> tuple[Entry, dict[str, np.ndarray]]:
    """One leaf as tensors.

    Args:
      path: of the leaf.
      leaf: an array, random keys, or a Python number; None to store the mask alone.
      mask: bool array of the leaf's shape.
      packed: store only what the mask keeps.

    Returns:
      The entry, ready for JSON, and the tensors by name.

    Raises:
      ValueError: a path of more than `DEPTH` levels, or no Unicode.

    Example:
      >>> entry, tensors = pack("w", np.array([5, 0, 7]), np.array([True, False, True]))
      >>> {name: tensor.tolist() for name, tensor in tensors.items()}
      {'w:mask': [5], 'w:kept': [5, 7]}
    """
    check_path(path)
    entry: Entry = {"path": path, "shape": [], "crc32": {}}
    tensors: dict[str, np.ndarray] = {}
    if mask is not None:
        entry |= {"shape": list(mask.shape), "kept": count(mask)}
        tensors[f"{path}:mask"] = np.packbits(mask, bitorder="little")
    if leaf is not None:
        array = host_array(path, leaf)
        entry |= {"shape": list(np.shape(leaf)), "dtype": array.dtype.name}
        if is_number(leaf):
            entry["number"] = type(leaf).__name__
        if is_key(leaf):
            entry |= {"key": str(jax.random.key_impl(leaf)), "dtype": str(leaf.dtype)}
        if mask is not None:
            entry["packed"] = packed
        masked = mask is not None and packed
        tensors |= {f"{path}:kept": array[mask]} if masked else {path: array}
    for name, tensor in tensors.items():
        entry["crc32"][name] = zlib.crc32(as_bytes(tensor).data)
    return entry, {name: _storable(tensor) for name, tensor in tensors.items()}


def _storable(array: np.ndarray) -> np.ndarray:
    if array.dtype.name in CODES:
        return array
    return as_bytes(array).reshape(*array.shape, array.dtype.itemsize)


# From tensors --------------------------------------------------------------------
def unpack(
    entry: Entry, tensors: Mapping[str, np.ndarray]
) -> tuple[Any, np.ndarray | None]:
    """The leaf and the mask that were packed; None in place of one that was not.

    Args:
      entry: of the leaf, checked.
      tensors: of the file, by name.

    Raises:
      ValueError: a tensor is missing, is damaged, or has another dtype or shape than
        the entry says.
    """
    path, shape = entry["path"], tuple(entry["shape"])
    if "key" in entry:
        return _keys(entry, tensors), None
    if "kept" not in entry:
        array = _tensor(entry, path, entry["dtype"], shape, tensors)
        if "number" not in entry:
            return array, None
        value = array.item()
        if type(value) is not _NUMBERS[entry["number"]]:
            raise ValueError(f"{path!r} is {value!r}, no {entry['number']}")
        return value, None
    size = math.prod(shape)
    bits = _tensor(entry, f"{path}:mask", "uint8", (-(-size // 8),), tensors)
    if size % 8 and bits[-1] >> (size % 8):
        raise ValueError(f"{path!r} has bits beyond its {size} weights in its mask")
    flat = np.unpackbits(bits, count=size, bitorder="little").view(bool)
    mask = flat.reshape(shape)
    if (kept := count(mask)) != entry["kept"]:
        raise ValueError(f"{path!r} keeps {kept} weights, its header {entry['kept']}")
    if "dtype" not in entry:
        return None, mask
    if entry["packed"]:
        values = _tensor(entry, f"{path}:kept", entry["dtype"], (kept,), tensors)
        array = np.zeros(shape, values.dtype)
        array[mask] = values
    else:
        array = _tensor(entry, path, entry["dtype"], shape, tensors)
        if others := nonzero(array[~mask]):
            raise ValueError(f"{path!r} has {others} weights that its mask prunes")
    if "budget" in entry:
        _check_budget(entry, mask)
    return array, mask


def _check_budget(entry: Entry, mask: np.ndarray) -> None:
    found, said = budget_of(kernel_of(entry), mask), entry["budget"]
    if found != said:
        path, found_, said_ = map(fields.short, (entry["path"], found, said))
        raise ValueError(f"{path} keeps {found_} edges, its header {said_}")


def _keys(entry: Entry, tensors: Mapping[str, np.ndarray]) -> jax.Array:
    path, shape = entry["path"], tuple(entry["shape"])
    words = tensors[path].shape[len(shape) :]
    data = _tensor(entry, path, "uint32", shape + words, tensors)
    keys = jax.random.wrap_key_data(jnp.asarray(data), impl=entry["key"])
    if describe(keys) != (said := f"{entry['dtype']} {shape}"):
        raise ValueError(f"{path!r} is {describe(keys)}, its header {said}")
    return keys


def _tensor(
    entry: Entry,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    tensors: Mapping[str, np.ndarray],
) -> np.ndarray:
    """A tensor of the file, once it is what its entry says."""
    if name not in tensors:
        raise ValueError(f"{name!r} is missing")
    kind, tensor = _NUMERIC[dtype], tensors[name]
    stored = f"{dtype} {shape}"
    if dtype not in CODES:
        stored = f"uint8 {(*shape, kind.itemsize)}"
    if describe(tensor) != stored:
        raise ValueError(f"{name!r} is {describe(tensor)}, its header says {stored}")
    if zlib.crc32(as_bytes(tensor).data) != entry["crc32"][name]:
        raise ValueError(f"the bytes of {name!r} have changed since they were written")
    return tensor.reshape(-1).view(kind).reshape(shape)


# Entries -------------------------------------------------------------------------
def check_path(path: str) -> None:
    """Refuses a path that no file holds: of too many levels, or no Unicode.

    Raises:
      ValueError: if so.
    """
    if (levels := path.count("/") + 1) > DEPTH:
        raise ValueError(
            f"expected a path of at most {DEPTH} levels, got {levels} in "
            f"{shortened(path, 200)!r}; a tree of parameters has fewer"
        )
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"expected a path that UTF-8 can hold, got {shortened(path, 200)!r} "
            f"({error.reason}); rename the parameter"
        ) from None


_SHAPE = fields.Field(
    "the sizes of an array",
    lambda v: fields.SIZES.fits(v) and len(v) <= _AXES and max(v, default=0) < _LARGEST,
)


def _one_of(names: Collection[str]) -> fields.Field:
    return fields.Field(
        f"one of {sorted(names)}", lambda v: type(v) is str and v in names
    )


_FIELDS = {
    "path": fields.TEXT,
    "shape": _SHAPE,
    "crc32": fields.Field(
        "a CRC-32 for each tensor",
        lambda v: type(v) is dict and all(map(fields.CHECKSUM.fits, v.values())),
    ),
    "dtype": fields.TEXT.optional,
    "key": fields.TEXT.optional,
    "number": _one_of(_NUMBERS).optional,
    "kept": fields.SIZE.optional,
    "packed": fields.TRUTH.optional,
    "split": _SHAPE.optional,
    "roles": fields.list_of(
        _one_of(("stack", "group", "in", "out", "spatial")), "a list of roles"
    ).optional,
    "actuators": fields.list_of(_one_of(("in", "out")), "a list of sides").optional,
    "budget": fields.SIZES.optional,
}
# A field of an entry, and those that come with it: (always, never).
_TOGETHER = {
    "packed": (("kept", "dtype"), ()),
    "split": (("roles",), ()),
    "roles": (("split",), ()),
    "actuators": (("roles", "kept", "packed"), ()),
    "budget": (("roles", "kept", "packed"), ()),
    "key": (("dtype",), ("kept", "number", "roles")),
    "number": (("dtype",), ("kept", "roles")),
}


def check_entry(entry: Any) -> None:
    """Checks that the fields of an entry are there, are of their kinds and go together.

    Raises:
      ValueError: they are not; the message names the field and the path.
    """
    fields.check(entry, _FIELDS, fields.entry_name(entry))
    check_path(entry["path"])
    path, has = shortened(entry["path"], 200), entry.keys()
    if not has & {"dtype", "kept"}:
        raise ValueError(f"{path!r} has neither 'dtype' nor 'kept'")
    if {"dtype", "kept"} <= has and "packed" not in has:
        raise ValueError(f"{path!r} has no 'packed'")
    for field in (name for name in _TOGETHER if name in has):
        needed, barred = _TOGETHER[field]
        if missing := [name for name in needed if name not in has]:
            raise ValueError(f"{path!r} has {field!r}, but no {missing[0]!r}")
        if wrong := [name for name in barred if name in has]:
            raise ValueError(f"{path!r} has both {field!r} and {wrong[0]!r}")
    if "dtype" in has and "key" not in has and entry["dtype"] not in _NUMERIC:
        raise ValueError(
            f"{path!r} has the dtype {fields.short(entry['dtype'])} in its header, "
            "which is no number"
        )
    if entry["crc32"].keys() != (names := _names(entry)):
        others = sorted(entry["crc32"].keys() ^ names)[:5]
        raise ValueError(f"{path!r} has others of its tensors in 'crc32': {others}")


def _names(entry: Entry) -> set[str]:
    """Names of the tensors of an entry."""
    path = entry["path"]
    names = {f"{path}:mask"} if "kept" in entry else set()
    if "dtype" in entry:
        names.add(f"{path}:kept" if entry.get("packed") else path)
    return names


def unpacked_bytes(entry: Entry) -> int:
    """Bytes of memory of a checked entry's leaf and mask."""
    dtype = entry.get("dtype", "")
    size = _NUMERIC[dtype].itemsize if dtype in _NUMERIC else 0
    return math.prod(entry["shape"]) * (size + ("kept" in entry))


def kernel_of(entry: Entry) -> Kernel:
    """The kernel of a checked entry, with its shape and axes and nothing else.

    Raises:
      ValueError: no kernel has such axes.
    """
    path, shape = entry["path"], tuple(entry["shape"])
    split, roles = tuple(entry["split"]), tuple(entry["roles"])
    if len(split) != len(roles) or math.prod(split) != math.prod(shape):
        raise ValueError(f"{path!r} of {shape} has axes {split} in roles {roles}")
    groups = math.prod(n for n, r in zip(split, roles, strict=True) if r == "group")
    return Kernel(path, shape, split=split, roles=roles, groups=groups)


def budget_of(kernel: Kernel, mask: np.ndarray) -> list[int]:
    """Kept edges of each stack slice, row-major.

    Example:
      >>> kernel = Kernel("w", (2, 3), stack=(0,), fan_in=(1,))
      >>> budget_of(kernel, np.array([[True, False, True], [True, True, True]]))
      [2, 3]
    """
    window = tuple(i for i, role in enumerate(kernel.roles) if role == "spatial")
    edges = np.any(mask.reshape(kernel.split), axis=window)
    counts = edges.sum(axis=kernel.axes("group", "in", "out"), dtype=np.int64)
    return counts.ravel().tolist()
