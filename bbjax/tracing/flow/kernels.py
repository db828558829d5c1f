"""Reads kernels off a walked jaxpr, and where to measure their units.

The value measured for a kernel's output units is that after their last nonlinearity.
Candidates are the nodes between the product and the kernels that read it (or the
outputs of the function, if none does) through which every path goes and that are
elementwise functions of the units. With nodes numbered in topological order that is one
sweep: a node is on every path if no earlier node is an operand of a later one.

    product -> + bias -> norm -> relu -> dropout, norm, scale, positions -> next kernel
               measured here ------^

In `silu(g) * u` both kernels are measured at the product. Units that are added to those
of another kernel are measured after the sum if a nonlinearity follows it, else by
themselves. Without a nonlinearity the last candidate is taken. A `Tap` is such a place.

Where no kernel reads the units, the loss may follow: they are measured at their raw
output, or where the function returns them.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Sequence

from bbjax.model.kernel import Kernel, Side
from bbjax.tracing.flow import links
from bbjax.tracing.flow.contract import Use
from bbjax.tracing.flow.distinct import distinct
from bbjax.tracing.flow.seen import living
from bbjax.tracing.flow.values import Axis, Part, Value
from bbjax.tracing.flow.walk import Flow, Scope


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
    """

    kernel: str
    side: Side
    scope: Scope
    var: object
    axes: tuple[int, ...]
    parts: tuple[Axis, ...]
    layers: tuple[tuple[Scope, Part | None], ...]
    use: Use


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
    graph: bool = False,
) -> Traced:
    """Kernels, problems and taps of a walked function.

    Args:
      flow: what `walk` recorded.
      paths: path of each parameter leaf.
      shapes: shape of each leaf.
      dtypes: dtype of each leaf.
      graph: whether to find the biases, companions and links of kernels.
    """
    single = distinct(flow)
    reaching = _reaching(single)
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
        spots = [_measured(single, u, reaching) for u in uses]
        kernels[weight] = Kernel(
            path=paths[weight],
            shape=shapes[weight],
            dtype=dtypes[weight],
            op=uses[0].op,
            uses=len(uses),
            nonlinearity=_common([s.nonlinearity for _, s in spots]),
            hidden=any(reaching[flow.use_nodes[u.number]] for u in uses),
            reads=_reads(flow, uses, paths),
            **laid[0],  # type: ignore[arg-type]
        )
        for use, (node, value) in zip(uses, spots, strict=True):
            taps.append(_input_tap(use, paths[weight]))
            taps.append(_output_tap(flow, use, paths[weight], node, value))
    done: Sequence[Kernel] = tuple(kernels.values())
    if graph:
        done = tuple(links.linked(flow, kernels, paths, shapes))
    rest = set(range(len(paths))) - set(by_weight) - set(flow.problems) - set(doubts)
    others = {paths[w]: why for w, why in _elsewhere(flow, shapes, rest).items()}
    return Traced(
        tuple(done),
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
    return ""


def _common(names: Sequence[str]) -> str:
    """The nonlinearities of all uses; none if one use has none."""
    return "/".join(dict.fromkeys(names)) if all(names) else ""


def _reads(flow: Flow, uses: Sequence[Use], paths: Sequence[str]) -> tuple[str, ...]:
    """Paths of the kernels whose units the uses read."""
    numbers = {number for u in uses for _, number in u.reads}
    return tuple(dict.fromkeys(paths[flow.uses[n].weight] for n in sorted(numbers)))


# Where outputs are measured ------------------------------------------------------
def _reaching(flow: Flow) -> list[bool]:
    """For each node, whether a kernel reads something computed from it."""
    is_use = set(flow.use_nodes)
    reaching = [False] * len(flow.values)
    for node in range(len(flow.values) - 1, -1, -1):
        reaching[node] = (
            node in flow.operand_of
            or node in flow.escapes
            or any(reaching[r] for r in flow.readers[node] if r not in is_use)
        )
    return reaching


def _measured(flow: Flow, use: Use, reaching: Sequence[bool]) -> tuple[int, Value]:
    """The node that `outputs` of a use measures, and what is known of it."""
    start = flow.use_nodes[use.number]
    to_kernels = reaching[start]
    is_use, ends = set(flow.use_nodes), set(flow.outputs)
    end_of_time = len(flow.values)
    passed: list[int] = []  # nodes on every path that can be measured
    farthest = start
    heap, seen = [start], {start}
    while heap and farthest < end_of_time:
        node = heapq.heappop(heap)
        value = flow.values[node]
        if farthest <= node:
            if use.number not in value.owners:
                break
            scored = not to_kernels and (
                _beyond(value) or (node not in ends and bool(value.nonlinearity))
            )
            if node not in flow.untappable and _complete(use, value) and not scored:
                passed.append(node)
        targets = [
            r
            for r in flow.readers[node]
            if r not in is_use and (reaching[r] or not to_kernels)
        ]
        if to_kernels:
            arrived = node in flow.operand_of or node in flow.escapes
        else:  # no kernel reads them: up to where the outputs of the model are scored
            after = [flow.values[r] for r in targets]
            left = [v for v in after if use.number not in v.owners or _beyond(v)]
            arrived = bool(left) or node in ends
        farthest = max([farthest, *targets, *([end_of_time] if arrived else [])])
        for target in targets:
            if target not in seen:
                seen.add(target)
                heapq.heappush(heap, target)
    return _place(flow, use, passed or [start])


def _place(flow: Flow, use: Use, nodes: Sequence[int]) -> tuple[int, Value]:
    """Which of some nodes on every path to measure, and what is known of it.

    That is the first one after the last nonlinearity: norms, scales, dropout and terms
    that follow do not count. Without a nonlinearity it is the last one, with the bias.
    Units to which others, or the data, were added count as the sum where that meets a
    nonlinearity, else as what they were before.
    """
    values = flow.values
    curved = [n for n in nodes if values[n].nonlinearity]
    if not curved:
        own = [
            n
            for n in nodes
            if values[n].owners == {use.number} and not _beyond(values[n])
        ]
        end = (own or nodes)[-1]
        return end, values[end]
    last = values[curved[-1]]
    settled = (last.bends, last.nonlinearity)
    after = ((values[n].bends, values[n].nonlinearity) for n in curved)
    first = next(n for n, known in zip(curved, after, strict=True) if known == settled)
    return first, values[first]


def _beyond(value: Value) -> bool:
    """Whether more than its own product and nonlinearities made a value."""
    return value.mixed or value.pooled


def _complete(use: Use, value: Value) -> bool:
    """Whether every unit of the use has its place on the axes of the value."""
    if value.is_merged:
        return False
    scanned = {part for _, part in use.layers}
    total = math.prod(
        p.size
        for p, r in use.roles
        if r in ("out", "group", "stack") and p not in scanned
    )
    return total == math.prod(
        p.size for axis in value.axes for p in _own_parts(use, value, axis)
    )


def _own_parts(use: Use, value: Value, axis: Axis) -> Axis:
    """Parts on an axis that are the use's own units, or their partners in a product."""
    mine = ("u", use.number)
    twins = {p: t for p, t in value.twins if t.source == mine}
    own = (p if p.source == mine else twins.get(p) for p in axis)
    return tuple(piece for p in own if p is not None for piece in _by_role(use, p))


def _by_role(use: Use, part: Part) -> Axis:
    """A part in pieces of one role each: groups, and the outputs of a group."""
    end = part.stride * part.size
    pieces = sorted(
        (
            p._replace(source=part.source)
            for p, _ in use.roles
            if p.axis == part.axis and part.stride <= p.stride < end
        ),
        key=lambda p: -p.stride,
    )
    whole = math.prod(p.size for p in pieces) == part.size
    return tuple(pieces) if whole else (part,)


# Taps ----------------------------------------------------------------------------
def _input_tap(use: Use, path: str) -> Tap:
    layers = use.layers
    return Tap(path, "inputs", use.scope, use.atom, use.axes, use.parts, layers, use)


def _output_tap(flow: Flow, use: Use, path: str, node: int, value: Value) -> Tap:
    scope, var = flow.places[node]
    carried = [
        (i, tuple(p._replace(source=("w", use.weight)) for p in own))
        for i, axis in enumerate(value.axes)
        if (own := _own_parts(use, value, axis))
    ]
    axes = tuple(i for i, _ in carried)
    parts = tuple(p for _, p in carried)
    return Tap(path, "outputs", scope, var, axes, parts, use.layers, use)
