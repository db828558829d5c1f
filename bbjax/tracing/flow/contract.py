"""Products: which operand of a `dot_general` or convolution is a kernel, and how.

A product of an activation with an array whose entries are a parameter's is a *use* of
that parameter. The product's dimension numbers give the role of each axis of the
operand; the parts on those axes give the role of each axis of the parameter. Statistics
are taken in the order of the product and put into the parameter's order at the end,
through the same parts.

A ragged product (`lax.ragged_dot`, mixtures of experts) multiplies each group of rows
of its left operand with a matrix of its own. The axis of the matrices is a stack axis
of the kernel. No axis of the result has it: its rows are sorted by group, and keep a
part that says so for as long as they stand in this order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from bbjax.tracing.flow import ranges
from bbjax.tracing.flow.values import (
    CENTRED,
    Axis,
    Part,
    Source,
    Value,
    extent,
    merged,
    plain,
    position,
)
from bbjax.tracing.primitives import ELEMENTWISE, RAGGED

Scope = tuple[tuple[int, int], ...]


_CHANGING = ELEMENTWISE | {CENTRED}  # after which a weight of 0 is not 0


@dataclasses.dataclass(frozen=True)
class Ragged:
    """How the rows of a ragged product are grouped.

    Attributes:
      axis: axis of the activation that is sorted by group.
      prefix: axes of the activation along which group sizes vary, outermost first.
      parts: parts of the parameter on the axis of its matrices.
      marks: the axes of the result that `prefix` and `axis` become.
      groups: number of the node that holds the group sizes.
      sizes: the operand that holds them.
    """

    axis: int
    prefix: tuple[int, ...]
    parts: Axis
    groups: int
    sizes: object
    marks: tuple[Axis, ...] = ()


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of a kernel.

    Attributes:
      weight: leaf number of the parameter.
      number: which use of the trace this is.
      operand: which operand of the product is the activation.
      axes: axes of the activation that carry stack, group and input units, in the
        order of `parts`.
      parts: parts of the parameter on those axes, one tuple per axis.
      layers: for each enclosing scan, outermost first, its body's scope and the part
        it runs over, or None if it reuses the parameter.
      roles: role of every part of the parameter.
      reads: sources of the units that it contracts.
      op: the primitive's name.
      scope: where the product is.
      atom: the operand that holds the activation.
      fixed: whether that is an array constant.
      at: axes of the parameter that are indexed before the product, with the index.
      ragged: the groups of its rows, in a ragged product.
      eqn: the product itself.
    """

    weight: int
    number: int
    operand: int
    axes: tuple[int, ...]
    parts: tuple[Axis, ...]
    layers: tuple[tuple[Scope, Part | None], ...]
    roles: tuple[tuple[Part, str], ...]
    reads: frozenset[Source]
    op: str
    scope: Scope = ()
    atom: object = None
    fixed: bool = False
    at: tuple[tuple[int, int], ...] = ()
    ragged: Ragged | None = None
    eqn: Any = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Product:
    """What a product is: its result, and the use or the problems it makes.

    A doubt is a problem unless the parameter is a kernel elsewhere: rows picked from an
    embedding are no use of it, rows picked from a weight matrix are.
    """

    value: Value
    use: Use | None = None
    problems: tuple[tuple[int, str], ...] = ()
    doubts: tuple[tuple[int, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Axes of the two operands of a product, by meaning, and of its result."""

    batch: tuple[tuple[int, ...], tuple[int, ...]]
    contract: tuple[tuple[int, ...], tuple[int, ...]]
    free: tuple[tuple[int, ...], tuple[int, ...]]
    result: tuple[tuple[int, int], ...]  # (operand, axis); axis -1 for a window's
    spatial: tuple[int, ...] = ()
    groups: int = 1
    stack: tuple[int, ...] = ()  # of the right operand: one matrix per group of rows
    ragged: int = -1  # of the left operand: rows that are sorted by group


def classify(
    eqn: Any,
    values: Sequence[Value],
    scans: tuple[Scope, ...],
    number: int,
    groups: int = -1,
) -> Product:
    """Classifies a product by its operands.

    Args:
      eqn: the product.
      values: of its operands.
      scans: bodies of the enclosing scans.
      number: of the use that it may be.
      groups: node that holds the group sizes of a ragged product.
    """
    values = values[:2]
    shape = tuple(eqn.outvars[0].aval.shape)
    given, values = values, [v.released() for v in values]
    sides = _kernel_sides(values)
    name = eqn.primitive.name
    reason = _unreadable(eqn)
    if not reason and name in RAGGED and sides == [0]:
        reason = "is the operand of a ragged product that holds the rows"
    if reason or len(sides) != 1:
        return _pooled(eqn, given, _no_use(eqn, values, shape, sides, reason))
    kernel = sides[0]
    whole, at = ranges.indexed(values[kernel])
    values = [whole if i == kernel else v for i, v in enumerate(values)]
    numbers = numbers_of(eqn)
    roles = _roles(values[kernel], numbers, kernel, scans)
    if isinstance(roles, str):
        return _no_use(eqn, values, shape, sides, roles)
    use = _use(values, numbers, kernel, roles, scans, number, name)
    use = dataclasses.replace(use, eqn=eqn, at=at)
    if numbers.ragged >= 0:
        ragged = _ragged(eqn, numbers, values[kernel], groups)
        use = dataclasses.replace(use, ragged=ragged)
    return _product(values, numbers, kernel, use, shape)


def _kernel_sides(values: Sequence[Value]) -> list[int]:
    """Operands that can be the kernel: a parameter's entries, against activations."""
    weights = [i for i in (0, 1) if values[i].weight is not None]
    if len(weights) == 2:
        pure = [i for i in weights if not values[i].deps]
        return pure if len(pure) == 1 else []
    other = [values[1 - i] for i in weights]
    return [] if other and other[0].is_parametric else weights


def _unreadable(eqn: Any) -> str:
    if eqn.primitive.name in RAGGED:
        return _unread_ragged(eqn.params)
    if eqn.params.get("batch_group_count", 1) != 1:
        return "convolution with batch groups is not supported"
    return ""


def _unread_ragged(params: Any) -> str:
    """Why a ragged product is none of rows with one matrix per group."""
    numbers = params["ragged_dot_dimension_numbers"]
    if not numbers.rhs_group_dimensions:
        return "meets groups of a ragged product that share one matrix"
    if params.get("group_offset") is not None:
        return "reaches a ragged product with a group offset"
    return ""


def _no_use(
    eqn: Any,
    values: Sequence[Value],
    shape: tuple[int, ...],
    sides: Sequence[int],
    reason: str,
) -> Product:
    name = eqn.primitive.name
    problems: list[tuple[int, str]] = []
    for value, other in (values[:2], values[1::-1]):
        if other.is_parametric:
            continue
        if value.is_parametric:
            problems += _through(name, value.lost)
        elif value.constant:  # picked entries are doubts, below
            changed = [pair for pair in value.lost if pair[1] in _CHANGING]
            problems += _through(name, changed)
    if reason:
        problems += [
            (v.weight, reason) for v in values if v.weight is not None and not v.deps
        ]
    elif not sides and all(v.is_parametric for v in values[:2]):
        why = "multiplies another parameter, not an activation"
        problems += [(v.weight, why) for v in values if v.weight is not None]
    picked = [pair for v in values if v.deps and v.weight is None for pair in v.lost]
    doubts = tuple(_through(name, picked))
    deps = values[0].deps | values[1].deps
    lost = frozenset(problems) if not deps else frozenset()
    leaves = values[0].leaves | values[1].leaves
    value = plain(shape, deps, lost=lost, leaves=leaves)
    if name == "dot_general":
        twins = values[0].twins | values[1].twins
        value = value.replace(axes=_averaged(eqn, values, shape), twins=twins)
    return Product(value, None, tuple(problems), doubts)


def _through(name: str, lost: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    """Why parameters cannot be measured that reach a product by another operation."""
    found = []
    for weight, by in sorted(lost, key=lambda pair: (pair[1] not in _CHANGING, pair)):
        why = f"reaches {name} through {by}"
        if by == CENTRED:
            why = f"is standardised before {name}: its mean is subtracted"
        if by in _CHANGING:
            why += ", after which a weight of 0 is not 0"
        if by == CENTRED:
            why += "; make the standardised weights the parameter (fold them) first"
        found.append((weight, why))
    return found


def _averaged(
    eqn: Any, values: Sequence[Value], shape: tuple[int, ...]
) -> tuple[Axis, ...]:
    """Axes of a product of two activations (attention).

    Like pooling, it averages one operand's units over positions: they keep their axes.
    Units that are contracted are gone, from the other axes too (queries and keys).
    """
    numbers = numbers_of(eqn)
    sides = [_left(values[i], numbers.contract[i]) for i in (0, 1)]
    carrier = 1 if _has_units(sides[1], numbers.free[1]) else 0
    axes = []
    for size, (side, axis) in zip(shape, numbers.result, strict=True):
        if axis in numbers.batch[side] and side != carrier:
            side, axis = 1, numbers.batch[1][numbers.batch[0].index(axis)]
        held = sides[side][axis]
        axes.append(held if extent(held) == size else position(size))
    return tuple(axes)


def _pooled(eqn: Any, values: Sequence[Value], found: Product) -> Product:
    """A product of two activations, as units of one at positions of the other."""
    if eqn.primitive.name != "dot_general" or found.problems:
        return found
    units = [v.pool(found.value.axes) for v in values if v.owners]
    mine = [v for v in units if v is not None]
    if len(mine) != 1:
        return found
    deps, lost = found.value.deps, found.value.lost
    return dataclasses.replace(found, value=mine[0].replace(deps=deps, lost=lost))


def _left(value: Value, contracted: Sequence[int]) -> tuple[Axis, ...]:
    """The axes of an operand without the units that a product contracts."""
    gone = {p.source for a in contracted for p in value.axes[a]} - {None}
    return tuple(
        position(extent(axis)) if any(p.source in gone for p in axis) else axis
        for axis in value.axes
    )


def _has_units(operand: Sequence[Axis], axes: Sequence[int]) -> bool:
    return any(p.is_unit for a in axes for p in operand[a])


# Dimension numbers ---------------------------------------------------------------
def numbers_of(eqn: Any) -> Numbers:
    """Meaning of the axes of a product."""
    if eqn.primitive.name == "conv_general_dilated":
        return _conv_numbers(eqn)
    return _matrix_numbers(eqn)


def _matrix_numbers(eqn: Any) -> Numbers:
    """Of a matrix product, plain or with a matrix for each group of rows."""
    ragged = eqn.params.get("ragged_dot_dimension_numbers")
    dims = ragged.dot_dimension_numbers if ragged else eqn.params["dimension_numbers"]
    (left, right), (left_batch, right_batch) = dims
    contract = tuple(map(int, left)), tuple(map(int, right))
    batch = tuple(map(int, left_batch)), tuple(map(int, right_batch))
    stack = tuple(map(int, ragged.rhs_group_dimensions)) if ragged else ()
    gone = contract[0] + batch[0], contract[1] + batch[1] + stack
    ranks = [len(v.aval.shape) for v in eqn.invars[:2]]
    free = tuple(
        tuple(a for a in range(rank) if a not in used)
        for rank, used in zip(ranks, gone, strict=True)
    )
    result = [(0, a) for a in batch[0] + free[0]] + [(1, a) for a in free[1]]
    return Numbers(
        batch,
        contract,
        free,  # type: ignore[arg-type]
        tuple(result),
        stack=stack,
        ragged=int(ragged.lhs_ragged_dimensions[0]) if ragged else -1,
    )


def _conv_numbers(eqn: Any) -> Numbers:
    dims = eqn.params["dimension_numbers"]
    lhs, rhs, out = dims.lhs_spec, dims.rhs_spec, dims.out_spec
    result: list[tuple[int, int]] = [(0, -1)] * len(out)
    result[out[0]], result[out[1]] = (0, lhs[0]), (1, rhs[0])
    return Numbers(
        batch=((), ()),
        contract=((lhs[1],), (rhs[1],)),
        free=((lhs[0],), (rhs[0],)),
        result=tuple(result),
        spatial=tuple(rhs[2:]),
        groups=eqn.params["feature_group_count"],
    )


# Roles ---------------------------------------------------------------------------
def _roles(
    value: Value, numbers: Numbers, kernel: int, scans: tuple[Scope, ...]
) -> tuple[tuple[Part, str], ...] | str:
    """The role of each part of the parameter, or why they are not known."""
    roles: dict[Part, str] = {}
    for _, part in value.scanned:
        roles[part] = "stack"
    named = (
        (numbers.batch[kernel] + numbers.stack, "stack"),
        (numbers.contract[kernel], "in"),
        (numbers.free[kernel], "out"),
        (numbers.spatial, "spatial"),
    )
    for axes, role in named:
        for axis in axes:
            for part in value.axes[axis]:
                roles[part] = role
    if numbers.groups > 1:
        split = _split_groups(value.axes[numbers.free[kernel][0]], numbers.groups)
        if split is None:
            return "its output channels cannot be split into the groups of the product"
        for part in value.axes[numbers.free[kernel][0]]:
            del roles[part]
        roles.update(split)
    roles = {p: r for p, r in roles.items() if p.source is not None}
    if any(p.stride < 0 and r != "spatial" for p, r in roles.items()):
        return "reaches the product with a reversed axis"
    if any(p.source != ("w", value.weight) for p in roles):
        return "reaches the product mixed with other axes"
    return tuple(roles.items())


def _split_groups(axis: Axis, groups: int) -> dict[Part, str] | None:
    """Splits the parts of an output axis into the group index and the rest."""
    roles: dict[Part, str] = {}
    need = groups
    for part in axis:
        if need == 1:
            roles[part] = "out"
        elif need % part.size == 0:
            roles[part] = "group"
            need //= part.size
        elif part.size % need == 0:
            rest = part.size // need
            roles[part._replace(size=need, stride=part.stride * rest)] = "group"
            roles[part._replace(size=rest)] = "out"
            need = 1
        else:
            return None
    return roles


def _use(values, numbers, kernel, roles, scans, number, name) -> Use:
    activation = 1 - kernel
    value = values[kernel]
    where = numbers.batch[activation] + numbers.contract[activation]
    parts = [value.axes[a] for a in numbers.batch[kernel] + numbers.contract[kernel]]
    if numbers.groups > 1:
        group = tuple(p for p, r in roles if r == "group")
        parts[-1] = group + parts[-1]
    consumed = dict(value.scanned)
    return Use(
        weight=value.weight,
        number=number,
        operand=activation,
        axes=tuple(where),
        parts=tuple(parts),
        layers=tuple((s, consumed.get(s)) for s in scans),
        roles=roles,
        reads=_read_units(values[activation], numbers.contract[activation]),
        op=name,
    )


def _ragged(eqn: Any, numbers: Numbers, value: Value, groups: int) -> Ragged:
    """The groups of the rows of a ragged product."""
    sizes, row = eqn.invars[2], numbers.ragged
    outer = [a for a in numbers.free[0] if a < row]
    varies = len(sizes.aval.shape) > 1
    prefix = numbers.batch[0] + tuple(outer) if varies else ()
    return Ragged(row, prefix, value.axes[numbers.stack[0]], groups, sizes)


def _read_units(value: Value, axes: Sequence[int]) -> frozenset[Source]:
    """Sources of the units on some axes, with their partners in a product."""
    found = {
        p.source
        for a in axes
        for p in value.axes[a]
        if p.source is not None and p.is_unit
    }
    partners = {t.source for p, t in value.twins if p.source in found and t.source}
    return frozenset(found | partners)


def _product(values, numbers, kernel, use, shape) -> Product:
    """The output of a use: its free kernel axes carry the use's own units."""
    own = ("u", use.number)
    axes = []
    for size, (side, axis) in zip(shape, numbers.result, strict=True):
        if axis < 0:
            axes.append(position(size))
        elif side == kernel:
            axes.append(_renamed(values[kernel].axes[axis], own, use))
        else:
            axes.append(_other_axis(values, numbers, kernel, axis, own, use, size))
    if use.ragged is not None:
        use = _marked(use, numbers, axes)
    made = Value(
        tuple(axes),
        owners=frozenset({own}),
        deps=frozenset({use.number}),
    )
    return Product(made, use)


def _marked(use: Use, numbers: Numbers, axes: list[Axis]) -> Use:
    """Marks the rows of a ragged product, in `axes`; the use knows the marks."""
    ragged = use.ragged
    assert ragged is not None
    places = {a: i for i, (side, a) in enumerate(numbers.result) if side == 0}
    marks = []
    for number, axis in enumerate((*ragged.prefix, ragged.axis)):
        at = places[axis]
        if not any(p.is_unit for p in axes[at]) or axis == ragged.axis:
            source = ("g", ragged.groups)
            axes[at] = (Part(source, number, extent(axes[at]), 1),)
        marks.append(axes[at])
    return dataclasses.replace(
        use, ragged=dataclasses.replace(ragged, marks=tuple(marks))
    )


def _other_axis(values, numbers, kernel, axis, own, use, size) -> Axis:
    """An axis of the result that comes from the activation."""
    activation = 1 - kernel
    if axis in numbers.batch[activation]:
        at = numbers.batch[activation].index(axis)
        return _renamed(values[kernel].axes[numbers.batch[kernel][at]], own, use)
    held = values[activation].axes[axis]
    return held if extent(held) == size and not merged(held) else position(size)


def _renamed(axis: Axis, own: tuple[str, int], use: Use) -> Axis:
    """Parts of the parameter, as parts of the units that it makes."""
    return tuple(p if p.source is None else p._replace(source=own) for p in axis)
