"""Reads kernels off a walked jaxpr, and where to measure their units.

The value measured for a kernel's output units is that after their last nonlinearity.
Candidates are the nodes between the product and the kernels that read it (or the
outputs of the function, if none does) through which every path goes and that are
elementwise functions of the units. With nodes numbered in topological order that is one
sweep: a node is on every path if no earlier node is an operand of a later one.

    product -> + bias -> norm -> relu -> dropout, norm, scale, positions -> next kernel
               measured here ------^

In `silu(g) * u` both kernels are measured at the product. Units that are added to those
of another kernel or to data, or that are pooled or picked over positions, are measured
after the nonlinearity that follows, else as they were before. Without a nonlinearity
the last candidate is taken. A `Tap` is such a place. Units of experts are measured as
long as their rows stand in the order of the ragged product.

Where slices take the units of one use apart, each range is swept for itself: values of
other ranges alone are not on its paths. Ranges without a nonlinearity are measured
where all units together are. So a use may have several taps, each for a part of its
units.

Where no kernel reads the units, the loss may follow: they are measured at their raw
output, or where the function returns them.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Callable, Collection, Sequence

import numpy as np

from bbjax.model.kernel import RAW, Kernel, Side
from bbjax.tracing import jaxprs
from bbjax.tracing.flow import ranges
from bbjax.tracing.flow.contract import Use
from bbjax.tracing.flow.distinct import distinct
from bbjax.tracing.flow.order import Order, order_of
from bbjax.tracing.flow.values import Axis, Part, Source, Value
from bbjax.tracing.flow.walk import Flow, Scope, living


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a measured value that are sorted by group: one group, one stack slice.

    Attributes:
      axis: axis of the value that they are on.
      prefix: axes of the value along which group sizes vary, outermost first.
      parts: parts of the parameter that number the groups.
      sizes: the variable (or constant) that holds the group sizes, in the scope of the
        value.
      order: how the rows of the product were put in this order.
    """

    axis: int
    prefix: tuple[int, ...]
    parts: Axis
    sizes: object
    order: Order | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Tap:
    """A place where a statistic of one side of a kernel is taken.

    Attributes:
      kernel: path of the kernel.
      side: `"inputs"` or `"outputs"`.
      scope: the scope that holds the value.
      var: the variable to measure.
      axes: its axes that carry stack and unit parts.
      parts: parts of the parameter on those axes, one tuple per axis.
      layers: for each enclosing scan, outermost first, the scope of its body and the
        part of the parameter that it runs over, or None if the statistic is summed
        over its iterations.
      use: the use of the kernel whose units these are.
      starts: of a slice of the kernel or a range of its units, `(axis of the kernel,
        first entry)`.
      units: which of these units count, as a mask over the axes of the kernel that
        count units; None for all.
      rows: the rows of the value, where they belong to stack slices by group.
    """

    kernel: str
    side: Side
    scope: Scope
    var: object
    axes: tuple[int, ...]
    parts: tuple[Axis, ...]
    layers: tuple[tuple[Scope, Part | None], ...]
    use: Use
    starts: tuple[tuple[int, int], ...] = ()
    units: np.ndarray | None = dataclasses.field(default=None, compare=False)
    rows: Rows | None = None


@dataclasses.dataclass(frozen=True)
class Traced:
    """What the trace of one function found."""

    kernels: tuple[Kernel, ...]
    problems: tuple[tuple[str, str], ...]
    others: tuple[tuple[str, str], ...]
    taps: tuple[Tap, ...]


