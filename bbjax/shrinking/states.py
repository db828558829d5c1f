"""Optimizer states follow their parameters.

The state of any optimizer is a tree in which copies of the parameter tree, or of a part
of it, occur (`owners`): they are cut as the parameters are. A pruning state keeps its
masks, running means and dormant weights of what stays. All else (counters,
hyperparameters) is the same afterwards.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from bbjax import adapters
from bbjax.model.kernel import Kernel, Side
from bbjax.model.leaves import leaves_by_path
from bbjax.model.units import Units
from bbjax.rules.base import side_in
from bbjax.shrinking.cut import Cuts, cut
from bbjax.shrinking.owners import Owners, Shapes, root_of
from bbjax.training.state import (
    Plan,
    PruneState,
    full_mask,
    is_pruning,
    pack,
    without_wrappers,
)


def cut_state(state: Any, cuts: Cuts, shapes: Shapes, units: Units) -> Any:
    """An optimizer state for parameters that were cut.

    Args:
      state: as `init` or `update` returned it, for the old parameters.
      cuts: how parameters were cut, by path.
      shapes: of the old parameters, by path.
      units: of the new ones.
    """
    leaves, tree = jax.tree_util.tree_flatten(state, is_leaf=is_pruning)
    if leaves and all(callable(leaf) for leaf in leaves):
        raise TypeError(
            f"expected the state of an optimizer, got {type(state).__name__} with "
            "functions; pass what its init or update returned"
        )
    outer = jax.tree_util.tree_unflatten(
        tree, [None if is_pruning(x) else x for x in leaves]
    )
    keyed, _ = leaves_by_path(outer)
    owners = Owners(shapes, [path for path, _ in keyed])
    names = [owners.of(path) for path, _ in keyed]
    _refuse_others([leaf for leaf in leaves if not is_pruning(leaf)], names, cuts)
    plain = iter(
        _cut_leaf(path, leaf, owner, cuts, shapes)
        for (path, leaf), owner in zip(keyed, names, strict=True)
    )

    def smaller(leaf: Any) -> Any:
        if is_pruning(leaf):
            return _cut_wrapped(leaf, cuts, shapes, units)
        return next(plain)

    return jax.tree_util.tree_unflatten(tree, [smaller(leaf) for leaf in leaves])


def _refuse_others(leaves: list[Any], names: list[list[str]], cuts: Cuts) -> None:
    """Refuses states with arrays, none of which is any parameter's."""
    if cuts and not any(names) and any(math.prod(jnp.shape(x)) > 1 for x in leaves):
        raise ValueError(
            f"expected an optimizer state with copies of the parameters (as "
            f"{list(cuts)[:3]}), got one with none; make the state of this optimizer "
            "anew for the smaller parameters"
        )


def _cut_leaf(
    path: str, leaf: Any, names: list[str], cuts: Cuts, shapes: Shapes
) -> Any:
    """A leaf that belongs to a parameter, cut as that one is."""
    if len(names) > 1:
        raise ValueError(
            f"expected a state of the parameters that were shrunk, got {path!r}, which "
            f"may belong to any of {names}; make the state for the same tree"
        )
    if not names or names[0] not in cuts:
        return leaf
    (name,) = names
    shape, found = shapes[name], jnp.shape(leaf)
    lead = len(found) - len(shape)
    if lead >= 0 and found[lead:] == shape:  # a memory of several steps has them first
        moved = ((axis + lead, _plus(at, lead), i) for axis, at, i in cuts[name])
        return cut(leaf, tuple(moved))
    if math.prod(found) == 1:
        return leaf
    raise ValueError(
        f"expected an optimizer state with arrays of the parameters' shapes, got "
        f"{found} at {path!r} for {name!r} of shape {shape}; make the state of this "
        "optimizer anew for the smaller parameters"
    )


def _plus(axes: tuple[int, ...], lead: int) -> tuple[int, ...]:
    return tuple(axis + lead for axis in axes)


def _cut_wrapped(
    state: PruneState, cuts: Cuts, shapes: Shapes, units: Units
) -> PruneState:
    """A pruning state for smaller kernels, its arrays wrapped as they were (NNX)."""
    found = _cut_pruning(without_wrappers(state), cuts, shapes, units)
    arrays, tree = jax.tree_util.tree_flatten(found)
    kinds = adapters.boxes()
    nodes = jax.tree_util.tree_leaves(state, is_leaf=lambda x: isinstance(x, kinds))
    wrapped = [
        jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(node), [array])
        for node, array in zip(nodes, arrays, strict=True)
    ]
    return jax.tree_util.tree_unflatten(tree, wrapped)


def _cut_pruning(
    state: PruneState, cuts: Cuts, shapes: Shapes, units: Units
) -> PruneState:
    """A pruning state for smaller kernels."""
    masks, means, dormant, kernels = {}, {}, {}, []
    names = [kernel.path for kernel, _ in state.bb_plan.kernels]
    root = root_of(names, shapes)
    if root is None:
        raise ValueError(
            f"expected a pruning state of the parameters that were shrunk, got one of "
            f"{names[:5]}; the parameters are {list(shapes)[:5]}"
        )
    for kernel, actuators in state.bb_plan.kernels:
        path, mine = kernel.path, cuts.get(root + kernel.path, ())
        packed = state.bb_masks[path]
        mask = cut(full_mask(kernel, packed), mine)
        if root + path in units:
            small = _without(root, units[root + path])
        else:  # what `bb.hold` makes of a masked parameter that is no kernel
            small = Kernel(path, mask.shape, kernel.dtype, stack=kernel.stack)
        edges = small.edge_mask(mask)
        masks[path] = pack(small, edges, edges)
        means[path] = {
            name: _of_units(kernel, small, mine, side_in(name), mean)
            for name, mean in state.bb_means[path].items()
        }
        if path in state.bb_dormant:
            dormant[path] = cut(state.bb_dormant[path], mine)
        kernels.append((small, actuators))
    return state._replace(
        bb_masks=masks,
        bb_means=means,
        bb_dormant=dormant,
        bb_plan=Plan(tuple(kernels), state.bb_plan.k_min),
    )


def _without(root: str, kernel: Kernel) -> Kernel:
    """A kernel as a trace of the tree below a root knows it."""
    if not root:
        return kernel
    return dataclasses.replace(
        kernel,
        path=kernel.path.removeprefix(root),
        bias=kernel.bias.removeprefix(root),
        reads=tuple(path.removeprefix(root) for path in kernel.reads),
        companions=(),
        placed=(),
        links=(),
        stream=(),
    )


def _of_units(
    kernel: Kernel, small: Kernel, mine: Any, side: Side, values: jax.Array
) -> jax.Array:
    """One value per unit, of the units that stay: cut as an array of the kernel is."""
    if values.shape != kernel.per_unit_shape(side):
        raise ValueError(
            f"expected one number per unit of {kernel.path!r}, got an average of shape "
            f"{values.shape}; build the transform anew for the smaller model"
        )
    spread = kernel.over_spatial(kernel.spread(values, side))
    full = kernel.weights(jnp.broadcast_to(spread, kernel.split))
    edges = jnp.reshape(cut(full, mine), small.split)
    own = "in" if side == "inputs" else "out"
    roles = ("stack", "group", own)
    for axis, role in reversed(list(enumerate(small.roles))):
        if role not in roles:
            edges = jnp.take(edges, 0, axis=axis)
    kept = [role for role in small.roles if role in roles]
    order = sorted(range(len(kept)), key=lambda a: roles.index(kept[a]))
    found = jnp.transpose(edges, order)
    return jnp.reshape(found, small.per_unit_shape(side))
