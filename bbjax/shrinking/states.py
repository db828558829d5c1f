"""Cuts optimizer states along with the parameters.

Copies of the parameters in a state (`bbjax.training.owners`) are cut as the parameters
are. A pruning state keeps its masks, running means and dormant weights for the units
that stay. Everything else (counters, hyperparameters) is unchanged.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from bbjax import adapters
from bbjax.model.kernel import Kernel, Side
from bbjax.model.units import Units
from bbjax.rules.base import side_in
from bbjax.shrinking.cut import Cut, Cuts, Shapes, cut
from bbjax.training.owners import Owners
from bbjax.training.plan import Plan
from bbjax.training.state import PruneState, full_mask, pack, without_wrappers


def cut_state(state: Any, cuts: Cuts, shapes: Shapes, units: Units) -> Any:
    """An optimizer state for parameters that were cut.

    Args:
      state: as `init` or `update` returned it, for the old parameters.
      cuts: how parameters were cut, by path.
      shapes: of the old parameters, by path.
      units: of the new parameters.
    """
    owners = Owners(state, shapes)
    leaves = [leaf for _, leaf in owners.leaves]
    if leaves and all(callable(leaf) for leaf in leaves):
        raise TypeError(
            f"expected the state of an optimizer, got {type(state).__name__} with "
            "functions; pass what its init or update returned"
        )
    names = {path: owners.of(path) for path, _ in owners.leaves}
    arrays = any(math.prod(jnp.shape(leaf)) > 1 for leaf in leaves)
    if cuts and arrays and not any(names.values()):
        raise ValueError(
            f"expected an optimizer state with copies of the parameters (as "
            f"{list(cuts)[:3]}), got one with none; make the state of this optimizer "
            "anew for the smaller parameters"
        )
    return owners.replaced(
        lambda path, leaf: _cut_leaf(path, leaf, names[path], cuts, shapes),
        lambda pruning: _cut_wrapped(pruning, cuts, shapes, units, owners),
    )


def _cut_leaf(
    path: str, leaf: Any, names: list[str], cuts: Cuts, shapes: Shapes
) -> Any:
    """A leaf, cut as the parameter that it belongs to."""
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
    if lead >= 0 and found[lead:] == shape:  # axes of several steps come first
        moved = (
            (axis + lead, tuple(a + lead for a in layers), indices)
            for axis, layers, indices in cuts[name]
        )
        return cut(leaf, tuple(moved))
    if math.prod(found) == 1:
        return leaf
    raise ValueError(
        f"expected an optimizer state with arrays of the parameters' shapes, got "
        f"{found} at {path!r} for {name!r} of shape {shape}; make the state of this "
        "optimizer anew for the smaller parameters"
    )


def _cut_wrapped(
    state: PruneState, cuts: Cuts, shapes: Shapes, units: Units, owners: Owners
) -> PruneState:
    """A pruning state for smaller kernels, with arrays wrapped as before (NNX)."""
    found = _cut_pruning(without_wrappers(state), cuts, shapes, units, owners)
    arrays, tree = jax.tree_util.tree_flatten(found)
    kinds = adapters.boxes()
    nodes = jax.tree_util.tree_leaves(state, is_leaf=lambda x: isinstance(x, kinds))
    wrapped = [
        jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(node), [array])
        for node, array in zip(nodes, arrays, strict=True)
    ]
    return jax.tree_util.tree_unflatten(tree, wrapped)


def _cut_pruning(
    state: PruneState, cuts: Cuts, shapes: Shapes, units: Units, owners: Owners
) -> PruneState:
    """A pruning state for smaller kernels."""
    masks, means, dormant, scale, kernels = {}, {}, {}, {}, []
    names = [kernel.path for kernel, _ in state.bb_plan.kernels]
    root = owners.root(names)
    if root is None:
        raise ValueError(
            f"expected a pruning state of the parameters that were shrunk, got one of "
            f"{names[:5]}; the parameters are {list(shapes)[:5]}"
        )
    lead = f"{root}/" if root else ""
    for kernel, actuators in state.bb_plan.kernels:
        path, mine = kernel.path, cuts.get(lead + kernel.path, ())
        packed = state.bb_masks[path]
        mask = cut(full_mask(kernel, packed), mine)
        if lead + path in units:
            small = _without(lead, units[lead + path])
        else:  # `bb.hold` makes one of a masked parameter that is no kernel
            small = Kernel(path, mask.shape, kernel.dtype, stack=kernel.stack)
        edges = small.edge_mask(mask)
        masks[path] = pack(small, edges, edges)
        means[path] = {
            name: _of_units(kernel, small, mine, side_in(name), mean)
            for name, mean in state.bb_means[path].items()
        }
        if path in state.bb_dormant:
            dormant[path] = cut(state.bb_dormant[path], mine)
        if path in state.bb_scale:
            factors = state.bb_scale[path]
            scale[path] = _of_units(kernel, small, mine, "outputs", factors)
        kernels.append((small, actuators))
    return state._replace(
        bb_masks=masks,
        bb_means=means,
        bb_dormant=dormant,
        bb_scale=scale,
        bb_plan=Plan.of(state.bb_plan.rule, kernels),
    )


def _without(lead: str, kernel: Kernel) -> Kernel:
    """A kernel as in a trace of the part of the tree below a path."""
    if not lead:
        return kernel
    return dataclasses.replace(
        kernel,
        path=kernel.path.removeprefix(lead),
        bias=kernel.bias.removeprefix(lead),
        reads=tuple(path.removeprefix(lead) for path in kernel.reads),
        companions=(),
        stream=(),
    )


def _of_units(
    kernel: Kernel, small: Kernel, mine: tuple[Cut, ...], side: Side, values: jax.Array
) -> jax.Array:
    """One value per unit, for the units that stay, cut as an array of the kernel is."""
    if values.shape != kernel.per_unit_shape(side):
        raise ValueError(
            f"expected one number per unit of {kernel.path!r}, got an average of shape "
            f"{values.shape}; build the transform anew for the smaller model"
        )
    full = kernel.full(kernel.spread(values, side))
    edges = jnp.reshape(cut(full, mine), small.split)
    own = "in" if side == "inputs" else "out"
    for axis, role in enumerate(small.roles):
        if role not in ("stack", "group", own):  # along these all entries are the same
            edges = jax.lax.slice_in_dim(edges, 0, 1, axis=axis)
    return small.gather(small.sum_spatial(edges), side)