def find(
    flow: Flow,
    paths: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    *,
    terms: bool = False,
) -> Traced:
    """Kernels, problems and taps of a walked function.

    Args:
      flow: what `walk` recorded.
      paths: path of each parameter leaf.
      shapes: shape of each leaf.
      dtypes: dtype of each leaf.
      terms: whether outputs are tapped before they meet units of other kernels.
    """
    single = distinct(flow)
    reaching, cut = _reaching(single), _cut(flow)
    by_weight: dict[int, list[Use]] = {}
    for use in flow.uses:
        by_weight.setdefault(use.weight, []).append(use)
    doubts = {w: why for w, why in flow.doubts.items() if w not in by_weight}
    problems = {paths[w]: why for w, why in (doubts | flow.problems).items()}
    kernels: dict[int, Kernel] = {}
    taps = []
    for weight, uses in by_weight.items():
        laid = [_layout(u, shapes[weight]) for u in uses]
        why = _conflict(uses, laid)
        if why or paths[weight] in problems:
            problems.setdefault(paths[weight], why)
            continue
        places = [_measured(single, u, reaching, cut.get(u.number, ())) for u in uses]
        kernels[weight] = Kernel(
            path=paths[weight],
            shape=shapes[weight],
            dtype=dtypes[weight],
            op=uses[0].op,
            uses=len(uses),
            nonlinearity=_common(uses, places),
            hidden=any(reaching[flow.use_nodes[u.number]] for u in uses),
            reads=_reads(flow, uses, paths),
            **laid[0],  # type: ignore[arg-type]
        )
        for use, spots in zip(uses, places, strict=True):
            taps.append(_input_tap(flow, use, paths[weight]))
            if terms:
                spots = [_term(flow, _candidates(single, use, None, reaching))]
            taps += [_output_tap(flow, use, paths[weight], place) for place in spots]
    rest = set(range(len(paths))) - set(by_weight) - set(flow.problems) - set(doubts)
    others = {paths[w]: why for w, why in _elsewhere(flow, shapes, rest).items()}
    return Traced(
        tuple(kernels.values()),
        tuple(sorted(problems.items())),
        tuple(sorted(others.items())),
        tuple(taps),
    )


# Parameters that are no kernels --------------------------------------------------
_HOW = {  # the first operation on a parameter that is not multiplied as a matrix
    "gather": "is read by index (gather)",
    "dynamic_slice": "is read by index (dynamic_slice)",
    "scan": "is read inside a scan",
    **dict.fromkeys(("add", "sub", "add_any"), "is added, not multiplied"),
    **dict.fromkeys(("mul", "div"), "is multiplied entry by entry, not as a matrix"),
}


def _elsewhere(
    flow: Flow, shapes: Sequence[tuple[int, ...]], leaves: set[int]
) -> dict[int, str]:
    """Parameters with several axes that reach the result in no product, and how."""
    wanted = {n for n in leaves if sum(size > 1 for size in shapes[n]) > 1}
    found: dict[int, str] = {}
    if not wanted:
        return found
    live = living(flow)
    for node, made in enumerate(flow.made):
        value = flow.values[node]
        if made.eqn is None or not live[node]:
            continue
        for source in made.sources:
            leaf = flow.values[source].weight
            if leaf in wanted and leaf not in found and value.weight != leaf:
                name = made.eqn.primitive.name
                found[leaf] = _HOW.get(name, f"acts through {name}, not as a matrix")
    return found


# Layout --------------------------------------------------------------------------
def _layout(use: Use, shape: tuple[int, ...]) -> dict[str, object] | str:
    """Roles of the axes of the parameter, or why it has none."""
    split: list[int] = []
    roles: list[str] = []
    per_axis: list[set[str]] = []
    depthwise = _depthwise_axis(use)
    for axis, size in enumerate(shape):
        if axis in dict(use.at):  # each use has a slice of its own
            split.append(size)
            roles.append("stack")
            per_axis.append({"stack"})
            continue
        parts = sorted(
            ((p, r) for p, r in use.roles if p.axis == axis),
            key=lambda pr: -abs(pr[0].stride),
        )
        if math.prod(p.size for p, _ in parts) != size:
            return f"axis {axis} does not reach the product whole"
        kinds = [r for _, r in parts] or ["spatial"]
        sizes = [p.size for p, _ in parts]
        if kinds == ["group"] and axis == depthwise:
            kinds, sizes = ["group", "out"], [size, 1]
        elif kinds == ["group"]:  # a whole axis of groups: separate kernels
            kinds = ["stack"]
        if len(set(kinds)) == 1:
            split.append(size)
            roles.append(kinds[0])
        elif kinds == ["group", "out"]:
            split += sizes
            roles += kinds
        else:
            return f"axis {axis} plays several roles: {', '.join(kinds)}"
        per_axis.append(set(kinds))

    def having(role: str) -> tuple[int, ...]:
        return tuple(a for a, kinds in enumerate(per_axis) if role in kinds)

    groups = math.prod(n for n, r in zip(split, roles, strict=True) if r == "group")
    return {
        "fan_in": having("in"),
        "fan_out": having("out"),
        "spatial": having("spatial"),
        "stack": having("stack"),
        "groups": groups,
        "split": tuple(split),
        "roles": tuple(roles),
    }


def _depthwise_axis(use: Use) -> int | None:
    """The axis of channels where every channel is a group of its own."""
    kinds = [r for _, r in use.roles]
    groups = [p.axis for p, r in use.roles if r == "group"]
    return groups[-1] if groups and "out" not in kinds else None


