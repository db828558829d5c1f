"""Models as files: parameters without their pruned weights.

A model file is a container (see `bbjax.files.container`) with an entry and one or two
tensors for each leaf (see `bbjax.files.encoding`). Other readers of safetensors find
the leaves that have no mask under their paths; all leaves, if nothing is packed. The
format is described in `README.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from bbjax.files import container, encoding, matching
from bbjax.files.atomic import File
from bbjax.files.container import Loaded
from bbjax.files.encoding import Entry, describe
from bbjax.model.checks import Masks, check_values, meant, on_host, refuse_stray
from bbjax.model.units import Units


# Saving --------------------------------------------------------------------------
def save(
    file: File,
    params: Any,
    masks: Masks | None = None,
    units: Units | None = None,
    extra: Mapping[str, object] | None = None,
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
      TypeError: masks that are none, a leaf that is no array of numbers, or is traced.
      ValueError: masks or units of other parameters, pruned weights that are not 0, a
        selected kernel without a mask, `extra` that JSON would change, two leaves of
        one name, a path of more than 256 levels, or no regular file.
      FileNotFoundError: the folder of the file is missing.
      OSError: not all could be written; the old file is still there.

    Example:
      >>> import io
      >>> import jax.numpy as jnp
      >>> file, mask = io.BytesIO(), np.array([[True, False, True]])
      >>> save(
      ...     file, {"w": jnp.array([[1.0, 0.0, 3.0]])}, {"w": mask}, extra={"step": 7}
      ... )
      >>> _ = file.seek(0)
      >>> loaded = load(file)
      >>> loaded.params["w"].tolist(), loaded.masks["w"].tolist(), loaded.extra
      ([[1.0, 0.0, 3.0]], [[True, False, True]], {'step': 7})
    """
    named = matching.named_leaves(params).named()
    leaves = {p: leaf for p, leaf in named.items() if describe(leaf) != encoding.OTHER}
    if named and not leaves:
        raise ValueError(
            f"expected parameters with arrays or numbers, got {type(params).__name__} "
            "without any; pass the tree itself (small.params of bb.shrink)"
        )
    check_values(leaves, "parameters")
    kept = {} if masks is None else on_host(masks)
    _check_masks(leaves, kept)
    if units is not None:
        _check_shapes(leaves, {k.path: k.shape for k in units.kernels}, "kernel")
        _check_selection(kept, units)
    stored = []
    for path, leaf in sorted(leaves.items()):
        entry, tensors = encoding.pack(path, leaf, kept.get(path), packed)
        if units is not None and path in units:
            _add_kernel(entry, units, kept.get(path))
        stored.append((entry, tensors))
    container.write(file, container.MODEL, stored, _checked_extra(extra))


def _check_shapes(
    leaves: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], what: str
) -> None:
    wrong = []
    for path, shape in shapes.items():
        leaf: Any = leaves.get(path)
        no_array = leaf is None or encoding.is_number(leaf) or encoding.is_key(leaf)
        if no_array or leaf.shape != shape:
            got = f"no parameter{meant(path, leaves)}"
            got = got if leaf is None else describe(leaf)
            wrong.append(f"{path!r}: {what} of {shape}, {got}")
    if wrong:
        raise ValueError(
            f"expected a parameter of the same shape for every {what}; differences: "
            + "; ".join(wrong)
        )


def _check_masks(leaves: Mapping[str, Any], masks: Mapping[str, np.ndarray]) -> None:
    _check_shapes(leaves, {p: mask.shape for p, mask in masks.items()}, "mask")
    counts = {}
    for path, mask in masks.items():
        pruned = encoding.host_array(path, leaves[path])[~mask]
        counts[path] = encoding.nonzero(pruned), pruned.size
    refuse_stray(counts)


def _check_selection(masks: Mapping[str, np.ndarray], units: Units) -> None:
    chosen = matching.chosen(units) if masks else {}
    if missing := [path for path in chosen if path not in masks]:
        raise ValueError(
            f"expected a mask for every selected kernel, got none for {missing}; pass "
            "all of bb.masks(opt_state), or units that select what is pruned"
        )


def _add_kernel(entry: Entry, units: Units, mask: np.ndarray | None) -> None:
    """Adds to an entry its kernel's axes and, with a mask, actuators and budget."""
    kernel = units[entry["path"]]
    entry |= {"split": list(kernel.split), "roles": list(kernel.roles)}
    if mask is None:
        return
    entry["budget"] = encoding.budget_of(kernel, mask)
    if kernel.path in units.budgeted:
        entry["actuators"] = list(units.budgeted[kernel.path])


def _checked_extra(
    extra: Mapping[str, object] | None,
) -> Mapping[str, object] | None:
    try:
        same = json.loads(json.dumps(extra, allow_nan=False)) == extra
        reason = "tuples, or keys that are no strings, would change"
        if not _nests(extra, encoding.DEPTH):
            same, reason = False, f"more than {encoding.DEPTH} levels"
    except (TypeError, ValueError, RecursionError) as error:
        same, reason = False, str(error)
    if not same or not isinstance(extra, dict | None):
        raise ValueError(
            f"expected extra as a dict that JSON gives back as it is, got "
            f"{type(extra).__name__} ({reason}); use str keys, lists, str, int, float, "
            "bool and None, and put arrays into params"
        )
    return extra


def _nests(value: object, levels: int) -> bool:
    """Whether a value has at most so many levels, which every reader can follow."""
    if not isinstance(value, dict | list):
        return True
    inside = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_nests(one, levels - 1) for one in inside)


# Loading -------------------------------------------------------------------------
def load(
    file: File,
    like: Any = None,
    units: Units | None = None,
    *,
    require_masks: bool = False,
    shrunk: bool = False,
    max_bytes: int | None = None,
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
        the file holds them, roles and actuators; kernels chosen by `select` must have a
        mask.
      require_masks: refuse a file without masks.
      shrunk: `like` is the model before `bb.shrink`, and the file holds the smaller
        one. Arrays may then be smaller than those of `like`. Layers of NNX modules take
        the sizes of their arrays. Equinox modules compute with their arrays; functions
        of linen modules take them within `bb.linen.resized`.
      max_bytes: of memory that all arrays and masks may take. Pruned weights take none
        in a file, so that a small file may become large. None: 2 GiB, or four times the
        size of the file where that is more.

    Returns:
      `Loaded`. Without `like` the parameters are nested dicts by path, of numpy arrays:
      no device is touched; JAX takes them as they are.

    Raises:
      ValueError: not a file of `save`, a damaged one, one of a newer version, one that
        would take more than `max_bytes`, or one that does not fit; the message lists
        the differences. There is no other error for what a file holds.

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
    name, found = container.read(
        file, "a file as bb.save writes it", require_masks, max_bytes
    )
    if found.masks.keys() - found.params.keys():
        raise ValueError(
            f"expected a file with parameters, got {name!r} with masks alone; "
            "bb.load_masks reads it"
        )
    if units is not None:
        matching.fit_units(found, units, name)
    if shrunk and like is None:
        raise ValueError(
            "expected like= with shrunk=True, got None; pass the model before bb.shrink"
        )
    if like is None:
        return found._replace(params=matching.nested(found.params, name))
    params = matching.fit(found.params, like, name, shrunk=shrunk)
    return found._replace(params=params)
