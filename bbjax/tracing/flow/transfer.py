"""How a primitive operation changes what is known of its operands.

Three kinds of operations matter. *Elementwise* ones keep units where they are; a chain
of them carries the output units of a kernel through bias, norm and nonlinearity, until
units of another kind are mixed in. *Moving* ones (transpose, reshape, broadcast, pool)
move axes and keep as much as is exact; a slice of units is a range of them
(`bbjax.tracing.flow.ranges`). After any other operation nothing is known.

The rule for mixing: an operand of an addition-like operation mixes other values into
units unless it is made of parameters, is a summary of the same units (their mean in a
norm), or does not vary along any axis but theirs (a bias, a running mean). A sum with
such an operand is `mixed`: it is measured if a nonlinearity follows, but no kernel
reads units there. Any other operation with it ends the chain. Multiplication-like
operations never mix by themselves: masks, dropout and gates pass, and the product of
two kernels' units belongs to both. Units that are pooled over positions are `pooled`;
beside others they are data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bbjax.tracing.flow import ranges
from bbjax.tracing.flow.values import (
    CENTRED,
    DATA,
    Axis,
    Part,
    Source,
    Value,
    extent,
    plain,
    position,
    positions,
    reshape,
    without_units,
)
from bbjax.tracing.moves import (
    AxisOrigin,
    Kept,
    Mixed,
    Move,
    Padded,
    Ranged,
    Repeated,
    Tiled,
)
from bbjax.tracing.primitives import (
    ACROSS,
    ADD_LIKE,
    CHOOSING,
    EACH,
    ELEMENTWISE,
    LINEAR_UNARY,
    MIXING,
    MUL_LIKE,
    RANDOM,
    UNARY,
    moves_of,
    zero_if,
)


def transfer(eqn: Any, ins: Sequence[Value]) -> list[Value]:
    """Values of the outputs of an equation without a body.

    Args:
      eqn: the equation.
      ins: values of its operands.
    """
    if eqn.primitive.name == "optimization_barrier":
        return list(ins)
    leaves = frozenset[int]().union(*(v.leaves for v in ins))
    constant = any(v.deps for v in ins) and all(v.constant or not v.deps for v in ins)
    return [v.replace(leaves=leaves, constant=constant) for v in _results(eqn, ins)]


def _results(eqn: Any, ins: Sequence[Value]) -> list[Value]:
    name = eqn.primitive.name
    shapes = [tuple(getattr(v.aval, "shape", ())) for v in eqn.outvars]
    if name in ELEMENTWISE and len(shapes) == 1:
        found = elementwise(name, ins, shapes[0], eqn.params)
        if name in LINEAR_UNARY and name != "neg":
            found = found.replace(number=ins[0].number)
        return [found]
    if name in RANDOM:
        return [plain(s) for s in shapes]  # random values carry no units
    if name in ("concatenate", "stack"):
        return [_joined(eqn, ins, shapes[0])]
    if name in BY_NUMBER:
        return [_by_number(eqn, ins, s) for s in shapes]
    moves = moves_of(eqn)
    if moves is None:
        return [forget(name, ins, s) for s in shapes]
    operands = list(ins) if name in EACH else [ins[0]] * len(shapes)
    return [_moved(name, *one) for one in zip(operands, moves, shapes, strict=True)]


def forget(name: str, ins: Sequence[Value], shape: Sequence[int]) -> Value:
    """The result of an operation that is not followed."""
    deps = frozenset[int]().union(*(v.deps for v in ins))
    lost = {pair for v in ins for pair in v.lost}
    lost |= {(v.weight, name) for v in ins if v.weight is not None}
    known = all(map(_settled, ins)) or name in CHOOSING
    leaves = frozenset[int]().union(*(v.leaves for v in ins))
    return plain(
        shape, deps, lost=frozenset(lost) if known else frozenset(), leaves=leaves
    )


# Elementwise ---------------------------------------------------------------------
def elementwise(
    name: str,
    ins: Sequence[Value],
    shape: tuple[int, ...],
    params: Mapping[str, Any],
) -> Value:
    """The result of an elementwise operation, with size-1 axes broadcast.

    Args:
      name: of the primitive.
      ins: values of its operands.
      shape: of the result.
      params: of the equation.
    """
    if any(v.owners and not v.pooled for v in ins):  # beside them, a pooled one is data
        ins = [v.released() if v.pooled else v for v in ins]
    tagged = [v for v in ins if v.owners]
    arrays = [v for v in ins if v.shape]
    deps = frozenset[int]().union(*(v.deps for v in ins))
    const = tuple(
        all(v.const[i] or (v.shape[i] == 1 and n != 1) for v in arrays)
        for i, n in enumerate(shape)
    )
    if tagged:
        return _chain(name, ins, tagged, shape).replace(deps=deps, const=const)
    kept = _kept_weight(name, ins, params)
    if kept is not None:
        return kept.replace(deps=deps)
    if name in ADD_LIKE and _is_sum(name, arrays):
        axes = positions(shape)  # a sum of two activations is neither's units
    else:
        axes = tuple(
            _agree([v.axes[i] for v in arrays], n) for i, n in enumerate(shape)
        )
    forgotten = forget(_by(name, ins), ins, shape)
    if deps:
        lost = ins[0].lost if name in LINEAR_UNARY else forgotten.lost
        return Value(axes, const, deps=deps, twins=_twins(ins), lost=lost)
    return forgotten.replace(const=const)


def _by(name: str, ins: Sequence[Value]) -> str:
    """The name under which an operation loses the axes of a parameter."""
    if name == "sub" and ins[0].weight is not None:
        if ins[1].weight is None and ins[1].leaves == {ins[0].weight}:
            return CENTRED
    return name


def _is_sum(name: str, arrays: Sequence[Value]) -> bool:
    """Whether an addition mixes units, rather than centring some by their mean."""
    active = [v for v in arrays if v.deps]
    if len(active) < 2:
        return False
    lead = max(active, key=lambda v: len(v.named_axes()))
    own, owned = lead.deps - {DATA}, set(lead.named_axes())
    return _mixes(name, active, lead, own, owned) or _permuted(
        name, active, lead, own, owned
    )


def _agree(axes: Sequence[tuple[Part, ...]], size: int) -> tuple[Part, ...]:
    """The parts of an axis that the operands which have it agree on."""
    full = [a for a in axes if extent(a) == size]
    named = {a for a in full if any(p.is_unit or p.is_row for p in a)}
    return named.pop() if len(named) == 1 else position(size)


def _chain(
    name: str, ins: Sequence[Value], tagged: Sequence[Value], shape: tuple[int, ...]
) -> Value:
    owners = frozenset[Source]().union(*(v.owners for v in tagged))
    several = len({v.owners for v in tagged}) > 1
    lead = max(tagged, key=lambda v: sum(extent(a) > 1 for a in v.axes))
    axes = tuple(
        _lead_axis(lead, [v for v in ins if v.shape], i, n) for i, n in enumerate(shape)
    )
    plus = name in ("add", "sub", "add_any")
    summed = several and plus and _aligned(lead, tagged)
    uses = frozenset(source[1] for source in owners)
    owned = set(lead.unit_axes(lead.owners))
    others = _mixes(name, ins, lead, uses, owned)
    ends = several and not summed and name not in ("mul", "div")
    if ends or (others and not plus) or _permuted(name, ins, lead, uses, owned):
        return Value(positions(shape))
    twins = _twins(tagged)
    if several:
        twins |= {pair for v in tagged for pair in _pairs(lead, v)}
    curved = next((v.nonlinearity for v in tagged if v.nonlinearity), "")
    bends = max(v.bends for v in tagged)
    mixed = others or any(v.mixed for v in tagged)
    pooled = any(v.pooled for v in tagged)
    if summed or others:  # what bends a sum of several terms comes after it
        return Value(
            axes, owners=owners, twins=twins, bends=bends, mixed=mixed, pooled=pooled
        )
    if len(tagged) > 1 or _nonlinear(name, ins, tagged):
        bends += 1
    if several:  # a gate: a curve of each factor's units
        curved = f"{curved.removesuffix('product').strip()} product".strip()
    elif name == "mul" and curved and len(tagged) > 1:  # x * sigmoid(x)
        curved = _SELF_GATED.get(curved, curved)
    else:
        now = _nonlinear(name, ins, tagged)
        curved = _COMPOSED.get((curved, now), now) or curved
    return Value(
        axes,
        owners=owners,
        twins=twins,
        nonlinearity=curved,
        bends=bends,
        mixed=mixed,
        pooled=pooled,
    )


# Nonlinearities that are named together: gelu, as JAX approximates it, has this one.
_COMPOSED = {("integer_pow", "tanh"): "tanh(integer_pow)"}
# Units times a function of themselves, by the name of that function.
_SELF_GATED = {
    "logistic": "silu",
    "erf": "gelu",
    "erfc": "gelu",
    "tanh(integer_pow)": "gelu",
}


def _aligned(lead: Value, tagged: Sequence[Value]) -> bool:
    """Whether units of several kernels are added index for index."""
    for value in tagged:
        for axis in value.unit_axes(value.owners):
            sizes = [[p.size for p in v.axes[axis]] for v in (lead, value)]
            if sizes[0] != sizes[1] or not any(p.is_unit for p in lead.axes[axis]):
                return False
    return True


def _twins(values: Sequence[Value]) -> frozenset[tuple[Part, Part]]:
    return frozenset[tuple[Part, Part]]().union(*(v.twins for v in values))


def _pairs(lead: Value, other: Value) -> set[tuple[Part, Part]]:
    """Parts of the same entries in two factors of a product."""
    pairs = {
        pair
        for mine, its in zip(lead.axes, other.axes, strict=True)
        if [p.size for p in mine] == [p.size for p in its]
        for pair in zip(mine, its, strict=True)
        if pair[0].source != pair[1].source and pair[1].source is not None
    }
    return pairs | {(m, t) for m, i in pairs for p, t in other.twins if p == i}


def _lead_axis(
    lead: Value, arrays: Sequence[Value], i: int, n: int
) -> tuple[Part, ...]:
    if extent(lead.axes[i]) == n:
        return lead.axes[i]
    return next((v.axes[i] for v in arrays if extent(v.axes[i]) == n), position(n))


def _nonlinear(name: str, ins: Sequence[Value], tagged: Sequence[Value]) -> str:
    """The operation's name if it is nonlinear in the units, else ""."""
    if name in LINEAR_UNARY or name in ("add", "sub", "add_any"):
        return ""
    if name == "mul" or (name == "div" and not ins[1].owners):
        return name if len(tagged) > 1 else ""
    if name == "select_n" and not ins[0].owners:
        return ""
    return name


