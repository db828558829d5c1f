"""Finds the parameter that each leaf of an optimizer state belongs to.

Optimizers keep copies of the parameter tree (`mu`, `nu`, `trace`, ...), at any depth of
a chain. A leaf of a copy belongs to the parameter at the same place:

    path of the leaf         prefix / rest
    path of the parameter    root / rest

The root is empty, or it is a part of the tree if the optimizer was made for that part
alone (`variables["params"]`). The end of a path does not decide: `mu/block/w` may be
`block/w` below `mu`, or `w` below `mu/block`. All leaves below the prefix decide.

A *whole* copy has the parameters and no other leaf, and an empty container in place of
every parameter that was left out, as `optax.masked` makes it. Other copies have nothing
but parameters below the prefix, or all parameters of the root. If a path can be read in
several ways, the copy with the most parameters counts, and of equals the one with the
shortest root.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import jax

from bbjax.model.leaves import leaves_by_path
from bbjax.training.state import PruneState, is_pruning


class Owners:
    """The leaves of an optimizer state, and the parameters that they belong to.

    Attributes:
      leaves: the leaves with their paths, in order. Pruning states are left out: their
        dictionaries have paths of kernels, but are no copies of the parameters.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = {"w": jnp.ones(2)}
      >>> owners = Owners(optax.adam(0.1).init(params), params)
      >>> [(path, owners.whole(path)) for path, _ in owners.leaves]
      [('0/count', None), ('0/mu/w', 'w'), ('0/nu/w', 'w')]
    """

    def __init__(self, state: Any, parameters: Iterable[str]) -> None:
        """An optimizer state, and the paths of all parameters."""
        self._nodes, self._structure = leaves_by_path(state, is_pruning)
        self.leaves = [node for node in self._nodes if not is_pruning(node[1])]
        nodes, _ = leaves_by_path(state, lambda x: is_pruning(x) or _is_empty(x))
        self._holes = _rests(path for path, node in nodes if _is_empty(node))
        self._held = _rests(path for path, _ in self.leaves)
        self._wanted = _rests(parameters)
        self._roots = defaultdict[str, list[str]](list)
        for root, rests in self._wanted.items():
            for rest in rests:
                self._roots[rest].append(root)
        self._found = functools.cache(self._count)
        self._is_whole = functools.cache(self._covered)

    def replaced(
        self,
        change: Callable[[str, Any], Any],
        pruning: Callable[[PruneState], PruneState] = lambda state: state,
    ) -> Any:
        """The state with other leaves.

        Args:
          change: from the path of a leaf and the leaf to the new one.
          pruning: from a pruning state to the new one.
        """
        changed = [
            pruning(node) if is_pruning(node) else change(path, node)
            for path, node in self._nodes
        ]
        return jax.tree_util.tree_unflatten(self._structure, changed)

    def whole(self, path: str) -> str | None:
        """The parameter of a leaf in a copy of the whole tree; None if in none."""
        if "" in self._wanted[""]:  # the parameters are one array
            return ""
        for prefix, rest in _splits(path):
            if rest in self._wanted[""] and self._is_whole(prefix):
                return rest
        return None

    def of(self, path: str) -> list[str]:
        """The parameters that a leaf may belong to: none, one, or several alike."""
        whole = self.whole(path)
        if whole is not None:
            return [whole]
        ranks: dict[str, tuple[int, int]] = {}
        for prefix, rest in _splits(path):
            for root in self._roots.get(rest, ()):
                count = self._found(prefix, root)
                nothing_else = count == len(self._held[prefix])
                all_of_them = count == len(self._wanted[root])
                if nothing_else or (all_of_them and (count > 1 or not root)):
                    rank = (count, -len(root.split("/")) if root else 0)
                    name = f"{root}/{rest}" if root else rest
                    ranks[name] = max(rank, ranks.get(name, rank))
        best = max(ranks.values(), default=None)
        return [name for name, rank in ranks.items() if rank == best]

    def root(self, names: Iterable[str]) -> str | None:
        """The shortest root with parameters of these relative paths; None if none has.

        Example:
          >>> owners = Owners((), ["params/up", "params/down", "stats/up"])
          >>> owners.root(["up", "down"])
          'params'
        """
        names = set(names)
        roots = [root for root, rests in self._wanted.items() if names <= rests]
        return min(roots, key=len, default=None)

    def _count(self, prefix: str, root: str) -> int:
        """How many parameters of a root have copies below a prefix."""
        return len(self._held[prefix] & self._wanted[root])

    def _covered(self, prefix: str) -> bool:
        """Whether a whole copy is below a prefix."""
        held, missing = self._held[prefix], self._wanted[""] - self._held[prefix]
        holes = self._holes[prefix]
        return held <= self._wanted[""] and all(
            any(f"{name}/".startswith(f"{hole}/") for hole in holes) for name in missing
        )


def _rests(paths: Iterable[str]) -> defaultdict[str, set[str]]:
    """The ends of paths, by what is before them."""
    found = defaultdict[str, set[str]](set)
    for path in paths:
        for prefix, rest in _splits(path):
            found[prefix].add(rest)
    return found


def _splits(path: str) -> list[tuple[str, str]]:
    """Every way to take a path apart, the shortest beginning first."""
    parts = path.split("/")
    return [("/".join(parts[:i]), "/".join(parts[i:])) for i in range(len(parts))]


def _is_empty(node: Any) -> bool:
    return not jax.tree_util.tree_leaves(node)
