"""Compares what a file holds with a model, and puts its values into a tree.

    leaves of a tree   kind, dtype and shape
    masks              shape
    units              shape, roles of the axes, actuators, masks of what is selected

Each of these facts is put into words, by path, for the file and for the model. All
differences are found before anything is placed on a device or returned.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbjax import adapters
from bbjax.files.container import Loaded
from bbjax.files.encoding import OTHER, describe, is_number
from bbjax.model.checks import meant
from bbjax.model.kernel import Kernel
from bbjax.model.leaves import Leaves, leaves_by_path
from bbjax.model.text import printable, shortened
from bbjax.model.units import Units

Facts = dict[str, dict[str, str]]


def _refuse_misfits(
    there: Facts,
    here: Facts,
    needed: Collection[str],
    what: str,
    name: str,
    remedy: str = "",
) -> None:
    """Refuses a file that does not fit: an error with one line a path, as far as fits.

    A path is listed if it is `needed` and not in the file, if it is only in the file,
    or if a fact differs: the first one, since the next ones may follow from it.
    """
    found = [(path, _MISSING) for path in needed if path not in there]
    for path, facts in there.items():
        if path not in here:
            found.append((path, _EXTRA))
            continue
        both = [(words, here[path].get(fact, words)) for fact, words in facts.items()]
        unlike = [(path, f"{a} in the file, {b} here") for a, b in both if a != b]
        found += unlike[:1]
    if found:
        lines = _lines(found, here)
        raise ValueError(
            f"expected {what}, got {len(found)} difference{'s' * (len(found) > 1)}; "
            f"load {name!r} for the model it was saved from{remedy}:\n  "
            + "\n  ".join(lines)
        )


_MISSING, _EXTRA = "missing in the file", "only in the file"
_ROOM = 1200  # characters of all lines, at most
_LINE = 300  # of one


def _lines(found: Sequence[tuple[str, str]], here: Facts) -> list[str]:
    """As many differences as there is room for, in words, and how many are left."""
    lines: list[str] = []
    for path, words in found:
        question = meant(path, here) if words == _EXTRA else ""
        line = printable(f"{shortened(path, _LINE // 2)}: {words}{question}")
        line = shortened(line, _LINE)
        if sum(map(len, lines)) + len(line) > _ROOM:
            return [*lines, f"... and {len(found) - len(lines)} more"]
        lines.append(line)
    return lines


# Trees ---------------------------------------------------------------------------
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


def fit(
    values: Mapping[str, Any], like: Any, name: str, *, shrunk: bool = False
) -> Any:
    """A tree like another one, with the values of a file.

    Args:
      values: by path.
      like: tree of arrays, `ShapeDtypeStruct`s, numbers; other leaves stay.
      name: of the file.
      shrunk: whether arrays may have fewer entries along their axes. Layers of NNX
        modules then take the sizes of their arrays.

    Raises:
      ValueError: the two differ; the differences are listed.

    Example:
      >>> fit({"0": np.ones(2)}, (np.zeros(2),), "file")
      (array([1., 1.]),)
      >>> fit({"0": np.ones(2)}, (np.zeros(3),), "file", shrunk=True)
      (array([1., 1.]),)
    """
    tree = named_leaves(like)
    leaves = tree.named()
    there = {path: {"leaf": describe(value)} for path, value in values.items()}
    here = {path: {"leaf": _wanted(leaf)} for path, leaf in leaves.items()}
    needed = [path for path, facts in here.items() if facts["leaf"] != OTHER]
    smaller = [p for p in there.keys() & here.keys() if _smaller(values[p], leaves[p])]
    for path in smaller if shrunk else ():
        there[path] = here[path]
    what = "parameters like these" + " or smaller ones" * shrunk
    remedy = "; pass shrunk=True for a model of bb.shrink" * (not shrunk)
    _refuse_misfits(there, here, needed, what, name, remedy if smaller else "")
    for path, leaf in leaves.items():
        tree.put_at(path, _placed(values.get(path, leaf), leaf))
    nnx = adapters.loaded("nnx")
    made = tree.tree()
    if shrunk and nnx is not None:
        nnx.resize(made)
    return made


def _smaller(value: Any, leaf: Any) -> bool:
    """Whether an array is of the same kind as a leaf, and smaller."""
    words = describe(leaf)
    if words in (OTHER, describe(value)) or words != _wanted(leaf):
        return False
    if is_number(value) or is_number(leaf) or value.dtype != leaf.dtype:
        return False
    mine, its = tuple(value.shape), tuple(leaf.shape)
    return len(mine) == len(its) and all(map(operator.le, mine, its))


def _wanted(leaf: object) -> str:
    words = describe(leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct) and isinstance(leaf.dtype, np.dtype):
        # JAX would hold the leaf with half its bits.
        if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            return f"{words} without the option jax_enable_x64"
    return words


def _placed(value: Any, leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return value
    # If JAX placed an array by itself, that is, without committing it to a device, the
    # array that is loaded for it is not committed, either.
    bound = isinstance(leaf, jax.ShapeDtypeStruct) or getattr(leaf, "committed", True)
    if bound and leaf.sharding is not None:
        return jax.device_put(value, leaf.sharding)
    return jnp.asarray(value)


def nested(values: Mapping[str, object], name: str) -> Any:
    """Nested dicts by path; a tree that is a single leaf, as that leaf.

    Raises:
      ValueError: a path is a leaf and the beginning of others.

    Example:
      >>> nested({"mlp/up": 1, "mlp/down": 2, "out": 3}, "file")
      {'mlp': {'up': 1, 'down': 2}, 'out': 3}
    """
    if list(values) == [""]:
        return values[""]
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = path.split("/")
        folder = tree
        for key in parents:
            folder = folder.setdefault(key, {})
            if not isinstance(folder, dict):
                break
        if not isinstance(folder, dict) or last in folder:
            raise ValueError(
                f"expected paths that nest as dicts, got {shortened(path, 300)!r} and "
                "another, of which one is a leaf and the beginning of the other; pass "
                f"`like` to load {name!r} into its own tree"
            )
        folder[last] = value
    return tree


# Masks and units -----------------------------------------------------------------
def fit_masks(found: Loaded, like: Any, name: str) -> None:
    """Refuses masks that are not for `like`: units, masks by path, or parameters.

    Raises:
      ValueError: the two differ; the differences are listed.
    """
    there = _facts(found.masks, found.header.kernels, found.header.actuators)
    if isinstance(like, Units):
        here, what, needed = _facts_of(like), "units", list(chosen(like))
    else:
        here = _facts(dict(leaves_by_path(like)[0]))
        masks = _is_masks(like)
        what, needed = ("masks", list(here)) if masks else ("parameters", [])
    _refuse_misfits(there, here, needed, f"masks that fit these {what}", name)


def fit_units(found: Loaded, units: Units, name: str) -> None:
    """Refuses parameters of other kernels than these.

    Raises:
      ValueError: a kernel is missing or has another shape, or other roles or actuators
        where the file holds them, or is selected and has no mask; these are listed.
    """
    kernels = {path: value for path, value in found.params.items() if path in units}
    there = _facts(kernels, found.header.kernels, found.header.actuators)
    for path in there.keys() - found.masks.keys():
        there[path]["mask"] = "without a mask"
    here, what = _facts_of(units), "the kernels of these units"
    _refuse_misfits(there, here, units.paths, what, name)


def chosen(units: Units) -> Mapping[str, tuple[str, ...]]:
    """Actuators of each selected kernel, by path; none if nothing was selected."""
    return {} if units.selection is None else units.budgeted


def _facts_of(units: Units) -> Facts:
    kernels = {kernel.path: kernel for kernel in units.kernels}
    facts = _facts(kernels, kernels, chosen(units))
    for path in chosen(units):
        facts[path]["mask"] = "selected"
    return facts


def _facts(
    arrays: Mapping[str, Any],
    kernels: Mapping[str, Kernel] | None = None,
    actuators: Mapping[str, tuple[str, ...]] | None = None,
) -> Facts:
    """Facts about whatever has a shape; what is not known is left out."""
    facts = {p: {"shape": f"shape {np.shape(array)}"} for p, array in arrays.items()}
    for path, kernel in (kernels or {}).items():
        axes = f"axes {list(kernel.split)} {list(kernel.roles)}"
        facts.get(path, {})["axes"] = axes
    for path, sides in (actuators or {}).items():
        facts.get(path, {})["actuators"] = f"actuators {tuple(sorted(sides))}"
    return facts


def _is_masks(like: object) -> bool:
    if not isinstance(like, Mapping):
        return False
    return all(str(getattr(mask, "dtype", "")) == "bool" for mask in like.values())