def _terms(name: str, ins: Sequence[Value], lead: Value) -> list[Value]:
    """Operands beside units that depend on data and may mix other units into them."""
    if name in UNARY or (name in MUL_LIKE and name != "select_n"):
        return []
    ins = ins[1:] if name == "select_n" else ins
    return [v for v in ins if v is not lead and not v.owners and v.deps]


def _mixes(
    name: str, ins: Sequence[Value], lead: Value, own: frozenset[int], owned: set[int]
) -> bool:
    """Whether an operand mixes other units into those of `own`, on axes `owned`."""
    for v in _terms(name, ins, lead):
        foreign = v.deps - own
        varies = {i for i, n in enumerate(v.shape) if n != 1 and not v.const[i]}
        if foreign and (foreign != {DATA} or not varies <= owned):
            return True
    return False


def _permuted(
    name: str, ins: Sequence[Value], lead: Value, own: frozenset[int], owned: set[int]
) -> bool:
    """Whether an operand is no summary of the same units, but has them elsewhere."""
    return any(
        _moved_about(v, lead, i)
        for v in _terms(name, ins, lead)
        if v.deps <= own
        for i in owned
        if i < len(v.shape)
    )


def _moved_about(value: Value, lead: Value, axis: int) -> bool:
    """Whether entries along an axis vary, but not with the units of `lead`."""
    if value.const[axis] or value.shape[axis] == 1:
        return False
    own = {p.source for p in lead.axes[axis] if p.is_unit}
    own |= {twin.source for part, twin in lead.twins if part.source in own}
    return not any(p.source in own for p in value.axes[axis])


