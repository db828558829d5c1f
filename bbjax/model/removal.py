"""Removes units, and everything that becomes unused.

Every kernel of a trace has the kernels whose output units it reads (`links`), the
parameters with an entry for each of its output units (`companions`), and whether its
output units have no other use than links (`closed`). The functions here work on that
graph. Where `keep` is False for unit j of kernel P, they set to zero

    P[:, j], companion[j]             its incoming edges and its own parameters
    C[i, :] for i with link(i) = j    its outgoing edges, in every reading kernel C

The backward sweep goes from the last kernel to the first. A unit without an outgoing
edge in any reader, at any position, is unused: it loses its incoming edges and its
companions. The forward sweep goes from the first kernel to the last. It cuts the
outgoing edges of units that are 0 for every input. Reference: the sweep is that of
NNrelief (Dekhovich et al., arXiv 2109.10795).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from bbjax.model.checks import refuse_misnamed
from bbjax.model.kernel import Companion, Kernel, Layout, Link, Side
from bbjax.model.leaves import Leaves
from bbjax.model.units import Units

Masks = dict[str, jax.Array]


def consumers(units: Units) -> dict[str, tuple[tuple[str, Link], ...]]:
    """The kernels that read the units of each kernel, in order of use.

    Args:
      units: from `bb.trace`.

    Returns:
      For each path of a kernel, the paths of its readers with their links to it.

    Example:
      >>> import bbjax as bb
      >>> def net(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
      >>> ((path, link),) = consumers(bb.trace(net, params, jnp.ones((5, 3))))["up"]
      >>> path, link.layout
      ('down', ((8, 1),))
    """
    found: dict[str, list[tuple[str, Link]]] = {path: [] for path in units.paths}
    for kernel in units.kernels:
        for link in kernel.links:
            found[link.path].append((kernel.path, link))
    return {path: tuple(readers) for path, readers in found.items()}


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
        units to remove. A unit that several kernels add to (`Kernel.stream`) is removed
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
        keep = _agreed(units, keep)
    masks: Masks = {}
    for path, kept in keep.items():
        _cut_units(units[path], kept, masks, companions=consumers)
    if consumers:
        _cut_readers(units, keep, masks)
    else:
        _cut_companions(units, keep, masks)
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


def _agreed(units: Units, keep: Mapping[str, ArrayLike]) -> dict[str, jax.Array]:
    """`keep`, with units of a stream kept if one of its kernels keeps them."""
    agreed = {}
    for path, kept in keep.items():
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
                "whose units are added to its own; pass `keep` for them too"
            )
        kept = jnp.asarray(kept)
        for other in kernel.stream:
            kept = kept | jnp.reshape(jnp.asarray(keep[other]), kept.shape)
        agreed[path] = kept
    return agreed


def _cut_units(kernel: Kernel, kept: ArrayLike, masks: Masks, companions: bool) -> None:
    """Cuts the incoming edges and the companions of units."""
    _cut(masks, kernel.path, _edge_mask(kernel, jnp.asarray(kept), "outputs"))
    for companion in kernel.placed if companions else ():
        _cut(masks, companion.path, _entries(jnp.asarray(kept), companion))


def _cut_readers(units: Units, keep: Mapping[str, ArrayLike], masks: Masks) -> None:
    """Cuts the outgoing edges of units, in every reader."""
    for path, readers in consumers(units).items():
        for reader, link in readers if path in keep else ():
            kept = _to_inputs(keep[path], units[path], units[reader], link)
            _cut(masks, reader, _edge_mask(units[reader], kept, "inputs"))


def _cut_companions(units: Units, keep: Mapping[str, ArrayLike], masks: Masks) -> None:
    """Cuts the entries of companions whose unit is cut in all its kernels."""
    acting: dict[str, list[tuple[Kernel, Companion]]] = {}
    for kernel in units.kernels:
        for companion in kernel.placed:
            acting.setdefault(companion.path, []).append((kernel, companion))
    for path, on in acting.items():
        if all(kernel.path in keep for kernel, _ in on):
            kept = [_entries(jnp.asarray(keep[k.path]), c) for k, c in on]
            _cut(masks, path, _any(kept))


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
            _cut_zero(units, kernel, swept)
    readers = consumers(units)
    for kernel in reversed(units.kernels):
        reading = readers[kernel.path]
        if kernel.closed and all(path in swept for path, _ in reading):
            used = [_used(kernel, units[path], link, swept) for path, link in reading]
            _cut_units(kernel, _any(used), swept, companions=True)
    return swept


def _checked(units: Units, masks: Mapping[str, ArrayLike]) -> Masks:
    shapes = {c.path: c.shape for k in units.kernels for c in k.placed}
    shapes |= {k.path: k.shape for k in units.kernels}
    refuse_misnamed(masks, shapes)
    for path, mask in masks.items():
        if jnp.shape(mask) != shapes.get(path, jnp.shape(mask)):
            raise ValueError(
                f"expected a mask of shape {shapes[path]} for {path!r}, got "
                f"{jnp.shape(mask)}; masks have the shapes of the parameters"
            )
    return {path: jnp.asarray(mask) for path, mask in masks.items()}


def _used(kernel: Kernel, reader: Kernel, link: Link, masks: Masks) -> jax.Array:
    """Units of a kernel with an edge left in one reader, `stack + out_units`."""
    edges = _left(reader, masks[reader.path], "inputs")
    flat = jnp.reshape(edges, (math.prod(reader.stack_shape), -1))
    used = _back(flat, link.layout)
    return jnp.reshape(used, kernel.per_unit_shape("outputs"))


def _cut_zero(units: Units, reader: Kernel, masks: Masks) -> None:
    """Cuts the edges of a kernel from units that are 0 for every input."""
    for link in reader.links:
        beside = [units[other.path] for other in reader.links if _alike(link, other)]
        if not all(any(p in masks for p in some) for some in link.zero_if):
            continue
        nonzero = [
            jnp.logical_not(_any([_off(beside, p, masks) for p in some if p in masks]))
            for some in link.zero_if
        ]
        shape = units[link.path].per_unit_shape("outputs")
        kept = jnp.reshape(_any(nonzero), shape) if nonzero else jnp.zeros(shape, bool)
        inputs = _to_inputs(kept, units[link.path], reader, link)
        _cut(masks, reader.path, _edge_mask(reader, inputs, "inputs"))


def _alike(link: Link, other: Link) -> bool:
    return (link.layout, link.zero_if) == (other.layout, other.zero_if)


def _off(kernels: Sequence[Kernel], path: str, masks: Masks) -> jax.Array:
    """Units, flat, without incoming edges, or whose entry in a companion is cut."""
    for kernel in kernels:
        if kernel.path == path:
            left = _left(kernel, masks[path], "outputs")
            return jnp.logical_not(jnp.ravel(left))
        for companion in kernel.placed:
            if companion.path == path:
                left = _back(jnp.ravel(masks[path]), companion.layout)
                return jnp.logical_not(jnp.ravel(left))
    raise AssertionError(f"{path!r} belongs to none of the linked kernels")


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


def _to_inputs(
    kept: ArrayLike, kernel: Kernel, reader: Kernel, link: Link
) -> jax.Array:
    """From the output units of a kernel to the input units of a reader."""
    flat = jnp.reshape(jnp.asarray(kept), (math.prod(kernel.stack_shape), -1))
    shape = reader.per_unit_shape("inputs")
    return jnp.reshape(_through(flat, link.layout), shape)


def _entries(kept: jax.Array, companion: Companion) -> jax.Array:
    """A mask of a companion, from one entry per output unit."""
    flat = _through(jnp.ravel(kept), companion.layout)
    return jnp.reshape(flat, companion.shape)


# Layouts -------------------------------------------------------------------------
def _through(flat: jax.Array, layout: Layout) -> jax.Array:
    """The entries of `flat`, along its last axis, that a layout maps to."""
    order = _by_stride(layout)
    lead = flat.shape[:-1]
    split = jnp.reshape(flat, (*lead, *(layout[i][0] for i in order)))
    back = [order.index(i) for i in range(len(layout)) if i in order]
    split = jnp.transpose(split, [*range(len(lead)), *(len(lead) + b for b in back)])
    still = [len(lead) + i for i in range(len(layout)) if i not in order]
    split = jnp.expand_dims(split, still)
    split = jnp.broadcast_to(split, (*lead, *(size for size, _ in layout)))
    return jnp.reshape(split, (*lead, -1))


def _back(flat: jax.Array, layout: Layout) -> jax.Array:
    """The inverse of `_through`: True where any position of the entry is True."""
    order = _by_stride(layout)
    lead = flat.shape[:-1]
    split = jnp.reshape(flat, (*lead, *(size for size, _ in layout)))
    still = tuple(len(lead) + i for i in range(len(layout)) if i not in order)
    split = jnp.any(split, axis=still)
    rank = {i: n for n, i in enumerate(sorted(order))}
    split = jnp.transpose(
        split, [*range(len(lead)), *(len(lead) + rank[i] for i in order)]
    )
    return jnp.reshape(split, (*lead, -1))


def _by_stride(layout: Layout) -> list[int]:
    """Digits with a stride, slowest first."""
    moving = [i for i, (_, stride) in enumerate(layout) if stride]
    return sorted(moving, key=lambda i: -layout[i][1])
