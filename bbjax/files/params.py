"""Pruned parameters as files: safetensors, small where the weights are sparse.

    header (JSON in the metadata, key "bbjax")   format, versions, extra, an entry for
                                                 each leaf, CRC-32 of all that
    tensors                                      see `bbjax.files.encoding`

so that any reader of safetensors finds the unpruned leaves by their paths (all leaves,
if nothing is packed), and reading never runs code: there is no pickle. A file is
written beside its place and moved there. What is read is checked as a whole, against
its checksums, `units` and `like`, before anything is returned. The format is described
in `FILES.md`. Reference: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bbjax.files.encoding import (
    OTHER,
    Entry,
    describe,
    host_array,
    is_key,
    is_number,
    nonzero,
    pack,
    unpack,
)
from bbjax.files.masks import (
    File,
    kernel_of,
    read,
    reading,
    refuse_newer,
    roles_of,
    write,
)
from bbjax.files.matching import check_parameters, fit, fit_units, named_leaves, nested
from bbjax.model.checks import Masks, check_values, on_host
from bbjax.model.units import Kernel, Units
from bbjax.model.version import __version__

FORMAT = "bbjax.params"
VERSION = 1

_KEY = "bbjax"
_WHAT = "a file as bb.save writes it"
_REMEDY = "load a whole copy, or save the parameters again"


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


# Saving --------------------------------------------------------------------------
def save(
    file: File,
    params: Any,
    masks: Masks | None = None,
    units: Units | None = None,
    extra: Mapping[str, Any] | None = None,
    *,
    packed: bool = True,
) -> None:
    """Writes parameters, and the masks that pruned them, to a safetensors file.

    Args:
      file: a path (the name is taken as it is; `.safetensors` is the custom), or a
        binary file open for writing. A path holds the old file or the new one, never a
        part.
      params: any tree of arrays of numpy or JAX (sharded ones must be within reach of
        this process), random keys and numbers; an `nnx.Module`. Other leaves, such as
        the functions in an Equinox module, are no parameters and stay out.
      masks: by path, bool arrays of the parameter's shape, as `bb.masks` and `bb.prune`
        return them. What they prune must be 0 already.
      units: from `bb.trace`, to write down which axes are inputs and outputs, what was
        selected and how many edges were kept; `load` compares them.
      extra: anything that JSON holds, by name.
      packed: store the kept values of masked parameters and one bit per weight. Else
        the whole arrays, for other readers, and the same bits.

    Raises:
      ImportError: safetensors is not installed.
      TypeError: masks that are none, a leaf that is no array of numbers, or is traced.
      ValueError: masks or units of other parameters, pruned weights that are not 0, a
        selected kernel without a mask, `extra` that JSON would change, or two leaves of
        one name.

    Example:
      >>> import io
      >>> file, mask = io.BytesIO(), np.array([[True, False, True]])
      >>> save(
      ...     file, {"w": jnp.array([[1.0, 0.0, 3.0]])}, {"w": mask}, extra={"step": 7}
      ... )
      >>> _ = file.seek(0)
      >>> loaded = load(file)
      >>> loaded.params["w"].tolist(), loaded.masks["w"].tolist(), loaded.extra
      ([[1.0, 0.0, 3.0]], [[True, False, True]], {'step': 7})
    """
    safetensors = _safetensors()
    named = named_leaves(params).named()
    leaves = {path: leaf for path, leaf in named.items() if describe(leaf) != OTHER}
    if named and not leaves:
        raise ValueError(
            f"expected parameters with arrays or numbers, got {type(params).__name__} "
            "without any; pass the tree itself (small.params of bb.shrink)"
        )
    check_values(leaves, "parameters")
    kept = {} if masks is None else on_host(masks)
    _check_masks(leaves, kept)
    if units is not None:
        check_parameters(leaves, units)
        _check_selection(kept, units)
    entries: list[Entry] = []
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in sorted(leaves.items()):
        entry, stored = pack(path, leaf, kept.get(path), packed)
        if twice := sorted(stored.keys() & {*tensors, "__metadata__"}):
            raise ValueError(
                f"expected names of their own for all tensors, got {twice} again for "
                f"{path!r}; rename the parameter"
            )
        if units is not None and path in units:
            entry |= _kernel(units, path, kept.get(path))
        entries.append(entry)
        tensors |= stored
    text = _header_text(entries, _checked_extra(extra))
    write(file, safetensors.numpy.save(tensors, {_KEY: text}))


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "expected the package safetensors for bb.save and bb.load, got none; "
            'install it: pip install "bbjax[files]"'
        ) from error
    return safetensors


def _check_masks(leaves: Mapping[str, Any], masks: Mapping[str, np.ndarray]) -> None:
    wrong, left = [], []
    for path, mask in masks.items():
        leaf = leaves.get(path)
        if leaf is None or is_number(leaf) or is_key(leaf) or leaf.shape != mask.shape:
            got = "no parameter" if leaf is None else describe(leaf)
            wrong.append(f"{path!r}: mask of {mask.shape}, {got}")
        elif others := nonzero(host_array(path, leaf)[~mask]):
            left.append(f"{others} in {path!r}")
    if wrong:
        raise ValueError(
            "expected a parameter of the same shape for every mask; differences: "
            + "; ".join(wrong)
        )
    if left:
        raise ValueError(
            f"expected pruned weights to be 0, got others: {', '.join(left)}; save "
            "bb.apply_masks(params, masks)"
        )


def _check_selection(masks: Mapping[str, np.ndarray], units: Units) -> None:
    chosen = [] if units.selection is None or not masks else list(units.budgeted)
    if missing := [path for path in chosen if path not in masks]:
        raise ValueError(
            f"expected a mask for every selected kernel, got none for {missing}; pass "
            "all of bb.masks(opt_state), or units that select what is pruned"
        )


def _kernel(units: Units, path: str, mask: np.ndarray | None) -> dict[str, Any]:
    """What an entry says about a kernel: roles; actuators and budget if masked."""
    if mask is None:
        return roles_of(units, path)
    kernel, actuators = units[path], units.budgeted.get(path)
    edges = np.asarray(kernel.edge_mask(jnp.asarray(mask)))
    budget = edges.sum(axis=kernel.axes("group", "in", "out"))
    chosen = {} if actuators is None else {"actuators": list(actuators)}
    return {**roles_of(units, path), **chosen, "budget": budget.ravel().tolist()}


def _checked_extra(extra: Any) -> Any:
    try:
        same = json.loads(json.dumps(extra, allow_nan=False)) == extra
        reason = "tuples, or keys that are no strings, would change"
    except (TypeError, ValueError, RecursionError) as error:
        same, reason = False, str(error)
    if not same or not isinstance(extra, dict | None):
        raise ValueError(
            f"expected extra as a dict that JSON gives back as it is, got "
            f"{type(extra).__name__} ({reason}); use str keys, lists, str, int, float, "
            "bool and None, and put arrays into params"
        )
    return extra


def _header_text(entries: list[Entry], extra: Any) -> str:
    header = {
        "format": FORMAT,
        "version": VERSION,
        "bbjax": __version__,
        "extra": extra,
        "entries": entries,
    }
    return _dump({**header, "crc32": zlib.crc32(_dump(header).encode())})


def _dump(header: Mapping[str, Any]) -> str:
    return json.dumps(header, sort_keys=True)


# Loading -------------------------------------------------------------------------
def load(
    file: File,
    like: Any = None,
    units: Units | None = None,
    *,
    require_masks: bool = False,
) -> Loaded:
    """Reads what `save` wrote: all of it, or nothing and an error.

    Args:
      file: a path, or a binary file open for reading.
      like: a tree to put the parameters into: their own, or one of
        `ShapeDtypeStruct`s (`jax.eval_shape`), or an `nnx.Module`. Paths, shapes and
        dtypes must be the same. Arrays come as numpy or JAX, and with the sharding,
        that the leaf has; leaves that are neither arrays nor numbers stay. It is not
        changed itself.
      units: from `bb.trace`: every kernel must be in the file with its shape and, where
        the file knows them, roles and actuators; kernels chosen by `select` must have a
        mask.
      require_masks: refuse a file without masks.

    Returns:
      `Loaded`. Without `like` the parameters are nested dicts by path, of numpy arrays:
      no device is touched; JAX takes them as they are.

    Raises:
      ImportError: safetensors is not installed.
      ValueError: not a file of `save`, a damaged one, one of a newer version, or one
        that does not fit; the message lists all differences.

    Example:
      >>> import io
      >>> file = io.BytesIO()
      >>> save(file, {"w": np.ones((2, 3))})
      >>> _ = file.seek(0)
      >>> load(file, like={"w": np.ones((2, 4)), "b": np.ones(4)})
      Traceback (most recent call last):
      ValueError: expected parameters like these, got 2 differences; ...
        b: missing in the file
        w: float64 (2, 3) in the file, float64 (2, 4) here
    """
    safetensors = _safetensors()
    name, data = read(file)
    with reading(name, _WHAT, _REMEDY, safetensors.SafetensorError):
        tensors = dict(safetensors.deserialize(data))
        header = _header(data)
        version = int(header["version"])
    refuse_newer(version, VERSION, header.get("bbjax"), "a file", name)
    with reading(name, _WHAT, _REMEDY):
        _check_header(header)
        entries = {entry["path"]: entry for entry in header["entries"]}
        _check_names(entries, tensors)
        found = {path: unpack(entry, tensors) for path, entry in entries.items()}
        about = _about(header, entries)
    masks = {path: mask for path, (_, mask) in found.items() if mask is not None}
    if require_masks and not masks:
        raise ValueError(
            f"expected a file with masks, got {name!r} without any; save the pruned "
            "parameters with masks=bb.masks(opt_state)"
        )
    if units is not None:
        fit_units(entries, units, name)
    values = {path: value for path, (value, _) in found.items()}
    params = nested(values, name) if like is None else fit(values, entries, like, name)
    return Loaded(params, masks, header["extra"], about)


def _header(data: bytes) -> dict[str, Any]:
    """Our header in that of the container, which has been checked as such."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    if _KEY not in metadata:
        raise ValueError(
            f"a safetensors file of someone else, with metadata {sorted(metadata)}; "
            "safetensors.numpy.load_file reads it"
        )
    header = json.loads(metadata[_KEY])
    if header["format"] != FORMAT:
        raise ValueError(f"its format is {header['format']!r}")
    return header