def _conflict(uses: Sequence[Use], laid: Sequence[dict[str, object] | str]) -> str:
    for layout in laid:
        if isinstance(layout, str):
            return layout
    first = laid[0]
    for use, other in zip(uses, laid, strict=True):
        if other != first:
            return (
                f"used {len(uses)} times with different axes: fan_in="
                f"{first['fan_in']} and {other['fan_in']}"  # type: ignore[index]
            )
        if use.op != uses[0].op:
            return "used both in a convolution and in a matrix product"
    return _missing(uses, first["split"])  # type: ignore[arg-type, index]


def _missing(uses: Sequence[Use], sizes: Sequence[int]) -> str:
    """Why uses of slices do not make up the kernel; empty if they do."""
    axes = {tuple(axis for axis, _ in use.at) for use in uses}
    if len(axes) > 1:
        return "is multiplied as a whole and in slices"
    count = math.prod(sizes[axis] for axis in axes.pop())
    found = len({use.at for use in uses})
    return "" if found == count else f"{found} of its {count} slices are multiplied"


def _common(uses: Sequence[Use], places: Sequence[Sequence[Spot]]) -> str:
    """The nonlinearities of all uses.

    None if one use of the same weights has none; one range or slice may be `"raw"`.
    """
    if any(use.at for use in uses):
        return _of_ranges([place for spots in places for place in spots])
    names = [_of_ranges(spots) for spots in places]
    return "/".join(dict.fromkeys(names)) if all(names) else ""


def _of_ranges(places: Sequence[Spot]) -> str:
    """The nonlinearities of some ranges of units, `"raw"` for one without."""
    names = dict.fromkeys(place.value.nonlinearity for place in places)
    return "/".join(name or RAW for name in names) if any(names) else ""


def _reads(flow: Flow, uses: Sequence[Use], paths: Sequence[str]) -> tuple[str, ...]:
    """Paths of the kernels whose units the uses read."""
    numbers = {source[1] for u in uses for source in u.reads}
    return tuple(dict.fromkeys(paths[flow.uses[n].weight] for n in sorted(numbers)))


# Where outputs are measured ------------------------------------------------------
def _reaching(flow: Flow) -> list[bool]:
    """For each node, whether a kernel reads something computed from it."""
    is_use, carried = set(flow.use_nodes), set(flow.carries.values())
    reaching = [False] * len(flow.values)
    for node in range(len(flow.values) - 1, -1, -1):
        reaching[node] = (
            node in flow.operand_of
            or node in carried
            or any(reaching[r] for r in flow.readers[node] if r not in is_use)
        )
    return reaching


@dataclasses.dataclass(frozen=True)
class Spot:
    """Where units of a use are measured.

    Attributes:
      node: the value.
      value: what is known of it.
      source: which units of the use it holds: all of them, or a range.
      units: which of these are measured there, as a mask over the kernel's axes that
        count units; None for all.
    """

    node: int
    value: Value
    source: Source
    units: np.ndarray | None = None


def _cut(flow: Flow) -> dict[int, list[Source]]:
    """By use, the ranges of its units that the function slices off."""
    found: dict[int, dict[Source, None]] = {}
    for value in flow.values:
        for source in value.owners:
            if ranges.cuts(source):
                found.setdefault(source[1], {})[source] = None
    return {number: list(sources) for number, sources in found.items()}


def _measured(
    flow: Flow, use: Use, reaching: Sequence[bool], cut: Sequence[Source]
) -> list[Spot]:
    """The places where `outputs` of a use are measured.

    Args:
      flow: what `walk` recorded.
      use: the use.
      reaching: for each node, whether a kernel reads something computed from it.
      cut: the ranges of the units of the use that the function slices off.
    """
    sizes = _unit_sizes(use)
    all_units = _place(flow, use, None, reaching)
    if not cut:
        return [all_units]
    masks = {source: ranges.covered(source, sizes) for source in cut}
    found: dict[tuple[int, Source], tuple[Spot, np.ndarray]] = {}
    for atom in _atoms(list(masks.values())):
        inside = {source for source, mask in masks.items() if mask[atom].all()}
        place = _place(flow, use, inside, reaching)
        if not place.value.nonlinearity:
            place = all_units
        key = place.node, place.source
        _, before = found.get(key, (place, np.zeros_like(atom)))
        found[key] = place, before | atom

    def only(place: Spot, units: np.ndarray) -> Spot:
        every = np.array_equal(units, ranges.covered(place.source, sizes))
        return place if every else dataclasses.replace(place, units=units)

    return [only(*spot) for spot in found.values()]


