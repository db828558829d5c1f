"""Products on tracks: a kernel that contracts all units of another one reads them.

The parts of the activation's axes give the unit of an entry, the parts of the kernel's
axes the input unit that reads it; cut into common digits they are the link between the
two kernels. Units on axes that a product leaves alone pass through it: attention
averages the values of a head over positions, unit by unit.
"""

from __future__ import annotations

import math

from bbjax.model.kernel import Kernel, Layout
from bbjax.tracing.flow import contract, zeros
from bbjax.tracing.flow.contract import Numbers, Use
from bbjax.tracing.flow.seen import Read, TrackStep
from bbjax.tracing.flow.tracks import (
    NEVER,
    STACK,
    Digit,
    Info,
    Source,
    Track,
    digits,
    indexed,
    layout,
    sourced,
    tidy,
)
from bbjax.tracing.flow.values import Axis, extent, position


def product(step: TrackStep, use: Use | None, own: tuple[Axis, ...]) -> Info:
    """What is known of the result of a product.

    Args:
      step: the product.
      use: the use that it is; None if it is no use of a kernel.
      own: axes of the result, with the parts of the use's units.
    """
    numbers = contract.numbers(step.eqn)
    kernel = step.seen.kernels.get(use.number) if use is not None else None
    _spoil_operands(step, use)
    if numbers is None:
        for info in step.infos:
            step.leak(info.units, f"{step.name} is not followed")
        return Info(loose=_loose(step))
    passed: dict[Source, Track] = {}
    through = NEVER
    for side, info in enumerate(step.infos):
        kept = _passing(step, side, numbers, use, kernel)
        for source, track in kept.items():
            if passed.setdefault(source, track) != track:
                step.leak([source[1]], f"{step.name} joins them with themselves")
                del passed[source]
                through, kept = NEVER, {}
        if kept and len(kept) == len(info.units):
            through = zeros.either(through, info.zeros)
    if use is None or kernel is None:
        return Info(passed, _loose(step), through)
    mine = _own_track(step, use, kernel, own)
    source = ("u", use.number)
    if mine is None:
        step.leak([use.number], "not every unit has its place in the product")
        return Info()
    bare = _bare(step.infos[1 - use.operand], use.weight)
    if not bare:
        step.seen.changed.add(use.number)
    zero = zeros.either(through, zeros.of(source) if bare else NEVER)
    return Info({**passed, source: mine}, zeros=zero)


def _loose(step: TrackStep) -> frozenset[int]:
    """Parameters that a product mixes, where it has no other operand."""
    if any(v.deps for v in step.values):
        return frozenset()
    return step.infos[0].leaves | step.infos[1].leaves


def _spoil_operands(step: TrackStep, use: Use | None) -> None:
    """Records that a parameter is multiplied with data: it is no companion."""
    if any(v.deps for v in step.values):
        for side, info in enumerate(step.infos):
            own = {use.weight} if use is not None and use.operand != side else set()
            step.spoil(info.leaves - own, "is multiplied as a matrix, too")


def _bare(info: Info, weight: int) -> bool:
    """Whether a product sees a kernel's weights, one by one, and no other parameter.

    Masked and scaled by data they are; standardised or normalised, cutting one edge
    changes others.
    """
    alone = info.leaves == {weight} and weight not in info.loose
    return alone and zeros.implied(info.zeros, ("w", weight))


# Units that pass through ---------------------------------------------------------
def _passing(
    step: TrackStep, side: int, numbers: Numbers, use: Use | None, kernel: Kernel | None
) -> dict[Source, Track]:
    """Tracks of an operand that pass the product; records reads and other uses."""
    info = step.infos[side]
    hit = set(numbers.contract[side])
    if step.name == "conv_general_dilated":
        hit |= set(range(len(step.values[side].shape))) - set(numbers.free[side])
    if use is not None or not step.values[1 - side].deps:
        hit |= set(numbers.batch[side])  # each unit with weights of its own
    read = _reads(step, side, use, kernel)
    kept: dict[Source, Track] = {}
    for number, track in info.units.items():
        if number in read:
            continue
        if any(sourced([track.axes[a]]) > 1 for a in hit):
            step.leak([number], f"{step.name} mixes them")
            continue
        axes = [
            track.axes[a] if s == side and a >= 0 else position(n)
            for n, (s, a) in zip(step.shape, _origin(numbers, side), strict=True)
        ]
        kept["u", number] = Track(tidy(axes), track.scans, raw=False)
    return kept