def _kept_weight(
    name: str, ins: Sequence[Value], params: Mapping[str, Any]
) -> Value | None:
    """The operand whose weights the result still is: a 0 in it adds nothing."""
    weights = [v for v in ins if v.weight is not None]
    if not weights:
        return None
    full = [v for v in weights if not any(v.const) and max(v.shape, default=1) > 1]
    rank = max((len(v.shape) for v in ins), default=0)
    full = [v for v in full if len(v.shape) == rank and _covers(v, ins)]
    if any(use != DATA for v in ins for use in v.deps):
        return None
    at = {i for i, v in enumerate(ins) if any(v is w for w in full)}
    same = all(_same_entries(full[0], w) for w in full)
    if not full or not same or (len(full) > 1 and name == "div"):
        return None
    return full[0] if _adds_nothing(name, ins, at, params) else None


def _settled(value: Value) -> bool:
    """Whether a value depends on parameters and constants alone."""
    return value.constant or not value.deps


def _same_entries(one: Value, two: Value) -> bool:
    """Whether two values hold functions of the same weights, entry by entry."""
    return (one.weight, one.axes, one.scanned) == (two.weight, two.axes, two.scanned)


def _adds_nothing(
    name: str, ins: Sequence[Value], at: Collection[int], params: Mapping[str, Any]
) -> bool:
    """Whether operands `at` add nothing to the result where they are 0.

    That is so where it is 0 then, and in a sum with other parameters: in `x (W + A B)`
    each has a term of its own.
    """
    rule = zero_if(name, params, [v.number for v in ins])
    if rule is None:
        return False
    weights = {ins[i].weight for i in at}

    def apart(value: Value) -> bool:
        own = value.leaves and _settled(value) and not weights & value.leaves
        return bool(own) and name in ("add", "sub", "add_any")

    return all(
        any(i in at or ins[i].number == 0 or apart(ins[i]) for i in group)
        for group in rule
    )