def _atoms(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The smallest sets of units that each of some ranges has whole, or not at all."""
    labels = np.zeros(masks[0].shape, np.int64)
    for mask in masks:
        _, labels = np.unique(2 * labels + mask, return_inverse=True)
        labels = labels.reshape(mask.shape)
    numbers, first = np.unique(labels, return_index=True)
    return [labels == numbers[i] for i in np.argsort(first)]


def _place(
    flow: Flow, use: Use, inside: Collection[Source] | None, reaching: Sequence[bool]
) -> Spot:
    """Where some units of a use are measured.

    That is the first value after the last nonlinearity: norms, scales, dropout and
    terms that follow do not count. Without a nonlinearity it is the last one, with the
    bias. Units to which others, or the data, were added count as the sum where that
    meets a nonlinearity, else as what they were before.
    """
    values = flow.values
    passed = _candidates(flow, use, inside, reaching)
    bent = [i for i, (n, _) in enumerate(passed) if values[n].nonlinearity]
    if not bent:
        return _term(flow, passed)
    last = values[passed[bent[-1]][0]]
    settled = (last.bends, last.nonlinearity)
    node, source = next(
        (n, s)
        for n, s in passed
        if (values[n].bends, values[n].nonlinearity) == settled
    )
    return Spot(node, values[node], source)


def _term(flow: Flow, passed: Sequence[tuple[int, Source]]) -> Spot:
    """The last of some values without other units or data in a sum or a product."""
    own = [
        (n, s)
        for n, s in passed
        if len(flow.values[n].owners) == 1 and not _beyond(flow.values[n])
    ]
    node, source = (own or passed)[-1]
    return Spot(node, flow.values[node], source)


def _candidates(
    flow: Flow, use: Use, inside: Collection[Source] | None, reaching: Sequence[bool]
) -> list[tuple[int, Source]]:
    """Values on every path that hold some units of a use, and as which source.

    Args:
      flow: what `walk` recorded.
      use: the use.
      inside: the ranges that hold the units in question; None for all units.
      reaching: for each node, whether a kernel reads something computed from it.
    """
    values, start = flow.values, flow.use_nodes[use.number]
    mine = ("u", use.number)

    def holds(node: int) -> list[Source]:
        """The sources of a value that the units in question belong to."""
        own = [s for s in values[node].owners if s[1] == use.number]
        return [s for s in own if s == mine or (inside is not None and s in inside)]

    def cut_off(node: int) -> bool:
        """Whether a value is a slice with other units of this use alone."""
        foreign = use.number in values[node].owning_uses and not holds(node)
        return foreign and inside is not None and len(flow.made[node].sources) == 1

    nodes, ended = _on_every_path(flow, use, reaching[start], reaching, holds, cut_off)
    if not ended:  # kernels read other units of the use only
        nodes, _ = _on_every_path(flow, use, False, reaching, holds, cut_off)
    passed = []
    for n in nodes:
        passed += [(n, s) for s in holds(n) if _complete(flow, use, n, s)][:1]
    return passed or [(start, mine)]


def _on_every_path(
    flow: Flow,
    use: Use,
    to_kernels: bool,
    reaching: Sequence[bool],
    holds: Callable[[int], Sequence[Source]],
    cut_off: Callable[[int], bool],
) -> tuple[list[int], bool]:
    """Nodes that can be measured on every path from a use to kernels or results.

    Returns:
      The nodes, in order, and whether any path arrives there, or is not followed.
    """
    start = flow.use_nodes[use.number]
    is_use, ends = set(flow.use_nodes), set(flow.outputs)
    carried = set(flow.carries.values())
    end_of_time = len(flow.values)
    passed: list[int] = []
    farthest, arrived = start, False
    heap, seen = [start], {start}
    while heap and farthest < end_of_time:
        node = heapq.heappop(heap)
        if farthest <= node:
            if not holds(node):
                return passed, True
            value = flow.values[node]
            scored = not to_kernels and (
                _beyond(value) or (node not in ends and bool(value.nonlinearity))
            )
            if node not in flow.untappable and not scored:
                passed.append(node)
        targets = [
            r
            for r in flow.readers[node]
            if r not in is_use and (reaching[r] or not to_kernels) and not cut_off(r)
        ]
        if to_kernels:
            arrives = node in flow.operand_of or node in carried
        else:  # no kernel reads them: up to where the outputs of the model are scored
            clear = all(holds(r) and not _beyond(flow.values[r]) for r in targets)
            arrives = node in ends or not clear
        arrived |= arrives
        farthest = max([farthest, *targets, *([end_of_time] if arrives else [])])
        for target in targets:
            if target not in seen:
                seen.add(target)
                heapq.heappush(heap, target)
    return passed, arrived


def _beyond(value: Value) -> bool:
    """Whether more than its own product and nonlinearities made a value."""
    return value.mixed or value.pooled


def _unit_sizes(use: Use) -> dict[int, int]:
    """Number of units on each axis of the kernel, without those that scans consume."""
    scanned = {part for _, part in use.layers}
    if use.ragged is not None:  # no axis of the result has them
        scanned |= set(use.ragged.parts)
    sizes: dict[int, int] = {}
    for part, role in use.roles:
        if role in ("out", "group", "stack") and part not in scanned:
            sizes[part.axis] = sizes.get(part.axis, 1) * part.size
    return dict(sorted(sizes.items()))


def _complete(flow: Flow, use: Use, node: int, source: Source) -> bool:
    """Whether every unit of a source has one place on the axes of a value."""
    value = flow.values[node]
    own = [p for axis in value.axes for p in _own_parts(value, axis, source)]
    all_units = [p for axis in value.axes for p in axis if p.source in value.owners]
    count = ranges.extent_of(source, _unit_sizes(use))
    placed = not value.is_merged and count == math.prod(p.size for p in own)
    placed = placed and count == math.prod(p.size for p in all_units)
    return placed and (use.ragged is None or _rows(flow, use, node) is not None)


def _rows(flow: Flow, use: Use, node: int) -> Rows | None:
    """The rows of a value by group; None if there are none, or none that are known."""
    ragged, value = use.ragged, flow.values[node]
    if ragged is None:
        return None
    held = [{*axis, *(t for p, t in value.twins if p in axis)} for axis in value.axes]
    found = [
        next((i for i, parts in enumerate(held) if parts.issuperset(mark)), None)
        for mark in ragged.marks
    ]
    places = [at for at in found if at is not None]
    sizes: object | None = ragged.sizes
    if flow.places[node][0] != use.scope and not jaxprs.is_literal(sizes):
        sizes = flow.copies.get((ragged.groups, flow.places[node][0]))
    if len(places) < len(found) or sizes is None:
        return None
    *prefix, axis = places
    return Rows(axis, tuple(prefix), ragged.parts, sizes)


def _own_parts(value: Value, axis: Axis, source: Source) -> Axis:
    """Parts on an axis that are units of a source, or their partners in a product."""
    twins = {p: t for p, t in value.twins if t.source == source}
    own = (p if p.source == source else twins.get(p) for p in axis)
    return tuple(p for p in own if p is not None)


def _by_role(use: Use, part: Part) -> Axis:
    """Units as parts of the parameter, of one role each: groups, outputs of a group."""
    part = part._replace(source=("w", use.weight))
    end = part.stride * part.size
    on = {p for p, _ in use.roles if p.axis == part.axis}
    pieces = sorted(
        (p for p in on if part.stride <= p.stride < end), key=lambda p: -p.stride
    )
    split = len(pieces) > 1 and math.prod(p.size for p in pieces) == part.size
    return tuple(pieces) if split else (part,)


# Taps ----------------------------------------------------------------------------
def _input_tap(flow: Flow, use: Use, path: str) -> Tap:
    rows = None
    if use.ragged is not None:
        r = use.ragged
        rows = Rows(r.axis, r.prefix, r.parts, r.sizes, order_of(flow, use))
    place = use.scope, use.atom, use.axes, use.parts, use.layers
    return Tap(path, "inputs", *place, use, use.at, rows=rows)


def _output_tap(flow: Flow, use: Use, path: str, place: Spot) -> Tap:
    scope, var = flow.places[place.node]
    carried = [
        (i, tuple(piece for part in own for piece in _by_role(use, part)))
        for i, axis in enumerate(place.value.axes)
        if (own := _own_parts(place.value, axis, place.source))
    ]
    axes = tuple(i for i, _ in carried)
    parts = tuple(p for _, p in carried)
    starts = use.at + tuple((c.axis, c.start) for c in ranges.cuts(place.source))
    where = scope, var, axes, parts, use.layers
    rows = _rows(flow, use, place.node)
    if rows is not None:
        rows = dataclasses.replace(rows, order=order_of(flow, use))
    return Tap(path, "outputs", *where, use, starts, place.units, rows)
