"""Values of units that are the same for every input.

For a group of units on an axis of an array, `UnitValues` has one entry per unit:

    known[j]     all entries of unit j are `value[j]`, for every input
    lasting[j]   and training cannot change this: it follows from masks and from
                 constants of the function alone

A masked column is 0, and lasting. The value of a unit without incoming edges is
`relu(bias[j])`: known, but not lasting. Zero times anything is known only if the zero
is lasting. A scale that is 0 now, as in the last norm of a residual block, can learn.

Operations: a move keeps what is known. A join keeps what is the same in all operands. A
sum of equal entries is their value times their number. An operation entry by entry is
computed where its operands are known. Nothing is known of other results.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bbjax.tracing import jaxprs
from bbjax.tracing.axes.extents import Dims, Extents
from bbjax.tracing.flow.contract import numbers_of
from bbjax.tracing.moves import Kept, Move, Ranged, Repeated
from bbjax.tracing.primitives import (
    ELEMENTWISE,
    JOINING,
    PICKING,
    RESHAPING,
    SHAPING,
    ZeroIf,
    moves_of,
    zero_if,
)

Bind = Callable[..., ArrayLike]
Tag = tuple[str, int]


class UnitValues(NamedTuple):
    """What is known of the units of one group: arrays with one entry per unit."""

    value: np.ndarray
    known: np.ndarray
    lasting: np.ndarray

    def only(self, some: np.ndarray) -> UnitValues:
        """What is known of some of the units alone."""
        return UnitValues(self.value, self.known & some, self.lasting & some)

    @property
    def zero(self) -> np.ndarray:
        """Units that are known to be 0."""
        return self.known & (self.value == 0)

    @property
    def pruned(self) -> np.ndarray:
        """Units that are 0, and that training cannot change."""
        return self.zero & self.lasting


class Parameter(NamedTuple):
    """A parameter, or what was computed from parameters entry by entry.

    Attributes:
      value: its values, computed only where there is one entry per unit; None if they
        depend on the input, too.
      mask: False for entries that masks make 0; None if there are none.
    """

    value: Callable[[], np.ndarray] | None
    mask: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of one array.

    Attributes:
      by: values by group of units; groups that are on two axes are left out.
      number: the value of all entries, if they are one constant of the function.
      parameter: if the array is one.
      tag: `("leaf", number)` if the array is that parameter, moved or broadcast;
        `("sum", number)` if it is the result of that product.
    """

    by: dict[int, UnitValues] = dataclasses.field(default_factory=dict)
    number: np.ndarray | None = None
    parameter: Parameter | None = None
    tag: Tag | None = None

    @property
    def is_known(self) -> bool:
        """Whether anything is known of the array."""
        return bool(self.by or self.parameter) or self.number is not None

    @property
    def is_zero(self) -> bool:
        """Whether the array is a constant 0."""
        return self.number is not None and not self.number.any()

    def entries(self, group: int, size: int) -> UnitValues | None:
        """What is known of the units of a group."""
        if group in self.by:
            return self.by[group]
        if self.number is None:
            return None
        yes = np.ones(size, bool)
        return UnitValues(np.broadcast_to(self.number, (size,)), yes, yes)


NOTHING = Known()


def on_axis(
    extents: Extents, known: Known, dims: Dims, axis: int, group: int
) -> UnitValues | None:
    """What is known of the units of a group on one axis of an array."""
    if known.parameter is not None:
        return _of_parameter(extents, known.parameter, dims, axis, group)
    if extents.single_axes(dims).get(group) != axis:
        return None
    return known.entries(group, extents.size((group,)))


def by_group(extents: Extents, known: Known, dims: Dims) -> Known:
    """What is known of a parameter, by group, for operations other than moves."""
    if known.parameter is None:
        return known
    found = {}
    for group, axis in extents.single_axes(dims).items():
        entries = _of_parameter(extents, known.parameter, dims, axis, group)
        if entries is not None:
            found[group] = entries
    return Known(found)