def _covers(value: Value, ins: Sequence[Value]) -> bool:
    return all(
        v.shape[i] in (1, n) for v in ins if v.shape for i, n in enumerate(value.shape)
    )


# Moving --------------------------------------------------------------------------
def _moved(name: str, x: Value, move: Move, shape: tuple[int, ...]) -> Value:
    """What a move makes of a value."""
    if move.reshaped is not None:
        return _reshaped(x, move.reshaped, shape)
    origins = (*move.axes, *move.gone)
    for origin in origins:
        if isinstance(origin, Ranged):
            x = _picked(name, x, origin)
    pairs = [_axis(x, origin, n) for origin, n in zip(move.axes, shape, strict=True)]
    ends = any(isinstance(origin, Mixed | Padded | Tiled) for origin in origins)
    ends |= name in MIXING | ACROSS
    axes, const = [axis for axis, _ in pairs], [same for _, same in pairs]
    return _placed(x, axes, const, ends, name)


def _axis(x: Value, origin: AxisOrigin, size: int) -> tuple[Axis, bool]:
    """One axis of a result, and whether it is known not to vary along it."""
    if isinstance(origin, Kept | Ranged):
        return x.axes[origin.axis], x.const[origin.axis]
    return position(size), isinstance(origin, Repeated)


def _placed(
    value: Value, axes: Sequence[Axis], const: Sequence[bool], ends: bool, name: str
) -> Value:
    """A value with new axes; `ends`: whether the chain (and the weight) ends here."""
    if not ends:
        return value.replace(axes=tuple(axes), const=tuple(const))
    pooled = value.pool(axes, const)
    if pooled is not None:
        return pooled
    if value.weight is None:
        kept = without_units(axes) if value.mixed else tuple(axes)
        moved = Value(kept, tuple(const), deps=value.deps, lost=value.lost)
        return moved.replace(twins=value.twins)
    shape = [extent(a) for a in axes]
    return forget(name, [value], shape).replace(const=tuple(const))