def _origin(numbers: Numbers, side: int) -> list[tuple[int, int]]:
    """For each axis of the result, the operand and axis; batch axes are of both."""
    found = []
    for s, a in numbers.result:
        if s != side and a in numbers.batch[s]:
            s, a = side, numbers.batch[side][numbers.batch[s].index(a)]
        found.append((s, a))
    return found


# Reads ---------------------------------------------------------------------------
def _reads(
    step: TrackStep, side: int, use: Use | None, kernel: Kernel | None
) -> set[int]:
    """Uses of which the product contracts all units; recorded as reads."""
    if use is None or kernel is None or use.operand != side:
        return set()
    info = step.infos[side]
    found = {}
    for number, track in info.units.items():
        link = _link(track, step.seen.kernels[number], use, kernel)
        if link is not None:
            found[number] = link
    for number, link in found.items():
        if info.running:
            step.leak([number], "a running statistic of theirs is multiplied")
        beside = frozenset(n for n, other in found.items() if other == link)
        read = Read(use.number, number, link, info.zeros, beside)
        if step.seen.live[step.node]:
            step.seen.reads.append(read)
    return set(found)


def _link(track: Track, theirs: Kernel, use: Use, kernel: Kernel) -> Layout | None:
    """Which unit each input unit of a use reads; None if not all, or across slices."""
    shared: list[Digit] = []
    source = ("w", use.weight)
    for axis, parts in zip(use.axes, use.parts, strict=True):
        mine = indexed(parts, kernel, "inputs", source)
        pairs = None if mine is None else digits(track.axes[axis], tidy([mine])[0])
        if pairs is None:
            return None
        shared += pairs
    layers, scans = {s: p for s, p in use.layers if p is not None}, dict(track.scans)
    if set(layers) != set(scans):
        return None
    for scope, part in layers.items():
        mine = indexed((part,), kernel, "inputs", source)
        pairs = None if mine is None else digits(scans[scope], tidy([mine])[0])
        if pairs is None:
            return None
        shared += pairs
    return _checked(shared, theirs, kernel)


def _checked(shared: list[Digit], theirs: Kernel, kernel: Kernel) -> Layout | None:
    """The layout of a link, if slices read slices and no unit is left out."""
    units, inputs = theirs.unit_count("in"), kernel.unit_count("out")
    found = []
    for size, unit, edge in shared:
        if edge.source is None:
            return None
        if edge.axis == STACK or unit.axis == STACK:
            if (edge.axis, unit.axis) != (STACK, STACK):
                return None
            if unit.stride // units != edge.stride // inputs:
                return None
            continue
        found.append((size, edge.stride, unit.stride if unit.source else 0))
    read = math.prod(size for size, _, stride in found if stride)
    stacks = math.prod(d.size for d in shared if d.second.axis == STACK)
    complete = read == units and math.prod(n for n, _, _ in found) == inputs
    whole = stacks == math.prod(theirs.stack_shape) == math.prod(kernel.stack_shape)
    return layout(found) if complete and whole else None


# The use's own units -------------------------------------------------------------
def _own_track(
    step: TrackStep, use: Use, kernel: Kernel, own: tuple[Axis, ...]
) -> Track | None:
    """The track of a use's units in its result."""
    source = ("u", use.number)
    axes = []
    for axis in own:
        parts = tuple(p if p.source == source else position(p.size)[0] for p in axis)
        found = indexed(parts, kernel, "outputs", source)
        if found is None:
            return None
        axes.append(found)
    scans = []
    for scope, part in use.layers:
        if part is not None:
            found = indexed((part,), kernel, "outputs", source)
            if found is None:
                return None
            scans.append((scope, tidy([found])[0]))
    track = Track(tidy(axes), tuple(scans))
    counted = sourced(track.axes) * math.prod(extent(a) for _, a in scans)
    total = math.prod(kernel.per_unit_shape("outputs"))
    fits = tuple(extent(a) for a in track.axes) == step.shape
    return track if counted == total and fits else None