def _of_parameter(
    extents: Extents, parameter: Parameter, dims: Dims, axis: int, group: int
) -> UnitValues | None:
    shape = tuple(map(extents.size, dims))
    at = extents.positions(dims[axis], group)
    mine = at >= 0
    size = extents.size((group,))
    one_each = parameter.value is not None and math.prod(shape) == size
    if parameter.mask is None and not one_each:
        return None
    cut = np.zeros(size, bool)
    if parameter.mask is not None:
        others = tuple(i for i in range(len(shape)) if i != axis)
        masked = np.asarray(~parameter.mask.any(axis=others))
        cut[:] = True
        np.logical_and.at(cut, at[mine], masked[mine])
    if not one_each:
        return UnitValues(np.zeros(size, np.float32), cut, cut) if cut.any() else None
    assert parameter.value is not None
    value = np.asarray(parameter.value()).reshape(-1)
    if np.iscomplexobj(value):
        return UnitValues(np.zeros(size, value.dtype), cut, cut)
    ordered = np.zeros(size, value.dtype)
    ordered[at[mine]] = value[mine]
    return UnitValues(np.where(cut, 0, ordered), np.ones(size, bool), cut)


def join(one: Known, two: Known) -> Known:
    """What is known of an array that is one of two."""
    both = {}
    for group in one.by.keys() | two.by.keys():
        size = len((one.by.get(group) or two.by[group]).value)
        found = common([k.entries(group, size) for k in (one, two)])
        if found is not None:
            both[group] = found
    same = one.number is not None and two.number is not None
    return Known(both, one.number if same and one.number == two.number else None)


def common(entries: Sequence[UnitValues | None]) -> UnitValues | None:
    """What is known of units with entries in several arrays; None if nothing."""
    found = entries[0] if entries else None
    for other in entries[1:]:
        if found is None or other is None:
            return None
        both = found._replace(lasting=found.lasting & other.lasting)
        found = both.only(other.known & (found.value == other.value))
    return found if found is not None and found.known.any() else None


# Entry by entry ------------------------------------------------------------------
def elementwise(eqn: Any, knowns: Sequence[Known], groups: Mapping[int, int]) -> Known:
    """What is known of the result of an operation that acts entry by entry.

    Args:
      eqn: the operation.
      knowns: what is known of the operands.
      groups: sizes of the groups on the axes of the result.
    """
    numbers = [k.number for k in knowns]
    bind = binding(eqn)
    if all(n is not None for n in numbers):
        return Known(number=np.asarray(bind(*(jnp.asarray(n) for n in numbers))))
    rule = _zero_if(eqn, knowns)
    found = {}
    for group, size in groups.items():
        entries = [
            None if e is None else e._replace(value=np.asarray(e.value, v.aval.dtype))
            for e, v in zip(
                (k.entries(group, size) for k in knowns), eqn.invars, strict=True
            )
        ]
        result = _zeros(rule, entries, size, eqn.outvars[0].aval.dtype)
        if eqn.primitive.name == "select_n":  # the same in all cases
            result = common(entries[1:]) or result
        if all(e is not None for e in entries):
            result = _computed(bind, [e for e in entries if e is not None], result)
        if result.known.any():
            found[group] = result
    return Known(found)


def _zero_if(eqn: Any, knowns: Sequence[Known]) -> ZeroIf | None:
    """Which operands of an operation have to be 0 for a result of 0."""
    numbers = [
        None if k.number is None or np.iscomplexobj(k.number) else float(k.number)
        for k in knowns
    ]
    return zero_if(eqn.primitive.name, eqn.params, numbers)


def _zeros(
    rule: ZeroIf | None, entries: Sequence[UnitValues | None], size: int, dtype: Any
) -> UnitValues:
    """Units that are 0 because operands are, for good."""
    zero = np.zeros(size, bool)
    if rule is not None:
        pruned = [np.zeros(size, bool) if e is None else e.pruned for e in entries]
        each = [np.logical_or.reduce([pruned[i] for i in group]) for group in rule]
        zero = np.logical_and.reduce(each)
    return UnitValues(np.zeros(size, dtype), zero, zero)


def _computed(
    bind: Bind, entries: Sequence[UnitValues], found: UnitValues
) -> UnitValues:
    """The result where all operands are known."""
    known = np.logical_and.reduce([e.known for e in entries])
    if any(np.iscomplexobj(e.value) for e in (found, *entries)):
        return found  # only zeros are followed
    new = known & ~found.known
    if not new.any():
        return found
    lasting = np.logical_and.reduce([e.lasting for e in entries])
    value = found.value.copy()
    value[new] = _each_once(bind, [e.value[new] for e in entries]).astype(value.dtype)
    fine = known & ~np.isnan(np.asarray(value, np.float64))
    return UnitValues(value, found.known | fine, found.lasting | (lasting & fine))


