"""What single operations make of what is known of their operands.

Moves hand entries on, joins keep what all operands agree on, sums of equal entries are
counted; nothing is known of what else an operation makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bbjax.shrinking.known import NOTHING, Entries, Held, Known, alike, once
from bbjax.tracing import jaxprs
from bbjax.tracing.axes.extents import Dims


def _sizes(eqn: Any, axes: Sequence[int]) -> int:
    return int(np.prod([eqn.invars[0].aval.shape[a] for a in axes]))


def _window(eqn: Any) -> int:
    """Entries in a window; 0 where windows at the border have fewer."""
    padded = any(tuple(p) != (0, 0) for p in eqn.params["padding"])
    padded |= any(d != 1 for d in eqn.params.get("base_dilation") or ())
    return 0 if padded else int(np.prod(eqn.params["window_dimensions"]))


# How many entries of one value are summed; 0 where it is not always as many.
COUNTED: dict[str, Callable[[Any], int]] = {
    "reduce_sum": lambda eqn: _sizes(eqn, eqn.params["axes"]),
    "reduce_window_sum": _window,
    "cumsum": lambda eqn: 0,
}


def times(known: Known, count: int) -> Known:
    """A sum of equal entries."""
    found = {}
    for whole, e in known.by.items():
        fine = e.known if count else e.zero
        value = e.value * np.asarray(count, e.value.dtype)
        found[whole] = Entries(np.where(e.zero, e.value, value), fine, e.firm & fine)
    return Known(found)


def picked(eqn: Any, known: Known) -> Known:
    """Entries picked by index; where there is none, NaN or a value to fill in."""
    fill = eqn.params.get("fill_value")
    if fill is None or np.isnan(np.asarray(fill, np.complex128)):
        return known  # a row of NaN makes NaN of all that hears it
    same = {w: e.known & (e.value == fill) for w, e in known.by.items()}
    return Known(
        {w: Entries(e.value, same[w], e.firm & same[w]) for w, e in known.by.items()}
    )


def only(known: Known, wholes: dict[int, int], number: bool = False) -> Known:
    """What is known of some groups, and of the number that an array is everywhere."""
    by = {w: e for w, e in known.by.items() if w in wholes and e.known.any()}
    return Known(by, known.number if number else None)


def joined(extents, frame, eqn, ins, wholes) -> Known:
    """Entries of several operands: units that only one has are as they are there."""
    dims = [
        extents.shape(np.shape(a.val)) if jaxprs.is_literal(a) else frame.dims[a]
        for a in eqn.invars
    ]
    many = eqn.primitive.name in ("concatenate", "stack")
    count = len(ins) if many else 2
    operands = list(zip(ins, dims, strict=True))[:count]
    found = {}
    for whole, size in wholes.items():
        holders = [k for k, d in operands if whole in once(extents, d)]
        having = [k.entries(whole, size) for k in holders]
        if eqn.primitive.name == "pad" and _pads(eqn, extents, dims[0], whole):
            having.append(ins[1].entries(whole, size))
        entries = alike(having)
        if entries is not None:
            found[whole] = entries
    return Known(found)


def _pads(eqn: Any, extents: Any, dims: Dims, whole: int) -> bool:
    """Whether padding adds entries to the units of a group."""
    axis = once(extents, dims).get(whole)
    config = eqn.params["padding_config"]
    return any(tuple(c) != (0, 0, 0) for i, c in enumerate(config) if i != axis)


def either(one: Entries | None, two: Entries) -> Entries:
    """Zeros where one of two factors has them."""
    if one is None:
        return two
    return Entries(one.value, one.known | two.known, one.firm | two.firm)


def constant(value: Any) -> Known:
    """A constant of the function, if it is one number."""
    if np.ndim(value) == 0 and jnp.issubdtype(jnp.result_type(value), jnp.number):
        return Known(number=np.asarray(value))
    return NOTHING


def layer_of(known: Known, step: int | None) -> Known:
    """A layer of a stacked operand."""
    if known.held is None or step is None:
        return NOTHING
    value, mask = known.held
    sliced = Held(lambda: value()[step], None if mask is None else mask[step])
    return Known(held=sliced, tag=known.tag)


def moved(eqn: Any, held: Held) -> Held:
    """A parameter after a move or a cast."""
    name, params = eqn.primitive.name, eqn.params
    aval = eqn.outvars[0].aval

    def move(array: np.ndarray) -> np.ndarray:
        if name == "transpose":
            return np.transpose(array, params["permutation"])
        return np.reshape(array, aval.shape)

    mask = None if held.mask is None else move(held.mask)
    return Held(lambda: move(np.asarray(held.value())).astype(aval.dtype), mask)


def binding(eqn: Any) -> Callable[..., Any]:
    """The operation of an equation, for arrays of one axis."""
    params = {k: v for k, v in eqn.params.items() if k not in ("sharding",)}
    if "sharding" in eqn.params:
        params["sharding"] = None
    return lambda *arrays: eqn.primitive.bind(*arrays, **params)


def contracted(eqn: Any) -> list[tuple[int, int]]:
    """Pairs of axes that a product runs over."""
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "dot_general":
        return list(zip(*numbers[0], strict=True))
    return [(numbers.lhs_spec[1], numbers.rhs_spec[1])]


def hinders_of(eqn: Any) -> str:
    """Why the reader's bias cannot hold what a constant unit adds."""
    params = eqn.params
    if eqn.primitive.name == "dot_general":
        return ""
    if params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
        return "the reading convolution is grouped"
    if any(tuple(p) != (0, 0) for p in params["padding"]):
        return "the reading convolution pads, so that they add less at the border"
    if any(d != 1 for d in params["lhs_dilation"]):
        return "the reading convolution is transposed"
    return ""
