"""Leaves of a tree by path, to read and replace some of them.

Parameters, updates and gradients are trees of any kind (dicts, NNX states, Equinox
modules). Kernels have the path of their leaf in such a tree. Leaves that are not
replaced stay the very same objects. An NNX module, alone or inside a tree, is replaced
by its state, in which an array that is used in several places is one leaf; afterwards
the module is built again from the state.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import PyTreeDef

from bbjax import adapters
from bbjax.model.checks import meant
from bbjax.model.kernel import Kernel


@dataclasses.dataclass
class Leaves:
    """Leaves of a tree by path."""

    paths: list[str]
    leaves: list[Any]
    structure: PyTreeDef
    rebuild: Callable[[Any], Any]

    @classmethod
    def of(cls, tree: Any) -> Leaves:
        """The leaves of a tree; subtrees without leaves are skipped."""
        tree, rebuild = opened(tree)
        keyed, structure = leaves_by_path(tree)
        paths, leaves = [path for path, _ in keyed], [leaf for _, leaf in keyed]
        return cls(paths, leaves, structure, rebuild)

    @functools.cached_property
    def by_path(self) -> dict[str, int]:
        """The number of each leaf; of the last one if a path occurs several times."""
        return {path: number for number, path in enumerate(self.paths)}

    def named(self) -> dict[str, Any]:
        """The leaves by path."""
        return dict(zip(self.paths, self.leaves, strict=True))

    def get(self, kernel: Kernel, what: str) -> Any:
        """The leaf of a kernel; `what` names the tree in messages.

        Raises:
          ValueError: there is none, or it has another shape.
        """
        if kernel.path not in self.by_path:
            near = [p for p in self.by_path if p.rsplit("/", 1)[-1] in kernel.path][:5]
            raise ValueError(
                f"expected the {what} at {kernel.path!r}, got a tree without one (it "
                f"has {near or list(self.by_path)[:5]})"
                f"{meant(kernel.path, self.by_path)}; use the parameter tree that was "
                "traced, and put bb.transform where it sees the kernels it prunes"
            )
        leaf = self.leaves[self.by_path[kernel.path]]
        if tuple(jnp.shape(leaf)) != kernel.shape:
            raise ValueError(
                f"expected {kernel.path!r} of shape {kernel.shape}, got the {what} of "
                f"shape {tuple(jnp.shape(leaf))}; trace the model that is trained"
            )
        return leaf

    def bias_of(self, kernel: Kernel) -> jax.Array | None:
        """The bias of a kernel's output units, of shape `stack + units`.

        None if the tree has no such bias: a tree with parts left out (`optax.masked`)
        may have the kernel alone.
        """
        if not kernel.bias or kernel.bias not in self.by_path:
            return None
        leaf = jnp.asarray(self.at(kernel.bias))
        shape = kernel.per_unit_shape("outputs")
        if math.prod(jnp.shape(leaf)) != math.prod(shape):
            return None
        return jnp.reshape(leaf, shape)

    def put(self, kernel: Kernel, value: Any) -> None:
        """Replaces the leaf of a kernel."""
        self.put_at(kernel.path, value)

    def at(self, path: str) -> Any:
        """The leaf at a path of the tree."""
        return self.leaves[self.by_path[path]]

    def put_at(self, path: str, value: Any) -> None:
        """Replaces the leaf at a path of the tree."""
        self.leaves[self.by_path[path]] = value

    def keep_at(self, path: str, mask: Any) -> None:
        """Sets the leaf at a path of the tree to 0 where a mask is False."""
        leaf = self.at(path)
        self.put_at(path, jnp.where(mask, leaf, jnp.zeros_like(leaf)))

    def tree(self) -> Any:
        """The tree, with the replaced leaves."""
        return self.rebuild(jax.tree_util.tree_unflatten(self.structure, self.leaves))


def opened(tree: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The tree with states in place of NNX modules, and the function to undo this."""
    nnx = adapters.loaded("nnx")
    return (tree, lambda tree: tree) if nnx is None else nnx.opened(tree)


def leaves_by_path(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> tuple[list[tuple[str, Any]], PyTreeDef]:
    """Leaves of a tree with their `/`-joined paths, as Flax shows them; its structure.

    NNX keeps arrays in variables, and linen may box them with the names of mesh axes.
    The name of the array inside such a box is not part of a path.

    Args:
      tree: of any kind.
      is_leaf: nodes that are leaves as a whole, as in `jax.tree.flatten`.

    Example:
      >>> leaves_by_path({"Dense_0": {"kernel": 1.0}})[0]
      [('Dense_0/kernel', 1.0)]
    """
    keyed, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    kinds = adapters.boxes()
    nodes, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, kinds)
    )
    boxed = {key for key, node in nodes if isinstance(node, kinds)}
    paths = [_path(k[:-1] if k[:-1] in boxed else k) for k, _ in keyed]
    return list(zip(paths, (leaf for _, leaf in keyed), strict=True)), structure


def _path(key_path: tuple[Any, ...]) -> str:
    return "/".join(map(_name, key_path))


def _name(key: Any) -> str:
    """A key of a dict as it is; attributes may be shown with a dot before them."""
    name = jax.tree_util.keystr((key,), simple=True)
    return name if isinstance(key, jax.tree_util.DictKey) else name.lstrip(".")
