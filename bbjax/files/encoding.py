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
from collections.abc import Mapping
from typing import Any, Required, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.model.checks import count
from bbjax.model.kernel import Kernel

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
_ROLES = {"stack", "group", "in", "out", "spatial"}


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

    Example:
      >>> entry, tensors = pack("w", np.array([5, 0, 7]), np.array([True, False, True]))
      >>> {name: tensor.tolist() for name, tensor in tensors.items()}
      {'w:mask': [5], 'w:kept': [5, 7]}
    """
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
      entry: of the leaf.
      tensors: of the file, by name.

    Raises:
      ValueError: a tensor is missing, is damaged, or has another dtype or shape than
        the entry says.
      KeyError, TypeError: `pack` did not make this entry.
    """
    path, shape = entry["path"], tuple(entry["shape"])
    if "key" in entry:
        return _keys(entry, tensors), None
    if "kept" not in entry:
        array = _tensor(entry, path, entry["dtype"], shape, tensors)
        if "number" not in entry:
            return array, None
        return _NUMBERS[entry["number"]](array.item()), None
    size = math.prod(shape)
    bits = _tensor(entry, f"{path}:mask", "uint8", (-(-size // 8),), tensors)
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
    return array, mask


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
    kind, tensor = np.dtype(dtype), tensors[name]
    if not _is_numeric(kind):
        raise ValueError(f"{name!r} has the dtype {dtype} in its header, not a number")
    stored = f"{dtype} {shape}"
    if dtype not in CODES:
        stored = f"uint8 {(*shape, kind.itemsize)}"
    if describe(tensor) != stored:
        raise ValueError(f"{name!r} is {describe(tensor)}, its header says {stored}")
    if zlib.crc32(as_bytes(tensor).data) != entry["crc32"][name]:
        raise ValueError(f"the bytes of {name!r} have changed since they were written")
    return tensor.reshape(-1).view(kind).reshape(shape)


# Entries -------------------------------------------------------------------------
def check_entry(entry: Entry) -> None:
    """Checks that the sizes and names of an entry are numbers and strings.

    Raises:
      ValueError: one is not.
      KeyError, TypeError: this is no entry, or one without path or shape.
    """
    sizes = [*entry["shape"], *entry.get("split", ()), *entry.get("budget", ())]
    names = [*entry.get("roles", ()), *entry.get("actuators", ())]
    if not all(type(n) is int and n >= 0 for n in (*sizes, entry.get("kept", 0))):
        raise ValueError(f"sizes of {entry['path']!r} are not whole numbers")
    if not all(type(name) is str for name in (*names, entry["path"])):
        raise ValueError(f"names of {entry['path']!r} are not strings")


def kernel_of(entry: Entry) -> Kernel:
    """The kernel of an entry, with its shape and axes and nothing else.

    Raises:
      ValueError: no kernel has such axes.
    """
    path, shape = entry["path"], tuple(entry["shape"])
    split, roles = tuple(entry["split"]), tuple(entry["roles"])
    if len(split) != len(roles) or not _ROLES.issuperset(roles):
        raise ValueError(f"{path!r} has axes {split} in roles {roles}")
    if math.prod(split) != math.prod(shape):
        raise ValueError(f"{path!r} of {shape} has axes {split}")
    groups = math.prod(n for n, r in zip(split, roles, strict=True) if r == "group")
    return Kernel(path, shape, split=split, roles=roles, groups=groups)
