"""Arrays as entries of a file and back, bit for bit; masked ones without their zeros.

A leaf at `path` becomes one or two tensors and an entry that describes them:

    path          the array, all of it, C order
    path:mask     its mask: uint8, ceil(weights / 8) bytes, C order, lowest bit first
    path:kept     its kept values in C order, in place of the whole array

so that a kernel of b bytes per weight takes `density + 1 / (8 b)` of a dense one.
dtypes that the container has no name for (int4, complex, most float8) are stored as
their bytes, with one more axis; random keys as their key data. The entry keeps the
dtype and, for each tensor, the CRC-32 of its bytes: damage is noticed where it is.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.model.checks import count

Entry = dict[str, Any]
Tensors = Mapping[str, Mapping[str, Any]]

# What safetensors calls the dtypes that all its releases since 0.5 know.
CODES = {
    **{"bool": "BOOL", "bfloat16": "BF16", "float16": "F16", "float32": "F32"},
    **{"float64": "F64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
    **{"int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"},
    **{"uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64"},
}
_NUMBERS = {kind.__name__: kind for kind in (bool, int, float, complex)}
OTHER = "no array"


# Leaves --------------------------------------------------------------------------
def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of random keys (`jax.random.key`)."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def is_number(leaf: Any) -> bool:
    """Whether a leaf is a number of Python."""
    return type(leaf) in _NUMBERS.values()


def describe(leaf: Any) -> str:
    """Kind and shape of a leaf in words: equal where one leaf can stand for another.

    Example:
      >>> describe(np.ones((2, 3), np.float16)), describe(1.0), describe(max)
      ('float16 (2, 3)', 'a Python float', 'no array')
    """
    if is_number(leaf):
        return f"a Python {type(leaf).__name__}"
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return OTHER
    return f"{getattr(leaf.dtype, 'name', leaf.dtype)} {tuple(leaf.shape)}"


def described(entry: Entry) -> str:
    """The same words for the leaf that an entry stands for.

    Example:
      >>> described(pack("w", np.ones((2, 3), np.float16))[0])
      'float16 (2, 3)'
    """
    if "number" in entry:
        return f"a Python {entry['number']}"
    return f"{entry['dtype']} {tuple(entry['shape'])}"


def host_array(path: str, leaf: Any) -> np.ndarray:
    """A leaf as numpy has it, in C order; random keys as their key data.

    Raises:
      TypeError: a dtype that is no number.
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


# To tensors ----------------------------------------------------------------------
def pack(
    path: str, leaf: Any, mask: np.ndarray | None = None, packed: bool = True
) -> tuple[Entry, dict[str, np.ndarray]]:
    """One leaf as tensors.

    Args:
      path: of the leaf.
      leaf: an array, random keys, or a number of Python.
      mask: bool array of the leaf's shape.
      packed: store only what the mask keeps.

    Returns:
      The entry, ready for JSON, and the tensors by name.

    Example:
      >>> entry, tensors = pack("w", np.array([5, 0, 7]), np.array([True, False, True]))
      >>> {name: tensor.tolist() for name, tensor in tensors.items()}
      {'w:mask': [5], 'w:kept': [5, 7]}
    """
    array = host_array(path, leaf)
    entry: Entry = {"path": path, "shape": list(array.shape), "dtype": array.dtype.name}
    if is_key(leaf):
        entry |= {"key": str(jax.random.key_impl(leaf)), "dtype": str(leaf.dtype)}
        entry["shape"] = list(leaf.shape)
    if is_number(leaf):
        entry["number"] = type(leaf).__name__
    tensors = {path: array}
    if mask is not None:
        entry |= {"kept": count(mask), "packed": packed}
        tensors = {f"{path}:mask": np.packbits(mask, bitorder="little")}
        tensors |= {f"{path}:kept": array[mask]} if packed else {path: array}
    entry["crc32"] = {name: zlib.crc32(_bytes(t).data) for name, t in tensors.items()}
    return entry, {name: _storable(tensor) for name, tensor in tensors.items()}


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _storable(array: np.ndarray) -> np.ndarray:
    if array.dtype.name in CODES:
        return array
    return _bytes(array).reshape(*array.shape, array.dtype.itemsize)


# From tensors --------------------------------------------------------------------
def unpack(entry: Entry, tensors: Tensors) -> tuple[Any, np.ndarray | None]:
    """The leaf and the mask that `pack` was given.

    Args:
      entry: as `pack` made it.
      tensors: of the file by name: `dtype` (code), `shape` and `data` (bytes).

    Raises:
      ValueError: a tensor that is missing, of another kind or shape than the entry
        says, or damaged.
      KeyError, TypeError: the entry is not one that `pack` made.
    """
    path, shape, crcs = entry["path"], tuple(entry["shape"]), entry["crc32"]
    if "key" in entry:
        return _keys(entry, tensors), None
    if "kept" not in entry:
        array = _tensor(path, entry["dtype"], shape, crcs, tensors)
        if "number" not in entry:
            return array, None
        return _NUMBERS[entry["number"]](array.item()), None
    size = math.prod(shape)
    bits = _tensor(f"{path}:mask", "uint8", (-(-size // 8),), crcs, tensors)
    flat = np.unpackbits(bits, count=size, bitorder="little").view(bool)
    mask = flat.reshape(shape)
    if (kept := count(mask)) != entry["kept"]:
        raise ValueError(f"{path!r} keeps {kept} weights, its header {entry['kept']}")
    if entry["packed"]:
        values = _tensor(f"{path}:kept", entry["dtype"], (kept,), crcs, tensors)
        array = np.zeros(shape, values.dtype)
        array[mask] = values
    else:
        array = _tensor(path, entry["dtype"], shape, crcs, tensors)
        if others := nonzero(array[~mask]):
            raise ValueError(f"{path!r} has {others} weights that its mask prunes")
    return array, mask


def nonzero(values: np.ndarray) -> int:
    """Number of values that are not 0; NaN is not."""
    return int(np.count_nonzero(values != np.zeros((), values.dtype)))


def _keys(entry: Entry, tensors: Tensors) -> jax.Array:
    path = entry["path"]
    shape = (*entry["shape"], *tensors[path]["shape"][len(entry["shape"]) :])
    data = _tensor(path, "uint32", shape, entry["crc32"], tensors)
    keys = jax.random.wrap_key_data(jnp.asarray(data), impl=entry["key"])
    if describe(keys) != described(entry):
        raise ValueError(f"{path!r} is {describe(keys)}, its header {described(entry)}")
    return keys


def _tensor(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    crcs: Mapping[str, int],
    tensors: Tensors,
) -> np.ndarray:
    """A tensor of the file, compared with what the header says about it."""
    if name not in tensors:
        raise ValueError(f"{name!r} is missing")
    kind, tensor = np.dtype(dtype), tensors[name]
    if not _is_numeric(kind):
        raise ValueError(f"{name!r} is said to be of {dtype}")
    code, stored = CODES.get(dtype), shape
    if code is None:
        code, stored = "U8", (*shape, kind.itemsize)
    found = (tensor["dtype"], tuple(tensor["shape"]))
    if found != (code, stored):
        raise ValueError(f"{name!r} is {found}, its header says {(code, stored)}")
    if zlib.crc32(tensor["data"]) != crcs[name]:
        raise ValueError(f"the bytes of {name!r} have changed since they were written")
    return np.frombuffer(tensor["data"], kind).reshape(shape)
