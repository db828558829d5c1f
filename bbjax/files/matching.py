"""What a file holds, put into a tree of parameters or compared with units.

    leaves of `like`  ->  words for their kind and shape, compared with the file's
    values            ->  numpy, or JAX and where the leaf lies, as the leaf is
    units             ->  shape, roles of the axes, actuators, masks of what is selected

All differences are found before anything is placed on a device or returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax.files.encoding import OTHER, Entry, describe, described, is_number
from bbjax.files.masks import other_roles, refuse_misfits, roles_of
from bbjax.model.leaves import Leaves
from bbjax.model.units import Units


def named_leaves(tree: Any) -> Leaves:
    """Leaves of a tree, each with a path of its own.

    Raises:
      ValueError: two leaves of one path.

    Example:
      >>> named_leaves({"mlp": [1.0, 2.0]}).named()
      {'mlp/0': 1.0, 'mlp/1': 2.0}
    """
    leaves = Leaves.of(tree)
    if len(leaves.by_path) < len(leaves.leaves):
        paths = leaves.paths
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(
            f"expected one leaf for each path, got several at {twice}; rename the keys "
            "that contain '/'"
        )
    return leaves


# Trees ---------------------------------------------------------------------------
def fit(values: Mapping[str, Any], entries: Mapping[str, Entry], like: Any, name: str):
    """A tree like another one, with the values of a file.

    Args:
      values: of the file, by path.
      entries: what the file says about them, by path.
      like: tree of arrays, `ShapeDtypeStruct`s, numbers; other leaves stay.
      name: of the file.

    Raises:
      ValueError: the two differ; all differences are listed.

    Example:
      >>> from bbjax.files.encoding import pack
      >>> values = {"0": np.ones(2)}
      >>> fit(values, {"0": pack("0", values["0"])[0]}, (np.zeros(2),), "file")
      (array([1., 1.]),)
    """
    tree = named_leaves(like)
    leaves = tree.named()
    here = {path: describe(leaf) for path, leaf in leaves.items()}
    wanted = [path for path, words in here.items() if words != OTHER]
    found = [f"{p}: missing in the file" for p in wanted if p not in entries]
    for path, entry in entries.items():
        if path not in here:
            found.append(f"{path}: only in the file")
        elif here[path] != described(entry):
            found.append(f"{path}: {described(entry)} in the file, {here[path]} here")
        elif _too_wide(leaves[path]):
            found.append(f"{path}: {here[path]} needs the option jax_enable_x64")
    refuse_misfits(found, "parameters like these", name)
    for path, leaf in leaves.items():
        tree.put_at(path, _placed(values.get(path, leaf), leaf))
    return tree.tree()


def _too_wide(leaf: Any) -> bool:
    """Whether JAX would hold the leaf with half its bits."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return False
    if not isinstance(leaf.dtype, np.dtype):
        return False
    return jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype


def _placed(value: Any, leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return value
    # An array that JAX placed by itself may follow others to their devices: so may
    # what is loaded for it.
    bound = isinstance(leaf, jax.ShapeDtypeStruct) or getattr(leaf, "committed", True)
    if bound and leaf.sharding is not None:
        return jax.device_put(value, leaf.sharding)
    return jnp.asarray(value)


def nested(values: Mapping[str, Any], name: str) -> Any:
    """Nested dicts by path; a tree that is a single leaf, as that leaf.

    Raises:
      ValueError: a path is a leaf and the beginning of others.

    Example:
      >>> nested({"mlp/up": 1, "mlp/down": 2, "out": 3}, "file")
      {'mlp': {'up': 1, 'down': 2}, 'out': 3}
    """
    if list(values) == [""]:
        return values[""]
    ends = [(path, at) for path in values for at, c in enumerate(path) if c == "/"]
    if both := sorted({path[:at] for path, at in ends} & values.keys()):
        raise ValueError(
            f"expected paths that nest as dicts, got {both} as leaves and as the "
            f"beginning of others; pass `like` to load {name!r} into its own tree"
        )
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = path.split("/")
        folder = tree
        for key in parents:
            folder = folder.setdefault(key, {})
        folder[last] = value
    return tree


# Units ---------------------------------------------------------------------------
def fit_units(entries: Mapping[str, Entry], units: Units, name: str) -> None:
    """Refuses a file of other kernels than these.

    Raises:
      ValueError: a kernel is missing or has another shape, or other roles or actuators
        where the file knows them, or is selected and has no mask; all are listed.
    """
    found, chosen = [], units.budgeted if units.selection is not None else {}
    for path in units:
        entry = entries.get(path)
        if entry is None:
            found.append(f"{path}: missing in the file")
            continue
        shape, here = tuple(entry["shape"]), units[path].shape
        if shape != here:
            found.append(f"{path}: shape {shape} in the file, {here} here")
            continue
        if "roles" in entry:
            found += other_roles(entry, roles_of(units, path))
        if path in chosen and "kept" not in entry:
            found.append(f"{path}: without a mask in the file, selected here")
        elif path in chosen and "actuators" in entry:
            there, mine = tuple(entry["actuators"]), chosen[path]
            if sorted(there) != sorted(mine):
                found.append(f"{path}: actuators {there} in the file, {mine} here")
    refuse_misfits(found, "the kernels of these units", name)


def check_parameters(leaves: Mapping[str, Any], units: Units) -> None:
    """Refuses parameters that the units are not of.

    Raises:
      ValueError: a kernel without a parameter of its path and shape; all are listed.
    """
    wrong = []
    for path in units:
        shape, leaf = units[path].shape, leaves.get(path)
        if leaf is None or is_number(leaf) or tuple(jnp.shape(leaf)) != shape:
            got = "none" if leaf is None else describe(leaf)
            wrong.append(f"{path!r}: kernel of {shape}, {got}")
    if wrong:
        raise ValueError(
            "expected a parameter of the same shape for every kernel of the units; "
            "differences: " + "; ".join(wrong)
        )
