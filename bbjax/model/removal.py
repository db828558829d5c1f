"""Removes units, and everything that becomes unused.

The sets of units of a trace (`units.graph.sets`) say which kernels make a unit, which
parameters have entries for it (`companions`), and which kernels read it. Where `keep`
is False for unit j of kernel P, the functions here set to zero

    P[:, j], companion[j]    its incoming edges and its own parameters
    C[j, :]                  its outgoing edges, in every reading kernel C

The backward sweep goes from the last kernel to the first. A unit without an outgoing
edge in any reader, at any position, is unused: it loses its incoming edges and its
companions. The forward sweep goes from the first kernel to the last. It cuts the
outgoing edges of units that are 0 for every input. Reference: the sweep is that of
NNrelief (Dekhovich et al., arXiv 2109.10795).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bbjax.model.checks import refuse_misnamed
from bbjax.model.groups import Place, UnitSet
from bbjax.model.kernel import Kernel, Side
from bbjax.model.leaves import Leaves
from bbjax.model.units import Units

Masks = dict[str, jax.Array]


def consumers(units: Units) -> dict[str, tuple[tuple[str, Place], ...]]:
    """The kernels that read the units of each kernel, in order of use.

    Args:
      units: from `bb.trace`.

    Returns:
      For each path of a kernel, the paths of its readers, each with the unit that its
      input units are: `Place.units` numbers the units of one set (`units.graph.sets`).

    Example:
      >>> import bbjax as bb
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
      >>> ((path, place),) = consumers(bb.trace(net, params, jnp.ones((5, 3))))["up"]
      >>> path, place.units.tolist()
      ('down', [0, 1, 2, 3, 4, 5, 6, 7])
    """
    order = {path: n for n, path in enumerate(units.paths)}
    return {
        path: tuple(
            (place.path, place)
            for made, _ in units.graph.made_by(path)
            for place in sorted(made.readers, key=lambda p: order[p.path])
        )
        for path in units.paths
    }


# Removing units ------------------------------------------------------------------
def remove_units(
    params: Any, units: Units, keep: Mapping[str, ArrayLike], *, consumers: bool = True
) -> tuple[Any, Masks]:
    """Sets the incoming edges, the companions and the outgoing edges of units to zero.

    Afterwards the function computes what it did before with the values of these units
    replaced by 0 in all their readers. Works under `jit`, with `keep` traced.

    Args:
      params: tree of parameters, as traced.
      units: from `bb.trace`.
      keep: by path of kernel, bool array of shape `stack_shape + out_units`, False for
        units to remove. A unit that several kernels make (`Kernel.stream`) is removed
        if `keep` is False for it in all of them.
      consumers: whether to cut the outgoing edges, too. If not, units of kernels that
        are not closed can be given as well; their value becomes what their
        nonlinearity makes of 0.

    Returns:
      The parameters, and by path the masks of every parameter that was changed: bool
      arrays of the parameter's shape, True where kept.

    Raises:
      ValueError: an unknown path, an array of another shape, a kernel that is not
        closed, a kernel of a stream without the others, a tree without a parameter.
      TypeError: an array that is not bool.

    Example:
      >>> import bbjax as bb
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((3, 2)), "down": jnp.ones((2, 1))}
      >>> units = bb.trace(net, params, jnp.ones((5, 3)))
      >>> pruned, masks = remove_units(params, units, {"up": jnp.array([True, False])})
      >>> pruned["down"].tolist()
      [[1.0], [0.0]]
    """
    for path, kept in keep.items():
        _check(units, path, kept)
    if consumers:
        _check_removable(units, keep)
    masks: Masks = {}
    own = {path: jnp.ravel(jnp.asarray(kept)) for path, kept in keep.items()}
    if consumers:
        own = {path: jnp.ones_like(kept) for path, kept in own.items()}
    for made in units.graph.sets:
        makers = [place for place in made.makers if place.path in keep]
        if makers and consumers:
            kept = _any([_of_set(made, p, keep[p.path]) for p in makers])
            for place in makers:
                own[place.path] &= _entries(place, kept)
            _cut_readers(units, made, kept, masks)
            for place in made.companions:
                _cut_entries(place, kept, masks)
        for place in made.companions if makers and not consumers else ():
            acting = [p for p in made.makers if p.path in place.acts_on]
            if all(p.path in keep for p in acting):
                kept = _any([_of_set(made, p, keep[p.path]) for p in acting])
                _cut_entries(place, kept, masks)
    for path, kept in own.items():
        kernel = units[path]
        shaped = jnp.reshape(kept, kernel.per_unit_shape("outputs"))
        _cut(masks, path, _edge_mask(kernel, shaped, "outputs"))
    return _zeroed(params, masks), masks


def _check(units: Units, path: str, kept: ArrayLike) -> None:
    shape = units[path].per_unit_shape("outputs") if path in units else None
    if shape is None:
        raise ValueError(
            f"expected paths of kernels in `keep`, got {path!r}; the trace has "
            f"{list(units.paths)[:8]}"
        )
    if not jnp.issubdtype(jnp.result_type(kept), jnp.bool_):
        raise TypeError(
            f"expected a bool array for {path!r}, got {jnp.result_type(kept)}; pass "
            "True where a unit is kept"
        )
    if jnp.shape(kept) != shape:
        raise ValueError(
            f"expected an array of shape {shape} for {path!r}, one entry per output "
            f"unit, got {jnp.shape(kept)}; the shape is `stack_shape + out_units`"
        )


def _check_removable(units: Units, keep: Mapping[str, ArrayLike]) -> None:
    for path in keep:
        kernel = units[path]
        if not kernel.closed:
            why = kernel.why_not or "the trace does not list their readers"
            raise ValueError(
                f"expected kernels whose units can be removed, got {path!r}: {why}; "
                "leave it out, or pass consumers=False to cut its own side alone"
            )
        missing = [other for other in kernel.stream if other not in keep]
        if missing:
            raise ValueError(
                f"expected all kernels of a stream, got {path!r} without {missing}, "
                "which make the same units; pass `keep` for them too"
            )


def _cut_readers(units: Units, made: UnitSet, kept: jax.Array, masks: Masks) -> None:
    """Cuts the outgoing edges of units."""
    for place in made.readers:
        kernel = units[place.path]
        mine = jnp.reshape(_entries(place, kept), kernel.per_unit_shape("inputs"))
        _cut(masks, place.path, _edge_mask(kernel, mine, "inputs"))


def _cut_entries(place: Place, kept: jax.Array, masks: Masks) -> None:
    """Cuts the entries of units in a companion."""
    _cut(masks, place.path, _entries(place, kept).reshape(place.shape))


def _zeroed(params: Any, masks: Masks) -> Any:
    tree = Leaves.of(params)
    for path, mask in masks.items():
        if path not in tree.by_path or jnp.shape(tree.at(path)) != mask.shape:
            has = jnp.shape(tree.at(path)) if path in tree.by_path else "none"
            raise ValueError(
                f"expected a parameter of shape {mask.shape} at {path!r}, got {has}; "
                "pass the parameter tree that was traced"
            )
        tree.keep_at(path, mask)
    return tree.tree()


# Sweeping ------------------------------------------------------------------------
def sweep(
    units: Units, masks: Mapping[str, ArrayLike], *, forward: bool = False
) -> Masks:
    """Cuts the edges of unused units, and on request of units that are always 0.

    One pass, from the last kernel to the first. The function of the masked parameters
    does not change. Units of kernels that are not closed keep their edges.

    Args:
      units: from `bb.trace`.
      masks: by path of kernels and companions, bool arrays of the parameters' shapes,
        True where kept; a parameter without a mask is kept whole.
      forward: whether to cut before, from the first kernel to the last, the outgoing
        edges of units that are 0 for every input: units without an incoming edge and
        without a bias, whose nonlinearity is 0 at 0.

    Returns:
      New masks, of the same parameters and of others that lost entries.

    Raises:
      ValueError: a mask without the shape of its kernel or companion.

    Example:
      >>> import bbjax as bb
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((3, 2)), "down": jnp.ones((2, 1))}
      >>> units = bb.trace(net, params, jnp.ones((5, 3)))
      >>> sweep(units, {"down": jnp.array([[True], [False]])})["up"].tolist()
      [[True, False], [True, False], [True, False]]
    """
    swept = _checked(units, masks)
    if forward:
        for kernel in units.kernels:
            for made, place in units.graph.read_by(kernel.path):
                _cut_zero(units, made, place, swept)
    for kernel in reversed(units.kernels):
        for made, first in units.graph.made_by(kernel.path):
            ready = all(place.path in swept for place in made.readers)
            removable = made.apart and not made.why_not and made.readers
            if removable and ready and first is made.makers[0]:
                _cut_unused(units, made, swept)
    return swept


def _checked(units: Units, masks: Mapping[str, ArrayLike]) -> Masks:
    shapes = {p.path: p.shape for s in units.graph.sets for p in s.companions}
    shapes |= {k.path: k.shape for k in units.kernels}
    refuse_misnamed(masks, shapes)
    for path, mask in masks.items():
        if jnp.shape(mask) != shapes.get(path, jnp.shape(mask)):
            raise ValueError(
                f"expected a mask of shape {shapes[path]} for {path!r}, got "
                f"{jnp.shape(mask)}; masks have the shapes of the parameters"
            )
    return {path: jnp.asarray(mask) for path, mask in masks.items()}


def _cut_unused(units: Units, made: UnitSet, masks: Masks) -> None:
    """Cuts units without an edge left in any reader."""
    used = _any(
        [
            _of_set(made, p, _left(units[p.path], masks[p.path], "inputs"))
            for p in made.readers
        ]
    )
    for place in made.makers:
        kernel = units[place.path]
        mine = jnp.reshape(_entries(place, used), kernel.per_unit_shape("outputs"))
        _cut(masks, place.path, _edge_mask(kernel, mine, "outputs"))
    for place in made.companions:
        _cut_entries(place, used, masks)


def _cut_zero(units: Units, made: UnitSet, place: Place, masks: Masks) -> None:
    """Cuts the edges of a reader from units that are 0 for every input."""
    if not all(any(path in masks for path in some) for some in place.zero_if):
        return
    nonzero = [
        jnp.logical_not(_any([_off(units, made, p, masks) for p in some if p in masks]))
        for some in place.zero_if
    ]
    kept = _any(nonzero) if nonzero else jnp.zeros(made.size, bool)
    kernel = units[place.path]
    mine = jnp.reshape(_entries(place, kept), kernel.per_unit_shape("inputs"))
    _cut(masks, place.path, _edge_mask(kernel, mine, "inputs"))


def _off(units: Units, made: UnitSet, path: str, masks: Masks) -> jax.Array:
    """Units without incoming edges, or whose entries in a companion are cut."""
    place = next(p for p in (*made.makers, *made.companions) if p.path == path)
    if path in units:
        left = _left(units[path], masks[path], "outputs")
    else:
        left = masks[path]
    return jnp.logical_not(_of_set(made, place, left))


# Masks of kernels ----------------------------------------------------------------
def _cut(masks: Masks, path: str, mask: jax.Array) -> None:
    masks[path] = masks[path] & mask if path in masks else mask


def _any(arrays: Sequence[jax.Array]) -> jax.Array:
    found = arrays[0]
    for array in arrays[1:]:
        found = found | array
    return found


def _edge_mask(kernel: Kernel, kept: jax.Array, side: Side) -> jax.Array:
    """A mask of a kernel, from one entry per unit of a side."""
    return kernel.full(kernel.spread(kept, side))


def _left(kernel: Kernel, mask: jax.Array, side: Side) -> jax.Array:
    """Units of a side with an edge left."""
    return kernel.gather(kernel.edge_mask(mask), side) > 0


# Places ----------------------------------------------------------------------------
def _entries(place: Place, kept: jax.Array) -> jax.Array:
    """One entry for each entry of a parameter, from one per unit; True for no unit."""
    units = jnp.asarray(place.units)
    return jnp.where(units >= 0, kept[units], True)


def _of_set(made: UnitSet, place: Place, entries: ArrayLike) -> jax.Array:
    """One entry per unit of a set: True where any of its entries is."""
    units = jnp.where(place.units >= 0, place.units, made.size)
    found = jnp.zeros(made.size, bool)
    return found.at[units].max(jnp.ravel(jnp.asarray(entries)), mode="drop")