def _check_header(header: Mapping[str, Any]) -> None:
    rest = {key: value for key, value in header.items() if key != "crc32"}
    if zlib.crc32(_dump(rest).encode()) != header["crc32"]:
        raise ValueError("its header has changed since it was written")


def _check_names(entries: Mapping[str, Entry], tensors: Mapping[str, Any]) -> None:
    said = {name for entry in entries.values() for name in entry["crc32"]}
    if said != tensors.keys():
        raise ValueError(f"its header does not name {sorted(said ^ tensors.keys())}")


def _about(header: Mapping[str, Any], entries: Mapping[str, Entry]) -> Header:
    kept = {path: e["kept"] for path, e in entries.items() if "kept" in e}
    sizes = {
        path: int(np.prod(entries[path]["shape"], dtype=np.int64)) for path in kept
    }
    return Header(
        version=int(header["version"]),
        bbjax=str(header["bbjax"]),
        kept=kept,
        density={
            path: kept[path] / sizes[path] if sizes[path] else 1.0 for path in kept
        },
        actuators={
            path: tuple(e["actuators"])
            for path, e in entries.items()
            if "actuators" in e
        },
        budgets={
            path: tuple(e["budget"]) for path, e in entries.items() if "budget" in e
        },
        kernels={path: kernel_of(e) for path, e in entries.items() if "roles" in e},
    )