def _reshaped(x: Value, order: Sequence[int], shape: tuple[int, ...]) -> Value:
    """A reshape; axes are moved first, as `vmap` of a convolution does."""
    x = x.replace(
        axes=tuple(x.axes[i] for i in order), const=tuple(x.const[i] for i in order)
    )
    axes = reshape(x, shape)
    varying = {p for a, c in zip(x.axes, x.const, strict=True) if not c for p in a}
    keys = {(p.source, p.axis) for p in varying}
    const = [all((p.source, p.axis) not in keys for p in a) for a in axes]
    blurred = x.weight is not None and any(
        p.source is None and p.size > 1 and not c
        for a, c in zip(axes, const, strict=True)
        for p in a
    )
    return _placed(x, axes, const, blurred, "reshape")


def _picked(name: str, x: Value, some: Ranged) -> Value:
    """Some entries of an axis: a range of its units, if that is what they are."""
    at, start, count, step = some
    axes = [*x.axes]
    if step < 0 and x.weight is not None:  # the same entries in reverse
        axes[at] = tuple(p._replace(stride=-abs(p.stride)) for p in axes[at])
        return x.replace(axes=tuple(axes))
    if step > 0 and (x.weight is None or count == 1):
        part = ranges.sliced(x, at, start, count, step)
        if part is not None and (x.weight is None or _is_indexed(part)):
            return part
    axes[at] = position(count)
    return _placed(x, axes, x.const, True, name)


def _is_indexed(x: Value) -> bool:
    """Whether a slice of a parameter is an index of whole axes, as `w[0]` is."""
    sources = {p.source for axis in x.axes for p in axis if p.source}
    return bool(sources) and not any(c.digits for s in sources for c in ranges.cuts(s))


def _joined(eqn: Any, ins: Sequence[Value], shape: tuple[int, ...]) -> Value:
    """Values one behind the other: the axes on which they agree keep their units.

    Values of the same units are a stack of them, so that slices give them back.
    """
    name = eqn.primitive.name
    ins = [v.released() for v in ins]
    found = forget(name, ins, shape)
    if any(v.weight is not None for v in ins):
        return found
    at = eqn.params["axis" if name == "stack" else "dimension"]
    if name == "stack":
        ins = [_with_axis(v, at) for v in ins]
    first, *rest = ins
    axes = [
        axis if all(v.axes[i] == axis for v in rest) else position(n)
        for i, (axis, n) in enumerate(zip(first.axes, shape, strict=True))
    ]
    same = all(v.axes[at] == first.axes[at] for v in rest)
    axes[at] = position(len(ins)) + first.axes[at] if same else position(shape[at])
    const = [all(v.const[i] for v in ins) and i != at for i in range(len(shape))]
    twins = frozenset.intersection(*(v.twins for v in ins))
    return found.replace(axes=tuple(axes), const=tuple(const), twins=twins)


def _with_axis(x: Value, at: int) -> Value:
    """The value with a new axis of size 1."""
    axes, const = [*x.axes], [*x.const]
    axes.insert(at, position(1))
    const.insert(at, True)
    return x.replace(axes=tuple(axes), const=tuple(const))


# By operation, the operand whose entries the result is made of, and the names of its
# axes that stay whole: of the operand's, or else of the result's.
BY_NUMBER = {"gather": (0, "offset_dims"), "scatter-add": (2, "update_window_dims")}


def _by_number(eqn: Any, ins: Sequence[Value], shape: tuple[int, ...]) -> Value:
    """Units at positions that are given by number, or summed there (messages)."""
    name = eqn.primitive.name
    which, window = BY_NUMBER[name]
    numbers = eqn.params["dimension_numbers"]
    x, windows = ins[which], getattr(numbers, window)
    gone = "collapsed_slice_dims" if which == 0 else "inserted_window_dims"
    batched = getattr(numbers, "operand_batching_dims", ())
    rank = len(ins[0].shape)
    whole = [d for d in range(rank) if d not in (*getattr(numbers, gone), *batched)]
    axes = list(positions(shape))
    for inside, outside in zip(whole, windows, strict=True):
        here, there = (inside, outside) if which == 0 else (outside, inside)
        if x.shape[here] == shape[there]:
            axes[there] = x.axes[here]
    forgotten = forget(name, ins, shape)
    if which == 2 and ins[0].deps:
        return forgotten
    pooled = x.pool(axes)
    return forgotten if pooled is None else pooled.replace(deps=forgotten.deps)
