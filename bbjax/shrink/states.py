"""Optimizer states follow their parameters.

The state of any optimizer is a tree in which copies of the parameter tree occur; a leaf
whose path ends with a parameter's and that has its shape is cut as the parameter is. A
pruning state keeps its masks, running means and dormant weights of what stays. All else
(counters, hyperparameters) is the same afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bbjax.kernel import Kernel, Side
from bbjax.leaves import leaves_by_path
from bbjax.rules.base import side_in
from bbjax.shrink.cut import Cuts, cut
from bbjax.state import Plan, PruneState, full_mask, pack
from bbjax.units import Units

Shapes = Mapping[str, tuple[int, ...]]


def cut_state(state: Any, cuts: Cuts, shapes: Shapes, units: Units) -> Any:
    """An optimizer state for parameters that were cut.

    Args:
      state: as `init` or `update` returned it, for the old parameters.
      cuts: how parameters were cut, by path.
      shapes: of the old parameters, by path.
      units: of the new ones.
    """
    leaves, tree = jax.tree_util.tree_flatten(state, is_leaf=_is_pruning)
    whole = [_cut_pruning(x, cuts, units) if _is_pruning(x) else x for x in leaves]
    outer = jax.tree_util.tree_unflatten(
        tree, [None if _is_pruning(x) else x for x in leaves]
    )
    keyed, _ = leaves_by_path(outer)
    plain = iter([_cut_leaf(p, leaf, cuts, shapes) for p, leaf in keyed])
    return jax.tree_util.tree_unflatten(
        tree, [new if _is_pruning(new) else next(plain) for new in whole]
    )


def _is_pruning(value: Any) -> bool:
    return isinstance(value, PruneState)


def _cut_leaf(path: str, leaf: Any, cuts: Cuts, shapes: Shapes) -> Any:
    """A leaf that belongs to a parameter, cut as that one is."""
    parts = path.split("/")
    suffixes = ["/".join(parts[start:]) for start in range(len(parts))]
    name = next((s for s in (*suffixes, "") if s in shapes), None)
    if name is None or name not in cuts:
        return leaf
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


def _cut_pruning(state: PruneState, cuts: Cuts, units: Units) -> PruneState:
    """A pruning state for smaller kernels."""
    masks, means, dormant, kernels = {}, {}, {}, []
    for kernel, actuators in state.bb_plan.kernels:
        path, mine = kernel.path, cuts.get(kernel.path, ())
        packed = state.bb_masks[path]
        mask = cut(full_mask(kernel, packed), mine)
        if path in units:
            small = units[path]
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
