"""Elementwise operations on tracks: which operands leave the track of units intact.

There are two kinds of operands. A *factor* (of a product, a mask, a gate) scales units
and adds nothing. A *term* (of a sum, a maximum, a choice) adds something, so beside
units it has to be one of

    units of the same index     residual streams: the uses are tied from there on
    made of parameters alone    a bias; with one entry per unit it is a companion
    constant but for the unit   a running mean that the function is given as data

Any other term is recorded as a use that is not followed. It ends the track, unless it
is a summary of these very units (the mean in a layer norm).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bbjax.tracing.flow import zeros
from bbjax.tracing.flow.seen import Meet, TrackStep
from bbjax.tracing.flow.tracks import (
    Info,
    Source,
    Track,
    Zeros,
    at_rank,
    layout,
    matched,
    one_to_one,
    sourced,
    touching,
    whole,
)
from bbjax.tracing.flow.values import DATA
from bbjax.tracing.primitives import FACTORS, LINEAR_UNARY, SUMS


def elementwise(step: TrackStep) -> Info:
    """What is known of the result of an elementwise operation."""
    units, clashed = _merged(step, "u")
    zero = zeros.elementwise(step.name, step.eqn.params, step.infos)
    if clashed:
        step.leak({*units, *clashed}, f"{step.name} joins them in different orders")
        return Info()
    if not units:
        return _without_units(step, zero)
    terms = _terms(step)
    running = _running(step, units, terms)
    if not _add(step, units, terms, running):
        return Info()
    for i, info in enumerate(step.infos):
        if not info.units:
            _meet(step, i, units)
    linear = step.name in LINEAR_UNARY
    tracks = {("u", u): t._replace(raw=t.raw and linear) for u, t in units.items()}
    held = [i for i in step.infos if i.units]
    pooled = all(i.pooled for i in held)
    return Info(tracks, zeros=zero, pooled=pooled, running=running)


def _merged(step: TrackStep, kind: str) -> tuple[dict[int, Track], set[int]]:
    """Tracks of all operands at the shape of the result; those that disagree."""
    found: dict[int, Track] = {}
    clashed: set[int] = set()
    for info in step.infos:
        for use, track in (info.units if kind == "u" else info.params).items():
            track = at_rank(track, step.shape)
            first = found.setdefault(use, track)
            if (first.axes, first.scans) != (track.axes, track.scans):
                clashed.add(use)
            found[use] = first._replace(raw=first.raw and track.raw)
    return {u: t for u, t in found.items() if u not in clashed}, clashed


def _without_units(step: TrackStep, zero: Zeros) -> Info:
    """Parameters, constants and data among themselves."""
    params, clashed = _merged(step, "w")
    loose = frozenset(clashed).union(*(i.loose for i in step.infos))
    linear = step.name in LINEAR_UNARY
    tracks: dict[Source, Track] = {
        ("w", w): t._replace(raw=t.raw and linear) for w, t in params.items()
    }
    if any(v.deps for v in step.values):
        step.spoil(clashed, "acts on data in several orders, too")
    number = step.infos[0].number if linear and step.name != "neg" else None
    known = zeros.without(zero, {("w", w) for w in clashed})
    return Info(tracks, loose, known, number)


def _terms(step: TrackStep) -> list[int]:
    """Operands that add something of their own."""
    if step.name in FACTORS:
        return []
    return list(range(1 if step.name == "select_n" else 0, len(step.infos)))


# Sums ----------------------------------------------------------------------------
def _add(
    step: TrackStep, units: dict[int, Track], terms: Sequence[int], running: bool
) -> bool:
    """Records what is added to units; whether the result still has their track."""
    states = [i.running for i in step.infos if i.units]
    if any(states) and not all(states):
        step.leak(units, f"{step.name} joins them with a statistic of theirs")
        return False
    holders = [t for t in terms if step.infos[t].units]
    added = {u for t in holders for u in step.infos[t].units}
    if any(set(step.infos[t].units) != added for t in holders):
        if not _same_index(step, units, added):
            step.leak(units, f"{step.name} joins them with units in another order")
            return False
        if step.seen.live[step.node]:
            step.seen.ties.append(frozenset(added))
    rest = [t for t in terms if not step.infos[t].units]
    return all([running or _may_join(step, t, units) for t in rest])


def _same_index(step: TrackStep, units: dict[int, Track], uses: Iterable[int]) -> bool:
    """Whether the units of several uses are combined index for index."""
    first, *others = sorted(uses)
    shape = _index_shape(step, first)
    for other in others:
        shared = matched(units[first], units[other])
        if shared is None or _index_shape(step, other) != shape:
            return False
        if any((a.axis, a.stride) != (b.axis, b.stride) for _, a, b in shared):
            return False
    return True


def _index_shape(step: TrackStep, use: int) -> tuple[tuple[int, ...], int]:
    kernel = step.seen.kernels[use]
    return kernel.stack_shape, kernel.unit_count("in")


def _may_join(step: TrackStep, term: int, units: dict[int, Track]) -> bool:
    """Whether a term without units leaves the track to the units it is added to."""
    value = step.values[term]
    owned = _owned(units)
    foreign = value.deps - set(units)
    if not value.deps:
        return True
    if foreign == {DATA} and value.deps == {DATA}:
        fixed = [value.const[i] for i in range(len(value.const)) if i not in owned]
        if fixed and all(fixed):
            return True
    step.leak(units, f"{step.name} joins them with another value")
    varies = {i for i, n in enumerate(value.shape) if n != 1 and not value.const[i]}
    return not foreign and not varies & owned


def _owned(units: dict[int, Track]) -> set[int]:
    """Axes along which nothing but units runs."""
    axes = [t.axes for t in units.values()]
    return {
        i
        for i in range(len(axes[0]))
        if all(whole(a[i]) and sourced([a[i]]) > 1 for a in axes)
    }


def _running(step: TrackStep, units: dict[int, Track], terms: Sequence[int]) -> bool:
    """Whether this updates a statistic, one number per unit, that was given.

    `0.9 * given + 0.1 * mean` of a batch norm: one operand sums units up over all
    else, the other is data of that very shape, or a parameter that is scaled down.
    """
    holders = [i for i in step.infos if i.units]
    if all(i.running for i in holders):
        return True
    alone = all(n == 1 or i in _owned(units) for i, n in enumerate(step.shape))
    several = max(step.shape, default=1) > 1
    if not (several and alone and all(i.pooled for i in holders)):
        return False
    return any(_given(step, t) for t in terms if not step.infos[t].units)


def _given(step: TrackStep, term: int) -> bool:
    value, info = step.values[term], step.infos[term]
    scaled = [w for w, t in info.params.items() if not t.raw]
    known = any(zeros.implied(info.zeros, ("w", w)) for w in scaled)
    return value.deps == {DATA} or (not value.deps and known)


# Parameters ----------------------------------------------------------------------
def _meet(step: TrackStep, operand: int, units: dict[int, Track]) -> None:
    """Records how the parameters of an operand without units act on the units."""
    info, value = step.infos[operand], step.values[operand]
    if info.loose:
        step.spoil(info.loose, "acts on units as a whole")
        varies = {i for i, n in enumerate(value.shape) if n != 1 and not value.const[i]}
        if varies & {i for t in units.values() for i in _owned({0: t})}:
            step.leak(units, f"{step.name} joins them with a function of parameters")
    for leaf, track in info.params.items():
        _meet_leaf(step, operand, leaf, at_rank(track, step.shape), units)


def _meet_leaf(
    step: TrackStep, operand: int, leaf: int, track: Track, units: dict[int, Track]
) -> None:
    shared = {u: matched(track, t) for u, t in units.items()}
    same = frozenset(u for u, pairs in shared.items() if one_to_one(pairs))
    for use, pairs in shared.items():
        if use in same:
            places = [
                (d.size, d.first.stride, d.second.stride)
                for d in pairs or ()
                if d.first.source is not None
            ]
            meet = Meet(leaf, same, use, layout(places), _is_bias(step, operand))
            if step.seen.live[step.node]:
                step.seen.meets.append(meet)
        elif touching(pairs):
            step.leak([use], "a parameter has several entries for each of them")
    if not same:
        step.spoil([leaf], "does not have one entry for each of the units it acts on")


def _is_bias(step: TrackStep, operand: int) -> bool:
    """Whether an operand is a bare parameter, added to the raw output of a kernel."""
    if step.name not in SUMS or len(step.infos) != 2 or step.values[operand].deps:
        return False
    other = step.infos[1 - operand]
    bare = step.infos[operand]
    if bare.loose or len(bare.params) != 1 or len(other.units) != 1:
        return False
    return all(t.raw for i in (bare, other) for t in i.tracks.values())