def _each_once(bind: Bind, columns: Sequence[np.ndarray]) -> np.ndarray:
    """An operation, entry by entry, computed once for equal entries.

    Arrays get one of few sizes: every size has to be compiled.
    """
    rows = np.concatenate([_bytes(column) for column in columns], axis=1)
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))
    _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
    padded = np.zeros(max(64, 1 << (len(first) - 1).bit_length()), int)
    padded[: len(first)] = first
    results = bind(*(jnp.asarray(column[padded]) for column in columns))
    return np.asarray(results)[inverse.reshape(-1)]


def _bytes(column: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(column).view(np.uint8).reshape(len(column), -1)


# Other operations ----------------------------------------------------------------
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
    for group, e in known.by.items():
        value = np.where(e.zero, e.value, e.value * np.asarray(count, e.value.dtype))
        found[group] = e._replace(value=value).only(e.known if count else e.zero)
    return Known(found)


def picked(eqn: Any, known: Known) -> Known:
    """Entries picked by index; where there is none, NaN or a value to fill in."""
    fill = eqn.params.get("fill_value")
    if fill is None or np.isnan(np.asarray(fill, np.complex128)):
        return known  # a row of NaN makes everything that reads it NaN
    return Known({group: e.only(e.value == fill) for group, e in known.by.items()})


def only(known: Known, groups: Collection[int], number: bool = False) -> Known:
    """What is known of some groups, and, if asked for, the value of all entries."""
    by = {g: e for g, e in known.by.items() if g in groups and e.known.any()}
    return Known(by, known.number if number else None)


def joined(extents, frame, eqn, ins, groups) -> Known:
    """Entries of several operands; a unit may have entries in some of them alone."""
    dims = [
        extents.shape(np.shape(a.val)) if jaxprs.is_literal(a) else frame.dims[a]
        for a in eqn.invars
    ]
    many = eqn.primitive.name in ("concatenate", "stack")
    count = len(ins) if many else 2
    operands = list(zip(ins, dims, strict=True))[:count]
    found = {}
    for group, size in groups.items():
        holders = [k for k, d in operands if group in extents.single_axes(d)]
        having = [k.entries(group, size) for k in holders]
        if eqn.primitive.name == "pad" and _pads(eqn, extents, dims[0], group):
            having.append(ins[1].entries(group, size))
        entries = common(having)
        if entries is not None:
            found[group] = entries
    return Known(found)


def _pads(eqn: Any, extents: Extents, dims: Dims, group: int) -> bool:
    """Whether padding adds entries to the units of a group."""
    axis = extents.single_axes(dims).get(group)
    config = eqn.params["padding_config"]
    return any(tuple(c) != (0, 0, 0) for i, c in enumerate(config) if i != axis)


def either(one: UnitValues | None, two: UnitValues) -> UnitValues:
    """Zeros of one of two factors."""
    if one is None:
        return two
    return UnitValues(one.value, one.known | two.known, one.lasting | two.lasting)


def constant(value: ArrayLike) -> Known:
    """What is known of a constant of the function: its value, if it is one number."""
    if np.ndim(value) == 0 and jnp.issubdtype(jnp.result_type(value), jnp.number):
        return Known(number=np.asarray(value))
    return NOTHING


def layer_of(known: Known, step: int | None) -> Known:
    """What is known of one layer of a stacked operand."""
    if known.parameter is None or step is None:
        return NOTHING
    value, mask = known.parameter

    def sliced() -> np.ndarray:
        assert value is not None
        return value()[step]

    here = None if mask is None else mask[step]
    return Known(parameter=Parameter(value and sliced, here), tag=known.tag)


def derived(eqn: Any, ins: Sequence[Known]) -> list[Parameter] | None:
    """What an equation makes of parameters: moves them, or computes entry by entry.

    Returns:
      The results; None if units have to be looked at one by one, as in a vector, or if
      no operand is a parameter.
    """
    given = [known.parameter for known in ins]
    if not any(given):
        return None
    name = eqn.primitive.name
    if all(given) and _moves_parameters(eqn):
        parameters = [p for p in given if p is not None]
        return [_moved(eqn, parameters, i) for i in range(len(eqn.outvars))]
    if name not in ELEMENTWISE or sum(n > 1 for n in eqn.outvars[0].aval.shape) < 2:
        return None
    masks = [
        (np.zeros((), bool) if known.is_zero else None) if own is None else own.mask
        for known, own in zip(ins, given, strict=True)
    ]
    mask = _mask_of(_zero_if(eqn, ins), masks)
    if mask is not None:
        mask = np.broadcast_to(mask, eqn.outvars[0].aval.shape)
    alone = all(
        p.value is not None if p else known.number is not None
        for p, known in zip(given, ins, strict=True)
    )
    if mask is None and not alone:
        return None

    def value() -> np.ndarray:
        values = [
            known.number if p is None or p.value is None else p.value()
            for p, known in zip(given, ins, strict=True)
        ]
        dtypes = [v.aval.dtype for v in eqn.invars]
        arrays = [jnp.asarray(v, d) for v, d in zip(values, dtypes, strict=True)]
        return np.asarray(binding(eqn)(*arrays))

    return [Parameter(functools.cache(value) if alone else None, mask)]


def _mask_of(
    rule: ZeroIf | None, masks: Sequence[np.ndarray | None]
) -> np.ndarray | None:
    """Which entries of a result may be other than 0; None if all may."""
    terms = []
    for group in rule or ((),):
        factors = [masks[i] for i in group]
        having = [mask for mask in factors if mask is not None]
        if not having:
            return None
        terms.append(functools.reduce(np.logical_and, having))
    return functools.reduce(np.logical_or, terms)


def _moved(eqn: Any, parameters: Sequence[Parameter], result: int) -> Parameter:
    """One result of a move, or of a cast."""
    aval = eqn.outvars[result].aval

    def move(arrays: Sequence[np.ndarray]) -> np.ndarray:
        moves = moves_of(eqn)
        if eqn.primitive.name in JOINING:
            return _joined(eqn, arrays)
        if moves is None:  # a cast
            return arrays[0]
        return _placed(moves[result], arrays[0], aval.shape)

    mask = None
    if any(p.mask is not None for p in parameters):
        masks = [
            np.ones(v.aval.shape, bool) if p.mask is None else p.mask
            for p, v in zip(parameters, eqn.invars, strict=True)
        ]
        mask = move(masks)

    def value() -> np.ndarray:
        values = [np.asarray(p.value()) for p in parameters if p.value is not None]
        return move(values).astype(aval.dtype)

    alone = all(p.value is not None for p in parameters)
    return Parameter(functools.cache(value) if alone else None, mask)


def _placed(move: Move, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The array that a move makes of one."""
    if move.reshaped is not None:
        return array.transpose(move.reshaped).reshape(shape)
    for origin in (*move.axes, *move.gone):
        if isinstance(origin, Ranged):
            _, start, size, step = origin
            own = np.arange(start, start + size * step, step)
            array = array.take(own, axis=origin.axis)
    order = [o.axis for o in (*move.axes, *move.gone) if not isinstance(o, Repeated)]
    return array.transpose(order).reshape(shape)


def _joined(eqn: Any, arrays: Sequence[np.ndarray]) -> np.ndarray:
    if eqn.primitive.name == "stack":
        return np.stack(arrays, axis=eqn.params["axis"])
    return np.concatenate(arrays, axis=eqn.params["dimension"])


def _moves_parameters(eqn: Any) -> bool:
    """Whether every entry of the results is an entry of one of the operands."""
    name = eqn.primitive.name
    if name in ("concatenate", "stack") or name in SHAPING - RESHAPING:
        return True
    origins = (o for m in moves_of(eqn) or () for o in (*m.axes, *m.gone))
    once = all(isinstance(o, Kept | Ranged) or o == Repeated(1) for o in origins)
    return name in PICKING and once


def binding(eqn: Any) -> Callable[..., Any]:
    """The operation of an equation, for arrays of one axis."""
    params = {k: None if k == "sharding" else v for k, v in eqn.params.items()}
    return lambda *arrays: eqn.primitive.bind(*arrays, **params)


def contracted(eqn: Any) -> list[tuple[int, int]]:
    """Pairs of axes that a product sums over."""
    return list(zip(*numbers_of(eqn).contract, strict=True))


def why_no_bias(eqn: Any) -> str:
    """Why the bias of the reading kernel cannot hold the sum of a constant unit."""
    params = eqn.params
    if eqn.primitive.name == "dot_general":
        return ""
    if eqn.primitive.name != "conv_general_dilated":
        return "the reading product has a matrix for each group of rows"
    if params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
        return "the reading convolution is grouped"
    if any(tuple(p) != (0, 0) for p in params["padding"]):
        return "the reading convolution pads, so that they add less at the border"
    if any(d != 1 for d in params["lhs_dilation"]):
        return "the reading convolution is transposed"
    return ""
